"""What is asked of every server: the workloads, and the ratios issue 2 demands of them."""

from dataclasses import dataclass

# Connections of the idle workload, and how long they rest before memory is read.
IDLE_CONNECTIONS = 8000
IDLE_REST_S = 30

# One download or upload: 10 MB (1 GB = 10^9 bytes throughout).
BULK_BYTES = 10_000_000

# Names there are in the PKI; those of a mutual workload take turns.
HOSTS = 10

US_PER_OP = "us/op"
S_PER_GB = "s/GB"
KIB_PER_CONNECTION = "KiB/connection"


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    title: str
    work: str  # the load generator's word: full, resumed, download, upload, idle; or wrk, h2load
    concurrency: int
    unit: str = US_PER_OP
    key: str = "p256"
    mutual: bool = False
    hosts: int = 1
    tls: str = "1.3"
    path: str = "/1k"
    # Of h2load: streams at once on each connection, bytes of a request's body, and whether it is a call of gRPC.
    streams: int = 1
    body_bytes: int = 0
    grpc: bool = False
    # At most this much of nginx, HAProxy and the baseline: in tcp mode, in http mode. Empty: shown without a target.
    of_nginx: tuple = ()
    of_haproxy: tuple = ()
    of_baseline: tuple = ()

    @property
    def http2(self):
        """Whether clients speak HTTP/2: only servers that do take part."""
        return self.work == "h2load"

    @property
    def bulk(self):
        """Whether buffers of 64 KiB are given to the servers that let one choose."""
        return self.unit == S_PER_GB


ALL = [
    Workload(
        "full-p256", "full handshake + GET + close, P-256", "full", 32, of_nginx=(0.45, 0.42), of_baseline=(0.90, 0.85)
    ),
    Workload("full-rsa", "the same, RSA-2048", "full", 32, key="rsa"),
    Workload("full-tls12", "the same, P-256, TLS 1.2", "full", 32, tls="1.2"),
    Workload(
        "full-mutual",
        "full mutual handshake + GET + close, 10 hostnames",
        "full",
        32,
        mutual=True,
        hosts=HOSTS,
        of_nginx=(0.42, 0.40),
        of_baseline=(0.93, 0.90),
    ),
    Workload("resumed", "resumed handshake + GET + close", "resumed", 32),
    Workload(
        "resumed-mutual",
        "resumed mutual handshake + GET + close, 10 hostnames",
        "resumed",
        32,
        mutual=True,
        hosts=HOSTS,
        of_nginx=(0.38, 0.36),
        of_baseline=(0.88, 0.85),
    ),
    Workload("keepalive", "keep-alive GET of 1 KiB, wrk", "wrk", 64, of_nginx=(0.75, 0.80), of_baseline=(1.00, 1.15)),
    Workload(
        "download",
        "10 MB downloads",
        "download",
        8,
        unit=S_PER_GB,
        path="/10m",
        of_nginx=(0.70, 0.75),
        of_baseline=(0.95, 1.05),
    ),
    Workload("upload", "10 MB uploads", "upload", 8, unit=S_PER_GB, path="/upload"),
    Workload(
        "h2-get",
        "HTTP/2 GET of 1 KiB, 16 connections of 32 streams, h2load",
        "h2load",
        16,
        streams=32,
        of_nginx=(None, 0.80),
        of_haproxy=(None, 0.70),
    ),
    Workload("h2-download", "10 MB downloads over HTTP/2", "h2load", 8, unit=S_PER_GB, path="/10m"),
    Workload(
        "h2-upload", "10 MB uploads over HTTP/2", "h2load", 8, unit=S_PER_GB, path="/upload", body_bytes=BULK_BYTES
    ),
    Workload(
        "grpc",
        "gRPC unary of 100 bytes to an h2c origin, 16 connections of 32 streams",
        "h2load",
        16,
        streams=32,
        path="/perf.Echo/Unary",
        body_bytes=105,
        grpc=True,
    ),
    Workload(
        "idle",
        "memory per idle mutual connection",
        "idle",
        32,
        unit=KIB_PER_CONNECTION,
        mutual=True,
        hosts=HOSTS,
        of_nginx=(0.45, 0.45),
        of_baseline=(0.45, 0.45),
    ),
]

BY_NAME = {workload.name: workload for workload in ALL}

# TLS 1.2 is there for the asking (`--workloads full-tls12`); the table does not hold it.
DEFAULT = [workload.name for workload in ALL if workload.name != "full-tls12"]
