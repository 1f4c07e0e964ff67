"""TLS 1.3 against RFC 8446: what a server must accept, ignore and refuse, and with which alert.

The conversations are our own, after the RFC's text, over tlslite-ng's primitives: tlsfuzzer's scripts are in no registry
the project may use (the suite `tlsfuzzer` runs them where a checkout is at hand).
"""

import os
import random
import struct

from harness import edges
from harness.edges import OFF, REQUEST, REQUIRE
from harness.suite import Failed, Suite, check, equal
from harness.tls import (
    CCS, CERTIFICATE, CERTIFICATE_REQUEST, CERTIFICATE_VERIFY, DATA, ECDSA_P256_SHA256, ECDSA_SHA1, ED25519,
    EMPTY_CERTIFICATE_13, ENCRYPTED_EXTENSIONS, FINISHED, HANDSHAKE, ALERT, KEY_UPDATE, P256, P384, P521, RETRY,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, SCHEMES, SERVER_HELLO, WAIT_S, X25519,
    Chain, Conversation, Share, content_13, handshake_13, hello_13, key_shares, message, parse_extensions,
    psk_modes, server_name, signature_algorithms, supported_versions, u16, u24, u8, vec8, vec16, vec24,
)  # fmt: skip


def start(place):
    world = edges.start(place)
    for kind in ("ecdsa", "rsa", "p384", "ed25519"):
        setattr(world, kind, Chain(*world.clients.issue(f"client-{kind}", kind, client=True)))
    world.stranger = Chain(*world.rogue.issue("stranger", "ecdsa", client=True))
    return world


# How long a case waits for what is known not to come (expected.toml), seconds.
EXPECTED_SILENCE_S = 2

SUITE = Suite("tls13", "TLS 1.3, message by message (RFC 8446)", start, edges.stop)
case = SUITE.case


def refused(world, hello, *alerts, wait_s=WAIT_S, **options):
    """A hello that is answered with one of these alerts."""
    with Conversation(world.address) as talk:
        talk.socket.settimeout(wait_s)
        talk.send_hello(hello, **options)
        talk.expect_alert(*alerts)


def established(world, hello=None, name=OFF, **client):
    """A finished handshake that works."""
    talk, found = handshake_13(world.address, hello or hello_13(name), **client)
    talk.expect_answer()
    return talk, found


# Suites, groups and certificates that go through.

for suite in (0x1301, 0x1302, 0x1303):
    for group, name in ((X25519, "x25519"), (P256, "secp256r1"), (P384, "secp384r1")):

        @case(f"works-{suite:04x}-{name}", "a handshake with this suite and group, and data both ways")
        def _(world, suite=suite, group=group):
            talk, _ = established(world, hello_13(OFF, groups=[group], shares=[group], suites=[suite]))
            equal((talk.suite, talk.group), (suite, group), "suite and group")
            talk.close()


@case("legacy-fields", "4.1.3: legacy_version 0x0303, the session id echoed, no compression, supported_versions 0x0304")
def _(world):
    hello = hello_13(OFF)
    talk, found = established(world, hello)
    body = found[SERVER_HELLO]
    equal(body[:2], b"\x03\x03", "legacy_version")
    equal(body[34 : 35 + body[34]], vec8(hello.session_id), "legacy_session_id_echo")
    equal(body[35 + body[34] + 2], 0, "legacy_compression_method")
    equal(talk.server_extensions[43], b"\x03\x04", "supported_versions")
    check(set(talk.server_extensions) <= {43, 51}, f"extensions {sorted(talk.server_extensions)} in ServerHello")


@case("empty-session-id", "4.1.2: a client without middlebox mode sends no session id, and gets none back")
def _(world):
    hello = hello_13(OFF)
    hello.session_id = b""
    _, found = established(world, hello)
    equal(found[SERVER_HELLO][34], 0, "length of legacy_session_id_echo")


@case("encrypted-extensions", "4.2: no response to an extension that was not offered, none that belongs elsewhere")
def _(world):
    hello = hello_13(OFF)
    _, found = established(world, hello)
    offered = {kind for kind, _ in hello.extensions}
    seen = {kind for kind, _ in parse_extensions(found[ENCRYPTED_EXTENSIONS][2:])}
    check(seen <= offered and not seen & {43, 51, 13, 41, 45}, f"extensions {sorted(seen)}")


@case("certificate-extensions", "4.4.2: an empty request context in the server's Certificate")
def _(world):
    _, found = established(world)
    equal(found[CERTIFICATE][0], 0, "length of certificate_request_context")


@case("unknown-extensions", "4.1.2: extensions nobody knows (GREASE too) are ignored")
def _(world):
    established(world, hello_13(OFF, more=[(0x0A0A, b""), (0xFAFA, b"\x00" * 100), (0x1234, os.urandom(1000))]))


@case("unknown-values", "unknown suites, groups, schemes, versions and modes are ignored")
def _(world):
    hello = hello_13(OFF, groups=[0x1A1A, X25519], suites=[0x2A2A, 0x1301])
    hello.put(signature_algorithms([0x3A3A, 0xFE00, *SCHEMES])).put(supported_versions([0x4A4A, 0x0304, 0x0303]))
    hello.put(psk_modes(b"\x5a\x01\x00"))
    hello.put(key_shares([(0x1A1A, b"\x00"), (X25519, hello.shares[X25519].public)]))
    established(world, hello)


