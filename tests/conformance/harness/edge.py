"""The real hostward under a configuration that a suite writes, on ports the kernel chooses.

Relies on the log event `listening` of `hostward run`, which carries the addresses.
"""

import http.client
import json
import os
from pathlib import Path

from .procs import Program, Unusable

ROOT = Path(__file__).resolve().parents[3]

# The binary under test; the Makefile names the one it has built.
BINARY = Path(os.environ.get("HOSTWARD", ROOT / "target/debug/hostward"))

HEAD = """\
[server]
listen = ["127.0.0.1:0"]
workers = 1
state_dir = "{directory}/state"
{server}

[admin]
socket = "{directory}/admin.sock"
listen = "127.0.0.1:0"

[log]
access = "{directory}/access.log"
"""


def host_table(name, identities, origin, mode="http", client_auth=None, ca=None, lines=(), auth_lines=()):
    """The text of one [[hostname]]; `identities` are pairs of certificate and key files."""
    quoted = lambda values: "[" + ", ".join(f'"{value}"' for value in values) + "]"
    text = [
        "[[hostname]]",
        f'name = "{name}"',
        f"certificate = {quoted(pem for pem, _ in identities)}",
        f"private_key = {quoted(key for _, key in identities)}",
        f'origin = "{origin}"',
        f'mode = "{mode}"',
        *lines,
    ]
    if client_auth:
        text += ["[hostname.client_auth]", f'mode = "{client_auth}"', f'ca = ["{ca}"]', *auth_lines]
    return "\n".join(text) + "\n\n"


class Edge:
    """A running hostward."""

    def __init__(self, directory, hosts, more="", server=""):
        if not BINARY.exists():
            raise Unusable(f"{BINARY} is missing: build it with `cargo build`, or name another in HOSTWARD")
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        config = directory / "hostward.toml"
        config.write_text(HEAD.format(directory=directory, server=server) + "\n" + more + "\n" + "".join(hosts))
        self.program = Program("hostward", [BINARY, "run", "-c", config], directory / "hostward.log")
        event = self.program.await_ready(lambda: next(iter(self.events("listening")), None))
        self.address = _address(event["listen"][0])
        self.admin = _address(event["admin"])

    def events(self, name):
        """The events of a name in its log, each a dictionary."""
        found = []
        for line in self.program.log().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == name:
                found.append(event)
        return found

    def access_lines(self):
        """The access log so far. Lines follow within 50 ms of what they tell."""
        path = self.directory / "access.log"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def metric(self, name, **labels):
        """The sum of a metric over the series that have these labels."""
        connection = http.client.HTTPConnection(*self.admin, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        total = 0.0
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.split("{")[0] == name and all(each in series for each in wanted):
                total += float(value)
        return total

    def stop(self):
        """Ends it, and fails if it had crashed or panicked."""
        early = self.program.ended()
        code = self.program.stop()
        log = self.program.log()
        if early is not None or code != 0 or "panicked" in log:
            raise AssertionError(f"hostward ended with {code}{' early' if early is not None else ''}:\n{log[-2000:]}")


def _address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
