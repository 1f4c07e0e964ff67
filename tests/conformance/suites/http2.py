"""HTTP/2 against RFC 9113, RFC 7541 (HPACK) and RFC 8441: every MUST that a server can break, one case each.

h2spec is in no registry this project may use; the cases follow the RFCs' text. `run --peer nginx http2` tries the cases
themselves against nginx: what fails there and not here, or the other way round, is worth a look.
"""

import random
import ssl
import struct

from harness.edge import Edge, host_table
from harness.http2 import (
    ACK, CONTINUATION, DATA, ENABLE_CONNECT, ENABLE_PUSH, END_HEADERS, END_STREAM, FRAME_BYTES, GOAWAY, HEADERS,
    HEADER_TABLE_SIZE, INITIAL_WINDOW, MAX_CONCURRENT, MAX_FRAME, PADDED, PING, PREFACE, PRIORITY,
    PRIORITY_FLAG, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_BYTES, WINDOW_UPDATE,
    Connection, block, code_name, frame, literal, settings, told, window,
)  # fmt: skip
from harness.nginx import Nginx
from harness.origin import HttpOrigin, pattern
from harness.pki import Authority
from harness.suite import Failed, Skipped, Suite, check, equal
from harness.tls import Conversation, alpn, hello_12, hello_13
from hyperframe import frame as frames

# How long a case waits for what is known not to come (expected.toml), seconds.
EXPECTED_SILENCE_S = 2

NAME = "h2.test"
OTHER = "other.test"


class World:
    """A server and its origin."""

    def connect(self, **options):
        return Connection(self.server.address, NAME, **options)


def start(place):
    world = World()
    pki = place.directory / "pki"
    pki.mkdir()
    servers = Authority(pki, "servers")
    identity = servers.issue("server", "ecdsa", [NAME, OTHER])
    world.origin = HttpOrigin()
    world.is_hostward = place.peer == "hostward"
    if place.peer == "nginx":
        location = f"proxy_http_version 1.1; proxy_pass {world.origin.url}; proxy_set_header Host $host;"
        world.server = Nginx(place.directory / "nginx", identity, [(f"{NAME} {OTHER}", "", location)])
    else:
        hosts = [host_table(name, [identity], world.origin.url) for name in (NAME, OTHER)]
        world.server = Edge(place.directory / "edge", hosts)
    return world


def stop(world):
    world.origin.stop()
    world.server.stop()


SUITE = Suite("http2", "HTTP/2, frame by frame (RFC 9113, 7541, 8441)", start, stop)
case = SUITE.case


def connection_error(world, data, *codes, **options):
    """These bytes after the preface end the connection with one of the codes."""
    with world.connect(**options) as talk:
        talk.send(data(talk) if callable(data) else data)
        talk.expect_connection_error(*codes)


def refused(world, fields, path, data=None, trailers=None, alive=True):
    """A malformed request (section 8.1.1): RST_STREAM PROTOCOL_ERROR, or 400; the origin never sees it.

    The connection goes on, unless the server has made an error of the connection of it."""
    with world.connect() as talk:
        stream = talk.stream()
        is_last = data is None and trailers is None
        talk.send(frame(HEADERS, END_HEADERS | (END_STREAM if is_last else 0), stream, fields(talk) if callable(fields) else fields))
        if data is not None:
            talk.send(frame(DATA, 0 if trailers is not None else END_STREAM, stream, data))
        if trailers is not None:
            talk.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers))
        check_malformed(talk, stream)
        if alive:
            talk.expect_alive()
    if path:
        check(not world.origin.requests(path), "the origin was asked")


def check_malformed(talk, stream):
    got = talk.response(stream, or_goaway=True)[0]
    check(got.reset == "PROTOCOL_ERROR" or got.status == 400, f"{got.reset or got.status} instead of PROTOCOL_ERROR or 400")


def fields_with(path, *more, without=(), change=None):
    """A header block of an ordinary request with changes."""

    def make(talk):
        fields = [pair for pair in talk.fields(path) if pair[0] not in without]
        fields = [(name, (change or {}).get(name, value)) for name, value in fields]
        return block([*fields, *more])

    return make


# Section 3: starting.


@case("3.2-alpn", "3.2: h2 is chosen where it is offered, http/1.1 where that alone is")
def _(world):
    world.connect(offer=("h2", "http/1.1")).close()
    world.connect(offer=("http/1.1", "h2")).close()
    world.connect(offer=("http/1.1",), expect="http/1.1", prepare=False).close()


@case("3.2-no-alpn", "3.2: a client without ALPN is served HTTP/1.1")
def _(world):
    with world.connect(offer=(), expect=None, prepare=False) as talk:
        talk.send(b"GET / HTTP/1.1\r\nHost: h2.test\r\n\r\n")
        check(talk.tls.recv(100).startswith(b"HTTP/1.1 200"), "no answer in HTTP/1.1")


@case("3.2-nothing-in-common", "RFC 7301 3.2: only unknown protocols: no_application_protocol")
def _(world):
    with Conversation(world.server.address) as talk:
        talk.send_hello(hello_13(NAME, more=[alpn(["h3", "spdy/3"])]))
        talk.expect_alert("no_application_protocol")


@case("3.4-preface", "3.4: the server's first frame is SETTINGS, and ours is acknowledged")
def _(world):
    with world.connect() as talk:
        equal((talk.first.stream_id, "ACK" in talk.first.flags), (0, False), "the first frame")
        talk.ping()
        equal(talk.acknowledged, 1, "acknowledged SETTINGS")


@case("3.4-preface-slow", "3.4: a preface that comes byte by byte")
def _(world):
    with world.connect(prepare=False) as talk:
        for byte in PREFACE + frame(SETTINGS, 0, 0):
            talk.send(bytes([byte]))
        talk.expect_alive()


@case("3.4-preface-wrong", "3.4: another preface: PROTOCOL_ERROR, or the end without GOAWAY")
def _(world):
    for preface in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"GET / HTTP/1.1\r\nHost: h2.test\r\n\r\n", bytes(24)):
        with world.connect(prepare=False) as talk:
            talk.send(preface + frame(SETTINGS, 0, 0))
            got = talk.receive()
            while got is not None:
                check(isinstance(got, (frames.SettingsFrame, frames.GoAwayFrame, frames.WindowUpdateFrame)), told(got))
                got = talk.receive()


for kind, data in (("ping", frame(PING, 0, 0, bytes(8))), ("window-update", window(0, 1)), ("headers", None)):

    @case(f"3.4-first-frame-{kind}", "3.4: a first frame other than SETTINGS: PROTOCOL_ERROR")
    def _(world, data=data):
        with world.connect(prepare=False) as talk:
            talk.tls.settimeout(EXPECTED_SILENCE_S)
            talk.send(PREFACE + (data or frame(HEADERS, 5, 1, block(talk.fields()))))
            talk.expect_connection_error("PROTOCOL_ERROR")


@case("3.4-settings-early", "3.4: requests may come before the server's SETTINGS is read")
def _(world):
    with world.connect(prepare=False) as talk:
        talk.send(PREFACE + frame(SETTINGS, 0, 0))
        talk.expect_alive()


# Section 4: frames.


@case("4.1-unknown-type", "4.1: frames of unknown types are ignored, on any stream")
def _(world):
    with world.connect() as talk:
        for stream in (0, 1, 99):
            talk.send(frame(0xFA, 0xFF, stream, b"whatever"))
        stream = talk.ask(method="POST", end=False)
        talk.send(frame(0xFB, 0, stream, b"") + frame(DATA, END_STREAM, stream, b"x"))
        equal(talk.response(stream)[0].status, 200, "status")


@case("4.1-unknown-flags", "4.1: flags that mean nothing for a type are ignored")
def _(world):
    with world.connect() as talk:
        talk.send(frame(PING, 0x16, 0, b"flagflag"))
        talk.expect_frame(frames.PingFrame, lambda got: got.opaque_data == b"flagflag")
        stream = talk.stream()
        talk.send(frame(HEADERS, END_HEADERS | END_STREAM | 0x52, stream, block(talk.fields())))
        equal(talk.response(stream)[0].status, 200, "status")