@case("fragmented", "5.1: a hello in records of 7 bytes, a Finished in records of 3")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF), fragment=7)
        talk.server_flight()
        talk.send_message(talk.finished_13(), fragment=3)
        talk.go_on_13()
        talk.expect_answer()


@case("record-versions", "5.1: legacy_record_version is ignored")
def _(world):
    for version in (0x0301, 0x0302, 0x0303, 0x0304):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_13(OFF), version=version)
            talk.server_flight()
            talk.client_flight_13()
            talk.expect_answer()


@case("padded-records", "5.4: padding of any length is taken off")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send_message(talk.finished_13(), padding=300)
        talk.go_on_13()
        request = b"GET / HTTP/1.0\r\n\r\n"
        talk.send_data(request, padding=16384 - len(request))
        check(talk.expect_data().startswith(b"HTTP/1."), "no answer")


@case("empty-data-records", "5.1: records of application data may be empty")
def _(world):
    talk, _ = established(world)
    talk.send_data(b"")
    talk.send_data(b"", padding=50)
    talk.expect_answer()


@case("largest-record", "5.1: a record of 2^14 bytes is taken")
def _(world):
    talk, _ = established(world)
    request = b"GET / HTTP/1.0\r\nx: "
    talk.send_data(request + b"a" * (16384 - len(request) - 4) + b"\r\n\r\n")
    check(talk.expect_data().startswith(b"HTTP/1."), "no answer")


# Hellos that must be refused.


@case("no-version-in-common", "4.2.1: supported_versions without one of ours: protocol_version")
def _(world):
    for versions in ([0x0305], [0x0302, 0x0301], [0x7F1C]):
        refused(world, hello_13(OFF).put(supported_versions(versions)), "protocol_version")


@case("empty-versions", "an empty list of versions: decode_error")
def _(world):
    refused(world, hello_13(OFF).put((43, b"\x00")), "decode_error", "protocol_version", "illegal_parameter")


@case("legacy-version-ssl3", "appendix D.5: a hello whose legacy_version is 0x0300: protocol_version")
def _(world):
    hello = hello_13(OFF)
    hello.version = 0x0300
    refused(world, hello, "protocol_version", wait_s=EXPECTED_SILENCE_S)


@case("no-suite-in-common", "4.1.1: no suite of TLS 1.3: handshake_failure")
def _(world):
    refused(world, hello_13(OFF, suites=[0x1304, 0x1305]), "handshake_failure", "insufficient_security")
    refused(world, hello_13(OFF, suites=[0xC02B, 0xC02F]), "handshake_failure", "insufficient_security")


@case("no-group-in-common", "4.1.1: no group: handshake_failure")
def _(world):
    hello = hello_13(OFF, groups=[P521], shares=[P521])
    refused(world, hello, "handshake_failure", "insufficient_security")


@case("no-scheme-in-common", "4.4.3: no signature scheme: handshake_failure")
def _(world):
    refused(world, hello_13(OFF).put(signature_algorithms([0xFEFE])), "handshake_failure")


@case("pkcs1-only", "4.2.3: RSASSA-PKCS1 and SHA-1 never sign a handshake of TLS 1.3")
def _(world):
    schemes = [RSA_PKCS1_SHA256, 0x0501, 0x0201, ECDSA_SHA1]
    refused(world, hello_13(OFF).put(signature_algorithms(schemes)), "handshake_failure")


@case("no-signature-algorithms", "9.2: without signature_algorithms: missing_extension")
def _(world):
    refused(world, hello_13(OFF).without(13), "missing_extension")


@case("no-supported-groups", "9.2: key_share without supported_groups: missing_extension")
def _(world):
    refused(world, hello_13(OFF).without(10), "missing_extension")


@case("no-key-share", "9.2: supported_groups without key_share: missing_extension")
def _(world):
    refused(world, hello_13(OFF).without(51), "missing_extension")


@case("compression", "4.1.2: a compression method besides null, or none: illegal_parameter")
def _(world):
    for methods in (b"\x01", b"\x01\x00", b"\x00\x01", b""):
        hello = hello_13(OFF)
        hello.compression = methods
        refused(world, hello, *(["illegal_parameter"] if methods else ["illegal_parameter", "decode_error"]))


@case("doubled-extension", "4.2: an extension twice")
def _(world):
    for extra in (signature_algorithms(SCHEMES), supported_versions([0x0304]), (0x1234, b""), server_name(OFF)):
        hello = hello_13(OFF)
        hello.extensions += [(0x1234, b""), extra]
        refused(world, hello, "illegal_parameter", "decode_error")


@case("trailing-bytes", "a hello with bytes after its extensions: decode_error")
def _(world):
    hello = hello_13(OFF)
    hello.tail = b"\x00"
    refused(world, hello, "decode_error")


@case("cut-off-hello", "hellos whose lengths lie, at each place: decode_error or illegal_parameter")
def _(world):
    whole = hello_13(OFF).body()
    for cut in (1, 2, 33, 34, 40, 67, 70, 75, 80, 100, len(whole) - 1):
        with Conversation(world.address) as talk:
            talk.send(HANDSHAKE, message(1, whole[:cut]))
            talk.expect_alert("decode_error", "illegal_parameter")


@case("extension-bodies", "extensions we know, empty, cut off or overlong: decode_error")
def _(world):
    good = {kind: body for kind, body in hello_13(OFF).extensions}
    for kind in (0, 10, 13, 43, 51, 45):
        for body in (b"", good[kind][:-1], good[kind] + b"\x00"):
            refused(world, hello_13(OFF).put((kind, body)), "decode_error", "illegal_parameter", "missing_extension")


