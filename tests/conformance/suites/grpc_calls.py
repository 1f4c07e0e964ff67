"""A real gRPC client and server (grpcio) through Hostward: client -> TLS with a client certificate -> h2c:// origin.

The service is generic (messages are bytes), so that no code is generated. Each case has its own call; they share one channel,
so that streams of one connection run beside each other.
"""

import threading
import time

import grpc

from harness import procs, rpc
from harness.edge import Edge, host_table
from harness.nginx import Nginx
from harness.origin import closed_port
from harness.pki import Authority
from harness.rpc import SERVICE
from harness.suite import Failed, Suite, check, equal

NAME, DOWN, RULED = "rpc.test", "down.test", "ruled.test"

# The deadline of a call that should answer at once, seconds.
SOON_S = 10


class World:
    pass


def start(place):
    world = World()
    pki = place.directory / "pki"
    pki.mkdir()
    servers, clients = Authority(pki, "servers"), Authority(pki, "clients")
    identity = servers.issue("server", "ecdsa", [NAME, DOWN, RULED])
    pem, key = clients.issue("caller", "ecdsa", client=True)
    world.server = rpc.Server()
    world.keeper, port = closed_port()
    if place.peer == "nginx":
        verify = f"ssl_client_certificate {clients.pem}; ssl_verify_client on;"
        told = "grpc_set_header X-Client-Cert-Subject $ssl_client_s_dn; grpc_set_header X-Client-Cert-Verify $ssl_client_verify;"
        there, gone = (f"grpc_pass grpc://127.0.0.1:{where}; {told}" for where in (world.server.port, port))
        denies = f"{verify} location /{SERVICE}/Unary {{ return 403; }}"
        world.edge = Nginx(place.directory / "nginx", identity, [(NAME, verify, there), (DOWN, verify, gone), (RULED, denies, there)])
        return _called(world, servers, pem, key)
    mutual = {"client_auth": "require", "ca": clients.pem, "auth_lines": ['headers = ["x-client-cert"]']}
    rules = f"""[[hostname.rule]]
path = "/{SERVICE}/Unary"
deny = true
[[hostname.rule]]
allow = {{}}

"""
    there, gone = f"h2c://127.0.0.1:{world.server.port}", f"h2c://127.0.0.1:{port}"
    hosts = [
        host_table(NAME, [identity], there, **mutual),
        host_table(DOWN, [identity], gone, **mutual),
        host_table(RULED, [identity], there, **mutual) + rules,
    ]
    try:
        world.edge = Edge(place.directory / "edge", hosts)
    except procs.Unusable:
        world.server.stop()
        raise
    return _called(world, servers, pem, key)


def _called(world, servers, pem, key):
    world.ca = servers.pem.read_bytes()
    world.pair = (key.read_bytes(), pem.read_bytes())
    world.channel = channel(world, NAME)
    return world


def channel(world, name, with_certificate=True):
    credentials = grpc.ssl_channel_credentials(world.ca, *(world.pair if with_certificate else ()))
    host, port = world.edge.address
    options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name),
               ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
               ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]  # fmt: skip
    return grpc.secure_channel(f"{host}:{port}", credentials, options)


def stop(world):
    world.channel.close()
    world.edge.stop()
    world.server.stop()
    world.keeper.close()


SUITE = Suite("grpc_calls", "gRPC (grpcio) through h2c://, with client certificates", start, stop)
case = SUITE.case


def path(method):
    return f"/{SERVICE}/{method}"