@case("4.1-reserved-bit", "4.1: the reserved bit of a stream's number is ignored")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        talk.send(frame(HEADERS, END_HEADERS | END_STREAM, stream | 0x80000000, block(talk.fields())))
        equal(talk.response(stream)[0].status, 200, "status")


@case("4.2-largest", "4.2: frames of 2^14 bytes are taken")
def _(world):
    with world.connect() as talk:
        got = talk.get("/echo", method="POST", body=pattern(FRAME_BYTES))
        equal((got.status, got.body), (200, pattern(FRAME_BYTES)), "the echo")


@case("4.2-too-large", "4.2: frames above SETTINGS_MAX_FRAME_SIZE: FRAME_SIZE_ERROR")
def _(world):
    most = FRAME_BYTES
    with world.connect() as talk:
        most = talk.settings.get(MAX_FRAME, FRAME_BYTES)
        stream = talk.ask(method="POST", end=False)
        talk.send(frame(DATA, END_STREAM, stream, bytes(most + 1)))
        talk.expect_stream_error(stream, "FRAME_SIZE_ERROR")
    connection_error(world, lambda talk: frame(HEADERS, 5, 1, block(talk.fields(more=[("x", "a" * most)]))), "FRAME_SIZE_ERROR")
    connection_error(world, frame(SETTINGS, 0, 0, bytes(most // 6 * 6 + 6)), "FRAME_SIZE_ERROR")


for kind, number, sizes in (("ping", PING, (0, 7, 9)), ("window-update", WINDOW_UPDATE, (3, 5)), ("goaway", GOAWAY, (0, 7)),
                            ("settings", SETTINGS, (5, 7))):  # fmt: skip

    @case(f"4.2-length-{kind}", f"4.2: lengths that {kind} cannot have: FRAME_SIZE_ERROR")
    def _(world, number=number, sizes=sizes):
        for size in sizes:
            connection_error(world, frame(number, 0, 0, bytes(size)), "FRAME_SIZE_ERROR")


@case("4.2-length-settings-ack", "6.5: an acknowledgement of SETTINGS with a payload: FRAME_SIZE_ERROR")
def _(world):
    connection_error(world, frame(SETTINGS, ACK, 0, bytes(6)), "FRAME_SIZE_ERROR")


@case("4.2-length-rst-stream", "6.4: a RST_STREAM of another length than 4: FRAME_SIZE_ERROR")
def _(world):
    for size in (3, 5):
        connection_error(
            world,
            lambda talk: frame(HEADERS, END_HEADERS, 1, block(talk.fields(method="POST"))) + frame(RST_STREAM, 0, 1, bytes(size)),
            "FRAME_SIZE_ERROR",
        )


@case("4.3-interleaved", "4.3: any other frame within a header block: PROTOCOL_ERROR")
def _(world):
    for other in (
        lambda talk: frame(DATA, 0, 1, b"x"),
        lambda talk: frame(PING, 0, 0, bytes(8)),
        lambda talk: frame(PRIORITY, 0, 1, bytes(4) + b"\x10"),
        lambda talk: frame(0xFA, 0, 1, b""),
        lambda talk: frame(HEADERS, END_HEADERS, 3, block(talk.fields())),
        lambda talk: frame(CONTINUATION, END_HEADERS, 3, b""),
        lambda talk: frame(SETTINGS, 0, 0),
    ):
        connection_error(
            world, lambda talk: frame(HEADERS, END_STREAM, 1, block(talk.fields())) + other(talk), "PROTOCOL_ERROR"
        )


@case("4.3-undecodable", "4.3: a header block that does not decode: COMPRESSION_ERROR")
def _(world):
    connection_error(world, frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "COMPRESSION_ERROR")


# Section 5: streams.


@case("5.1-idle", "5.1: DATA, RST_STREAM, WINDOW_UPDATE, CONTINUATION on an idle stream: PROTOCOL_ERROR")
def _(world):
    for data in (
        frame(DATA, END_STREAM, 1, b"x"),
        frame(RST_STREAM, 0, 1, struct.pack("!L", 8)),
        window(1, 100),
        frame(CONTINUATION, END_HEADERS, 1, b""),
    ):
        connection_error(world, data, "PROTOCOL_ERROR")


@case("5.1-idle-priority", "5.1: PRIORITY on an idle stream is allowed")
def _(world):
    with world.connect() as talk:
        talk.send(frame(PRIORITY, 0, 5, bytes(4) + b"\x10"))
        talk.expect_alive()


def half_closed(world, data, *codes):
    """A request that has ended, whose answer is waited for; then these frames on its stream."""
    with world.connect() as talk:
        stream = talk.ask("/slow")
        talk.ping()
        talk.send(data(stream))
        if codes:
            talk.expect_stream_error(stream, *codes)
        else:
            talk.ping()


@case("5.1-half-closed-data", "5.1: DATA after END_STREAM: STREAM_CLOSED")
def _(world):
    half_closed(world, lambda stream: frame(DATA, END_STREAM, stream, b"x"), "STREAM_CLOSED")


@case("5.1-half-closed-headers", "5.1: HEADERS after END_STREAM: STREAM_CLOSED")
def _(world):
    half_closed(world, lambda stream: frame(HEADERS, 5, stream, literal("x", "y")), "STREAM_CLOSED")


@case("5.1-half-closed-allowed", "5.1: WINDOW_UPDATE, PRIORITY and RST_STREAM after END_STREAM are allowed")
def _(world):
    half_closed(world, lambda stream: window(stream, 10))
    half_closed(world, lambda stream: frame(PRIORITY, 0, stream, bytes(4) + b"\x10"))
    half_closed(world, lambda stream: frame(RST_STREAM, 0, stream, struct.pack("!L", 8)))


@case("5.1-closed", "5.1: DATA or HEADERS on a stream both sides have ended: STREAM_CLOSED")
def _(world):
    for data in (frame(DATA, END_STREAM, 1, b"x"), frame(HEADERS, 5, 1, literal("x", "y"))):
        with world.connect() as talk:
            talk.get()
            talk.send(data)
            talk.expect_stream_error(1, "STREAM_CLOSED", "PROTOCOL_ERROR")


@case("5.1-closed-allowed", "5.1: WINDOW_UPDATE, RST_STREAM and PRIORITY on a closed stream are ignored")
def _(world):
    with world.connect() as talk:
        talk.get()
        talk.send(window(1, 10) + frame(RST_STREAM, 0, 1, struct.pack("!L", 8)) + frame(PRIORITY, 0, 1, bytes(4) + b"\x10"))
        talk.expect_alive()


@case("5.1-after-reset", "5.1: HEADERS on a stream the client has reset: STREAM_CLOSED, or ignored")
def _(world):
    with world.connect() as talk:
        stream = talk.ask(method="POST", end=False)
        talk.send(frame(RST_STREAM, 0, stream, struct.pack("!L", 8)))
        talk.ping()
        talk.send(frame(HEADERS, 5, stream, block(talk.fields())))
        talk.expect_stream_error(stream, "STREAM_CLOSED", "PROTOCOL_ERROR")


@case("5.1.1-even", "5.1.1: streams of even numbers: PROTOCOL_ERROR")
def _(world):
    connection_error(world, lambda talk: frame(HEADERS, 5, 2, block(talk.fields())), "PROTOCOL_ERROR")


@case("5.1.1-decreasing", "5.1.1: a number below one that was used: PROTOCOL_ERROR")
def _(world):
    with world.connect() as talk:
        equal(talk.response(talk.ask(stream=5))[0].status, 200, "status")
        talk.send(frame(HEADERS, 5, 3, block(talk.fields())))
        talk.expect_connection_error("PROTOCOL_ERROR", "STREAM_CLOSED")


@case("5.1.1-zero", "5.1.1: HEADERS, DATA, CONTINUATION, RST_STREAM, PRIORITY on stream 0: PROTOCOL_ERROR")
def _(world):
    connection_error(world, lambda talk: frame(HEADERS, 5, 0, block(talk.fields())), "PROTOCOL_ERROR")
    connection_error(world, frame(DATA, 1, 0, b"x"), "PROTOCOL_ERROR")
    connection_error(world, frame(CONTINUATION, END_HEADERS, 0, b""), "PROTOCOL_ERROR")
    connection_error(world, frame(RST_STREAM, 0, 0, struct.pack("!L", 8)), "PROTOCOL_ERROR")
    connection_error(world, frame(PRIORITY, 0, 0, bytes(4) + b"\x10"), "PROTOCOL_ERROR")


@case("5.1.1-gaps", "5.1.1: numbers may be left out")
def _(world):
    with world.connect() as talk:
        for stream in (1, 77, 1001, 0x7FFFFFFF):
            equal(talk.response(talk.ask(stream=stream))[0].status, 200, f"status on {stream}")


@case("5.1.2-concurrency", "5.1.2: one stream more than SETTINGS_MAX_CONCURRENT_STREAMS: REFUSED_STREAM or PROTOCOL_ERROR")
def _(world):
    with world.connect() as talk:
        most = talk.settings.get(MAX_CONCURRENT)
        check(most is not None and 100 <= most <= 10000, f"SETTINGS_MAX_CONCURRENT_STREAMS is {most}")
        open_streams = [talk.ask(method="POST", end=False) for _ in range(most)]
        talk.ping()
        last = talk.ask()
        if talk.expect_stream_error(last, "REFUSED_STREAM", "PROTOCOL_ERROR"):
            for stream in open_streams:
                talk.send(frame(DATA, END_STREAM, stream, b"x"))
            got = talk.response(*open_streams)
            equal({response.status for response in got}, {200}, "the others' status")
            talk.expect_alive()


@case("5.2-interleaved-streams", "5.2: a hundred requests at once are all answered, each with its own body")
def _(world):
    with world.connect() as talk:
        streams = [talk.ask(f"/bytes/{size}") for size in range(1000, 1100)]
        for size, response in zip(range(1000, 1100), talk.response(*streams)):
            equal((response.status, response.body), (200, pattern(size)), f"of {size} bytes")


@case("5.5-unknown-settings", "5.5: settings nobody knows are ignored and acknowledged")
def _(world):
    with world.connect(ours=[(0x7F, 1), (0xFFFF, 0xFFFFFFFF)]) as talk:
        talk.ping()
        equal(talk.acknowledged, 1, "acknowledged SETTINGS")
        talk.expect_alive()


# Section 6: each type.


@case("6.1-padding", "6.1: padding is taken off, of any length up to 255")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/echo", "POST", end=False)
        for length in (0, 1, 255):
            talk.send(frame(DATA, PADDED, stream, bytes([length]) + b"abc" + bytes(length)))
        talk.send(frame(DATA, PADDED | END_STREAM, stream, bytes([5]) + bytes(5)))
        equal(talk.response(stream)[0].body, b"abc" * 3, "the echo")


@case("6.1-padding-too-long", "6.1: padding as long as the payload or longer: PROTOCOL_ERROR")
def _(world):
    for payload in (b"\x06abcde", b"\xffabc", b"\x01"):
        connection_error(
            world,
            lambda talk: frame(HEADERS, END_HEADERS, 1, block(talk.fields(method="POST")))
            + frame(DATA, PADDED | END_STREAM, 1, payload),
            "PROTOCOL_ERROR",
        )


@case("6.1-padding-missing", "6.1: a PADDED frame without a length: FRAME_SIZE_ERROR or PROTOCOL_ERROR")
def _(world):
    with world.connect() as talk:
        stream = talk.ask(method="POST", end=False)
        talk.send(frame(DATA, PADDED | END_STREAM, stream))
        talk.expect_stream_error(stream, "FRAME_SIZE_ERROR", "PROTOCOL_ERROR")


@case("6.1-empty", "6.1: empty DATA frames, the last of which ends the stream")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/echo", "POST", end=False)
        talk.send(frame(DATA, 0, stream) * 3 + frame(DATA, 0, stream, b"x") + frame(DATA, END_STREAM, stream))
        equal(talk.response(stream)[0].body, b"x", "the echo")


@case("6.2-padding", "6.2: HEADERS with padding and priority")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        payload = bytes([9]) + bytes(4) + b"\x10" + block(talk.fields()) + bytes(9)
        talk.send(frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITY_FLAG, stream, payload))
        equal(talk.response(stream)[0].status, 200, "status")


@case("6.2-padding-too-long", "6.2: padding longer than what is there: PROTOCOL_ERROR")
def _(world):
    for payload in (lambda talk: b"\xff" + block(talk.fields()), lambda talk: b"\x01"):
        connection_error(world, lambda talk: frame(HEADERS, 5 | PADDED, 1, payload(talk)), "PROTOCOL_ERROR")


@case("6.2-priority-cut", "6.2: HEADERS too short for the priority it announces: FRAME_SIZE_ERROR or PROTOCOL_ERROR")
def _(world):
    connection_error(world, frame(HEADERS, 5 | PRIORITY_FLAG, 1, bytes(4)), "FRAME_SIZE_ERROR", "PROTOCOL_ERROR")


@case("6.3-length", "6.3: a PRIORITY of another length than 5: FRAME_SIZE_ERROR")
def _(world):
    for size in (4, 6):
        with world.connect() as talk:
            stream = talk.ask(method="POST", end=False)
            talk.send(frame(PRIORITY, 0, stream, bytes(size)))
            talk.expect_stream_error(stream, "FRAME_SIZE_ERROR")


@case("6.3-self", "5.3: a stream that depends on itself: PROTOCOL_ERROR as RFC 7540 has it, or nothing as RFC 9113 has it")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/slow")
        talk.send(frame(PRIORITY, 0, stream, struct.pack("!LB", stream, 16)))
        try:
            talk.ping()
        except Failed:
            pass
    connection = world.connect()
    connection.expect_alive()
    connection.close()


@case("6.4-unknown-code", "7: error codes nobody knows are taken")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/slow")
        talk.send(frame(RST_STREAM, 0, stream, struct.pack("!L", 0xABCD)))
        talk.expect_alive()


@case("6.5-stream", "6.5: SETTINGS on a stream: PROTOCOL_ERROR")
def _(world):
    connection_error(world, frame(SETTINGS, 0, 1, settings([(MAX_CONCURRENT, 5)])), "PROTOCOL_ERROR")


for kind, key, values, code in (
    ("push", ENABLE_PUSH, (2, 0xFFFFFFFF), "PROTOCOL_ERROR"),
    ("window", INITIAL_WINDOW, (0x80000000, 0xFFFFFFFF), "FLOW_CONTROL_ERROR"),
    ("frame-size", MAX_FRAME, (0, 16383, 0x1000000), "PROTOCOL_ERROR"),
):

    @case(f"6.5.2-values-{kind}", f"6.5.2: a setting out of its bounds: {code}")
    def _(world, key=key, values=values, code=code):
        for value in values:
            connection_error(world, frame(SETTINGS, 0, 0, settings([(key, value)])), code)


@case("6.5.2-bounds", "6.5.2: the least and the greatest values are taken")
def _(world):
    for pair in ((ENABLE_PUSH, 0), (ENABLE_PUSH, 1), (INITIAL_WINDOW, 0x7FFFFFFF), (MAX_FRAME, 16384), (MAX_FRAME, 0xFFFFFF),
                 (HEADER_TABLE_SIZE, 0), (HEADER_TABLE_SIZE, 0xFFFFFFFF), (MAX_CONCURRENT, 0)):  # fmt: skip
        with world.connect(ours=[pair]) as talk:
            if pair[0] == HEADER_TABLE_SIZE:
                talk.decoder.max_allowed_table_size = max(pair[1], 4096)
            talk.expect_alive()


@case("6.5.2-frame-size", "6.5.2: the server's frames keep to our SETTINGS_MAX_FRAME_SIZE")
def _(world):
    with world.connect() as talk:
        talk.ask("/bytes/200000")
        size = 0
        while size < 200000:
            got = talk.receive()
            check(got is not None and got.body_len <= FRAME_BYTES, f"{told(got)}, {got and got.body_len} bytes")
            size += len(getattr(got, "data", b"")) if isinstance(got, frames.DataFrame) else 0


@case("6.5.2-table-size", "RFC 7541 4.2: with SETTINGS_HEADER_TABLE_SIZE 0 the server's encoder uses no table")
def _(world):
    with world.connect(ours=[(HEADER_TABLE_SIZE, 0)]) as talk:
        talk.ping()
        talk.decoder.max_allowed_table_size = 0
        for _ in range(3):
            talk.expect_alive()
        equal(talk.decoder.header_table_size, 0, "the table the server chose")


@case("6.5.3-acknowledged", "6.5.3: each SETTINGS is acknowledged, in order, with what follows under the new values")
def _(world):
    with world.connect() as talk:
        talk.open_windows = False
        talk.send(frame(SETTINGS, 0, 0, settings([(INITIAL_WINDOW, 10), (INITIAL_WINDOW, 20), (INITIAL_WINDOW, 3)])) * 2)
        talk.ping()
        equal(talk.acknowledged, 3, "acknowledged SETTINGS")
        stream = talk.ask("/bytes/100")
        equal(len(_data_until_quiet(talk, stream)), 3, "bytes within a window of 3")


@case("6.6-push", "8.4: PUSH_PROMISE from a client: PROTOCOL_ERROR")
def _(world):
    connection_error(
        world, lambda talk: frame(HEADERS, END_HEADERS, 1, block(talk.fields(method="POST")))
        + frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack("!L", 2) + block(talk.fields())), "PROTOCOL_ERROR",
    )  # fmt: skip


@case("6.7-ping", "6.7: PING is answered with its own bytes, an acknowledgement is not answered")
def _(world):
    with world.connect() as talk:
        talk.send(frame(PING, ACK, 0, b"notasked") + frame(PING, 0, 0, b"12345678"))
        got = talk.expect_frame(frames.PingFrame)
        equal((got.opaque_data, "ACK" in got.flags), (b"12345678", True), "the answer")


@case("6.7-stream", "6.7: PING on a stream: PROTOCOL_ERROR")
def _(world):
    connection_error(world, frame(PING, 0, 1, bytes(8)), "PROTOCOL_ERROR")


@case("6.8-goaway", "6.8: after the client's GOAWAY its requests under way are answered")
def _(world):
    with world.connect() as talk:
        streams = [talk.ask("/bytes/50000") for _ in range(3)]
        talk.send(frame(GOAWAY, 0, 0, struct.pack("!LL", 0, 0) + b"bye"))
        equal([len(got.body) for got in talk.response(*streams)], [50000] * 3, "bodies")


@case("6.8-stream", "6.8: GOAWAY on a stream: PROTOCOL_ERROR")
def _(world):
    connection_error(world, frame(GOAWAY, 0, 1, struct.pack("!LL", 0, 0)), "PROTOCOL_ERROR")


@case("6.9-zero", "6.9: a WINDOW_UPDATE of 0: PROTOCOL_ERROR, of the stream or of the connection")
def _(world):
    connection_error(world, window(0, 0), "PROTOCOL_ERROR")
    with world.connect() as talk:
        stream = talk.ask(method="POST", end=False)
        talk.send(window(stream, 0))
        talk.expect_stream_error(stream, "PROTOCOL_ERROR")


@case("6.9.1-overflow", "6.9.1: a window beyond 2^31-1: FLOW_CONTROL_ERROR, of the stream or of the connection")
def _(world):
    connection_error(world, window(0, 0x7FFFFFFF), "FLOW_CONTROL_ERROR")
    with world.connect() as talk:
        stream = talk.ask(method="POST", end=False)
        talk.send(window(stream, 0x7FFFFFFF))
        talk.expect_stream_error(stream, "FLOW_CONTROL_ERROR")


@case("6.9.1-reserved", "6.9: the reserved bit of an increment is ignored")
def _(world):
    with world.connect() as talk:
        talk.send(frame(WINDOW_UPDATE, 0, 0, struct.pack("!L", 0x80000001)))
        talk.expect_alive()


def _data_until_quiet(talk, *streams):
    """The data that comes until nothing more does: two pings and their answers later."""
    data = b""
    wanted = None
    for _ in range(2):
        for got in talk.ping():
            if isinstance(got, frames.DataFrame) and got.stream_id in streams:
                data += got.data
        if wanted == len(data) and data:
            break
        wanted = len(data)
    # The origin may take a moment for its answer, which is not the server's fault: wait for the first byte.
    while not data:
        got = talk.receive()
        if isinstance(got, frames.DataFrame) and got.stream_id in streams:
            data += got.data
    for got in talk.ping():
        if isinstance(got, frames.DataFrame) and got.stream_id in streams:
            data += got.data
    return data


@case("6.9.1-stream-window", "6.9.1: the server keeps to the stream's window, and goes on when it opens")
def _(world):
    with world.connect(ours=[(INITIAL_WINDOW, 1000)]) as talk:
        talk.open_windows = False
        stream = talk.ask("/bytes/5000")
        equal(len(_data_until_quiet(talk, stream)), 1000, "bytes within a window of 1000")
        talk.send(window(stream, 1))
        equal(len(_data_until_quiet(talk, stream)), 1, "bytes within one more")
        talk.send(window(stream, 10000))
        equal(len(talk.response(stream)[0].body), 3999, "the rest")


@case("6.9.1-connection-window", "6.9.1: the server keeps to the connection's window over all streams")
def _(world):
    with world.connect(ours=[(INITIAL_WINDOW, 1 << 20)]) as talk:
        talk.open_windows = False
        streams = [talk.ask("/bytes/40000") for _ in range(3)]
        seen = b""
        while len(seen) < WINDOW_BYTES:
            seen += _data_until_quiet(talk, *streams)
        equal(len(seen), WINDOW_BYTES, "bytes within the connection's window")
        talk.send(window(0, 100))
        equal(len(_data_until_quiet(talk, *streams)), 100, "bytes within 100 more")
        talk.send(window(0, 1 << 20))
        left = 120000 - WINDOW_BYTES - 100
        while left > 0:
            got = talk.expect_frame(frames.DataFrame)
            left -= len(got.data)
        equal(left, 0, "what is left of the rest")


@case("6.9.1-blocked-stream", "6.9.1: a stream without window does not hold up another")
def _(world):
    with world.connect(ours=[(INITIAL_WINDOW, 0)]) as talk:
        talk.open_windows = False
        stuck = talk.ask("/bytes/5000")
        free = talk.ask("/bytes/5000")
        talk.send(window(free, 5000))
        equal(len(talk.response(free)[0].body), 5000, "the free stream's body")
        talk.send(window(stuck, 5000))
        equal(len(talk.response(stuck)[0].body), 5000, "the other's")


@case("6.9.1-zero-window-empty", "6.9: an empty response needs no window")
def _(world):
    with world.connect(ours=[(INITIAL_WINDOW, 0)]) as talk:
        equal(talk.get("/status/204").status, 204, "status")
        equal(talk.get("/bytes/0").status, 200, "status")


@case("6.9.2-later", "6.9.2: a SETTINGS_INITIAL_WINDOW_SIZE that grows opens the windows of open streams")
def _(world):
    with world.connect(ours=[(INITIAL_WINDOW, 100)]) as talk:
        talk.open_windows = False
        stream = talk.ask("/bytes/5000")
        equal(len(_data_until_quiet(talk, stream)), 100, "bytes")
        talk.send(frame(SETTINGS, 0, 0, settings([(INITIAL_WINDOW, 150)])))
        equal(len(_data_until_quiet(talk, stream)), 50, "bytes more")


@case("6.9.2-negative", "6.9.2: one that shrinks may make a window negative: nothing until it is positive again")
def _(world):
    with world.connect(ours=[(INITIAL_WINDOW, 1000)]) as talk:
        talk.open_windows = False
        stream = talk.ask("/bytes/5000")
        equal(len(_data_until_quiet(talk, stream)), 1000, "bytes")
        talk.send(frame(SETTINGS, 0, 0, settings([(INITIAL_WINDOW, 400)])) + window(stream, 600))
        passed = [got for got in talk.ping() + talk.ping() if isinstance(got, frames.DataFrame)]
        equal(len(passed), 0, "DATA frames while the window is 0")
        talk.send(window(stream, 7))
        equal(len(_data_until_quiet(talk, stream)), 7, "bytes once it is 7")


@case("6.9.2-overflow", "6.9.2: one that lifts an open window beyond 2^31-1: FLOW_CONTROL_ERROR")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/slow")
        talk.send(window(stream, 0x7FFFFFFF - WINDOW_BYTES))
        talk.send(frame(SETTINGS, 0, 0, settings([(INITIAL_WINDOW, WINDOW_BYTES + 1)])))
        talk.expect_connection_error("FLOW_CONTROL_ERROR")


@case("6.9-our-window", "6.9: the server opens its windows as it passes data on: an upload of 3 MB arrives")
def _(world):
    body = pattern(3_000_000)
    with world.connect() as talk:
        stream = talk.ask("/echo", "POST", end=False)
        got = _upload(talk, stream, body)
        check(got.body == body, f"{len(got.body)} bytes of {len(body)}, or others")


def _upload(talk, stream, body):
    """Sends a body within the server's windows, and reads the response meanwhile."""
    from harness.http2 import Response

    windows = {0: WINDOW_BYTES, stream: talk.settings.get(INITIAL_WINDOW, WINDOW_BYTES)}
    response, sent = Response(), 0
    while True:
        room = min(*windows.values(), FRAME_BYTES, len(body) - sent)
        if room > 0:
            last = sent + room == len(body)
            talk.send(frame(DATA, END_STREAM if last else 0, stream, body[sent : sent + room]))
            sent += room
            windows = {key: value - room for key, value in windows.items()}
            continue
        got = talk.receive()
        if got is None or isinstance(got, (frames.GoAwayFrame, frames.RstStreamFrame)):
            raise Failed(f"{told(got)} after {sent} bytes")
        if isinstance(got, frames.WindowUpdateFrame) and got.stream_id in windows:
            windows[got.stream_id] += got.window_increment
        elif isinstance(got, frames.HeadersFrame):
            talk.take_head(got, response)
        elif isinstance(got, frames.DataFrame):
            response.body += got.data
        if "END_STREAM" in getattr(got, "flags", ()) and got.stream_id == stream:
            return response


@case("6.9.1-our-limit", "6.9.1: a client that sends beyond the server's window: FLOW_CONTROL_ERROR")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/hold", "POST", end=False)
        opened = talk.settings.get(INITIAL_WINDOW, WINDOW_BYTES)
        # More than any window the server has or may yet open, since nobody takes it.
        for _ in range((opened + (64 << 20)) // FRAME_BYTES):
            talk.send(frame(DATA, 0, stream, bytes(FRAME_BYTES)))
            if len(talk.seen) or _readable(talk):
                got = talk.receive()
                if isinstance(got, (frames.GoAwayFrame, frames.RstStreamFrame)):
                    equal(code_name(got.error_code), "FLOW_CONTROL_ERROR", "code")
                    return
                check(got is not None, "the connection ends without FLOW_CONTROL_ERROR")
        talk.expect_stream_error(stream, "FLOW_CONTROL_ERROR")


def _readable(talk):
    import select

    return talk.tls.pending() or select.select([talk.tls], [], [], 0)[0]


# What a client sends at most to an origin that has stalled, in frames of so many bytes: beyond every socket's buffers.
STALLED_BYTES, SMALL_BYTES = 16_000_000, 100


@case("6.9-small-burst", "6.9: bursts of very small DATA, as gRPC clients send, are taken")
def _(world):
    for size, count in ((1, 5000), (10, 5000), (10, 10000)):
        with world.connect() as talk:
            talk.ping()
            stream = talk.ask("/echo", "POST", end=False)
            talk.ping()
            check(count * size <= talk.settings.get(INITIAL_WINDOW, WINDOW_BYTES), f"a window below {count * size}")
            talk.send(frame(DATA, 0, stream, bytes(size)) * count + frame(DATA, END_STREAM, stream))
            equal(len(talk.response(stream)[0].body), count * size, "bytes echoed")


@case("6.9-small-frames", "6.9: small DATA for an origin that takes nothing waits by flow control, and the other streams go on")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/hold", "POST", end=False)
        windows = {0: WINDOW_BYTES, stream: talk.settings.get(INITIAL_WINDOW, WINDOW_BYTES)}
        small, sent = frame(DATA, 0, stream, bytes(SMALL_BYTES)), 0
        talk.tls.settimeout(EXPECTED_SILENCE_S)
        while sent < STALLED_BYTES:
            count = min(min(windows.values()) // SMALL_BYTES, 500)
            if count:
                talk.send(small * count)
                sent += count * SMALL_BYTES
                windows = {key: value - count * SMALL_BYTES for key, value in windows.items()}
            if count and not _readable(talk):
                continue
            try:
                got = talk.receive()
            except Failed:
                # No window is opened any more: this is how it should be.
                break
            if got is None or isinstance(got, (frames.GoAwayFrame, frames.RstStreamFrame)):
                raise Failed(f"{told(got)} after {sent} bytes")
            if isinstance(got, frames.WindowUpdateFrame) and got.stream_id in windows:
                windows[got.stream_id] += got.window_increment
        talk.expect_alive()


@case("6.10-continuation", "6.10: a header block in pieces, cut anywhere")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        whole = block(talk.fields("/echo", more=[("x-long", "v" * 300)]))
        # More than a few pieces would be a flood of CONTINUATION (CVE-2024-27316).
        step = len(whole) // 3
        talk.send(frame(HEADERS, END_STREAM, stream, whole[:1]))
        rest = whole[1:]
        for at in range(0, len(rest), step):
            last = at + step >= len(rest)
            talk.send(frame(CONTINUATION, END_HEADERS if last else 0, stream, rest[at : at + step]))
        equal(talk.response(stream)[0].status, 200, "status")


@case("6.10-unexpected", "6.10: CONTINUATION that continues nothing: PROTOCOL_ERROR")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/slow")
        talk.send(frame(CONTINUATION, END_HEADERS, stream, literal("x", "y")))
        talk.expect_connection_error("PROTOCOL_ERROR")
    with world.connect() as talk:
        stream = talk.ask(method="POST", end=False, body=b"x")
        talk.send(frame(CONTINUATION, END_HEADERS, stream, literal("x", "y")))
        talk.expect_connection_error("PROTOCOL_ERROR")


# Section 8: HTTP.

MALFORMED = {
    "8.2.1-capitals": ("8.2.1: a name in capitals", [("X-Capitals", "y")]),
    "8.2.1-space": ("8.2.1: a space in a name", [("x space", "y")]),
    "8.2.1-colon": ("8.2.1: a colon within a name", [("x:y", "z")]),
    "8.2.1-control": ("8.2.1: a control character in a name", [("x\x01", "y")]),
    "8.2.1-del": ("8.2.1: DEL in a name", [("x\x7f", "y")]),
    "8.2.1-high": ("8.2.1: a byte above 0x7f in a name", [(b"x\xe9", "y")]),
    "8.2.1-empty-name": ("8.2.1: an empty name", [("", "y")]),
    "8.2.1-nul": ("8.2.1: NUL in a value", [("x", "a\x00b")]),
    "8.2.1-lf": ("8.2.1: a line feed in a value", [("x", "a\nevil: b")]),
    "8.2.1-cr": ("8.2.1: a carriage return in a value", [("x", "a\rb")]),
    "8.2.1-leading": ("8.2.1: a value that begins with a space", [("x", " a")]),
    "8.2.1-trailing": ("8.2.1: a value that ends with a tab", [("x", "a\t")]),
    "8.2.2-connection": ("8.2.2: connection", [("connection", "close")]),
    "8.2.2-keep-alive": ("8.2.2: keep-alive", [("keep-alive", "timeout=5")]),
    "8.2.2-proxy-connection": ("8.2.2: proxy-connection", [("proxy-connection", "keep-alive")]),
    "8.2.2-transfer-encoding": ("8.2.2: transfer-encoding", [("transfer-encoding", "chunked")]),
    "8.2.2-upgrade": ("8.2.2: upgrade", [("upgrade", "websocket")]),
    "8.2.2-te": ("8.2.2: te other than trailers", [("te", "gzip")]),
    "8.2.2-te-list": ("8.2.2: te with trailers and more", [("te", "trailers, deflate")]),
    "8.3-unknown": ("8.3: an unknown pseudo-header field", [(":proto", "x")]),
    "8.3-response": ("8.3: a response's pseudo-header field", [(":status", "200")]),
    "8.3-late": ("8.3: a pseudo-header field after a regular one", [("x", "y"), (":method", "GET")]),
    "8.3.1-twice-method": ("8.3: :method twice", [(":method", "GET")]),
    "8.3.1-twice-scheme": ("8.3: :scheme twice", [(":scheme", "https")]),
    "8.3.1-twice-path": ("8.3: :path twice", [(":path", "/x")]),
    "8.3.1-twice-authority": ("8.3: :authority twice", [(":authority", NAME)]),
    "8.3.1-protocol": ("RFC 8441 4: :protocol without CONNECT", [(":protocol", "websocket")]),
    "8.3.1-host-differs": ("8.3.1: a host that differs from :authority", [("host", OTHER)]),
    "8.3.1-host-twice": ("8.3.1: two hosts", [("host", NAME), ("host", NAME)]),
    "8.1.1-length-garbage": ("8.1.1: a content-length that is no number", [("content-length", "abc")]),
    "8.1.1-length-negative": ("8.1.1: a negative content-length", [("content-length", "-1")]),
    "8.1.1-length-twice": ("8.1.1: two content-lengths that differ", [("content-length", "0"), ("content-length", "1")]),
    "8.1.1-length-without-body": ("8.1.1: a content-length and no body", [("content-length", "5")]),
}  # fmt: skip

for name, (what, more) in MALFORMED.items():

    @case(name, what + ": malformed")
    def _(world, name=name, more=more):
        refused(world, fields_with(f"/{name}", *more), f"/{name}")


for missing in (":method", ":scheme", ":path"):

    @case(f"8.3.1-no-{missing[1:]}", f"8.3.1: no {missing}: malformed")
    def _(world, missing=missing):
        world.origin.forget()
        refused(world, fields_with("/missing", without=[missing]), "/missing")
        check(set(asked.path for asked in world.origin.requests()) <= {"/"}, "the origin was asked")


for path, told_as in (("", "empty"), ("no-slash", "without a slash"), ("*", "an asterisk with GET"), ("/a b", "with a space"),
                      ("/\x00", "with NUL"), ("/a\r\nx: y", "with a line's end"), ("http://other.test/", "absolute")):  # fmt: skip

    @case(f"8.3.1-path-{told_as.replace(' ', '-')}", f"8.3.1: a :path that is {told_as}: malformed")
    def _(world, path=path):
        world.origin.forget()
        refused(world, fields_with(path), None)
        check(set(asked.path for asked in world.origin.requests()) <= {"/"}, "the origin was asked")


for authority, told_as in ((f"user@{NAME}", "userinfo"), (f"{NAME}/x", "a path"), (f"{NAME} x", "a space"), ("", "nothing"),
                           (f"{NAME}:port", "no port")):  # fmt: skip

    @case(f"8.3.1-authority-{told_as.replace(' ', '-')}", f"8.3.1: an :authority with {told_as}: malformed")
    def _(world, authority=authority):
        refused(world, fields_with("/authority", change={":authority": authority}), "/authority")


@case("8.3.1-no-authority", "8.3.1: neither :authority nor host: malformed here, where every request names its host")
def _(world):
    refused(world, fields_with("/nobody", without=[":authority"]), "/nobody")


@case("8.3.1-host-alone", "8.3.1: host alone takes the place of :authority")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        talk.send(frame(HEADERS, 5, stream, fields_with("/host-alone", ("host", NAME), without=[":authority"])(talk)))
        equal(talk.response(stream)[0].status, 200, "status")
    equal(world.origin.requests("/host-alone")[-1].values("host"), [NAME], "Host at the origin")


@case("8.3.1-host-same", "8.3.1: a host equal to :authority is passed on once")
def _(world):
    with world.connect() as talk:
        equal(talk.get("/host-same", more=[("host", NAME)]).status, 200, "status")
    equal(world.origin.requests("/host-same")[-1].values("host"), [NAME], "Host at the origin")


@case("8.3.1-options-asterisk", "8.3.1: OPTIONS * is a request for the server as a whole")
def _(world):
    with world.connect() as talk:
        got = talk.get("*", method="OPTIONS")
        check(got.status in (200, 204, 400, 404, 405, 501), f"{got.status} {got.reset}")
        talk.expect_alive()


@case("8.1.1-foreign-authority", "9.1.2: another hostname's authority on this connection: 421 on that stream alone")
def _(world):
    if not world.is_hostward:
        raise Skipped("the peer serves all its names on every connection")
    with world.connect() as talk:
        for authority in (OTHER, "nobody.test"):
            stream = talk.stream()
            talk.send(frame(HEADERS, 5, stream, block(talk.fields("/foreign", authority=authority))))
            equal(talk.response(stream)[0].status, 421, "status")
        talk.expect_alive()
    check(not world.origin.requests("/foreign"), "the origin was asked")


@case("8.1.1-length-short", "8.1.1: DATA shorter than content-length: malformed, and the origin does not take it for whole")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/short", "POST", more=[("content-length", "10")], body=b"12345")
        check_malformed(talk, stream)
        talk.expect_alive()


@case("8.1.1-length-long", "8.1.1: DATA longer than content-length: malformed")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/long", "POST", more=[("content-length", "3")], body=b"12345")
        check_malformed(talk, stream)
        talk.expect_alive()


@case("8.1.1-length-right", "8.1.1: DATA in several frames as long as content-length")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/echo", "POST", more=[("content-length", "6")], body=b"123", end=False)
        talk.send(frame(DATA, END_STREAM, stream, b"456"))
        equal(talk.response(stream)[0].body, b"123456", "the echo")


@case("8.1-trailers", "8.1: trailers reach the origin, and the origin's reach the client")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/echo", "POST", more=[("te", "trailers"), ("trailer", "x-sum")], body=b"abc", end=False)
        talk.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, literal("x-sum", "42")))
        got = talk.response(stream)[0]
        equal((got.status, got.body), (200, b"abc"), "the echo")
    if world.is_hostward:
        equal(world.origin.requests("/echo")[-1].trailers, (("x-sum", "42"),), "trailers at the origin")
        equal(got.trailers, [("x-sum", "42")], "trailers at the client")


@case("8.1-response-trailers", "8.1: trailers of a chunked response follow its data")
def _(world):
    with world.connect() as talk:
        got = talk.get("/chunked/100000", more=[("te", "trailers")])
        equal((got.status, got.body), (200, pattern(100000)), "the response")
        if world.is_hostward:
            equal(got.trailers, [("x-check", "100000"), ("x-empty", "")], "trailers")


@case("8.1-trailers-without-end", "8.1: trailers without END_STREAM: malformed")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/echo", "POST", body=b"abc", end=False)
        talk.send(frame(HEADERS, END_HEADERS, stream, literal("x-sum", "42")))
        talk.expect_stream_error(stream, "PROTOCOL_ERROR")


@case("8.1-trailers-pseudo", "8.1: pseudo-header fields in trailers: malformed")
def _(world):
    for field in ((":path", "/x"), (":status", "200"), (":unknown", "x")):
        with world.connect() as talk:
            stream = talk.ask("/echo", "POST", body=b"abc", end=False)
            talk.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(*field)))
            check_malformed(talk, stream)
            talk.expect_alive()