@case("key-share-doubled", "4.2.8: two shares of one group: illegal_parameter")
def _(world):
    hello = hello_13(OFF)
    pair = (X25519, hello.shares[X25519].public)
    refused(world, hello.put(key_shares([pair, pair])), "illegal_parameter")


@case("key-share-invalid", "4.2.8.2: shares of wrong length, off the curve, or zero: illegal_parameter")
def _(world):
    point = Share(P256).public
    for group, share in (
        (X25519, b"\x09" * 31),
        (X25519, b"\x09" * 33),
        (X25519, bytes(32)),
        (P256, point[:-1]),
        (P256, point + b"\x00"),
        (P256, b"\x04" + bytes(64)),
        (P256, b"\x04" + b"\x11" * 64),
        (P256, b"\x02" + point[1:33]),
        (P384, point),
    ):
        hello = hello_13(OFF, groups=[group], shares=[group]).put(key_shares([(group, share)]))
        refused(world, hello, "illegal_parameter")


@case("key-share-empty", "4.2.8: a share without bytes: decode_error or illegal_parameter")
def _(world):
    refused(world, hello_13(OFF).put(key_shares([(X25519, b"")])), "decode_error", "illegal_parameter")


@case("unknown-name", "RFC 6066 3: a name nobody serves here still gets the default's certificate")
def _(world):
    established(world, hello_13("nobody.test"))


@case("malformed-name", "RFC 6066 3: a server_name that is no name is refused")
def _(world):
    for body in (vec16(b""), vec16(u8(0) + vec16(b"")), vec16(u8(0) + vec16(b"a\x00b.test")), vec16(b"\x00\x00")):
        refused(world, hello_13(OFF).put((0, body)), "decode_error", "illegal_parameter", "unrecognized_name")


@case("psk-not-last", "4.2.11: pre_shared_key that is not the last extension: illegal_parameter")
def _(world):
    psk = (41, vec16(vec16(b"x" * 32) + bytes(4)) + vec16(vec8(bytes(32))))
    hello = hello_13(OFF)
    hello.extensions.insert(0, psk)
    refused(world, hello, "illegal_parameter")


@case("psk-without-modes", "4.2.9: pre_shared_key without psk_key_exchange_modes is refused")
def _(world):
    hello = hello_13(OFF).without(45)
    hello.extensions.append((41, vec16(vec16(b"x" * 32) + bytes(4)) + vec16(vec8(bytes(32)))))
    refused(world, hello, "missing_extension")


@case("early-hello-twice", "4.1.2: a second hello nobody asked for: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        hello = hello_13(OFF)
        talk.send_hello(hello)
        talk.server_flight()
        talk.send(HANDSHAKE, hello.bytes())
        talk.expect_alert("unexpected_message")


@case("message-of-another-type", "a handshake that begins with something else than a hello: unexpected_message")
def _(world):
    for kind in (0, SERVER_HELLO, FINISHED, CERTIFICATE, KEY_UPDATE, 99):
        with Conversation(world.address) as talk:
            talk.hello = hello_13(OFF)
            talk.send(HANDSHAKE, message(kind, bytes(32)))
            talk.expect_alert("unexpected_message", "decode_error", "illegal_parameter")


# HelloRetryRequest.


@case("retry", "4.1.4: a group without its share is asked for, and the handshake goes on")
def _(world):
    _retry(world, lambda talk, first, second: None)


@case("retry-legacy-fields", "4.1.4: a HelloRetryRequest echoes the session id and names a group that was offered")
def _(world):
    with Conversation(world.address) as talk:
        hello = hello_13(OFF, groups=[P384], shares=[])
        talk.send_hello(hello)
        body = talk.expect(SERVER_HELLO)
        equal(body[2:34], RETRY, "random")
        equal(body[34:67], vec8(hello.session_id), "session id")
        extensions = dict(parse_extensions(body[35 + 32 + 5 :]))
        equal(extensions.get(51), u16(P384), "key_share")
        equal(extensions.get(43), b"\x03\x04", "supported_versions")


@case("retry-twice", "4.1.2: a second hello that again lacks the share: refused")
def _(world):
    _retry(world, lambda talk, first, second: second.put(key_shares([])), "illegal_parameter", "missing_extension",
           "handshake_failure", "unexpected_message")  # fmt: skip


@case("retry-other-group", "4.2.8: a second hello with a share of another group: illegal_parameter")
def _(world):
    def change(talk, first, second):
        share = Share(P256)
        second.shares = {P256: share}
        second.put(key_shares([(P256, share.public)]))

    _retry(world, change, "illegal_parameter")


@case("retry-other-suites", "4.1.2: a second hello without the suite the retry chose: illegal_parameter")
def _(world):
    def change(talk, first, second):
        second.suites = [0x1303]

    _retry(world, change, "illegal_parameter", "handshake_failure", suites=[0x1301, 0x1303])


def _retry(world, change, *alerts, **options):
    with Conversation(world.address) as talk:
        first = hello_13(OFF, groups=[P384, P256], shares=[], **options)
        talk.send_hello(first)
        body = talk.expect(SERVER_HELLO)
        equal(body[2:34], RETRY, "random of a HelloRetryRequest")
        extensions = talk.retry_hello(body, first)
        group = int.from_bytes(extensions[51], "big")
        second = hello_13(OFF, groups=[P384, P256], shares=[group], **options)
        second.random, second.session_id = first.random, first.session_id
        change(talk, first, second)
        talk.send_hello(second)
        if alerts:
            talk.expect_alert(*alerts)
            return
        talk.server_flight()
        talk.client_flight_13()
        talk.expect_answer()


# Records.


@case("ccs-ignored", "5: ChangeCipherSpec after the hello and before Finished is passed over")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.send_ccs()
        talk.server_flight()
        talk.send_ccs()
        talk.client_flight_13()
        talk.expect_answer()


@case("ccs-malformed", "5: a ChangeCipherSpec with another value or length: unexpected_message")
def _(world):
    for body in (b"\x02", b"\x01\x01", b"\x00"):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_13(OFF))
            talk.server_flight()
            talk.send_ccs(body)
            talk.expect_alert("unexpected_message", "illegal_parameter", "decode_error")


