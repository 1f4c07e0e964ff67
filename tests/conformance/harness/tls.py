"""A TLS client whose every message a suite may bend: TLS 1.2 with ECDHE and AEAD suites, and TLS 1.3.

Messages are plain bytes made by small functions, so that a case can cut, stretch, double or reorder them; record
protection, key exchange and signatures come from tlslite-ng. Nothing here checks what a server must not do unless a case
asks: `expect` compares the type of what came with what the case waits for, and cases look at the bytes.
"""

import hashlib
import os
import socket
import struct

from tlslite.keyexchange import ECDHKeyExchange
from tlslite.mathtls import PRF_1_2, PRF_1_2_SHA384
from tlslite.utils.chacha20_poly1305 import CHACHA20_POLY1305
from tlslite.utils.cipherfactory import createAESGCM
from tlslite.utils.cryptomath import HKDF_expand_label, secureHMAC
from tlslite.utils.keyfactory import parsePEMKey
from tlslite.x509certchain import X509CertChain

from .suite import Failed

# How long a client waits for the server, seconds. A debug build answers within milliseconds.
WAIT_S = 8

# Content types (RFC 8446 section 5.1).
CCS, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23

# Handshake types (RFC 8446 section 4).
CLIENT_HELLO, SERVER_HELLO, NEW_SESSION_TICKET, ENCRYPTED_EXTENSIONS = 1, 2, 4, 8
CERTIFICATE, SERVER_KEY_EXCHANGE, CERTIFICATE_REQUEST, SERVER_HELLO_DONE = 11, 12, 13, 14
CERTIFICATE_VERIFY, CLIENT_KEY_EXCHANGE, FINISHED, KEY_UPDATE = 15, 16, 20, 24

# Alerts (RFC 8446 section 6).
ALERTS = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow", 40: "handshake_failure",
    42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired",
    46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error",
    51: "decrypt_error", 70: "protocol_version", 71: "insufficient_security", 80: "internal_error",
    86: "inappropriate_fallback", 90: "user_canceled", 100: "no_renegotiation", 109: "missing_extension",
    110: "unsupported_extension", 112: "unrecognized_name", 116: "certificate_required", 120: "no_application_protocol",
}  # fmt: skip

# Suites by number: key length, hash, whether ChaCha20.
SUITES_13 = {0x1301: (16, "sha256", False), 0x1302: (32, "sha384", False), 0x1303: (32, "sha256", True)}
SUITES_12 = {
    0xC02B: (16, "sha256", False), 0xC02C: (32, "sha384", False), 0xCCA9: (32, "sha256", True),
    0xC02F: (16, "sha256", False), 0xC030: (32, "sha384", False), 0xCCA8: (32, "sha256", True),
}  # fmt: skip
SCSV = 0x00FF

# Groups (RFC 8446 section 4.2.7).
P256, P384, P521, X25519 = 0x0017, 0x0018, 0x0019, 0x001D

# Signature schemes (RFC 8446 section 4.2.3).
RSA_PKCS1_SHA1, ECDSA_SHA1 = 0x0201, 0x0203
RSA_PKCS1_SHA256, ECDSA_P256_SHA256, RSA_PSS_SHA256, ED25519 = 0x0401, 0x0403, 0x0804, 0x0807
SCHEMES = [ECDSA_P256_SHA256, 0x0503, ED25519, RSA_PSS_SHA256, 0x0805, 0x0806, RSA_PKCS1_SHA256, 0x0501, 0x0601]

# A ServerHello with this random is a HelloRetryRequest (RFC 8446 section 4.1.3).
RETRY = bytes.fromhex("CF21AD74E59A6111BE1D8C021E65B891C2A211167ABB8C5E079E09E2C8A8339C")


def u8(number):
    return struct.pack("!B", number)


def u16(number):
    return struct.pack("!H", number)


def u24(number):
    return struct.pack("!L", number)[1:]


def vec8(data):
    return u8(len(data)) + data


def vec16(data):
    return u16(len(data)) + data


def vec24(data):
    return u24(len(data)) + data


def u16s(numbers):
    return b"".join(u16(number) for number in numbers)