@case("8.1-trailers-pseudo-origin", "8.1: whatever becomes of them, pseudo-header fields in trailers do not reach the origin")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/echo?pseudo", "POST", body=b"abc", end=False)
        talk.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(":path", "/x") + literal("x-sum", "1")))
        talk.response(stream, or_goaway=True)
    for asked in world.origin.requests("/echo?pseudo"):
        check(all(name == "x-sum" for name, _ in asked.trailers), f"trailers {asked.trailers}")


@case("8.1-trailers-malformed", "8.2: capitals, line ends and connection fields in trailers: malformed")
def _(world):
    for field in (("X-Sum", "1"), ("x", "a\nb"), ("connection", "close"), ("transfer-encoding", "chunked")):
        with world.connect() as talk:
            stream = talk.ask("/echo", "POST", body=b"abc", end=False)
            talk.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(*field)))
            check_malformed(talk, stream)


@case("8.1-data-after-trailers", "8.1: DATA after trailers: STREAM_CLOSED")
def _(world):
    with world.connect() as talk:
        stream = talk.ask("/slow", "POST", body=b"abc", end=False)
        talk.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, literal("x-sum", "42")))
        talk.send(frame(DATA, END_STREAM, stream, b"more"))
        talk.expect_stream_error(stream, "STREAM_CLOSED")