def expect_status(call, code):
    """The call fails with this status; returns the error."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() != code:
            raise Failed(f"{error.code()} ({error.details()}) instead of {code}") from None
        return error
    raise Failed(f"the call succeeds instead of {code}")


@case("unary", "a unary call: message, metadata both ways, binary metadata, trailers, status")
def _(world):
    call = world.channel.unary_unary(path("Unary"))
    answer, about = call.with_call(b"hostward", timeout=SOON_S, metadata=(("x-asked", "yes"), ("x-raw-bin", b"\xff\x00")))
    equal(answer, b"drawtsoh", "the answer")
    equal(about.code(), grpc.StatusCode.OK, "status")
    first, last = dict(about.initial_metadata()), dict(about.trailing_metadata())
    equal((first.get("x-first"), first.get("x-bytes-bin")), ("before", b"\x00\xff"), "initial metadata")
    equal((last.get("x-last"), last.get("x-more-bin")), ("after", b"\x01\xfe"), "trailing metadata")
    seen = dict(world.server.service.seen[path("Unary")]["metadata"])
    equal((seen.get("x-asked"), seen.get("x-raw-bin")), ("yes", b"\xff\x00"), "metadata at the origin")


@case("identity", "the origin is told who calls")
def _(world):
    world.channel.unary_unary(path("Unary"))(b"x", timeout=SOON_S)
    seen = dict(world.server.service.seen[path("Unary")]["metadata"])
    equal(seen.get("x-client-cert-verify"), "SUCCESS", "x-client-cert-verify")
    equal(seen.get("x-client-cert-subject"), "CN=caller", "x-client-cert-subject")


@case("no-certificate", "a caller without a certificate is not let in: UNAVAILABLE")
def _(world):
    with channel(world, NAME, with_certificate=False) as stranger:
        expect_status(lambda: stranger.unary_unary(path("Unary"))(b"x", timeout=SOON_S), grpc.StatusCode.UNAVAILABLE)


@case("empty", "an empty message")
def _(world):
    equal(world.channel.unary_unary(path("Unary"))(b"", timeout=SOON_S), b"", "the answer")


@case("large", "messages of 8 MB both ways")
def _(world):
    message = bytes(range(256)) * 32768
    answer = world.channel.unary_unary(path("Unary"))(message, timeout=30)
    check(answer == message[::-1], f"{len(answer)} bytes, or others")


@case("server-streaming", "a stream of 5,000 messages from the server")
def _(world):
    answers = list(world.channel.unary_stream(path("Count"))(b"5000", timeout=30))
    equal(answers, [str(number).encode() for number in range(5000)], "the messages")


@case("client-streaming", "a stream of 5,000 messages from the client")
def _(world):
    numbers = (str(number).encode() for number in range(5000))
    equal(world.channel.stream_unary(path("Sum"))(numbers, timeout=30), b"12497500", "the sum")


@case("bidirectional", "both streams at once: each message is answered before the next is sent")
def _(world):
    asked = []
    answered = threading.Event()

    def words():
        for number in range(100):
            asked.append(number)
            yield f"word {number}".encode()
            if not answered.wait(SOON_S):
                return
            answered.clear()

    count = 0
    for answer in world.channel.stream_stream(path("Chat"))(words(), timeout=30):
        equal(answer, f"WORD {count}".encode(), "an answer")
        equal(len(asked), count + 1, "messages sent by then")
        count += 1
        answered.set()
    equal(count, 100, "answers")


@case("concurrent", "a hundred calls of all kinds at once over one connection")
def _(world):
    waiting = [world.channel.unary_unary(path("Unary")).future(b"ab", timeout=30) for _ in range(50)]
    sums = [world.channel.stream_unary(path("Sum")).future(iter([b"1"] * 100), timeout=30) for _ in range(25)]
    counts = [world.channel.unary_stream(path("Count"))(b"100", timeout=30) for _ in range(25)]
    check(all(each.result() == b"ba" for each in waiting), "a unary answer")
    check(all(each.result() == b"100" for each in sums), "a sum")
    check(all(len(list(each)) == 100 for each in counts), "a count")


@case("status", "each status the origin ends a call with arrives, with its message and trailing metadata")
def _(world):
    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        call = world.channel.unary_unary(path("Fail"))
        error = expect_status(lambda: call(code.name.encode(), timeout=SOON_S), code)
        equal(error.details(), "as asked: 100 % \u00fc", "details")
        equal(dict(error.trailing_metadata()).get("x-why"), "asked", "trailing metadata")


@case("unimplemented", "a method the origin does not have: UNIMPLEMENTED, the origin's own")
def _(world):
    expect_status(lambda: world.channel.unary_unary(path("Nothing"))(b"", timeout=SOON_S), grpc.StatusCode.UNIMPLEMENTED)


@case("deadline", "a deadline ends the call in time: DEADLINE_EXCEEDED, and the origin learns of it")
def _(world):
    world.server.service.cancelled.clear()
    began = time.monotonic()
    expect_status(lambda: world.channel.unary_unary(path("Wait"))(b"", timeout=0.5), grpc.StatusCode.DEADLINE_EXCEEDED)
    check(0.4 < time.monotonic() - began < 5, f"after {time.monotonic() - began:.1f} s")
    check(world.server.service.waiting.acquire(timeout=SOON_S), "the call did not arrive")
    check(world.server.service.cancelled.wait(SOON_S), "the origin does not learn of it")


@case("deadline-passed-on", "grpc-timeout reaches the origin, not shortened")
def _(world):
    world.channel.unary_unary(path("Unary"))(b"x", timeout=300)
    left = world.server.service.seen[path("Unary")]["time_left"]
    check(left is not None and 290 < left <= 301, f"{left} s left at the origin of 300")


@case("cancel", "a call that is cancelled: CANCELLED, and the origin learns of it")
def _(world):
    world.server.service.cancelled.clear()
    call = world.channel.unary_unary(path("Wait")).future(b"", timeout=30)
    check(world.server.service.waiting.acquire(timeout=SOON_S), "the call does not arrive")
    call.cancel()
    check(call.cancelled(), "not cancelled")
    check(world.server.service.cancelled.wait(SOON_S), "the origin does not learn of it")


@case("cancel-stream", "a stream that is cancelled in the middle leaves the connection's others alone")
def _(world):
    call = world.channel.unary_stream(path("Count"))(b"1000000", timeout=30)
    equal(next(call), b"0", "the first message")
    call.cancel()
    equal(world.channel.unary_unary(path("Unary"))(b"ab", timeout=SOON_S), b"ba", "the next call")


@case("origin-down", "an origin that does not answer: UNAVAILABLE")
def _(world):
    with channel(world, DOWN) as down:
        expect_status(lambda: down.unary_unary(path("Unary"))(b"x", timeout=SOON_S), grpc.StatusCode.UNAVAILABLE)


@case("rule-denies", "a call that a rule denies: PERMISSION_DENIED; others on the same channel are let through")
def _(world):
    with channel(world, RULED) as ruled:
        expect_status(lambda: ruled.unary_unary(path("Unary"))(b"x", timeout=SOON_S), grpc.StatusCode.PERMISSION_DENIED)
        equal(ruled.stream_unary(path("Sum"))(iter([b"1", b"2"]), timeout=SOON_S), b"3", "the sum")


@case("origin-restarts", "an origin that goes away: UNAVAILABLE; when it is back, calls work again on the same channel", limit_s=60)
def _(world):
    port = world.server.port
    waiting = world.channel.unary_unary(path("Wait")).future(b"", timeout=30)
    check(world.server.service.waiting.acquire(timeout=SOON_S), "the call does not arrive")
    world.server.stop()
    got = waiting.exception(timeout=SOON_S)
    check(got.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL), f"{got.code()}")
    expect_status(lambda: world.channel.unary_unary(path("Unary"))(b"x", timeout=SOON_S), grpc.StatusCode.UNAVAILABLE)
    world.server = rpc.Server(port)
    deadline = time.monotonic() + 30
    while True:
        try:
            equal(world.channel.unary_unary(path("Unary"))(b"ab", timeout=SOON_S), b"ba", "the answer")
            return
        except grpc.RpcError as error:
            check(time.monotonic() < deadline, f"still {error.code()}")
            time.sleep(0.1)