@case("ccs-before-hello", "5: a ChangeCipherSpec before the hello: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        talk.hello = hello_13(OFF)
        talk.send_ccs()
        talk.expect_alert("unexpected_message")


@case("ccs-protected", "5: a protected ChangeCipherSpec: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send(CCS, b"\x01")
        talk.expect_alert("unexpected_message", "illegal_parameter", "decode_error")


@case("ccs-after-finished", "5: a ChangeCipherSpec after Finished: unexpected_message")
def _(world):
    talk, _ = established(world)
    talk.send_ccs()
    talk.expect_alert("unexpected_message")


@case("unknown-record-type", "5.1: a record type nobody knows: unexpected_message")
def _(world):
    for kind in (24, 0, 25, 99, 255):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_13(OFF))
            talk.server_flight()
            talk.send(kind, b"hello")
            talk.expect_alert("unexpected_message", "decode_error", "illegal_parameter")


@case("unknown-record-type-plain", "5.1: the same unprotected: unexpected_message")
def _(world):
    talk, _ = established(world)
    talk.send_raw(u8(99) + u16(0x0303) + vec16(b"hello"))
    talk.expect_alert("unexpected_message", "decode_error")


@case("overlong-plaintext", "5.1: a plain record above 2^14 bytes: record_overflow")
def _(world):
    with Conversation(world.address) as talk:
        talk.hello = hello_13(OFF)
        talk.socket.settimeout(EXPECTED_SILENCE_S)
        talk.send_raw(u8(HANDSHAKE) + u16(0x0301) + vec16(message(1, bytes(16400))[:16385]))
        talk.expect_alert("record_overflow", "decode_error")


@case("overlong-ciphertext", "5.2: a protected record above 2^14 + 256 bytes: record_overflow")
def _(world):
    talk, _ = established(world)
    talk.send_raw(u8(DATA) + u16(0x0303) + vec16(bytes(16384 + 257)))
    talk.expect_alert("record_overflow")


@case("overlong-inner", "5.4: inner plaintext of more than 2^14 + 1 bytes: record_overflow")
def _(world):
    for size, padding in ((16385, 0), (16, 16384)):
        talk, _ = established(world)
        talk.send_data(b"a" * size, padding=padding)
        talk.expect_alert("record_overflow")


@case("bad-mac", "5.2: a record that does not authenticate: bad_record_mac")
def _(world):
    for at in (5, 10, -1):
        talk, _ = established(world)
        record = bytearray(talk.record(DATA, b"GET / HTTP/1.0\r\n\r\n"))
        record[at] ^= 1
        talk.send_raw(bytes(record))
        talk.expect_alert("bad_record_mac")


@case("short-record", "5.2: protected records too short to hold a tag: bad_record_mac")
def _(world):
    for size in (0, 1, 15, 16):
        talk, _ = established(world)
        talk.send_raw(u8(DATA) + u16(0x0303) + vec16(bytes(size)))
        talk.expect_alert("bad_record_mac", "decode_error", "unexpected_message")


@case("replayed-record", "5.3: a record sent again: bad_record_mac")
def _(world):
    talk, _ = established(world)
    record = talk.record(DATA, b"GET / HTTP/1.0\r\n\r\n")
    talk.send_raw(record)
    talk.expect_data()
    talk.send_raw(record)
    talk.expect_alert("bad_record_mac")


@case("all-padding", "5.4: a record of zeros only: unexpected_message")
def _(world):
    talk, _ = established(world)
    talk.send(0, b"", padding=20)
    talk.expect_alert("unexpected_message")


@case("empty-handshake-record", "5.1: an empty record of type handshake: unexpected_message")
def _(world):
    talk, _ = established(world)
    talk.socket.settimeout(EXPECTED_SILENCE_S)
    talk.send(HANDSHAKE, b"")
    talk.expect_alert("unexpected_message", "decode_error")


@case("empty-alert-record", "5.1: an empty alert: unexpected_message or decode_error")
def _(world):
    talk, _ = established(world)
    talk.send(ALERT, b"")
    talk.expect_alert("unexpected_message", "decode_error")


@case("interleaved", "5.1: other records between the parts of a handshake message: unexpected_message")
def _(world):
    talk, _ = established(world)
    update = message(KEY_UPDATE, b"\x00")
    talk.send(HANDSHAKE, update[:2])
    talk.send_data()
    talk.expect_alert("unexpected_message")


@case("data-before-finished", "4.4.4: application data before the client's Finished: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send_data()
        talk.expect_alert("unexpected_message")


@case("data-in-the-clear", "5.1: unprotected application data after the handshake: refused")
def _(world):
    talk, _ = established(world)
    talk.send_raw(u8(DATA) + u16(0x0303) + vec16(b"GET / HTTP/1.0\r\n\r\n"))
    talk.expect_alert("bad_record_mac", "unexpected_message")


@case("data-as-first", "a connection that begins with application data: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        talk.hello = hello_13(OFF)
        talk.send_data()
        talk.expect_alert("unexpected_message")


# Finished and what comes after it.


@case("finished-wrong", "4.4.4: a wrong Finished: decrypt_error")
def _(world):
    for at in (4, 20, -1):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_13(OFF))
            talk.server_flight()
            wrong = bytearray(talk.finished_13())
            wrong[at] ^= 0x80
            talk.send_message(bytes(wrong))
            talk.expect_alert("decrypt_error")


@case("finished-length", "4.4.4: a Finished of another length: decode_error or decrypt_error")
def _(world):
    for change in (lambda data: data[:-1], lambda data: data + b"\x00", lambda data: b"", lambda data: bytes(3000)):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_13(OFF))
            talk.server_flight()
            talk.send_message(message(FINISHED, change(talk.finished_13()[4:])))
            talk.expect_alert("decode_error", "decrypt_error")


@case("finished-in-the-clear", "an unprotected Finished: refused")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send_raw(u8(HANDSHAKE) + u16(0x0303) + vec16(talk.finished_13()))
        talk.expect_alert("unexpected_message", "bad_record_mac")


@case("key-boundary", "5.1: a message that goes on across a change of keys: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send_message(talk.finished_13() + message(KEY_UPDATE, b"\x00")[:2])
        talk.expect_alert("unexpected_message")


@case("certificate-unasked", "4.4.2: a client certificate nobody asked for: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send_message(world.ecdsa.message_13())
        talk.expect_alert("unexpected_message")


@case("after-the-handshake", "4.6: hello, Certificate, Finished and other messages after the handshake: unexpected_message")
def _(world):
    bodies = [hello_13(OFF).bytes(), world.ecdsa.message_13(), message(FINISHED, bytes(32)), message(4, bytes(40)),
              message(0, b""), message(CERTIFICATE_REQUEST, bytes(3)), message(99, b"")]  # fmt: skip
    for body in bodies:
        talk, _ = established(world)
        talk.send(HANDSHAKE, body)
        talk.expect_alert("unexpected_message", "decode_error")


@case("key-update", "4.6.3: the client's new keys are taken, with no answer unless it is asked for")
def _(world):
    talk, _ = established(world)
    for _ in range(3):
        talk.send(HANDSHAKE, message(KEY_UPDATE, b"\x00"))
        talk.update_writer()
        talk.expect_answer()


@case("key-update-requested", "4.6.3: update_requested is answered by a KeyUpdate before the next data")
def _(world):
    talk, _ = established(world)
    talk.send(HANDSHAKE, message(KEY_UPDATE, b"\x01"))
    talk.update_writer()
    talk.send_data()
    equal(talk.expect(KEY_UPDATE, in_transcript=False), b"\x00", "the server's KeyUpdate")
    talk.update_reader()
    check(talk.expect_data().startswith(b"HTTP/1."), "no answer")


@case("key-update-invalid", "4.6.3: a KeyUpdate of another value or length: illegal_parameter or decode_error")
def _(world):
    for body in (b"\x02", b"\xff", b"", b"\x00\x00"):
        talk, _ = established(world)
        talk.send(HANDSHAKE, message(KEY_UPDATE, body))
        talk.expect_alert(*(["illegal_parameter"] if len(body) == 1 else ["decode_error", "illegal_parameter"]))


@case("key-update-old-keys", "4.6.3: data under the old keys after a KeyUpdate: bad_record_mac")
def _(world):
    talk, _ = established(world)
    talk.send(HANDSHAKE, message(KEY_UPDATE, b"\x00"))
    talk.send_data()
    talk.expect_alert("bad_record_mac")


@case("key-update-early", "4.6.3: a KeyUpdate before Finished: unexpected_message")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send(HANDSHAKE, message(KEY_UPDATE, b"\x00"))
        talk.expect_alert("unexpected_message")


@case("close-notify", "6.1: close_notify is answered by close_notify, and the connection ends")
def _(world):
    talk, _ = established(world)
    talk.send(ALERT, bytes([1, 0]))
    equal(talk.expect_alert("close_notify", fatal=False), "close_notify", "alert")
    talk.expect_end()


@case("fatal-alert", "6.2: a fatal alert ends the connection at once, without an answer")
def _(world):
    talk, _ = established(world)
    talk.send(ALERT, bytes([2, 40]))
    talk.expect_end()


@case("unknown-alert", "6: an alert nobody knows counts as fatal in TLS 1.3")
def _(world):
    talk, _ = established(world)
    talk.send(ALERT, bytes([1, 199]))
    got = talk.receive()
    check(got[0] in ("end", "alert"), f"{got[0]} instead of an end")


@case("fatal-in-handshake", "6.2: a fatal alert within the handshake ends the connection")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(OFF))
        talk.server_flight()
        talk.send(ALERT, bytes([2, 48]))
        talk.expect_end()


# Early data, which this server never takes.


@case("early-data-skipped", "4.2.10: early data of a client with a foreign ticket is skipped, the handshake goes on")
def _(world):
    with Conversation(world.address) as talk:
        hello = hello_13(OFF, more=[(42, b"")])
        hello.extensions.append((41, vec16(vec16(b"x" * 64) + bytes(4)) + vec16(vec8(bytes(32)))))
        talk.send_hello(hello)
        talk.send_raw(u8(DATA) + u16(0x0303) + vec16(os.urandom(200)))
        talk.server_flight()
        talk.client_flight_13()
        talk.expect_answer()


# Resumption.


@case("tickets", "4.6.1: a ticket comes, lives at most seven days, and admits no early data")
def _(world):
    talk, _ = established(world)
    check(talk.tickets, "no ticket")
    lifetime = int.from_bytes(talk.tickets[0][:4], "big")
    check(0 < lifetime <= 604800, f"lifetime {lifetime}")
    nonce = talk.tickets[0][8]
    rest = talk.tickets[0][9 + nonce :]
    extensions = parse_extensions(rest[2 + int.from_bytes(rest[:2], "big") :][2:])
    check(42 not in dict(extensions), "early_data in a ticket")


def resumption(talk, hello, spoil=lambda binder: binder):
    """A hello that offers the conversation's ticket; returns the key."""
    psk, ticket = talk.psk_of(talk.tickets[-1])
    age = int.from_bytes(talk.tickets[-1][4:8], "big")
    size = len(talk.hash(b""))
    identities = vec16(vec16(ticket) + struct.pack("!L", (age + 10) & 0xFFFFFFFF))
    hello.extensions.append((41, identities + vec16(vec8(bytes(size)))))
    cut = hello.bytes()[: -(size + 3)]
    zeros = bytes(size)
    early = talk._extract(zeros, psk)
    key = talk.finish_key(talk._expand(early, b"res binder", talk.hash(b"")))
    binder = talk._extract(key, talk.hash(cut))
    hello.extensions[-1] = (41, identities + vec16(vec8(spoil(binder))))
    return psk


@case("resume", "4.2.11: a ticket resumes with fresh keys")
def _(world):
    first, _ = established(world)
    hello = hello_13(OFF)
    psk = resumption(first, hello)
    with Conversation(world.address) as talk:
        talk.send_hello(hello)
        found = talk.server_flight(psk)
        check(41 in talk.server_extensions, "not resumed")
        check(CERTIFICATE not in found, "a certificate in a resumed handshake")
        check(51 in talk.server_extensions, "no fresh key exchange")
        talk.client_flight_13()
        talk.expect_answer()


@case("resume-mutual", "4.2.11: the same for a client with a certificate")
def _(world):
    first, _ = established(world, name=REQUIRE, chain=world.ecdsa, scheme=ECDSA_P256_SHA256)
    hello = hello_13(REQUIRE)
    psk = resumption(first, hello)
    with Conversation(world.address) as talk:
        talk.send_hello(hello)
        found = talk.server_flight(psk)
        check(41 in talk.server_extensions, "not resumed")
        check(CERTIFICATE_REQUEST not in found, "a certificate is asked for again")
        talk.client_flight_13()
        talk.expect_answer()


@case("resume-wrong-binder", "4.2.11: a binder that is wrong or of another length ends the handshake: decrypt_error")
def _(world):
    for spoil in (
        lambda binder: bytes([binder[0] ^ 1]) + binder[1:],
        lambda binder: binder[:-1] + bytes([binder[-1] ^ 1]),
    ):
        first, _ = established(world)
        hello = hello_13(OFF)
        resumption(first, hello, spoil)
        refused(world, hello, "decrypt_error")


@case("resume-unknown-ticket", "4.2.11: a ticket nobody knows means a full handshake")
def _(world):
    for ticket in (b"x", os.urandom(150), os.urandom(5000)):
        hello = hello_13(OFF)
        hello.extensions.append((41, vec16(vec16(ticket) + bytes(4)) + vec16(vec8(bytes(32)))))
        _, found = established(world, hello)
        check(CERTIFICATE in found, "resumed")


@case("resume-psk-only", "4.2.9: a client that wants psk_ke alone (no fresh keys) gets a full handshake")
def _(world):
    first, _ = established(world)
    hello = hello_13(OFF).put(psk_modes(b"\x00"))
    psk = resumption(first, hello)
    with Conversation(world.address) as talk:
        talk.send_hello(hello)
        talk.server_flight(psk)
        check(41 not in talk.server_extensions, "resumed without a key exchange")


@case("resume-other-hash", "4.2.11: a ticket under a suite of another hash is not taken")
def _(world):
    first, _ = established(world, hello_13(OFF, suites=[0x1301]))
    hello = hello_13(OFF, suites=[0x1302])
    hello.extensions.append((41, vec16(vec16(first.psk_of(first.tickets[-1])[1]) + bytes(4)) + vec16(vec8(bytes(48)))))
    with Conversation(world.address) as talk:
        talk.send_hello(hello)
        found = talk.server_flight()
        check(CERTIFICATE in found, "resumed under another hash")


@case("resume-counts", "4.2.11: more or fewer binders than identities: illegal_parameter")
def _(world):
    hello = hello_13(OFF)
    identity = vec16(b"x" * 64) + bytes(4)
    hello.extensions.append((41, vec16(identity * 2) + vec16(vec8(bytes(32)))))
    refused(world, hello, "illegal_parameter", "decode_error")


# Client certificates.


@case("request-fields", "4.3.2: CertificateRequest has an empty context, signature algorithms, and no CA names")
def _(world):
    for name in (REQUEST, REQUIRE):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_13(name))
            body = talk.server_flight()[CERTIFICATE_REQUEST]
            equal(body[0], 0, "length of the context")
            extensions = dict(parse_extensions(body[3:]))
            check(13 in extensions, "no signature_algorithms")
            check(47 not in extensions, "CA names are sent unasked")
            listed = [int.from_bytes(extensions[13][at : at + 2], "big") for at in range(2, len(extensions[13]), 2)]
            check({ECDSA_P256_SHA256, ED25519, RSA_PSS_SHA256} <= set(listed), f"schemes {listed}")
            check(not {RSA_PKCS1_SHA256 & 0xFF00 | 1, 0x0201, 0x0203} & {each for each in listed if each >> 8 == 2},
                  "SHA-1 is asked for")  # fmt: skip


for kind, scheme in (
    ("ecdsa", ECDSA_P256_SHA256),
    ("p384", 0x0503),
    ("ed25519", ED25519),
    ("rsa", RSA_PSS_SHA256),
    ("rsa", 0x0805),
    ("rsa", 0x0806),
):

    @case(f"client-{kind}-{scheme:04x}", "4.4.3: a client certificate with this key and scheme is accepted")
    def _(world, kind=kind, scheme=scheme):
        for name in (REQUIRE, REQUEST):
            established(world, name=name, chain=getattr(world, kind), scheme=scheme)


@case("client-none-request", "4.4.2: an empty Certificate where one is only requested")
def _(world):
    established(world, name=REQUEST)


@case("client-none-require", "4.4.2.4: an empty Certificate where one is required: certificate_required")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(REQUIRE))
        talk.server_flight()
        talk.send_message(EMPTY_CERTIFICATE_13)
        talk.client_flight_13()
        talk.expect_alert("certificate_required")