@case("8.2.2-te-trailers", "8.2.2: te: trailers is allowed")
def _(world):
    with world.connect() as talk:
        equal(talk.get(more=[("te", "trailers")]).status, 200, "status")


@case("8.2.3-cookies", "8.2.3: pieces of a cookie are put together for an HTTP/1.1 origin")
def _(world):
    with world.connect() as talk:
        equal(talk.get("/cookies", more=[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]).status, 200, "status")
    equal(world.origin.requests("/cookies")[-1].values("cookie"), ["a=1; b=2; c=3"], "Cookie at the origin")


@case("8.2-values", "8.2.1: values with any visible byte, quotes and obs-text arrive as they are")
def _(world):
    value = "\"a,b;c=d\" \\ ~`!@#$%^&*()"
    with world.connect() as talk:
        equal(talk.get("/values", more=[("x-value", value), ("x-empty", "")]).status, 200, "status")
    asked = world.origin.requests("/values")[-1]
    equal((asked.values("x-value"), asked.values("x-empty")), ([value], [""]), "at the origin")


@case("8.3.2-bodiless", "8.1, 6.1: HEAD, 204 and 304 have no body, HEAD keeps its content-length")
def _(world):
    with world.connect() as talk:
        got = talk.get("/bytes/1234", method="HEAD")
        equal((got.status, got.body, got.value("content-length")), (200, b"", "1234"), "HEAD")
        for status in (204, 304):
            got = talk.get(f"/status/{status}")
            equal((got.status, got.body), (status, b""), "status and body")


