"""TLS 1.2 against RFC 5246 and what came after it (RFC 5746, 7627, 8422): what a server must accept and refuse.

Own conversations over tlslite-ng's primitives, as in the suite `tls13`.
"""

import os

from harness import edges
from harness.edges import OFF, REQUEST, REQUIRE, RSA
from harness.suite import Suite, check, equal
from harness.tls import (
    ALERT, CERTIFICATE, CERTIFICATE_REQUEST, CERTIFICATE_VERIFY, CLIENT_KEY_EXCHANGE, DATA, ECDSA_P256_SHA256, ECDSA_SHA1,
    ED25519, EMPTY_CERTIFICATE_12, FINISHED, HANDSHAKE, P256, P384, P521, RSA_PKCS1_SHA1,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, SCSV, SERVER_HELLO, SUITES_12, TICKET, X25519,
    Chain, Conversation, Share, handshake_12, hello_12, message, point_formats, server_name,
    signature_algorithms, supported_groups, u8, u16, u24, vec8, vec16, vec24,
)  # fmt: skip

# Suites of old: RSA key exchange, CBC, RC4, 3DES, NULL, export, anonymous, finite-field Diffie-Hellman.
OLD_SUITES = [0x002F, 0x0035, 0x009C, 0xC013, 0xC014, 0xC009, 0xC027, 0x0005, 0x000A, 0x0001, 0x0003, 0x0034, 0x009E,
              0x0033, 0xC011, 0x0000]  # fmt: skip

FALLBACK_SCSV = 0x5600


def start(place):
    world = edges.start(place)
    for kind in ("ecdsa", "rsa", "p384", "ed25519"):
        setattr(world, kind, Chain(*world.clients.issue(f"client-{kind}", kind, client=True)))
    world.stranger = Chain(*world.rogue.issue("stranger", "ecdsa", client=True))
    return world


SUITE = Suite("tls12", "TLS 1.2, message by message (RFC 5246, 5746, 7627, 8422)", start, edges.stop)
case = SUITE.case


def refused(world, hello, *alerts, **options):
    with Conversation(world.address) as talk:
        talk.send_hello(hello, **options)
        talk.expect_alert(*alerts)


def established(world, hello=None, name=OFF, **client):
    talk, found = handshake_12(world.address, hello or hello_12(name), **client)
    talk.expect_answer()
    return talk, found


# What goes through.

for suite in SUITES_12:

    @case(f"works-{suite:04x}", "a handshake with this suite, and data both ways, with the extended master secret and without")
    def _(world, suite=suite):
        for ems in (True, False):
            talk, _ = established(world, hello_12(OFF, suites=[suite], ems=ems))
            equal((talk.suite, talk.ems), (suite, ems), "suite, extended master secret")


for group, name in ((X25519, "x25519"), (P256, "secp256r1"), (P384, "secp384r1")):

    @case(f"group-{name}", "RFC 8422 5.4: the key exchange is in the one group the client has")
    def _(world, group=group):
        talk, _ = established(world, hello_12(RSA, groups=[group]))
        equal(talk.group, group, "group")


@case("server-hello", "7.4.1.3: version 0x0303, no compression, only extensions that were offered")
def _(world):
    hello = hello_12(OFF)
    talk, found = established(world, hello)
    body = found[SERVER_HELLO]
    equal(body[:2], b"\x03\x03", "version")
    equal(body[37 + body[34]], 0, "compression")
    check(set(talk.server_extensions) <= {kind for kind, _ in hello.extensions}, f"{sorted(talk.server_extensions)}")


@case("no-extensions", "7.4.1.4: a client without any extension is served or told handshake_failure, never more than it asked")
def _(world):
    hello = hello_12(OFF)
    hello.extensions = []
    with Conversation(world.address) as talk:
        talk.send_hello(hello)
        talk.expect_alert("handshake_failure", "missing_extension", "unrecognized_name", "illegal_parameter")


