"""What `perf/run` and `perf/profile` share: common options, the programs they need, and a run that cleans up after itself."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from . import servers
from .procs import Failed, raise_file_limit, stop_all

ROOT = Path(__file__).resolve().parent.parent.parent

# The programs of perf/ that have to be built, as cargo names them.
PROGRAMS = ("perf-pki", "perf-load", "perf-sink", "perf-grpc", "perf-baseline")

# RSA keys take a moment each; this is far beyond it, in seconds.
PKI_WAIT_S = 120


def add_options(parser):
    """The options both scripts have."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    parser.add_argument("--server-core", type=int, default=0, help="core of the server (default %(default)s)")
    parser.add_argument("--load-core", type=int, default=1, help="core of load and origin (default %(default)s)")
    parser.add_argument("--hostward", default=target / "hostward", help="the binary (default: cargo's release build)")
    parser.add_argument("--hostward-other", help="a second binary, for the server hostward-other")
    parser.add_argument("--programs", default=target / "examples", help="where perf-load and the others are")


def check_options(parser, chosen):
    """Refuses cores that are not there; the usage error ends the script."""
    ours = os.sched_getaffinity(0)
    if not {chosen.server_core, chosen.load_core} <= ours or chosen.server_core == chosen.load_core:
        parser.error(f"--server-core and --load-core must be two different cores of {sorted(ours)}")


def need(packages):
    """Fails with the line that installs what is missing; `packages` maps a command to its Debian package."""
    absent = [package for command, package in packages.items() if not shutil.which(command)]
    if absent:
        raise Failed(f"not installed: {', '.join(absent)}; run as root: apt-get install {' '.join(absent)}")


def prepare(chosen, directory):
    """Checks the programs, makes the PKI and pins this script to the load's core; returns the Setting."""
    programs = Path(chosen.programs)
    missing = [name for name in PROGRAMS if not (programs / name).exists()]
    if missing:
        raise Failed(f"{programs}: no {', '.join(missing)}; run: cargo build --release --features perf --examples")
    files = raise_file_limit()
    pki = directory / "pki"
    made = subprocess.run([str(programs / "perf-pki"), str(pki)], timeout=PKI_WAIT_S, check=False)
    if made.returncode:
        raise Failed("perf-pki failed")
    # This script's own little work shall not disturb the server.
    os.sched_setaffinity(0, {chosen.load_core})
    return servers.Setting(directory, pki, programs, chosen.hostward, chosen.hostward_other, chosen.server_core, files)


def guarded(name, body):
    """Runs `body(directory)` in a temporary directory; ends every child and removes the directory, come what may.

    Returns the exit code.
    """
    # A TERM ends the run as a Ctrl-C does: children first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="hostward-perf-"))
    try:
        return body(directory)
    except Failed as e:
        print(f"{name}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`). Python shall not try to flush it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        # A second Ctrl-C must not leave servers behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop_all()
        shutil.rmtree(directory, ignore_errors=True)