@case("8.3.2-statuses", "8.3.2: an origin's status is the response's")
def _(world):
    with world.connect() as talk:
        for status in (200, 201, 302, 404, 418, 500, 599):
            equal(talk.get(f"/status/{status}").status, status, "status")


@case("8.5-connect", "8.5: CONNECT is not for this server: refused, and the connection goes on")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        talk.send(frame(HEADERS, END_HEADERS, stream, block([(":method", "CONNECT"), (":authority", f"{NAME}:443")])))
        got = talk.response(stream)[0]
        check(got.reset or 400 <= got.status < 600, f"{got.status}")
        talk.expect_alive()


@case("8.5-connect-path", "8.5: CONNECT with :scheme and :path: malformed")
def _(world):
    refused(world, fields_with("/connect", change={":method": "CONNECT"}), "/connect")


@case("rfc8441-setting", "RFC 8441 3: SETTINGS_ENABLE_CONNECT_PROTOCOL is 1")
def _(world):
    if not world.is_hostward:
        raise Skipped("the peer has no extended CONNECT")
    with world.connect() as talk:
        equal(talk.settings.get(ENABLE_CONNECT), 1, "SETTINGS_ENABLE_CONNECT_PROTOCOL")


@case("rfc8441-unknown-protocol", "RFC 8441 4: an extended CONNECT for another protocol than websocket is refused")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        fields = talk.fields("/chat", "CONNECT", [(":protocol", "connect-ip")])
        talk.send(frame(HEADERS, END_HEADERS, stream, block(fields)))
        got = talk.response(stream)[0]
        check(got.reset or 400 <= got.status < 600, f"{got.status}")
        talk.expect_alive()