@case("unknown-extensions", "7.4.1.4: extensions nobody knows, heartbeat and status_request among them, are ignored or answered in kind")
def _(world):
    more = [(15, b"\x01"), (0x0A0A, b""), (0x1234, os.urandom(500)), (5, b"\x01\x00\x00\x00\x00"), (22, b""), (13172, b"")]
    hello = hello_12(OFF, more=more)
    talk, _ = established(world, hello)
    check(not {15, 22, 13172, 0x1234} & set(talk.server_extensions), f"{sorted(talk.server_extensions)}")


@case("unknown-suites", "7.4.1.2: suites nobody knows and those of old are passed over")
def _(world):
    talk, _ = established(world, hello_12(OFF, suites=[0x1A1A, *OLD_SUITES, 0xC02B, 0xFFFE]))
    equal(talk.suite, 0xC02B, "suite")


@case("fragmented", "6.2.1: messages in records of a few bytes")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_12(OFF), fragment=9)
        talk.server_flight_12()
        talk.send_message(talk.key_exchange_12(), fragment=5)
        talk.make_keys_12()
        talk.change_writer_12()
        talk.send_message(talk.finished_12(), fragment=4)
        talk.expect_finished_12()
        talk.expect_answer()


@case("empty-data-records", "6.2.1: empty records of application data")
def _(world):
    talk, _ = established(world)
    talk.send_data(b"")
    talk.expect_answer()


@case("largest-record", "6.2.1: a record of 2^14 bytes")
def _(world):
    talk, _ = established(world)
    request = b"GET / HTTP/1.0\r\nx: "
    talk.send_data(request + b"a" * (16384 - len(request) - 4) + b"\r\n\r\n")
    check(talk.expect_data().startswith(b"HTTP/1."), "no answer")


# What must be refused.


@case("old-suites", "only suites without forward secrecy or AEAD: handshake_failure")
def _(world):
    for suites in (OLD_SUITES, *([suite] for suite in OLD_SUITES)):
        refused(world, hello_12(OFF, suites=suites), "handshake_failure", "insufficient_security")


@case("old-versions", "appendix E.1: SSL 3.0, TLS 1.0 and 1.1: protocol_version")
def _(world):
    for version in (0x0300, 0x0301, 0x0302):
        hello = hello_12(OFF, suites=[*SUITES_12, *OLD_SUITES])
        hello.version = version
        refused(world, hello, "protocol_version", version=0x0301)


@case("future-version", "appendix E.1: a version above ours without supported_versions means TLS 1.2")
def _(world):
    hello = hello_12(OFF)
    hello.version = 0x0304
    established(world, hello)


@case("fallback-scsv", "RFC 7507: a client that fell back to TLS 1.2 although both know 1.3: inappropriate_fallback")
def _(world):
    refused(world, hello_12(OFF, suites=[*SUITES_12, FALLBACK_SCSV]), "inappropriate_fallback")


@case("downgrade-sentinel", "RFC 8446 4.1.3: the random of a TLS 1.2 answer ends with DOWNGRD 01")
def _(world):
    talk, _ = established(world)
    equal(talk.server_random[-8:], b"DOWNGRD\x01", "end of the random")


@case("no-group-in-common", "RFC 8422 5.1: no group in common: handshake_failure")
def _(world):
    refused(world, hello_12(OFF, groups=[P521, 0x0016]), "handshake_failure")


@case("no-scheme-in-common", "7.4.1.4.1: no signature scheme: handshake_failure")
def _(world):
    refused(world, hello_12(OFF).put(signature_algorithms([0xFEFE])), "handshake_failure")


@case("sha1-only", "SHA-1 never signs a key exchange")
def _(world):
    refused(world, hello_12(OFF).put(signature_algorithms([RSA_PKCS1_SHA1, ECDSA_SHA1])), "handshake_failure")


@case("point-formats", "RFC 8422 5.1.2: ec_point_formats without uncompressed: illegal_parameter")
def _(world):
    refused(world, hello_12(OFF).put(point_formats(b"\x01\x02")), "illegal_parameter")


@case("compression-chosen", "7.4.1.3: a client that also offers DEFLATE gets null")
def _(world):
    hello = hello_12(OFF)
    hello.compression = b"\x01\x00"
    _, found = established(world, hello)
    equal(found[SERVER_HELLO][37 + found[SERVER_HELLO][34]], 0, "compression")