@case("client-unknown-ca", "4.4.2.4: a certificate of a CA this hostname does not know: unknown_ca")
def _(world):
    _client_refused(world, world.stranger, ECDSA_P256_SHA256, "unknown_ca")


def _client_refused(world, chain, scheme, *alerts, certificate=None, verify=None, name=REQUIRE, then=True):
    """A handshake with these client messages ends with one of the alerts."""
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(name))
        talk.server_flight()
        talk.send_message(certificate or chain.message_13())
        if then:
            talk.send_message(verify(talk) if verify else talk.verify_13(chain, scheme))
            talk.send_message(talk.finished_13())
            talk.go_on_13()
        talk.expect_alert(*alerts)


@case("client-verify-wrong", "4.4.3: a signature over something else: decrypt_error")
def _(world):
    for name in (REQUIRE, REQUEST):
        for content in (
            lambda talk: content_13(talk.hash(b"something else")),
            lambda talk: content_13(talk.hash(), who=b"server"),
            lambda talk: content_13(talk.hash())[1:],
            lambda talk: talk.hash(),
        ):
            _client_refused(
                world, world.ecdsa, ECDSA_P256_SHA256, "decrypt_error", name=name,
                verify=lambda talk, content=content: talk.verify_13(world.ecdsa, ECDSA_P256_SHA256, content(talk)),
            )  # fmt: skip


