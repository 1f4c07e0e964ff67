"""An HTTP/2 client whose every frame a suite may bend (RFC 9113), over Python's TLS.

What is sent is bytes made by small functions; what comes is parsed by hyperframe and hpack, which complain about what a
server must not send. Settings and pings of the server are acknowledged on the way, windows are opened only where a case
asks for it.
"""

import socket
import ssl
import struct

import hpack
from hyperframe import frame as frames

from .suite import Failed

# How long a client waits for the server, seconds.
WAIT_S = 8

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types (section 6).
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

# Flags.
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20

# Settings (section 6.5.2, RFC 8441).
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST, ENABLE_CONNECT = 1, 2, 3, 4, 5, 6, 8

# Error codes (section 7).
CODES = ["NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
         "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
         "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"]  # fmt: skip

# What everybody may send of a frame, and the window everybody begins with.
FRAME_BYTES = 16384
WINDOW_BYTES = 65535


def code_name(code):
    return CODES[code] if code < len(CODES) else hex(code)


def frame(kind, flags, stream, payload=b""):
    """A frame, whether or not it is allowed."""
    return struct.pack("!L", len(payload))[1:] + struct.pack("!BBL", kind, flags, stream) + payload


def settings(pairs):
    return b"".join(struct.pack("!HL", key, value) for key, value in pairs)


def window(stream, by):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack("!L", by))


def literal(name, value):
    """A field as HPACK's plainest literal (RFC 7541 section 6.2.2): any bytes, no table."""
    return b"\x00" + _string(name) + _string(value)


def _string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return _integer(len(raw), 7) + raw


def _integer(value, bits):
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = [most], value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def block(fields):
    return b"".join(literal(name, value) for name, value in fields)


class Response:
    """What became of a stream."""

    def __init__(self):
        self.status = None
        self.interim = []
        self.headers = []
        self.body = b""
        self.trailers = []
        self.reset = None

    def value(self, name):
        return next((value for key, value in self.headers if key == name), None)