@case("8.4-no-push", "8.4: nothing is pushed")
def _(world):
    with world.connect(ours=[(ENABLE_PUSH, 1)]) as talk:
        stream = talk.ask("/bytes/100")
        talk.send(frame(PING, 0, 0, bytes(8)))
        seen = []
        while not any(isinstance(got, frames.PingFrame) for got in seen):
            seen.append(talk.receive())
        check(not any(isinstance(got, frames.PushPromiseFrame) for got in seen), "PUSH_PROMISE")
        check(stream, "no stream")


# Header lists.


@case("10.5.1-large", "10.5.1: header lists of 16 KiB in two frames go through")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        whole = block(talk.fields("/large", more=[(f"x-{n}", "v" * 1000) for n in range(16)]))
        talk.send(frame(HEADERS, END_STREAM, stream, whole[:FRAME_BYTES]))
        talk.send(frame(CONTINUATION, END_HEADERS, stream, whole[FRAME_BYTES:]))
        equal(talk.response(stream)[0].status, 200, "status")


@case("10.5.1-too-large", "10.5.1: beyond the limit: 431, or an error; the origin is not asked")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        whole = block(talk.fields("/too-large", more=[(f"x-{n}", "v" * 4000) for n in range(25)]))
        pieces = [whole[at : at + FRAME_BYTES] for at in range(0, len(whole), FRAME_BYTES)]
        talk.send(frame(HEADERS, END_STREAM, stream, pieces[0]))
        for piece in pieces[1:-1]:
            talk.send(frame(CONTINUATION, 0, stream, piece))
        talk.send(frame(CONTINUATION, END_HEADERS, stream, pieces[-1]))
        got = None
        while True:
            got = talk.receive()
            if got is None or isinstance(got, (frames.GoAwayFrame, frames.RstStreamFrame, frames.HeadersFrame)):
                break
        if isinstance(got, frames.HeadersFrame):
            check(dict(got.fields)[":status"] in ("400", "431"), "status")
        elif got is not None:
            check(code_name(got.error_code) in ("ENHANCE_YOUR_CALM", "PROTOCOL_ERROR", "REFUSED_STREAM", "COMPRESSION_ERROR"),
                  told(got))  # fmt: skip
    check(not world.origin.requests("/too-large"), "the origin was asked")


