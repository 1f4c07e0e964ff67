"""The edges that the TLS suites share: one process, a hostname for each way of asking for certificates."""

from dataclasses import dataclass

from . import edge as edges
from .edge import host_table
from .origin import BytesOrigin
from .pki import Authority

# Hostnames, all in tcp mode: off asks nobody; `rsa` is `off` with an RSA certificate alone.
OFF, RSA, REQUEST, REQUIRE = "off.test", "rsa.test", "request.test", "require.test"


@dataclass
class TlsWorld:
    edge: object
    origin: object
    clients: object
    rogue: object

    @property
    def address(self):
        return self.edge.address


def start(place):
    """Certificates, an origin and an edge; OFF also serves clients that send no name."""
    pki = place.directory / "pki"
    pki.mkdir()
    servers, clients, rogue = (Authority(pki, name) for name in ("servers", "clients", "rogue"))
    names = [OFF, RSA, REQUEST, REQUIRE]
    ecdsa, rsa = servers.issue("server-ecdsa", "ecdsa", names), servers.issue("server-rsa", "rsa", names)
    origin = BytesOrigin()
    hosts = [
        host_table(OFF, [ecdsa, rsa], origin.url, "tcp", lines=["default = true"]),
        host_table(RSA, [rsa], origin.url, "tcp"),
        host_table(REQUEST, [ecdsa, rsa], origin.url, "tcp", "request", clients.pem),
        host_table(REQUIRE, [ecdsa, rsa], origin.url, "tcp", "require", clients.pem),
    ]
    return TlsWorld(edges.Edge(place.directory / "edge", hosts), origin, clients, rogue)


def stop(world):
    world.edge.stop()
    world.origin.stop()