class Connection:
    """A connection to a server; `prepare` sends the preface and settings and reads the server's."""

    def __init__(self, address, name, offer=("h2",), maximum=None, prepare=True, ours=(), chain=None, expect="h2"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if chain:
            context.load_cert_chain(*chain)
        if offer:
            context.set_alpn_protocols(list(offer))
        if maximum:
            context.maximum_version = maximum
        raw = socket.create_connection(address, timeout=WAIT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name = name
        self.tls = context.wrap_socket(raw, server_hostname=name)
        self.seen = b""
        self.settings = {}
        self.acknowledged = 0
        self.decoder = hpack.Decoder()
        self.next_stream = 1
        # GOAWAY took the connection along where a stream's error would have been enough.
        self.ended = False
        # Open the connection's and the streams' windows as data comes.
        self.open_windows = True
        if expect and self.tls.selected_alpn_protocol() != expect:
            raise Failed(f"the server chose {self.tls.selected_alpn_protocol()!r} instead of {expect!r}")
        if prepare:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings(ours)))
            self.first = self.expect_frame(frames.SettingsFrame)

    def close(self):
        self.tls.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Sending.

    def send(self, data):
        """A server that has hung up already is noticed when something is expected of it."""
        try:
            self.tls.sendall(data)
        except OSError:
            pass

    def stream(self):
        """A new stream's number."""
        self.next_stream += 2
        return self.next_stream - 2

    def fields(self, path="/", method="GET", more=(), authority=None):
        """An ordinary request's fields."""
        return [
            (":method", method),
            (":scheme", "https"),
            (":authority", authority or self.name),
            (":path", path),
            *more,
        ]

    def ask(self, path="/", method="GET", more=(), body=None, stream=None, end=True):
        """Sends a request with its body, within the window everybody begins with; returns its stream."""
        stream = stream or self.stream()
        flags = END_HEADERS | (END_STREAM if body is None and end else 0)
        data = frame(HEADERS, flags, stream, block(self.fields(path, method, more)))
        if body is not None:
            data += frame(DATA, END_STREAM if end else 0, stream, body)
        self.send(data)
        return stream

    # Receiving.

    def _read(self, size):
        while len(self.seen) < size:
            try:
                got = self.tls.recv(65536)
            except socket.timeout:
                raise Failed(f"the server says nothing for {WAIT_S} s") from None
            except (ConnectionError, ssl.SSLError):
                got = b""
            if not got:
                return None
            self.seen += got
        taken, self.seen = self.seen[:size], self.seen[size:]
        return taken

    def receive(self):
        """The next frame, or None at the end. Settings and pings are acknowledged, windows opened if that is wanted."""
        head = self._read(9)
        if head is None:
            return None
        got, size = frames.Frame.parse_frame_header(memoryview(head))
        payload = self._read(size)
        if payload is None:
            return None
        got.parse_body(memoryview(payload))
        got.body_len = size
        if isinstance(got, frames.SettingsFrame):
            if "ACK" in got.flags:
                self.acknowledged += 1
            else:
                self.settings.update(got.settings)
                self.send(frame(SETTINGS, ACK, 0))
        elif isinstance(got, frames.HeadersFrame):
            self._whole_block(got)
        elif isinstance(got, frames.PingFrame) and "ACK" not in got.flags:
            self.send(frame(PING, ACK, 0, got.opaque_data))
        elif isinstance(got, frames.DataFrame) and self.open_windows and size:
            self.send(window(0, size) + ("END_STREAM" not in got.flags and window(got.stream_id, size) or b""))
        return got

    def expect_frame(self, kind, want=lambda frame: True):
        """The next frame of a type; others on the way are passed over, unless they end things."""
        while True:
            got = self.receive()
            if isinstance(got, kind) and want(got):
                return got
            if got is None or isinstance(got, frames.GoAwayFrame):
                raise Failed(f"{told(got)} instead of {kind.__name__}")

    def expect_connection_error(self, *codes):
        """GOAWAY with one of these codes, and the end of the connection."""
        while True:
            got = self.receive()
            if got is None:
                raise Failed(f"the connection ends without GOAWAY {' or '.join(codes)}")
            if isinstance(got, frames.RstStreamFrame) and code_name(got.error_code) not in codes:
                raise Failed(f"{told(got)} instead of GOAWAY {' or '.join(codes)}")
            if isinstance(got, frames.GoAwayFrame):
                if code_name(got.error_code) not in codes:
                    raise Failed(f"{told(got)} instead of GOAWAY {' or '.join(codes)}")
                break
        while got is not None:
            got = self.receive()

    def expect_stream_error(self, stream, *codes):
        """RST_STREAM with one of these codes; or the same as an error of the connection (section 5.4.2 allows that)."""
        while True:
            got = self.receive()
            if got is None:
                raise Failed(f"the connection ends without {' or '.join(codes)}")
            if isinstance(got, frames.GoAwayFrame) or isinstance(got, frames.RstStreamFrame) and got.stream_id == stream:
                if code_name(got.error_code) not in codes:
                    raise Failed(f"{told(got)} instead of {' or '.join(codes)}")
                return isinstance(got, frames.RstStreamFrame)
            if isinstance(got, (frames.HeadersFrame, frames.DataFrame)) and got.stream_id == stream:
                raise Failed(f"{told(got)} instead of {' or '.join(codes)}")

    def response(self, *streams, or_goaway=False):
        """Reads until the streams have ended; returns what became of each. With `or_goaway` an error of the connection counts
        as one of each stream (section 5.4.1 allows a server to make that of it)."""
        found = {stream: Response() for stream in streams}
        waiting = set(streams)
        while waiting:
            got = self.receive()
            if or_goaway and isinstance(got, frames.GoAwayFrame) and got.error_code:
                self.ended = True
                for stream in waiting:
                    found[stream].reset = code_name(got.error_code)
                break
            if got is None or isinstance(got, frames.GoAwayFrame) and got.error_code:
                raise Failed(f"{told(got)} before streams {sorted(waiting)} have ended")
            response = found.get(got.stream_id)
            if response is not None and isinstance(got, frames.HeadersFrame):
                self.take_head(got, response)
            elif response is not None and isinstance(got, frames.DataFrame):
                response.body += got.data
            elif response is not None and isinstance(got, frames.RstStreamFrame):
                response.reset = code_name(got.error_code)
                waiting.discard(got.stream_id)
            if response is not None and "END_STREAM" in getattr(got, "flags", ()):
                waiting.discard(got.stream_id)
        return [found[stream] for stream in streams]

    def _whole_block(self, got):
        """Decodes a header block where it comes, whoever's it is, so that the table stays in step: `got.fields`."""
        data, more = got.data, got
        while "END_HEADERS" not in more.flags:
            more = self.receive()
            if not isinstance(more, frames.ContinuationFrame) or more.stream_id != got.stream_id:
                raise Failed(f"{told(more)} within a header block of the server")
            data += more.data
        got.fields = self.decoder.decode(data)

    def take_head(self, got, response):
        """A header block's part in a response."""
        fields = got.fields
        self.check_fields(fields, response.status is not None)
        status = next((int(value) for name, value in fields if name == ":status"), None)
        if status is not None and status < 200:
            response.interim.append(status)
        elif response.status is None:
            response.status, response.headers = status, fields
        else:
            response.trailers = fields

    @staticmethod
    def check_fields(fields, trailers):
        """What a server may send (sections 8.2 and 8.3.2)."""
        names = [name for name, _ in fields]
        if trailers and any(name.startswith(":") for name in names):
            raise Failed(f"pseudo-header fields in trailers: {names}")
        if not trailers and (names[0] != ":status" or any(name.startswith(":") for name in names[1:])):
            raise Failed(f"a response begins with :status and has no other pseudo-header field: {names}")
        if any(name != name.lower() for name in names):
            raise Failed(f"names in capitals: {names}")
        forbidden = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"} & set(names)
        if forbidden:
            raise Failed(f"fields of HTTP/1.1 connections: {forbidden}")

    def get(self, path="/", **options):
        """Asks and returns the response."""
        return self.response(self.ask(path, **options))[0]

    def expect_alive(self):
        """The connection still works, unless the server has made an error of the connection of a stream's."""
        if self.ended:
            return
        got = self.get()
        if got.status != 200:
            raise Failed(f"the next request is answered with {got.status} {got.reset or ''}")

    def ping(self):
        """A round trip: everything sent before has been read, and what it caused was sent. Returns the frames on the way."""
        self.send(frame(PING, 0, 0, b"roundtri"))
        passed = []
        while True:
            got = self.receive()
            if got is None or isinstance(got, frames.GoAwayFrame):
                raise Failed(f"{told(got)} instead of an answer to PING")
            if isinstance(got, frames.PingFrame) and "ACK" in got.flags and got.opaque_data == b"roundtri":
                return passed
            passed.append(got)


def told(got):
    """A frame in a few words."""
    if got is None:
        return "the end of the connection"
    name = type(got).__name__.removesuffix("Frame")
    code = f" {code_name(got.error_code)}" if hasattr(got, "error_code") else ""
    return f"{name}{code} on stream {got.stream_id}"