@case("client-verify-flipped", "4.4.3: a signature with one bit changed: decrypt_error")
def _(world):
    def flipped(talk, chain, scheme, at):
        whole = bytearray(talk.verify_13(chain, scheme))
        whole[at] ^= 1
        return bytes(whole)

    for chain, scheme in ((world.rsa, RSA_PSS_SHA256), (world.ecdsa, ECDSA_P256_SHA256), (world.ed25519, ED25519)):
        for at in (20, -1):
            _client_refused(world, chain, scheme, "decrypt_error",
                            verify=lambda talk: flipped(talk, chain, scheme, at))  # fmt: skip


@case("client-verify-scheme", "4.4.3: schemes of another key, PKCS1, SHA-1, or unknown: illegal_parameter")
def _(world):
    def signed(talk, chain, scheme, named):
        return message(CERTIFICATE_VERIFY, u16(named) + vec16(chain.sign(scheme, content_13(talk.hash()))))

    for chain, scheme, named in (
        (world.rsa, RSA_PKCS1_SHA256, RSA_PKCS1_SHA256),
        (world.rsa, 0x0201, 0x0201),
        (world.ecdsa, ECDSA_SHA1, ECDSA_SHA1),
        (world.ecdsa, ECDSA_P256_SHA256, 0x0503),
        (world.ecdsa, ECDSA_P256_SHA256, RSA_PSS_SHA256),
        (world.rsa, RSA_PSS_SHA256, ECDSA_P256_SHA256),
        (world.rsa, RSA_PSS_SHA256, 0x0809),
        (world.ecdsa, ECDSA_P256_SHA256, 0xFEFE),
    ):
        _client_refused(world, chain, scheme, "illegal_parameter", "decrypt_error", "handshake_failure",
                        verify=lambda talk: signed(talk, chain, scheme, named))  # fmt: skip


