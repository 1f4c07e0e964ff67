"""curl, nghttp and h2load from Debian against HTTP mode: the clients people use, over HTTP/2 and HTTP/1.1.

Each shows something the other suites cannot: that a client's own idea of the protocol fits ours, with bodies of some
megabytes both ways, many streams, trailers, and client certificates.
"""

import hashlib
import re

from harness import procs
from harness.edge import Edge, host_table
from harness.origin import HttpOrigin, pattern
from harness.pki import Authority
from harness.suite import Failed, Skipped, Suite, check, equal

NAME, MUTUAL = "h2.test", "mutual.test"

# How long one tool may run, seconds.
TOOL_LIMIT_S = 45

LARGE = 5_000_000


class World:
    pass


def start(place):
    world = World()
    world.directory = place.directory
    pki = place.directory / "pki"
    pki.mkdir()
    world.servers, clients = Authority(pki, "servers"), Authority(pki, "clients")
    identity = world.servers.issue("server", "ecdsa", [NAME, MUTUAL])
    world.client = clients.issue("client", "ecdsa", client=True)
    world.origin = HttpOrigin()
    hosts = [
        host_table(NAME, [identity], world.origin.url),
        host_table(MUTUAL, [identity], world.origin.url, client_auth="require", ca=clients.pem,
                   auth_lines=['headers = ["x-client-cert"]']),
    ]  # fmt: skip
    world.edge = Edge(place.directory / "edge", hosts)
    world.port = world.edge.address[1]
    world.body = place.directory / "body"
    world.body.write_bytes(pattern(LARGE))
    return world


def stop(world):
    world.edge.stop()
    world.origin.stop()


SUITE = Suite("clients", "curl, nghttp and h2load", start, stop)
case = SUITE.case


def tool(name, *argv):
    """Runs a tool to its end; it must exit with 0. Returns what it printed."""
    if not procs.find(name):
        raise Skipped(f"{name} is not installed")
    code, text, errors = procs.run([name, *argv], TOOL_LIMIT_S)
    if code != 0:
        raise Failed(f"{name} ended with {code}: {errors[-600:] or text[-600:]}")
    return text


def curl(world, *argv, name=NAME):
    return tool("curl", "-sS", "--cacert", world.servers.pem, "--resolve", f"{name}:{world.port}:127.0.0.1", *argv)


def url(world, path, name=NAME):
    return f"https://{name}:{world.port}{path}"