@case("compression-only", "7.4.1.2: a client without the null method is refused")
def _(world):
    for methods in (b"\x01", b""):
        hello = hello_12(OFF)
        hello.compression = methods
        refused(world, hello, "illegal_parameter", "decode_error", "handshake_failure")


@case("doubled-extension", "7.4.1.4: an extension twice")
def _(world):
    for extra in (server_name(OFF), supported_groups([P256]), (0x1234, b"")):
        hello = hello_12(OFF)
        hello.extensions += [(0x1234, b""), extra]
        refused(world, hello, "illegal_parameter", "decode_error")


@case("cut-off-hello", "hellos whose lengths lie, at each place: decode_error")
def _(world):
    whole = hello_12(OFF).body()
    for cut in (1, 2, 33, 34, 36, 48, 49, 52, 60, len(whole) - 1):
        with Conversation(world.address) as talk:
            talk.hello = hello_12(OFF)
            talk.send(HANDSHAKE, message(1, whole[:cut]))
            talk.expect_alert("decode_error", "illegal_parameter", "protocol_version")


@case("long-session-id", "7.4.1.2: a session id of more than 32 bytes: decode_error")
def _(world):
    hello = hello_12(OFF)
    hello.session_id = bytes(33)
    refused(world, hello, "decode_error", "illegal_parameter")


@case("sslv2-hello", "appendix E.2: a hello in SSLv2's form: protocol_version, or the end")
def _(world):
    with Conversation(world.address) as talk:
        talk.hello = hello_12(OFF)
        body = b"\x01\x03\x03" + u16(3) + u16(0) + u16(16) + b"\x00\xc0\x2b" + bytes(16)
        talk.send_raw(u16(0x8000 | len(body)) + body)
        talk.expect_alert("protocol_version", "unexpected_message", "handshake_failure")


# Renegotiation.


@case("renegotiation-info", "RFC 5746 3.6: an empty renegotiation_info, for the extension and for the SCSV")
def _(world):
    talk, _ = established(world)
    equal(talk.server_extensions.get(0xFF01), b"\x00", "renegotiation_info")
    talk, _ = established(world, hello_12(OFF, suites=[*SUITES_12, SCSV]).without(0xFF01))
    equal(talk.server_extensions.get(0xFF01), b"\x00", "renegotiation_info for the SCSV")


@case("renegotiation-info-filled", "RFC 5746 3.6: a first hello with a non-empty renegotiation_info: handshake_failure")
def _(world):
    refused(world, hello_12(OFF).put((0xFF01, vec8(b"x" * 12))), "handshake_failure")


@case("renegotiation-refused", "RFC 5746 4.4: a hello within the connection: no_renegotiation, or the end; never a handshake")
def _(world):
    talk, _ = established(world)
    talk.send(HANDSHAKE, hello_12(OFF).bytes())
    talk.expect_alert("no_renegotiation", "unexpected_message", "handshake_failure", fatal=False)


# The key exchange and the messages' order.


def flight(world, name=OFF):
    """A conversation that has read the server's flight."""
    talk = Conversation(world.address)
    talk.send_hello(hello_12(name))
    return talk, talk.server_flight_12()


@case("key-exchange-invalid", "RFC 8422 5.11: points of wrong length, off the curve, or zero: illegal_parameter or decode_error")
def _(world):
    point = Share(P256).public
    for group, public in (
        (X25519, b"\x09" * 31),
        (X25519, b"\x09" * 33),
        (X25519, bytes(32)),
        (X25519, b""),
        (P256, point[:-1]),
        (P256, b"\x04" + bytes(64)),
        (P256, b"\x04" + b"\x11" * 64),
        (P256, b"\x02" + point[1:33]),
        (P256, b""),
    ):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_12(OFF, groups=[group]))
            talk.server_flight_12()
            talk.send_message(talk.key_exchange_12(public))
            talk.expect_alert("illegal_parameter", "decode_error", "handshake_failure")


@case("key-exchange-length", "7.4.7: a ClientKeyExchange that is cut off or too long: decode_error")
def _(world):
    for change in (lambda body: body[:-1], lambda body: body + b"\x00", lambda body: b""):
        talk, _ = flight(world)
        with talk:
            talk.send_message(message(CLIENT_KEY_EXCHANGE, change(talk.key_exchange_12()[4:])))
            talk.expect_alert("decode_error", "illegal_parameter")