@case("client-verify-length", "4.4.3: an empty, cut off or overlong CertificateVerify")
def _(world):
    for change in (
        lambda body: b"",
        lambda body: body[:2] + vec16(b""),
        lambda body: body[:-1],
        lambda body: body + b"\x00",
        lambda body: body[:2] + vec16(body[4:] + b"\x00"),
    ):
        _client_refused(
            world, world.ecdsa, ECDSA_P256_SHA256, "decode_error", "decrypt_error", "illegal_parameter",
            verify=lambda talk: message(
                CERTIFICATE_VERIFY, change(talk.verify_13(world.ecdsa, ECDSA_P256_SHA256)[4:])
            ),
        )  # fmt: skip


@case("client-verify-missing", "4.4.3: a certificate without CertificateVerify: unexpected_message")
def _(world):
    for name in (REQUIRE, REQUEST):
        _client_refused(world, world.ecdsa, None, "unexpected_message", name=name, verify=lambda talk: talk.finished_13())


@case("client-verify-alone", "4.4.3: CertificateVerify after an empty Certificate: unexpected_message")
def _(world):
    _client_refused(world, world.ecdsa, ECDSA_P256_SHA256, "unexpected_message", name=REQUEST,
                    certificate=EMPTY_CERTIFICATE_13)  # fmt: skip


