"""sslscan from Debian: what is offered, and that nothing else is.

The scanner's own OpenSSL knows no X25519MLKEM768, so the groups it can see are the three classic ones; that the fourth
is preferred is tested end to end elsewhere. Nor can it look for TLS compression: the suite `tls12` does.
"""

import xml.etree.ElementTree as ElementTree

from harness import edges, procs
from harness.suite import Skipped, Suite, check, equal

# A scan takes two to five seconds.
SCAN_LIMIT_S = 60


def start(place):
    if not procs.find("sslscan"):
        raise Skipped("sslscan is not installed: apt-get install sslscan")
    world = edges.start(place)
    host, port = world.address
    code, text, errors = procs.run(
        ["sslscan", "--xml=-", "--show-sigs", f"--sni-name={edges.OFF}", f"{host}:{port}"], SCAN_LIMIT_S
    )
    if code != 0:
        edges.stop(world)
        raise AssertionError(f"sslscan ended with {code}: {errors or text}")
    world.scan = ElementTree.fromstring(text).find("ssltest")
    return world


SUITE = Suite("scan", "sslscan: versions, suites, groups, and what must not be there", start, edges.stop)
case = SUITE.case


def _ciphers(world, version):
    return [each for each in world.scan.iter("cipher") if each.get("sslversion") == version]


@case("versions", "TLS 1.2 and 1.3, and no older one")
def _(world):
    found = {f"{each.get('type')}{each.get('version')}" for each in world.scan.iter("protocol") if each.get("enabled") == "1"}
    equal(found, {"tls1.2", "tls1.3"}, "enabled protocols")


@case("suites-1.3", "the three suites of TLS 1.3, AES-128-GCM preferred")
def _(world):
    found = _ciphers(world, "TLSv1.3")
    names = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
    equal(sorted(each.get("cipher") for each in found), names, "suites")
    equal([each.get("cipher") for each in found if each.get("status") == "preferred"], names[:1], "preferred")


@case("suites-1.2", "forward-secret AEAD suites for both key types in TLS 1.2, and no other")
def _(world):
    found = _ciphers(world, "TLSv1.2")
    ends = ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    wanted = {f"ECDHE-{key}-{end}" for key in ("ECDSA", "RSA") for end in ends}
    equal({each.get("cipher") for each in found}, wanted, "suites")
    check(all(int(each.get("bits")) >= 128 for each in found), "a suite below 128 bits")
    preferred = [each.get("cipher") for each in found if each.get("status") == "preferred"]
    equal(preferred, ["ECDHE-ECDSA-AES128-GCM-SHA256"], "preferred")


@case("groups", "X25519, P-256 and P-384 are what sslscan can see of the groups")
def _(world):
    found = {each.get("id") for each in world.scan.iter("group")}
    equal(found, {"0x0017", "0x0018", "0x001d"}, "groups")


@case("x25519-first", "X25519 is preferred among them")
def _(world):
    curves = {each.get("curve") for version in ("TLSv1.2", "TLSv1.3") for each in _ciphers(world, version)}
    equal(curves, {"25519"}, "curves used")


@case("no-renegotiation", "no renegotiation, secure or not")
def _(world):
    found = world.scan.find("renegotiation")
    equal((found.get("supported"), found.get("secure")), ("0", "0"), "renegotiation")


@case("no-heartbleed", "Heartbleed, in each version")
def _(world):
    found = list(world.scan.iter("heartbleed"))
    check(found, "sslscan did not look for it")
    check(all(each.get("vulnerable") == "0" for each in found), "vulnerable")


@case("certificate", "the certificate it was shown is the hostname's and within its dates")
def _(world):
    found = world.scan.find("certificates/certificate")
    check(f"DNS:{edges.OFF}" in found.findtext("altnames"), f"names: {found.findtext('altnames')}")
    equal((found.findtext("self-signed"), found.findtext("expired")), ("false", "false"), "self-signed, expired")