for version, flags in (("2", ["--http2"]), ("2-tls12", ["--http2", "--tls-max", "1.2"]), ("1.1", ["--http1.1"])):
    shown = version.split("-")[0]

    @case(f"curl-{version}-get", "curl: GET, the protocol it asked for, and a body of 5 MB unharmed")
    def _(world, flags=flags, shown=shown):
        target = world.directory / "got"
        said = curl(world, *flags, "-o", target, "-w", "%{http_version} %{response_code}", url(world, f"/bytes/{LARGE}"))
        equal(said, f"{shown} 200", "version and status")
        equal(_digest(target.read_bytes()), _digest(pattern(LARGE)), "SHA-256 of the body")

    @case(f"curl-{version}-post", "curl: an upload of 5 MB with its length, and back")
    def _(world, flags=flags, shown=shown):
        target = world.directory / "got"
        said = curl(world, *flags, "-H", "Expect:", "--data-binary", f"@{world.body}", "-o", target, "-w", "%{http_version}",
                    url(world, "/echo"))  # fmt: skip
        equal(said, shown, "version")
        equal(_digest(target.read_bytes()), _digest(pattern(LARGE)), "SHA-256 of the echo")

    @case(f"curl-{version}-put-unknown-length", "curl: an upload whose length nobody knows beforehand")
    def _(world, flags=flags):
        target = world.directory / "got"
        curl(world, *flags, "-T", "-", "-o", target, url(world, "/echo?put"))
        equal(target.read_bytes(), b"", "the echo of nothing")
        asked = world.origin.requests("/echo?put")[-1]
        check(asked.values("transfer-encoding") == ["chunked"] or asked.values("content-length") == ["0"], f"{asked.headers}")

    @case(f"curl-{version}-trailers", "curl: the trailers of a response")
    def _(world, flags=flags):
        heads = world.directory / "heads"
        curl(world, *flags, "-H", "TE: trailers", "-D", heads, "-o", "/dev/null", url(world, "/chunked/1000"))
        check("x-check: 1000" in heads.read_text().lower(), f"{heads.read_text()!r}")

    @case(f"curl-{version}-reuse", "curl: ten requests one after the other over one connection")
    def _(world, flags=flags):
        targets = [word for n in range(10) for word in ("-o", "/dev/null", url(world, f"/bytes/{n}"))]
        said = curl(world, *flags, "-w", "%{num_connects}\n", *targets)
        equal(said.split(), ["1"] + ["0"] * 9, "connections made by each request")

    @case(f"curl-{version}-head", "curl: HEAD")
    def _(world, flags=flags, shown=shown):
        said = curl(world, *flags, "-I", url(world, "/bytes/777"))
        check(said.startswith(f"HTTP/{shown} 200") and "content-length: 777" in said.lower(), f"{said!r}")

    @case(f"curl-{version}-mutual", "curl: with its certificate, which the origin is told; without it the handshake fails")
    def _(world, flags=flags):
        pem, key = world.client
        curl(world, *flags, "--cert", pem, "--key", key, "-o", "/dev/null", url(world, "/mutual", MUTUAL), name=MUTUAL)
        asked = world.origin.requests("/mutual")[-1]
        equal(asked.values("x-client-cert-verify"), ["SUCCESS"], "X-Client-Cert-Verify")
        equal(asked.values("x-client-cert-subject"), ["CN=client"], "X-Client-Cert-Subject")
        count = len(world.origin.requests("/mutual"))
        try:
            curl(world, *flags, "-o", "/dev/null", url(world, "/mutual", MUTUAL), name=MUTUAL)
        except Failed:
            pass
        else:
            raise Failed("a client without a certificate was let in")
        equal(len(world.origin.requests("/mutual")), count, "requests at the origin")


@case("curl-2-parallel", "curl: two hundred transfers at once over one connection")
def _(world):
    wanted = [f"/bytes/{size}" for size in range(20000, 20200)]
    targets = [word for path in wanted for word in ("-o", "/dev/null", url(world, path))]
    said = curl(world, "--http2", "-Z", "--parallel-max", "100", "-w", "%{http_version} %{size_download} %{num_connects}\n",
                *targets)  # fmt: skip
    lines = [line.split() for line in said.split("\n") if line]
    equal(sorted(int(size) for _, size, _ in lines), list(range(20000, 20200)), "sizes")
    equal({version for version, _, _ in lines}, {"2"}, "versions")
    check(sum(int(made) for _, _, made in lines) <= 2, "more than two connections")


@case("curl-2-errors", "curl: what we answer ourselves (421) is a clean response in HTTP/2")
def _(world):
    said = curl(world, "--http2", "-o", "/dev/null", "-w", "%{http_version} %{response_code}", "-H", f"Host: {MUTUAL}",
                url(world, "/foreign"))  # fmt: skip
    equal(said, "2 421", "version and status")
    check(not world.origin.requests("/foreign"), "the origin was asked")


def nghttp(world, *argv):
    return tool("nghttp", *argv)


def local(world, path):
    return f"https://127.0.0.1:{world.port}{path}"


@case("nghttp-get", "nghttp: twenty requests at once for 100 kB each")
def _(world):
    said = nghttp(world, "-n", "-s", "-H", f":authority: {NAME}", "-m", "20", local(world, "/bytes/100000"))
    rows = re.findall(r"^\s*\d+\s+\+\S+\s+\+\S+\s+\S+\s+(\d+)\s+(\S+)\s", said, re.MULTILINE)
    equal(rows, [("200", "97K")] * 20, "status and size of each")