# RFC 7541.


def compression_error(world, data):
    connection_error(world, lambda talk: frame(HEADERS, 5, 1, block(talk.fields()) + data), "COMPRESSION_ERROR")


@case("rfc7541-2.3.3-index-zero", "RFC 7541 6.1: index 0: COMPRESSION_ERROR")
def _(world):
    compression_error(world, b"\x80")


@case("rfc7541-2.3.3-index-beyond", "RFC 7541 2.3.3: an index beyond both tables: COMPRESSION_ERROR")
def _(world):
    compression_error(world, b"\xff\x00")
    compression_error(world, b"\x7f\x20\x01a")


@case("rfc7541-4.2-size-beyond", "RFC 7541 6.3: a table size above our SETTINGS_HEADER_TABLE_SIZE: COMPRESSION_ERROR")
def _(world):
    connection_error(world, lambda talk: frame(HEADERS, 5, 1, b"\x3f\xe1\xff\x03" + block(talk.fields())), "COMPRESSION_ERROR")


@case("rfc7541-4.2-size-late", "RFC 7541 4.2: a table size behind a field: COMPRESSION_ERROR")
def _(world):
    compression_error(world, b"\x20")


@case("rfc7541-4.2-sizes", "RFC 7541 4.2: table sizes at the beginning of a block, two of them too")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        talk.send(frame(HEADERS, 5, stream, b"\x20\x3f\xe1\x1f" + block(talk.fields())))
        equal(talk.response(stream)[0].status, 200, "status")


