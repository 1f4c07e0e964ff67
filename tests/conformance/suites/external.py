"""Suites of others that no registry here has: h2spec and tlsfuzzer, for those who have them at hand.

`H2SPEC=/path/to/h2spec` (or h2spec in the PATH) and `TLSFUZZER=/path/to/a/checkout` turn them on; else they are SKIPPED. Nothing
here fetches or builds either of them. tlsfuzzer runs in the same Python environment, over the tlslite-ng it asks for.
"""

import os
import re
import sys
from pathlib import Path

from harness import edges, procs
from harness.edge import Edge, host_table
from harness.edges import OFF
from harness.origin import HttpOrigin
from harness.suite import Failed, Skipped, Suite, check

# Each of these takes seconds; connection-abort a minute.
SCRIPT_LIMIT_S = 280

SUITE_12 = ["-C", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]

# Scripts, what they are told, whether the client has a certificate, and conversations left out (-e) with the reason:
#  - a ticket comes with the origin's first answer, not before it;
#  - tlsfuzzer compares the schemes of CertificateRequest with a list of its own;
#  - an ECDSA signature of another curve than the key's gets decrypt_error from rustls instead of illegal_parameter.
SCRIPTS = [
    ("test-tls13-conversation", [], None, []),
    ("test-tls13-ccs", [], None, []),
    ("test-tls13-count-tickets", [], None, []),
    ("test-tls13-hrr", [], None, []),
    ("test-tls13-invalid-ciphers", [], None, []),
    ("test-tls13-nociphers", [], None, []),
    ("test-tls13-record-padding", [], None, []),
    ("test-tls13-unencrypted-alert", [], None, []),
    ("test-tls13-connection-abort", [], None, ["After NewSessionTicket"]),
    ("test-tls13-certificate-verify", [], "rsa", ["check sigalgs in cert request"]),
    ("test-tls13-ecdsa-in-certificate-verify", [], "ecdsa",
     ["check sigalgs in cert request", "check ecdsa_secp384r1_sha384 signature is refused",
      "check ecdsa_secp521r1_sha512 signature is refused"]),
    ("test-conversation", SUITE_12, None, []),
    ("test-connection-abort", SUITE_12, None, []),
    ("test-early-application-data", SUITE_12, None, []),
    ("test-fuzzed-ciphertext", SUITE_12, None, []),
    ("test-renegotiation-disabled", SUITE_12, None, []),
    ("test-zero-length-data", SUITE_12, None, []),
    ("test-no-mlkem-in-old-tls", SUITE_12, None, []),
    ("test-sslv2-force-cipher", [], None, []),
]  # fmt: skip


def start(place):
    """The edges of the TLS suites twice, asking nobody and everybody who sends no name, and one in HTTP mode."""
    checkout = os.environ.get("TLSFUZZER")
    h2spec = os.environ.get("H2SPEC") or procs.find("h2spec")
    if not checkout and not h2spec:
        raise Skipped("neither H2SPEC nor TLSFUZZER is set")
    world = edges.start(place)
    world.checkout, world.h2spec = checkout, h2spec
    pki = place.directory / "pki"
    rsa = (pki / "server-rsa.pem", pki / "server-rsa.key")
    world.pairs = {kind: world.clients.issue(f"client-{kind}", kind, client=True) for kind in ("rsa", "ecdsa")}
    world.http_origin = HttpOrigin()
    default = ["default = true"]
    world.others = {
        "plain": Edge(place.directory / "plain", [host_table(OFF, [rsa], world.origin.url, "tcp", lines=default)]),
        "mutual": Edge(place.directory / "mutual", [host_table(OFF, [rsa], world.origin.url, "tcp", "require",
                                                               world.clients.pem, lines=default)]),
        "http": Edge(place.directory / "http", [host_table(OFF, [rsa], world.http_origin.url, lines=default)]),
    }  # fmt: skip
    return world


def stop(world):
    for edge in world.others.values():
        edge.stop()
    world.http_origin.stop()
    edges.stop(world)


SUITE = Suite("external", "h2spec and scripts of tlsfuzzer, where they are at hand", start, stop)
case = SUITE.case


@case("h2spec", "h2spec, its strict cases too", limit_s=SCRIPT_LIMIT_S + 10)
def _(world):
    if not world.h2spec:
        raise Skipped("h2spec is not in the PATH, and H2SPEC is not set")
    host, port = world.others["http"].address
    code, text, errors = procs.run([world.h2spec, "-h", host, "-p", port, "-t", "-k", "-S", "-o", "2"], SCRIPT_LIMIT_S)
    counts = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", text)
    if code != 0 or not counts or counts[4] != "0" or int(counts[2]) < 100:
        raise Failed(f"h2spec ended with {code}: {text[-2000:] or errors}")


for script, options, certificate, excluded in SCRIPTS:

    @case(f"tlsfuzzer-{script.removeprefix('test-')}", "every conversation of this script", limit_s=SCRIPT_LIMIT_S + 10)
    def _(world, script=script, options=options, certificate=certificate, excluded=excluded):
        if not world.checkout:
            raise Skipped("TLSFUZZER is not set to a checkout of tlsfuzzer")
        path = Path(world.checkout) / "scripts" / f"{script}.py"
        check(path.exists(), f"there is no {path}")
        host, port = world.others["mutual" if certificate else "plain"].address
        pair = ["-k", world.pairs[certificate][1], "-c", world.pairs[certificate][0]] if certificate else []
        left_out = [word for name in excluded for word in ("-e", name)]
        code, text, errors = procs.run(
            [sys.executable, path, "-h", host, "-p", port, *options, *pair, *left_out],
            SCRIPT_LIMIT_S,
            cwd=world.checkout,
            env={**os.environ, "PYTHONPATH": str(world.checkout)},
        )
        if code != 0:
            raise Failed(f"ended with {code}: {text[text.find('FAILED:') :][:1500] if 'FAILED:' in text else errors[-800:]}")