@case("order", "7.3: messages left out, doubled or exchanged: unexpected_message")
def _(world):
    def finish_at_once(talk):
        talk.send(HANDSHAKE, message(FINISHED, bytes(12)))

    def ccs_at_once(talk):
        talk.send_ccs()

    def exchange_twice(talk):
        talk.send(HANDSHAKE, talk.key_exchange_12() * 2)

    def certificate_unasked(talk):
        talk.send(HANDSHAKE, world.ecdsa.message_12())

    def verify_unasked(talk):
        talk.send_message(talk.key_exchange_12())
        talk.send(HANDSHAKE, message(CERTIFICATE_VERIFY, u16(ECDSA_P256_SHA256) + vec16(bytes(70))))

    def no_ccs(talk):
        talk.send_message(talk.key_exchange_12())
        talk.make_keys_12()
        talk.send(HANDSHAKE, talk.finished_12())

    def hello_again(talk):
        talk.send(HANDSHAKE, talk.hello.bytes())

    def data_at_once(talk):
        talk.send_data()

    for bend in (finish_at_once, ccs_at_once, exchange_twice, certificate_unasked, verify_unasked, no_ccs, hello_again,
                 data_at_once):  # fmt: skip
        talk, _ = flight(world)
        with talk:
            bend(talk)
            talk.expect_alert("unexpected_message", "decode_error", "handshake_failure")


@case("early-ccs", "CVE-2014-0224: ChangeCipherSpec before the ClientKeyExchange: unexpected_message")
def _(world):
    talk, _ = flight(world)
    with talk:
        talk.send_ccs()
        talk.send_message(talk.key_exchange_12())
        talk.expect_alert("unexpected_message")


@case("ccs-malformed", "7.1: a ChangeCipherSpec of another value or length")
def _(world):
    for body in (b"\x02", b"\x01\x01", b"\x00"):
        talk, _ = flight(world)
        with talk:
            talk.send_message(talk.key_exchange_12())
            talk.send_ccs(body)
            talk.expect_alert("unexpected_message", "illegal_parameter", "decode_error")


@case("finished-wrong", "7.4.9: a wrong Finished: decrypt_error")
def _(world):
    for at in (4, -1):
        talk, _ = flight(world)
        with talk:
            talk.send_message(talk.key_exchange_12())
            talk.make_keys_12()
            talk.change_writer_12()
            wrong = bytearray(talk.finished_12())
            wrong[at] ^= 1
            talk.send_message(bytes(wrong))
            talk.expect_alert("decrypt_error")


@case("finished-length", "7.4.9: a Finished of another length: decode_error or decrypt_error")
def _(world):
    for change in (lambda data: data[:-1], lambda data: data + b"\x00", lambda data: b""):
        talk, _ = flight(world)
        with talk:
            talk.send_message(talk.key_exchange_12())
            talk.make_keys_12()
            talk.change_writer_12()
            talk.send_message(message(FINISHED, change(talk.finished_12()[4:])))
            talk.expect_alert("decode_error", "decrypt_error")


@case("data-before-finished", "7.4.9: application data between ChangeCipherSpec and Finished: unexpected_message")
def _(world):
    talk, _ = flight(world)
    with talk:
        talk.send_message(talk.key_exchange_12())
        talk.make_keys_12()
        talk.change_writer_12()
        talk.send_data()
        talk.expect_alert("unexpected_message")


# Records.


@case("bad-mac", "7.2.2: a record that does not authenticate: bad_record_mac")
def _(world):
    for at in (5, 13, 20, -1):
        talk, _ = established(world)
        record = bytearray(talk.record(DATA, b"GET / HTTP/1.0\r\n\r\n"))
        record[at] ^= 1
        talk.send_raw(bytes(record))
        talk.expect_alert("bad_record_mac")


@case("replayed-record", "6.1: a record sent again: bad_record_mac")
def _(world):
    talk, _ = established(world)
    record = talk.record(DATA, b"GET / HTTP/1.0\r\n\r\n")
    talk.send_raw(record)
    talk.expect_data()
    talk.send_raw(record)
    talk.expect_alert("bad_record_mac")