def message(kind, body):
    """A handshake message."""
    return u8(kind) + vec24(body)


# Extensions: pairs of type and body.


def server_name(name):
    return 0, vec16(u8(0) + vec16(name.encode()))


def supported_groups(groups):
    return 10, vec16(u16s(groups))


def point_formats(formats=b"\x00"):
    return 11, vec8(formats)


def signature_algorithms(schemes):
    return 13, vec16(u16s(schemes))


def alpn(protocols):
    return 16, vec16(b"".join(vec8(protocol.encode()) for protocol in protocols))


def supported_versions(versions):
    return 43, vec8(u16s(versions))


def psk_modes(modes=b"\x01"):
    return 45, vec8(modes)


def key_shares(pairs):
    return 51, vec16(b"".join(u16(group) + vec16(share) for group, share in pairs))


EMS = (23, b"")
TICKET = (35, b"")
RENEGOTIATION = (0xFF01, vec8(b""))


def extensions_block(extensions):
    return vec16(b"".join(u16(kind) + vec16(body) for kind, body in extensions))


def parse_extensions(data):
    """Type and body of each extension of a block, without its length, in order."""
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from("!HH", data, at)
        found.append((kind, data[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


class Share:
    """A key pair of one group."""

    def __init__(self, group):
        self.group = group
        self._exchange = ECDHKeyExchange(group, (3, 4))
        self._private = self._exchange.get_random_private_key()
        self.public = bytes(self._exchange.calc_public_value(self._private))

    def secret(self, theirs):
        return bytes(self._exchange.calc_shared_key(self._private, bytearray(theirs)))


class Hello:
    """A ClientHello, as its parts; `bytes()` puts them together."""

    def __init__(self, suites, extensions, version=0x0303, session_id=b"", compression=b"\x00", random=None):
        self.version = version
        self.random = random or os.urandom(32)
        self.session_id = session_id
        self.suites = list(suites)
        self.compression = compression
        self.extensions = list(extensions)
        self.shares = {}
        self.tail = b""

    def body(self):
        head = u16(self.version) + self.random + vec8(self.session_id) + vec16(u16s(self.suites)) + vec8(self.compression)
        return head + extensions_block(self.extensions) + self.tail

    def bytes(self):
        return message(CLIENT_HELLO, self.body())

    def without(self, kind):
        """Takes an extension out."""
        self.extensions = [each for each in self.extensions if each[0] != kind]
        return self

    def put(self, extension):
        """Puts an extension in the place of the one of its type, or at the end."""
        kinds = [kind for kind, _ in self.extensions]
        if extension[0] in kinds:
            self.extensions[kinds.index(extension[0])] = extension
        else:
            self.extensions.append(extension)
        return self


def hello_13(name, groups=(X25519, P256, P384), shares=(X25519,), suites=(0x1301, 0x1302, 0x1303), more=()):
    """An ordinary ClientHello of a client that has TLS 1.3 only, with key shares for some of its groups."""
    keys = {group: Share(group) for group in shares}
    hello = Hello(
        suites,
        [
            server_name(name),
            supported_groups(groups),
            signature_algorithms(SCHEMES),
            supported_versions([0x0304]),
            key_shares([(group, key.public) for group, key in keys.items()]),
            psk_modes(),
            *more,
        ],
        session_id=os.urandom(32),
    )
    hello.shares = keys
    return hello


def hello_12(name, suites=tuple(SUITES_12), groups=(X25519, P256, P384), more=(), ems=True):
    """An ordinary ClientHello of a client that has TLS 1.2 only."""
    extensions = [
        server_name(name),
        supported_groups(groups),
        point_formats(),
        signature_algorithms(SCHEMES),
        RENEGOTIATION,
    ]
    return Hello(suites, extensions + ([EMS] if ems else []) + list(more))


class Chain:
    """A client certificate with its key."""

    def __init__(self, pem, key):
        chain = X509CertChain()
        chain.parsePemList(pem.read_text())
        self.der = [bytes(each.writeBytes()) for each in chain.x509List]
        self.key = parsePEMKey(key.read_text(), private=True)

    def message_13(self, context=b"", entry_extensions=b""):
        entries = b"".join(vec24(each) + vec16(entry_extensions) for each in self.der)
        return message(CERTIFICATE, vec8(context) + vec24(entries))

    def message_12(self):
        return message(CERTIFICATE, vec24(b"".join(vec24(each) for each in self.der)))

    def sign(self, scheme, content):
        """A signature of the content under a scheme, whether or not the scheme is allowed where it is used."""
        if scheme == ED25519:
            return bytes(self.key.hashAndSign(bytearray(content)))
        digest = {0x02: "sha1", 0x04: "sha256", 0x05: "sha384", 0x06: "sha512"}.get(scheme >> 8)
        if digest and scheme & 0xFF == 0x03:
            return bytes(self.key.sign(bytearray(hashlib.new(digest, content).digest()), hashAlg=digest))
        if digest:
            return bytes(self.key.hashAndSign(bytearray(content), "PKCS1", digest))
        digest, size = {0x0804: ("sha256", 32), 0x0805: ("sha384", 48), 0x0806: ("sha512", 64)}[scheme]
        return bytes(self.key.hashAndSign(bytearray(content), "PSS", digest, size))


def content_13(transcript_hash, who=b"client"):
    """What a CertificateVerify signs (RFC 8446 section 4.4.3)."""
    return b"\x20" * 64 + b"TLS 1.3, " + who + b" CertificateVerify\x00" + transcript_hash


EMPTY_CERTIFICATE_13 = message(CERTIFICATE, vec8(b"") + vec24(b""))
EMPTY_CERTIFICATE_12 = message(CERTIFICATE, vec24(b""))


class Cipher:
    """One direction of a connection's record protection."""

    def __init__(self, suite, key, iv, tls13):
        chacha = (SUITES_13.get(suite) or SUITES_12[suite])[2]
        self.aead = CHACHA20_POLY1305(bytearray(key), "python") if chacha else createAESGCM(bytearray(key))
        self.iv, self.tls13, self.chacha = bytes(iv), tls13, chacha
        self.sequence = 0

    def _nonce(self, explicit=None):
        sequence = struct.pack("!Q", self.sequence)
        if self.tls13 or self.chacha:
            padded = bytes(4) + sequence
            return bytearray(a ^ b for a, b in zip(padded, self.iv))
        return bytearray(self.iv + (explicit or sequence))

    def seal(self, kind, data, padding=0):
        """The payload of a record of a content type; TLS 1.3 hides it and pads."""
        if self.tls13:
            inner = bytearray(data + u8(kind) + bytes(padding))
            head = u8(DATA) + u16(0x0303) + u16(len(inner) + 16)
            sealed = self.aead.seal(self._nonce(), inner, bytearray(head))
        else:
            head = struct.pack("!QBHH", self.sequence, kind, 0x0303, len(data))
            sealed = self.aead.seal(self._nonce(), bytearray(data), bytearray(head))
            if not self.chacha:
                sealed = struct.pack("!Q", self.sequence) + bytes(sealed)
        self.sequence += 1
        return bytes(sealed)

    def open(self, kind, payload):
        """Content type and data of a protected record."""
        if self.tls13:
            head = u8(kind) + u16(0x0303) + u16(len(payload))
            inner = self.aead.open(self._nonce(), bytearray(payload), bytearray(head))
            if inner is None:
                raise Failed("the server's record does not open")
            inner = bytes(inner).rstrip(b"\x00")
            kind, data = inner[-1], inner[:-1]
        else:
            explicit = None
            if not self.chacha:
                explicit, payload = payload[:8], payload[8:]
            head = struct.pack("!QBHH", self.sequence, kind, 0x0303, len(payload) - 16)
            data = self.aead.open(self._nonce(explicit), bytearray(payload), bytearray(head))
            if data is None:
                raise Failed("the server's record does not open")
            data = bytes(data)
        self.sequence += 1
        return kind, data


class Conversation:
    """A connection that is being bent. Sending and expecting are separate; `transcript` holds the handshake so far."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.raw = b""
        self.handshake = b""
        self.transcript = b""
        self.reader = self.writer = None
        self.suite = None
        self.digest = "sha256"
        self.hello = None
        self.tickets = []
        self.server_extensions = {}
        self.ems = False

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Sending.

    def send_raw(self, data):
        """Bytes as they are. A server that has hung up already is noticed when something is expected of it."""
        try:
            self.socket.sendall(data)
        except OSError:
            pass

    def record(self, kind, data, padding=0, version=0x0303):
        """A record, protected if the keys are in place."""
        if self.writer is None:
            return u8(kind) + u16(version) + vec16(data)
        outer = DATA if self.writer.tls13 else kind
        return u8(outer) + u16(0x0303) + vec16(self.writer.seal(kind, data, padding))

    def send(self, kind, data, **options):
        self.send_raw(self.record(kind, data, **options))

    def send_message(self, data, in_transcript=True, fragment=None, **options):
        """A handshake message, or several; `fragment` sends it in records of so many bytes."""
        if in_transcript:
            self.transcript += data
        step = fragment or len(data) or 1
        self.send_raw(b"".join(self.record(HANDSHAKE, data[at : at + step], **options) for at in range(0, len(data), step)))

    def send_hello(self, hello, **options):
        self.hello = hello
        self.send_message(hello.bytes(), **options)

    def send_ccs(self, body=b"\x01"):
        """A ChangeCipherSpec, which TLS 1.3 never protects."""
        if self.writer is not None and not self.writer.tls13:
            self.send(CCS, body)
        else:
            self.send_raw(u8(CCS) + u16(0x0303) + vec16(body))

    def send_data(self, data=b"GET / HTTP/1.0\r\n\r\n", **options):
        self.send(DATA, data, **options)

    # Receiving.

    def _exactly(self, size):
        while len(self.raw) < size:
            try:
                got = self.socket.recv(65536)
            except socket.timeout:
                raise Failed(f"the server says nothing for {WAIT_S} s") from None
            except ConnectionError:
                got = b""
            if not got:
                return None
            self.raw += got
        taken, self.raw = self.raw[:size], self.raw[size:]
        return taken

    def receive_record(self):
        """The next record: type and data, or None at the end. TLS 1.3's ChangeCipherSpec is passed over."""
        while True:
            head = self._exactly(5)
            if head is None:
                return None
            kind, _, size = struct.unpack("!BHH", head)
            payload = self._exactly(size)
            if payload is None:
                raise Failed("the server's last record is cut off")
            plain_in_13 = self.reader is not None and self.reader.tls13 and kind != DATA
            if self.reader is None or plain_in_13:
                if kind == CCS and (self.hello is None or self.is_13):
                    continue
                return kind, payload
            return self.reader.open(kind, payload)

    @property
    def is_13(self):
        return any(kind == 43 for kind, _ in self.hello.extensions)

    def receive(self):
        """The next thing: ("message", type, bytes), ("alert", level, description), ("data", bytes), ("ccs",) or ("end",)."""
        while True:
            if len(self.handshake) >= 4:
                size = 4 + int.from_bytes(self.handshake[1:4], "big")
                if len(self.handshake) >= size:
                    whole, self.handshake = self.handshake[:size], self.handshake[size:]
                    return "message", whole[0], whole
            got = self.receive_record()
            if got is None:
                return ("end",)
            kind, data = got
            if kind == HANDSHAKE:
                self.handshake += data
            elif kind == ALERT:
                return "alert", data[0], ALERTS.get(data[1], str(data[1]))
            elif kind == CCS:
                return ("ccs",)
            elif data:
                return "data", data

    def expect(self, kind, in_transcript=True):
        """The body of the next handshake message, which must be of this type."""
        got = self.receive()
        if got[:2] != ("message", kind):
            raise Failed(f"{_short(got)} instead of handshake message {kind}")
        if in_transcript:
            self.transcript += got[2]
        return got[2][4:]

    def expect_alert(self, *descriptions, fatal=True):
        """The connection ends with one of these alerts; in a handshake, messages that were under way may come before."""
        while True:
            got = self.receive()
            if got[0] == "message" and got[1] in (SERVER_HELLO, ENCRYPTED_EXTENSIONS, CERTIFICATE_REQUEST, CERTIFICATE,
                                                  CERTIFICATE_VERIFY, FINISHED, NEW_SESSION_TICKET):  # fmt: skip
                if got[1] == SERVER_HELLO and self.reader is None and self.is_13:
                    self._pass_server_hello(got[2])
                continue
            break
        if got[0] != "alert" or got[2] not in descriptions:
            raise Failed(f"{_short(got)} instead of alert {' or '.join(descriptions)}")
        if fatal and got[1] != 2:
            raise Failed(f"alert {got[2]} has level {got[1]} instead of 2 (fatal)")
        if fatal:
            self.expect_end()
        return got[2]

    def _pass_server_hello(self, whole):
        """Goes on far enough to read an alert that comes protected."""
        self.transcript += whole
        self.keys_from(whole[4:])

    def expect_end(self):
        """The server hangs up, and says nothing more."""
        got = self.receive()
        if got[0] != "end":
            raise Failed(f"{_short(got)} instead of the end of the connection")

    def expect_data(self, wanted=None):
        """Application data; tickets that come before it are kept. With `wanted`, as much as it takes, which must be equal."""
        seen = b""
        while True:
            got = self.receive()
            if got[:2] == ("message", NEW_SESSION_TICKET):
                self.tickets.append(got[2][4:])
                continue
            if got[0] != "data":
                raise Failed(f"{_short(got)} instead of application data")
            seen += got[1]
            if wanted is None:
                return seen
            if len(seen) >= len(wanted):
                if seen != wanted:
                    raise Failed(f"{seen[:80]!r} ({len(seen)} bytes) instead of {wanted[:80]!r}")
                return seen

    def expect_answer(self, request=b"GET / HTTP/1.0\r\n\r\n"):
        """Asks and is answered: the connection works."""
        self.send_data(request)
        answer = self.expect_data()
        if not answer.startswith(b"HTTP/1."):
            raise Failed(f"not an answer: {answer[:60]!r}")
        return answer

    # TLS 1.3's keys (RFC 8446 section 7.1).

    def hash(self, data=None):
        return hashlib.new(self.digest, self.transcript if data is None else data).digest()

    def _expand(self, secret, label, context, size=None):
        size = size or hashlib.new(self.digest).digest_size
        return bytes(HKDF_expand_label(bytearray(secret), label, bytearray(context), size, self.digest))

    def _extract(self, salt, secret):
        return bytes(secureHMAC(bytearray(salt), bytearray(secret), self.digest))

    def cipher_13(self, secret):
        size = SUITES_13[self.suite][0]
        return Cipher(self.suite, self._expand(secret, b"key", b"", size), self._expand(secret, b"iv", b"", 12), True)

    def keys_from(self, server_hello, psk=None):
        """Takes a ServerHello's body, and begins to read with the handshake's keys."""
        at = 35 + server_hello[34]
        self.suite = int.from_bytes(server_hello[at : at + 2], "big")
        if self.suite not in SUITES_13:
            raise Failed(f"suite {self.suite:#06x} in TLS 1.3")
        self.digest = SUITES_13[self.suite][1]
        self.server_extensions = dict(parse_extensions(server_hello[at + 5 :]))
        share = self.server_extensions[51]
        group, theirs = int.from_bytes(share[:2], "big"), share[4:]
        self.group = group
        zeros = bytes(hashlib.new(self.digest).digest_size)
        early = self._extract(zeros, psk if psk and 41 in self.server_extensions else zeros)
        derived = self._expand(early, b"derived", self.hash(b""))
        handshake = self._extract(derived, self.hello.shares[group].secret(theirs))
        self.client_secret = self._expand(handshake, b"c hs traffic", self.hash())
        self.server_secret = self._expand(handshake, b"s hs traffic", self.hash())
        self.master = self._extract(self._expand(handshake, b"derived", self.hash(b"")), zeros)
        self.reader = self.cipher_13(self.server_secret)
        self._handshake_writer = self.cipher_13(self.client_secret)

    def retry_hello(self, retry, hello):
        """Takes a HelloRetryRequest's body into the transcript; the case sends the next hello itself."""
        at = 35 + retry[34]
        self.digest = SUITES_13[int.from_bytes(retry[at : at + 2], "big")][1]
        first = hello.bytes()
        rest = self.transcript[len(first) :]
        self.transcript = message(254, self.hash(first)) + rest
        return dict(parse_extensions(retry[at + 5 :]))

    def finish_key(self, secret):
        return self._expand(secret, b"finished", b"")

    def server_flight(self, psk=None):
        """From ServerHello to the server's Finished, which is verified. Returns the messages' bodies by type."""
        hello = self.expect(SERVER_HELLO)
        if hello[2:34] == RETRY:
            raise Failed("a HelloRetryRequest instead of a ServerHello")
        self.keys_from(hello, psk)
        # From now on everything is protected, both ways.
        self.writer = self._handshake_writer
        found = {SERVER_HELLO: hello, ENCRYPTED_EXTENSIONS: self.expect(ENCRYPTED_EXTENSIONS)}
        while FINISHED not in found:
            before = self.hash()
            got = self.receive()
            if got[0] != "message":
                raise Failed(f"{_short(got)} within the server's flight")
            if got[1] == FINISHED:
                wanted = self._extract(self.finish_key(self.server_secret), before)
                if got[2][4:] != wanted:
                    raise Failed("the server's Finished is wrong")
            self.transcript += got[2]
            found[got[1]] = got[2][4:]
        self.client_app = self._expand(self.master, b"c ap traffic", self.hash())
        self.server_app = self._expand(self.master, b"s ap traffic", self.hash())
        # The server has ended its part: what it says from now on, alerts too, is under the application's keys.
        self.reader = self.cipher_13(self.server_app)
        return found

    def finished_13(self):
        return message(FINISHED, self._extract(self.finish_key(self.client_secret), self.hash()))

    def go_on_13(self):
        """After the client's Finished: the application's keys for what the client says."""
        self.resumption = self._expand(self.master, b"res master", self.hash())
        self.writer = self.cipher_13(self.client_app)

    def client_flight_13(self, chain=None, scheme=None):
        """Certificate and CertificateVerify if there is a chain, and Finished; then the application's keys."""
        if chain is not None:
            self.send_message(chain.message_13())
            self.send_message(self.verify_13(chain, scheme))
        self.send_message(self.finished_13())
        self.go_on_13()

    def verify_13(self, chain, scheme, content=None):
        signature = chain.sign(scheme, content_13(self.hash()) if content is None else content)
        return message(CERTIFICATE_VERIFY, u16(scheme) + vec16(signature))

    def psk_of(self, ticket):
        """The pre-shared key that a NewSessionTicket stands for, and the ticket itself."""
        size = ticket[8]
        nonce, rest = ticket[9 : 9 + size], ticket[9 + size :]
        length = int.from_bytes(rest[:2], "big")
        return self._expand(self.resumption, b"resumption", nonce), rest[2 : 2 + length]

    def update_writer(self):
        self.client_app = self._expand(self.client_app, b"traffic upd", b"")
        self.writer = self.cipher_13(self.client_app)

    def update_reader(self):
        self.server_app = self._expand(self.server_app, b"traffic upd", b"")
        self.reader = self.cipher_13(self.server_app)

    # TLS 1.2's keys (RFC 5246 section 8.1, RFC 7627).

    def prf(self, secret, label, seed, size):
        function = PRF_1_2_SHA384 if self.digest == "sha384" else PRF_1_2
        return bytes(function(bytearray(secret), bytearray(label), bytearray(seed), size))

    def server_hello_12(self):
        """A ServerHello of TLS 1.2: suite and extensions are taken."""
        hello = self.expect(SERVER_HELLO)
        at = 35 + hello[34]
        self.server_random = hello[2:34]
        self.server_session_id = hello[35:at]
        self.suite = int.from_bytes(hello[at : at + 2], "big")
        if self.suite not in SUITES_12:
            raise Failed(f"suite {self.suite:#06x} in TLS 1.2")
        self.digest = SUITES_12[self.suite][1]
        self.server_extensions = dict(parse_extensions(hello[at + 5 :]))
        self.ems = 23 in self.server_extensions
        return hello

    def server_flight_12(self):
        """From ServerHello to ServerHelloDone. Returns the messages' bodies by type."""
        found = {SERVER_HELLO: self.server_hello_12()}
        while SERVER_HELLO_DONE not in found:
            got = self.receive()
            if got[0] != "message":
                raise Failed(f"{_short(got)} within the server's flight")
            self.transcript += got[2]
            found[got[1]] = got[2][4:]
        exchange = found[SERVER_KEY_EXCHANGE]
        if exchange[0] != 3:
            raise Failed("a ServerKeyExchange without a named curve")
        self.group = int.from_bytes(exchange[1:3], "big")
        self.server_public = exchange[4 : 4 + exchange[3]]
        return found

    def key_exchange_12(self, public=None):
        """A ClientKeyExchange; its secret is remembered."""
        share = Share(self.group)
        self.premaster = share.secret(self.server_public)
        return message(CLIENT_KEY_EXCHANGE, vec8(share.public if public is None else public))

    def make_keys_12(self):
        """The master secret, after the ClientKeyExchange, and the pending ciphers."""
        if self.ems:
            self.master = self.prf(self.premaster, b"extended master secret", self.hash(), 48)
        else:
            self.master = self.prf(self.premaster, b"master secret", self.hello.random + self.server_random, 48)
        self.pending_12()

    def pending_12(self):
        key, _, chacha = SUITES_12[self.suite]
        iv = 12 if chacha else 4
        block = self.prf(self.master, b"key expansion", self.server_random + self.hello.random, 2 * (key + iv))
        ours, theirs, our_iv, their_iv = block[:key], block[key : 2 * key], block[2 * key : 2 * key + iv], block[2 * key + iv :]
        self.pending_writer = Cipher(self.suite, ours, our_iv, False)
        self.pending_reader = Cipher(self.suite, theirs, their_iv, False)

    def finished_12(self, who=b"client"):
        return message(FINISHED, self.prf(self.master, who + b" finished", self.hash(), 12))

    def change_writer_12(self):
        self.send_ccs()
        self.writer = self.pending_writer

    def expect_finished_12(self):
        """A new ticket if there is one, ChangeCipherSpec, and the server's Finished, which is verified."""
        got = self.receive()
        if got[:2] == ("message", NEW_SESSION_TICKET):
            self.transcript += got[2]
            self.tickets.append(got[2][4:])
            got = self.receive()
        if got[0] != "ccs":
            raise Failed(f"{_short(got)} instead of ChangeCipherSpec")
        self.reader = self.pending_reader
        wanted = self.finished_12(b"server")[4:]
        if self.expect(FINISHED) != wanted:
            raise Failed("the server's Finished is wrong")

    def client_flight_12(self, chain=None, scheme=None, asked=False):
        """The client's second flight, to its Finished."""
        if asked or chain is not None:
            self.send_message(EMPTY_CERTIFICATE_12 if chain is None else chain.message_12())
        self.send_message(self.key_exchange_12())
        self.make_keys_12()
        if chain is not None:
            signature = chain.sign(scheme, self.transcript)
            self.send_message(message(CERTIFICATE_VERIFY, u16(scheme) + vec16(signature)))
        self.change_writer_12()
        self.send_message(self.finished_12())


def handshake_13(address, hello, chain=None, scheme=None):
    """A whole handshake; returns the conversation, ready for data, and the server's messages."""
    talk = Conversation(address)
    talk.send_hello(hello)
    found = talk.server_flight()
    if CERTIFICATE_REQUEST in found and chain is None:
        talk.send_message(EMPTY_CERTIFICATE_13)
    talk.client_flight_13(chain, scheme)
    return talk, found


def handshake_12(address, hello, chain=None, scheme=None):
    """The same for TLS 1.2."""
    talk = Conversation(address)
    talk.send_hello(hello)
    found = talk.server_flight_12()
    talk.client_flight_12(chain, scheme, asked=CERTIFICATE_REQUEST in found)
    talk.expect_finished_12()
    return talk, found


def _short(got):
    if got[0] == "data":
        return f"application data {got[1][:40]!r}"
    if got[0] == "message":
        return f"handshake message {got[1]}"
    if got[0] == "alert":
        return f"alert {got[2]}"
    return {"end": "the end of the connection", "ccs": "ChangeCipherSpec"}[got[0]]