@case("client-finished-alone", "4.4.2: no Certificate at all where one was asked for: unexpected_message")
def _(world):
    for name in (REQUIRE, REQUEST):
        with Conversation(world.address) as talk:
            talk.send_hello(hello_13(name))
            talk.server_flight()
            talk.client_flight_13()
            talk.expect_alert("unexpected_message")


@case("client-certificate-malformed", "4.4.2: a Certificate whose bytes lie")
def _(world):
    der = world.ecdsa.der[0]
    entry = vec24(der) + vec16(b"")
    for body in (
        b"",
        vec8(b"") + vec24(entry)[:-1],
        vec8(b"") + vec24(entry) + b"\x00",
        vec8(b"") + vec24(vec24(b"") + vec16(b"")),
        vec8(b"") + vec24(vec24(der)),
        vec8(b"") + vec24(u24(len(der) + 9) + der + vec16(b"")),
        vec8(b"") + vec24(vec24(der) + vec16(b"\x00")),
    ):
        _client_refused(world, world.ecdsa, ECDSA_P256_SHA256, "decode_error", "bad_certificate", "illegal_parameter",
                        certificate=message(CERTIFICATE, body), then=False)  # fmt: skip


@case("client-certificate-context", "4.4.2: a request context that is not the server's: illegal_parameter")
def _(world):
    _client_refused(world, world.ecdsa, ECDSA_P256_SHA256, "illegal_parameter", "decode_error",
                    certificate=world.ecdsa.message_13(context=b"context"), then=False)  # fmt: skip


@case("client-certificate-extension", "4.4.2: an extension in a Certificate entry nobody asked for is refused")
def _(world):
    _client_refused(world, world.ecdsa, ECDSA_P256_SHA256, "unsupported_extension", "illegal_parameter",
                    certificate=world.ecdsa.message_13(entry_extensions=u16(0x1234) + vec16(b"")), then=False)  # fmt: skip


@case("client-certificate-der", "4.4.2.4: certificates whose DER is broken: bad_certificate")
def _(world):
    der = world.ecdsa.der[0]
    spoiled = bytearray(der)
    spoiled[len(der) // 2] ^= 0xFF
    for broken in (b"\x30", der[:-1], der[:100], b"\x00" * 200, bytes(spoiled)):
        body = vec8(b"") + vec24(vec24(broken) + vec16(b""))
        _client_refused(world, world.ecdsa, ECDSA_P256_SHA256, "bad_certificate", "decode_error", "unknown_ca",
                        "decrypt_error", certificate=message(CERTIFICATE, body))  # fmt: skip


@case("client-certificate-fragmented", "5.1: Certificate and CertificateVerify in small records")
def _(world):
    with Conversation(world.address) as talk:
        talk.send_hello(hello_13(REQUIRE))
        talk.server_flight()
        talk.send_message(world.rsa.message_13(), fragment=50)
        talk.send_message(talk.verify_13(world.rsa, RSA_PSS_SHA256), fragment=11)
        talk.client_flight_13()
        talk.expect_answer()


@case("client-certificate-twice", "4.4.2: two Certificates: unexpected_message")
def _(world):
    _client_refused(world, world.ecdsa, None, "unexpected_message", verify=lambda talk: world.ecdsa.message_13())


@case("client-post-handshake-offer", "4.2.6: post_handshake_auth is ignored by a server that does not use it")
def _(world):
    established(world, hello_13(OFF, more=[(49, b"")]))


# Messages at random.

# Handshakes with one random fault each, the same in every run.
RANDOM_HANDSHAKES = 100


@case("random-faults", "a random bit of a random message: each ends with an alert or the end, or goes on; the next client is served")
def _(world):
    dice = random.Random(8446)

    def spoiled(data):
        data = bytearray(data)
        for _ in range(dice.choice((1, 1, 3))):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(data[: dice.randrange(1, len(data) + 1)] if dice.random() < 0.2 else data)

    for number in range(RANDOM_HANDSHAKES):
        # 0: the hello, 1: Certificate, 2: CertificateVerify, 3: Finished, 4: data.
        at = number % 5
        with Conversation(world.address) as talk:
            # Lengths that promise more leave the server waiting, which is right.
            talk.socket.settimeout(0.2)
            hello = hello_13(REQUIRE)
            talk.hello = hello
            try:
                talk.send_message(spoiled(hello.bytes()) if at == 0 else hello.bytes())
                if at > 0:
                    talk.server_flight()
                    certificate = world.ecdsa.message_13()
                    talk.send_message(spoiled(certificate) if at == 1 else certificate)
                    verify = talk.verify_13(world.ecdsa, ECDSA_P256_SHA256)
                    talk.send_message(spoiled(verify) if at == 2 else verify)
                    finished = talk.finished_13()
                    talk.send_message(spoiled(finished) if at == 3 else finished)
                    talk.go_on_13()
                    talk.send_raw(spoiled(talk.record(DATA, b"GET / HTTP/1.0\r\n\r\n")))
                while talk.receive()[0] != "end":
                    pass
            except (Failed, KeyError, IndexError):
                # What the server says to a spoiled hello may not be for us to read.
                pass
    established(world)