@case("short-record", "6.2.3.3: protected records too short for nonce and tag: bad_record_mac")
def _(world):
    for size in (0, 7, 23):
        talk, _ = established(world)
        talk.send_raw(u8(DATA) + u16(0x0303) + vec16(bytes(size)))
        talk.expect_alert("bad_record_mac", "decode_error")


@case("overlong-plaintext", "6.2.1: a record with more than 2^14 bytes of data: record_overflow")
def _(world):
    talk, _ = established(world)
    talk.send_data(b"a" * 16385)
    talk.expect_alert("record_overflow")


@case("overlong-ciphertext", "6.2.3: a record above 2^14 + 2048 bytes: record_overflow")
def _(world):
    talk, _ = established(world)
    talk.send_raw(u8(DATA) + u16(0x0303) + vec16(bytes(16384 + 2049)))
    talk.expect_alert("record_overflow", "decode_error")


@case("unknown-record-type", "6: a record type nobody knows, heartbeat among them: unexpected_message")
def _(world):
    for kind in (24, 99):
        talk, _ = established(world)
        talk.send(kind, b"\x01\x00\x01a" + bytes(16))
        talk.expect_alert("unexpected_message", "decode_error")


@case("close-notify", "7.2.1: close_notify is answered by close_notify, and the connection ends")
def _(world):
    talk, _ = established(world)
    talk.send(ALERT, bytes([1, 0]))
    talk.expect_alert("close_notify", fatal=False)
    talk.expect_end()


@case("fatal-alert", "7.2.2: a fatal alert ends the connection without an answer")
def _(world):
    talk, _ = established(world)
    talk.send(ALERT, bytes([2, 40]))
    talk.expect_end()


# Resumption by ticket.


def ticket_of(talk):
    """The ticket of a NewSessionTicket (RFC 5077 section 3.3)."""
    body = talk.tickets[-1]
    return body[6 : 6 + int.from_bytes(body[4:6], "big")]


def resumed(world, first, hello):
    """Offers the ticket of a conversation; whether the server took it."""
    with Conversation(world.address) as talk:
        hello.session_id = os.urandom(32)
        hello.put((35, ticket_of(first)))
        talk.send_hello(hello)
        talk.server_hello_12()
        if talk.server_session_id != hello.session_id:
            return False
        talk.master = first.master
        talk.pending_12()
        talk.expect_finished_12()
        talk.change_writer_12()
        talk.send_message(talk.finished_12())
        talk.expect_answer()
        return True


@case("resume", "RFC 5077 3: a ticket resumes, and both Finished are right")
def _(world):
    first, _ = established(world, hello_12(OFF, more=[TICKET]))
    check(first.tickets, "no ticket")
    check(resumed(world, first, hello_12(OFF, suites=[first.suite])), "not resumed")


@case("resume-mutual", "the same for a client with a certificate")
def _(world):
    first, _ = established(world, hello_12(REQUIRE, more=[TICKET]), chain=world.ecdsa, scheme=ECDSA_P256_SHA256)
    check(resumed(world, first, hello_12(REQUIRE, suites=[first.suite])), "not resumed")


@case("no-ticket-unasked", "RFC 5077 3.2: no ticket for a client without the extension")
def _(world):
    talk, _ = established(world)
    check(not talk.tickets and 35 not in talk.server_extensions, "a ticket nobody asked for")


@case("resume-garbage", "RFC 5077 3.4: a ticket nobody knows means a full handshake")
def _(world):
    for ticket in (b"x", os.urandom(200)):
        hello = hello_12(OFF, more=[(35, ticket)])
        hello.session_id = os.urandom(32)
        _, found = established(world, hello)
        check(CERTIFICATE in found, "resumed")


