"""Chromium, headless, loads a page of 200 objects over HTTP/2.

The page counts what arrived and over which protocol, by the browser's own resource timing; the origin counts what it was
asked; the access log says what the clients spoke.
"""

import base64
import hashlib
import re
import time

from harness import procs
from harness.edge import Edge, host_table
from harness.origin import HttpOrigin
from harness.pki import Authority, openssl
from harness.suite import Failed, Skipped, Suite, check, equal

NAME = "page.test"

# Objects of the page: a third each of scripts, style sheets and pictures.
OBJECTS = 200

# Chromium takes three to ten seconds on two busy cores.
BROWSER_LIMIT_S = 120

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage",
]  # fmt: skip


class World:
    pass


def start(place):
    if not procs.find("chromium"):
        raise Skipped("chromium is not installed: apt-get install chromium")
    world = World()
    world.directory = place.directory
    pki = place.directory / "pki"
    pki.mkdir()
    world.identity = Authority(pki, "servers").issue("server", "ecdsa", [NAME])
    world.origin = HttpOrigin()
    lines = []
    for number in range(OBJECTS):
        kind = number % 3
        if kind == 0:
            path = f"/script-{number}.js"
            world.origin.pages[path] = ("text/javascript", f"window.ran = (window.ran || 0) + 1; // {number}\n".encode())
            lines.append(f'<script src="{path}" async></script>')
        elif kind == 1:
            path = f"/style-{number}.css"
            world.origin.pages[path] = ("text/css", f".c{number} {{ color: #{number:06x} }}\n".encode() * 50)
            lines.append(f'<link rel="stylesheet" href="{path}">')
        else:
            path = f"/picture-{number}.png"
            world.origin.pages[path] = ("image/png", PNG)
            lines.append(f'<img src="{path}">')
    world.paths = list(world.origin.pages)
    world.origin.pages["/page"] = ("text/html; charset=utf-8", PAGE.replace("OBJECTS", "\n".join(lines)).encode())
    world.origin.pages["/favicon.ico"] = ("image/png", PNG)
    world.edge = Edge(place.directory / "edge", [host_table(NAME, [world.identity], world.origin.url)])
    world.text = None
    return world


PAGE = """<!doctype html>
<title>Two hundred objects</title>
<script>
addEventListener("load", () => {
  const entries = performance.getEntriesByType("resource");
  const styles = [...document.styleSheets].filter(sheet => sheet.cssRules.length === 50).length;
  const pictures = [...document.images].filter(image => image.naturalWidth === 1).length;
  const spoken = [...new Set([...entries, ...performance.getEntriesByType("navigation")].map(e => e.nextHopProtocol))];
  document.body.dataset.said = `scripts ${window.ran} styles ${styles} pictures ${pictures} protocols ${spoken.sort()}`;
});
</script>
<body>
OBJECTS
</body>
"""


def stop(world):
    world.edge.stop()
    world.origin.stop()


SUITE = Suite("browser", f"Chromium loads a page of {OBJECTS} objects", start, stop)
case = SUITE.case


def spki(world):
    """The digest by which Chromium is told to trust this certificate's key."""
    public = world.directory / "public.der"
    openssl("pkey", "-in", world.identity[1], "-pubout", "-outform", "DER", "-out", public)
    return base64.b64encode(hashlib.sha256(public.read_bytes()).digest()).decode()


@case("loads", "scripts run, styles apply, pictures show, and all of it came over h2", limit_s=BROWSER_LIMIT_S + 10)
def _(world):
    port = world.edge.address[1]
    code, text, errors = procs.run(
        [
            "chromium", *FLAGS, f"--user-data-dir={world.directory}/profile",
            f"--ignore-certificate-errors-spki-list={spki(world)}",
            f"--host-resolver-rules=MAP {NAME} 127.0.0.1:{port}", "--timeout=60000", "--dump-dom", f"https://{NAME}/page",
        ],
        BROWSER_LIMIT_S,
    )  # fmt: skip
    found = re.search(r'data-said="([^"]*)"', text)
    if code != 0 or not found:
        raise Failed(f"chromium ended with {code} and did not load the page: {text[:300]} {errors[-800:]}")
    equal(found[1], "scripts 67 styles 67 pictures 66 protocols h2", "what the page saw")


@case("origin-counts", "the origin was asked for each object once")
def _(world):
    asked = [request.path for request in world.origin.requests()]
    missing = [path for path in world.paths if asked.count(path) != 1]
    check(not missing, f"{len(missing)} objects not asked for once, {missing[:3]} among them")


@case("access-log", "the access log has them all, over h2, by one or two connections")
def _(world):
    deadline = time.monotonic() + 5
    lines = []
    while time.monotonic() < deadline and len(lines) <= OBJECTS:
        lines = [line for line in world.edge.access_lines() if line.get("status") == 200]
        time.sleep(0.02)
    logged = {line["path"] for line in lines}
    equal({line["protocol"] for line in lines}, {"h2"}, "protocols")
    check(set(world.paths) <= logged, f"{len(set(world.paths) - logged)} objects are not in the log")
    ports = {line["client_port"] for line in lines}
    check(len(ports) <= 2, f"{len(ports)} connections")