@case("nghttp-upload", "nghttp: an upload of 5 MB with a trailer, which reaches the origin")
def _(world):
    said = nghttp(world, "-n", "-v", "-H", f":authority: {NAME}", "-d", world.body, "--no-content-length",
                  "--trailer", "x-sum: 5", local(world, "/echo?nghttp"))  # fmt: skip
    check(":status: 200" in said, said[-400:])
    asked = world.origin.requests("/echo?nghttp")[-1]
    equal((_digest(asked.body), asked.trailers), (_digest(pattern(LARGE)), (("x-sum", "5"),)), "body and trailers at the origin")


@case("nghttp-windows", "nghttp: with windows of 2^30 for streams and connection, and of 1 byte and up")
def _(world):
    for bits in ("30", "14"):
        said = nghttp(world, "-n", "-s", "-H", f":authority: {NAME}", "-w", bits, "-W", bits, local(world, f"/bytes/{LARGE}"))
        check(re.search(r"\s200\s+4M", said), said[-300:])


@case("nghttp-continuation", "nghttp: a header list that takes CONTINUATION frames")
def _(world):
    said = nghttp(world, "-n", "-v", "--continuation", "-H", f":authority: {NAME}", local(world, "/continued"))
    check(":status: 200" in said, said[-400:])
    names = [name.lower() for name, _ in world.origin.requests("/continued")[-1].headers]
    check(sum(name.startswith("continuation-test") for name in names) >= 4, f"{names}")


@case("nghttp-padding", "nghttp: padded frames")
def _(world):
    said = nghttp(world, "-n", "-v", "-b", "200", "-H", f":authority: {NAME}", "-d", world.body,
                  local(world, "/echo?padded"))  # fmt: skip
    check(":status: 200" in said, said[-400:])
    equal(_digest(world.origin.requests("/echo?padded")[-1].body), _digest(pattern(LARGE)), "body at the origin")


@case("nghttp-expect", "nghttp: Expect: 100-continue is answered, then the body is sent")
def _(world):
    said = nghttp(world, "-n", "-v", "--expect-continue", "-H", f":authority: {NAME}", "-d", world.body,
                  local(world, "/echo?expect"))  # fmt: skip
    check(":status: 100" in said and ":status: 200" in said, said[-400:])


def h2load(world, *argv):
    """Runs h2load; every request must have succeeded. Returns how many did."""
    said = tool("h2load", f"--connect-to=127.0.0.1:{world.port}", *argv)
    counts = re.search(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    codes = re.search(r"status codes: (\d+) 2xx", said)
    if not counts or not codes:
        raise Failed(said[-600:])
    total, good, *bad = map(int, counts.groups())
    equal((good, int(codes[1]), bad), (total, total, [0, 0, 0]), "succeeded, 2xx, and failed")
    return total


@case("h2load-streams", "h2load: 4,000 requests in 16 connections with 32 streams each")
def _(world):
    equal(h2load(world, "-n4000", "-c16", "-m32", f"https://{NAME}/bytes/1024"), 4000, "requests")


@case("h2load-upload", "h2load: 40 uploads of 5 MB in 4 connections")
def _(world):
    equal(h2load(world, "-n40", "-c4", "-m4", "-d", world.body, f"https://{NAME}/echo"), 40, "requests")


@case("h2load-h1", "h2load: 2,000 requests of HTTP/1.1")
def _(world):
    equal(h2load(world, "--h1", "-n2000", "-c16", f"https://{NAME}/bytes/1024"), 2000, "requests")


@case("access-log", "the access log tells h2 and http/1.1 apart")
def _(world):
    curl(world, "--http2", "-o", "/dev/null", url(world, "/logged-2"))
    curl(world, "--http1.1", "-o", "/dev/null", url(world, "/logged-1"))
    import time

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        seen = {line.get("path"): line.get("protocol") for line in world.edge.access_lines()}
        if "/logged-1" in seen and "/logged-2" in seen:
            break
        time.sleep(0.02)
    equal((seen.get("/logged-2"), seen.get("/logged-1")), ("h2", "http/1.1"), "protocols")


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:16]
