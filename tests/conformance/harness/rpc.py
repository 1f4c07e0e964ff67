"""A gRPC service without generated code: messages are bytes, the four kinds of calls are generic handlers.

    Unary       one message back: the request, reversed
    Count       a stream of the numbers below the request's
    Sum         the sum of a stream of numbers
    Chat        each message back as it comes, in capitals
    Fail        the status the request names
    Wait        waits until the call is cancelled or the server ends
"""

import threading
from concurrent import futures

import grpc

# How long `Wait` waits if nobody ends it, seconds.
WAIT_S = 60

SERVICE = "hostward.test.Conformance"


class Service(grpc.GenericRpcHandler):
    def __init__(self):
        self.seen = {}
        self.cancelled = threading.Event()
        self.waiting = threading.Semaphore(0)

    def service(self, details):
        self.seen[details.method] = {"metadata": list(details.invocation_metadata)}
        kind, _, name = details.method.rpartition("/")
        make = {
            "Unary": (grpc.unary_unary_rpc_method_handler, self.unary),
            "Count": (grpc.unary_stream_rpc_method_handler, self.count),
            "Sum": (grpc.stream_unary_rpc_method_handler, self.sum),
            "Chat": (grpc.stream_stream_rpc_method_handler, self.chat),
            "Fail": (grpc.unary_unary_rpc_method_handler, self.fail),
            "Wait": (grpc.unary_unary_rpc_method_handler, self.wait),
        }.get(name)
        return make[0](make[1]) if make and kind == f"/{SERVICE}" else None

    def unary(self, request, context):
        self.seen[f"/{SERVICE}/Unary"]["time_left"] = context.time_remaining()
        context.send_initial_metadata((("x-first", "before"), ("x-bytes-bin", b"\x00\xff")))
        context.set_trailing_metadata((("x-last", "after"), ("x-more-bin", b"\x01\xfe")))
        return request[::-1]

    def count(self, request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def sum(self, requests, context):
        return str(sum(int(request) for request in requests)).encode()

    def chat(self, requests, context):
        for request in requests:
            yield request.upper()

    def fail(self, request, context):
        code = next(code for code in grpc.StatusCode if code.name == request.decode())
        context.set_trailing_metadata((("x-why", "asked"),))
        context.abort(code, "as asked: 100 % \u00fc")

    def wait(self, request, context):
        done = threading.Event()
        context.add_callback(done.set)
        self.waiting.release()
        done.wait(WAIT_S)
        self.cancelled.set()
        return b""


class Server:
    """The service over HTTP/2 without TLS."""

    def __init__(self, port=0):
        self.service = Service()
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), handlers=(self.service,),
                                  options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])  # fmt: skip
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()
        self.url = f"h2c://127.0.0.1:{self.port}"

    def stop(self):
        self.server.stop(0).wait(5)
