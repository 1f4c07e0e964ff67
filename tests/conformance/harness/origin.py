"""Origins for the suites, each a few threads of this process.

`BytesOrigin` serves tcp mode: it answers each line-terminated request with a fixed HTTP/1.0 response and keeps reading, so
that a conversation can go on. `HttpOrigin` serves http mode and remembers what it was asked.
"""

import socket
import socketserver
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What BytesOrigin says for each request; the end of the head is what conversations wait for.
BYTES_ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"

# How long an origin waits for a peer that says nothing, seconds.
SILENCE_S = 60


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512


class BytesOrigin:
    """Answers each `\\r\\n\\r\\n`; `echo` instead sends back what it gets."""

    def __init__(self, echo=False):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.settimeout(SILENCE_S)
                seen = b""
                try:
                    while got := self.request.recv(65536):
                        if echo:
                            self.request.sendall(got)
                            continue
                        seen += got
                        while b"\r\n\r\n" in seen:
                            seen = seen.split(b"\r\n\r\n", 1)[1]
                            self.request.sendall(BYTES_ANSWER)
                except OSError:
                    pass

        self.server = _Threads(("127.0.0.1", 0), Handler)
        self.url = f"tcp://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Asked:
    """A request as the origin saw it."""

    method: str
    path: str
    headers: list
    body: bytes = b""
    trailers: tuple = ()

    def values(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]


class HttpOrigin:
    """An HTTP/1.1 origin.

    /bytes/N        N bytes of body with content-length
    /chunked/N      the same, chunked, with the trailers `x-check` and `x-empty`
    /echo           the request's body back, and its trailers as trailers
    /status/N       that status and a short body (none for 204 and 304)
    /early/N        N bytes, without reading the request's body
    /slow           reads the request, and waits until `release()` is called
    /hold           the same without reading the request's body
    anything else   what `pages` holds for the path (type and body), or `hello`
    """

    def __init__(self):
        self.asked = []
        self.pages = {}
        self.lock = threading.Lock()
        self.gate = threading.Event()
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = SILENCE_S

            def log_message(self, *_):
                pass

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def _any(self):
                asked = Asked(self.command, self.path, list(self.headers.items()))
                with origin.lock:
                    origin.asked.append(asked)
                if self.path == "/hold":
                    origin.gate.wait(SILENCE_S)
                    self.close_connection = True
                    return
                if not self.path.startswith("/early/"):
                    asked.body, asked.trailers = self._body()
                else:
                    self.close_connection = True
                self._answer(asked)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = _any

            def _body(self):
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    body, trailers = b"", []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    while line := self.rfile.readline().strip():
                        name, _, value = line.decode("latin-1").partition(":")
                        trailers.append((name, value.strip()))
                    return body, tuple(trailers)
                return self.rfile.read(int(self.headers.get("Content-Length", 0))), ()

            def _answer(self, asked):
                kind, _, number = self.path.split("?")[0].strip("/").partition("/")
                size = int(number) if number.isdigit() else 0
                if self.path in origin.pages:
                    self._whole(200, origin.pages[self.path][1], origin.pages[self.path][0])
                elif kind == "chunked":
                    self._chunked(_pattern(size), (("x-check", str(size)), ("x-empty", "")))
                elif kind == "echo" and asked.trailers:
                    self._chunked(asked.body, asked.trailers)
                elif kind == "echo":
                    self._whole(200, asked.body)
                elif kind in ("bytes", "early"):
                    self._whole(200, _pattern(size))
                elif kind == "status":
                    self._whole(size, b"" if size in (204, 304) else b"status\n")
                elif kind == "slow":
                    origin.gate.wait(SILENCE_S)
                    self._whole(200, b"at last\n")
                else:
                    self._whole(200, b"hello\n")

            def _whole(self, status, body, content_type=None):
                self.send_response(status)
                if content_type:
                    self.send_header("Content-Type", content_type)
                if status not in (204, 304):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def _chunked(self, body, trailers):
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.send_header("Trailer", ", ".join(name for name, _ in trailers))
                self.end_headers()
                if self.command == "HEAD":
                    return
                for at in range(0, len(body), 16000):
                    part = body[at : at + 16000]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                end = "".join(f"{name}: {value}\r\n" for name, value in trailers)
                self.wfile.write(b"0\r\n" + end.encode("latin-1") + b"\r\n")

        class Server(ThreadingHTTPServer):
            request_queue_size = 512
            block_on_close = False

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def requests(self, path=None):
        """What was asked so far, of one path if it is given."""
        with self.lock:
            return [asked for asked in self.asked if path is None or asked.path == path]

    def forget(self):
        with self.lock:
            self.asked.clear()

    def release(self):
        self.gate.set()

    def stop(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


def _pattern(size):
    """A body that shows lost, doubled and exchanged pieces."""
    line = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-\n"
    return (line * (size // len(line) + 1))[:size]


pattern = _pattern


def closed_port():
    """A port nobody listens on: bound, never listened to, so that nobody else gets it while the socket is kept."""
    keeper = socket.socket()
    keeper.bind(("127.0.0.1", 0))
    return keeper, keeper.getsockname()[1]