@case("resume-spoiled", "RFC 5077 3.4: a ticket with a bit changed means a full handshake")
def _(world):
    first, _ = established(world, hello_12(OFF, more=[TICKET]))
    ticket = bytearray(ticket_of(first))
    ticket[len(ticket) // 2] ^= 1
    hello = hello_12(OFF, more=[(35, bytes(ticket))])
    hello.session_id = os.urandom(32)
    _, found = established(world, hello)
    check(CERTIFICATE in found, "resumed")


@case("resume-without-ems", "RFC 7627 5.3: a session with the extended master secret, offered without it: refused")
def _(world):
    first, _ = established(world, hello_12(OFF, more=[TICKET]))
    with Conversation(world.address) as talk:
        hello = hello_12(OFF, suites=[first.suite], more=[(35, ticket_of(first))], ems=False)
        hello.session_id = os.urandom(32)
        talk.send_hello(hello)
        talk.expect_alert("handshake_failure", "illegal_parameter")


@case("resume-with-ems", "RFC 7627 5.3: a session without the extended master secret, offered with it: a full handshake")
def _(world):
    first, _ = established(world, hello_12(OFF, more=[TICKET], ems=False))
    check(not resumed(world, first, hello_12(OFF, suites=[first.suite])), "resumed")


@case("resume-other-suite", "7.4.1.3: a session whose suite is no longer offered: a full handshake")
def _(world):
    first, _ = established(world, hello_12(OFF, suites=[0xC02B], more=[TICKET]))
    check(not resumed(world, first, hello_12(OFF, suites=[0xC02C])), "resumed under a suite that was not offered")


# Client certificates.


@case("request-fields", "7.4.4: certificate types and schemes in the CertificateRequest, no SHA-1, no CA names")
def _(world):
    for name in (REQUEST, REQUIRE):
        talk, found = flight(world, name)
        with talk:
            body = found[CERTIFICATE_REQUEST]
            types = body[1 : 1 + body[0]]
            check({1, 64} <= set(types), f"types {types!r}")
            rest = body[1 + body[0] :]
            size = int.from_bytes(rest[:2], "big")
            schemes = [int.from_bytes(rest[at : at + 2], "big") for at in range(2, 2 + size, 2)]
            check({ECDSA_P256_SHA256, RSA_PSS_SHA256, RSA_PKCS1_SHA256} <= set(schemes), f"schemes {schemes}")
            check(all(scheme >> 8 != 2 for scheme in schemes), "SHA-1 is asked for")
            equal(rest[2 + size :], b"\x00\x00", "CA names")


for kind, scheme in (
    ("ecdsa", ECDSA_P256_SHA256),
    ("p384", 0x0503),
    ("ed25519", ED25519),
    ("rsa", RSA_PSS_SHA256),
    ("rsa", RSA_PKCS1_SHA256),
    ("rsa", 0x0501),
    ("rsa", 0x0601),
):

    @case(f"client-{kind}-{scheme:04x}", "7.4.8: a client certificate with this key and scheme is accepted")
    def _(world, kind=kind, scheme=scheme):
        for name in (REQUIRE, REQUEST):
            established(world, name=name, chain=getattr(world, kind), scheme=scheme)


@case("client-none-request", "7.4.6: an empty Certificate where one is only requested")
def _(world):
    established(world, name=REQUEST)


@case("client-none-require", "7.4.6: an empty Certificate where one is required: handshake_failure or certificate_required")
def _(world):
    talk, _ = flight(world, REQUIRE)
    with talk:
        talk.send_message(EMPTY_CERTIFICATE_12)
        talk.send_message(talk.key_exchange_12())
        talk.expect_alert("handshake_failure", "certificate_required")


@case("client-unknown-ca", "7.2.2: a certificate of a CA this hostname does not know: unknown_ca")
def _(world):
    client_refused(world, world.stranger, ECDSA_P256_SHA256, "unknown_ca")


def client_refused(world, chain, scheme, *alerts, certificate=None, verify=None, name=REQUIRE):
    """A handshake with these client messages ends with one of the alerts."""
    talk, _ = flight(world, name)
    with talk:
        talk.send_message(certificate or chain.message_12())
        talk.send_message(talk.key_exchange_12())
        talk.make_keys_12()
        if verify:
            talk.send_message(verify(talk))
        else:
            signature = chain.sign(scheme, talk.transcript)
            talk.send_message(message(CERTIFICATE_VERIFY, u16(scheme) + vec16(signature)))
        talk.change_writer_12()
        talk.send_message(talk.finished_12())
        talk.expect_alert(*alerts)


@case("client-verify-wrong", "7.4.8: a signature over something else, or with a bit changed: decrypt_error")
def _(world):
    def spoiled(talk, chain, scheme):
        signature = bytearray(chain.sign(scheme, talk.transcript))
        signature[-1] ^= 1
        return message(CERTIFICATE_VERIFY, u16(scheme) + vec16(bytes(signature)))

    for name in (REQUIRE, REQUEST):
        for chain, scheme in ((world.ecdsa, ECDSA_P256_SHA256), (world.rsa, RSA_PSS_SHA256), (world.rsa, RSA_PKCS1_SHA256)):
            client_refused(world, chain, scheme, "decrypt_error", name=name,
                           verify=lambda talk: spoiled(talk, chain, scheme))  # fmt: skip
            other = message(CERTIFICATE_VERIFY, u16(scheme) + vec16(chain.sign(scheme, b"something else")))
            client_refused(world, chain, scheme, "decrypt_error", name=name, verify=lambda talk: other)


@case("client-verify-scheme", "7.4.8: SHA-1, schemes of another key, or unknown ones are refused")
def _(world):
    for chain, scheme, named in (
        (world.rsa, RSA_PKCS1_SHA1, RSA_PKCS1_SHA1),
        (world.ecdsa, ECDSA_SHA1, ECDSA_SHA1),
        (world.ecdsa, ECDSA_P256_SHA256, RSA_PSS_SHA256),
        (world.rsa, RSA_PSS_SHA256, ECDSA_P256_SHA256),
        (world.ecdsa, ECDSA_P256_SHA256, 0xFEFE),
    ):
        client_refused(
            world, chain, scheme, "illegal_parameter", "decrypt_error", "handshake_failure",
            verify=lambda talk: message(CERTIFICATE_VERIFY, u16(named) + vec16(chain.sign(scheme, talk.transcript))),
        )  # fmt: skip


@case("client-verify-length", "7.4.8: an empty, cut off or overlong CertificateVerify")
def _(world):
    for change in (lambda body: b"", lambda body: body[:2] + vec16(b""), lambda body: body[:-1], lambda body: body + b"\x00"):
        client_refused(
            world, world.ecdsa, ECDSA_P256_SHA256, "decode_error", "decrypt_error", "illegal_parameter",
            verify=lambda talk: message(
                CERTIFICATE_VERIFY,
                change(u16(ECDSA_P256_SHA256) + vec16(world.ecdsa.sign(ECDSA_P256_SHA256, talk.transcript))),
            ),
        )  # fmt: skip


@case("client-verify-missing", "7.4.8: a certificate without CertificateVerify: unexpected_message")
def _(world):
    for name in (REQUIRE, REQUEST):
        talk, _ = flight(world, name)
        with talk:
            talk.send_message(world.ecdsa.message_12())
            talk.send_message(talk.key_exchange_12())
            talk.make_keys_12()
            talk.change_writer_12()
            talk.send_message(talk.finished_12())
            talk.expect_alert("unexpected_message")


@case("client-certificate-missing", "7.4.6: no Certificate at all where one was asked for: unexpected_message")
def _(world):
    for name in (REQUIRE, REQUEST):
        talk, _ = flight(world, name)
        with talk:
            talk.send_message(talk.key_exchange_12())
            talk.expect_alert("unexpected_message", "handshake_failure")


@case("client-certificate-malformed", "7.4.6: a Certificate whose bytes lie")
def _(world):
    der = world.ecdsa.der[0]
    spoiled = bytearray(der)
    spoiled[len(der) // 2] ^= 0xFF
    for body in (
        b"",
        vec24(vec24(der))[:-1],
        vec24(vec24(der)) + b"\x00",
        vec24(vec24(b"")),
        vec24(u24(len(der) + 9) + der),
        vec24(vec24(der[:-1])),
        vec24(vec24(bytes(spoiled))),
    ):
        client_refused(world, world.ecdsa, ECDSA_P256_SHA256, "decode_error", "bad_certificate", "illegal_parameter",
                       "unknown_ca", "decrypt_error", certificate=message(CERTIFICATE, body))  # fmt: skip