@case("rfc7541-5.1-integer", "RFC 7541 5.1: an integer that never ends, or is cut off: COMPRESSION_ERROR")
def _(world):
    compression_error(world, b"\xff" + b"\xff" * 10 + b"\x01")
    compression_error(world, b"\xff\x80")
    compression_error(world, b"\x00\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")


@case("rfc7541-5.2-string", "RFC 7541 5.2: a string longer than its block: COMPRESSION_ERROR")
def _(world):
    compression_error(world, b"\x00\x01x\x05abc")
    compression_error(world, b"\x00\x05ab")


@case("rfc7541-5.2-huffman", "RFC 7541 5.2: Huffman with EOS, padding of eight bits, padding of zeros: COMPRESSION_ERROR")
def _(world):
    # "a" is 00011 in Huffman's code: 0001_1111 with its padding.
    for value in (b"\x84\xff\xff\xff\xff", b"\x82\x1f\xff", b"\x81\x18"):
        compression_error(world, b"\x00\x01x" + value)


@case("rfc7541-6-representations", "RFC 7541 6: indexed, incremental, never indexed, Huffman: all read alike")
def _(world):
    with world.connect() as talk:
        stream = talk.stream()
        # :method GET, :scheme https by index; :authority and :path as literals with incremental indexing by static name.
        name = NAME.encode()
        head = b"\x82\x87" + b"\x41" + bytes([len(name)]) + name + b"\x44" + bytes([7]) + b"/tables"
        extra = b"\x10\x05x-one\x01a" + b"\x40\x05x-two\x81\x1f" + b"\x00\x07x-three\x01c"
        talk.send(frame(HEADERS, 5, stream, head + extra))
        equal(talk.response(stream)[0].status, 200, "status")
        stream = talk.stream()
        # The dynamic table now holds x-two (62), :path (63), :authority (64).
        talk.send(frame(HEADERS, 5, stream, b"\x82\x87\xc0\xbf\xbe"))
        equal(talk.response(stream)[0].status, 200, "status")
    first, second = world.origin.requests("/tables")[-2:]
    equal([first.values(name) for name in ("x-one", "x-two", "x-three")], [["a"], ["a"], ["c"]], "at the origin")
    equal((second.values("x-two"), second.values("x-one")), (["a"], []), "from the dynamic table")


# Section 9: TLS.


@case("9.2-tls12", "9.2: HTTP/2 over TLS 1.2 with the suites we have")
def _(world):
    with world.connect(maximum=ssl.TLSVersion.TLSv1_2) as talk:
        equal(talk.tls.version(), "TLSv1.2", "version")
        talk.expect_alive()


@case("9.2.1-features", "9.2.1: no compression, no renegotiation")
def _(world):
    with world.connect(maximum=ssl.TLSVersion.TLSv1_2) as talk:
        equal(talk.tls.compression(), None, "compression")
    with Conversation(world.server.address) as talk:
        talk.send_hello(hello_12(NAME, more=[alpn(["h2"])]))
        talk.server_flight_12()
        talk.client_flight_12()
        talk.expect_finished_12()
        talk.send(22, hello_12(NAME).bytes())
        while True:
            got = talk.receive()
            if got[0] != "data":
                break
        check(got[0] in ("alert", "end"), f"{got}")


@case("9.2.2-suites", "9.2.2: a client with prohibited suites alone does not get HTTP/2")
def _(world):
    with Conversation(world.server.address) as talk:
        talk.send_hello(hello_12(NAME, suites=[0xC013, 0xC014, 0x009C, 0x002F], more=[alpn(["h2"])]))
        try:
            talk.expect_alert("handshake_failure", "insufficient_security")
        except Failed:
            if world.is_hostward:
                raise


# Frames at random.

# Connections of random frames, the same in every run.
RANDOM_CONNECTIONS = 80


@case("random-frames", "frames at random, half of them allowed: every connection is answered or ended, nobody else is disturbed")
def _(world):
    dice = random.Random(9113)
    with world.connect() as bystander:
        for number in range(RANDOM_CONNECTIONS):
            with world.connect(ours=[(INITIAL_WINDOW, dice.choice((0, 1, 1000, WINDOW_BYTES, 1 << 20)))]) as talk:
                open_streams = []
                hostile = number % 2 == 0
                for _ in range(dice.randrange(1, 60)):
                    talk.send(_random_frame(dice, talk, open_streams, hostile))
                # Whatever comes within a moment is read, so that both sides have something to do.
                talk.tls.settimeout(0.02)
                try:
                    while not isinstance(talk.receive(), (type(None), frames.GoAwayFrame)):
                        pass
                except Failed:
                    pass
            bystander.expect_alive()


def _random_frame(dice, talk, open_streams, hostile):
    """A frame of any kind, on a stream that is open or, from a hostile client, on any."""
    stream = dice.choice([*open_streams, 0]) if open_streams else 0
    if hostile and dice.random() < 0.3:
        stream = dice.choice((0, 1, 2, 3, 5, dice.randrange(1 << 31)))
    kind = dice.randrange(100)
    if kind < 35 or not open_streams:
        path = dice.choice(("/", "/echo", "/bytes/3000", "/bytes/200000", "/chunked/50", "/early/5000", "/status/204", "/hold"))
        more = dice.choice(([], [("te", "trailers")], [("expect", "100-continue")], [("x-y", "z" * dice.randrange(3000))]))
        whole = bytearray(block(talk.fields(path, dice.choice(("GET", "POST", "HEAD", "PUT")), more)))
        if hostile and dice.random() < 0.2:
            whole[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        flags = dice.choice((END_HEADERS, END_HEADERS | END_STREAM, *((0, PADDED | 5, PRIORITY_FLAG | 5) if hostile else ())))
        new = talk.stream()
        if not flags & END_STREAM:
            open_streams.append(new)
        return frame(HEADERS, flags, new, bytes(whole))
    if kind < 60:
        return frame(DATA, dice.choice((0, 0, 0, END_STREAM)), stream or open_streams[0], bytes(dice.randrange(4000)))
    if kind < 70:
        return window(stream, dice.choice((0, 1, 0x7FFFFFFF)) if hostile else dice.randrange(1, 100000))
    if kind < 78:
        return frame(RST_STREAM, 0, stream or open_streams[0], struct.pack("!L", dice.randrange(14)))
    if kind < 84:
        return frame(SETTINGS, 0, 0, settings([(dice.choice((1, 3, 4, 6)), dice.choice((0, 100, 65535, 1 << 20)))]))
    if kind < 90:
        return frame(PING, dice.choice((0, ACK)), 0, bytes(8))
    if kind < 95:
        return frame(HEADERS, END_HEADERS | END_STREAM, stream or open_streams[0], literal("x-trailer", "1"))
    return frame(dice.randrange(256) if hostile else 0x77, dice.randrange(256), stream, bytes(dice.randrange(30)))
