"""Programs started by a suite: always ended, by their own pid, and never outliving this script.

A child dies with this script (PR_SET_PDEATHSIG), so that nothing survives a SIGKILL.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import time

# prctl(2): the signal a child gets when its parent dies.
PR_SET_PDEATHSIG = 1

# How long a program may take until it is ready, seconds. Each takes well under one on an idle machine.
READY_WAIT_S = 20.0

# How long a program may take to end after a polite signal before it is killed, seconds.
STOP_WAIT_S = 3.0

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Unusable(Exception):
    """A program that cannot be used, in words for whoever runs the suites."""


def find(program):
    """Where a program is, or None. nginx stands in /usr/sbin, which is not in everybody's PATH."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


class Program:
    """A running program; what it prints goes to a file."""

    def __init__(self, name, argv, log_path):
        self.name = name
        self.log_path = log_path
        with open(log_path, "ab") as log:
            try:
                self.popen = subprocess.Popen(
                    [str(word) for word in argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                raise Unusable(f"{name}: cannot start {argv[0]}: {error.strerror}") from error

    def log(self):
        """Everything it has printed so far."""
        return self.log_path.read_bytes().decode(errors="replace")

    def ended(self):
        """Its exit code, or None while it runs."""
        return self.popen.poll()

    def await_ready(self, ready):
        """Waits until `ready()` returns something true, and returns that."""
        deadline = time.monotonic() + READY_WAIT_S
        while time.monotonic() < deadline:
            found = ready()
            if found:
                return found
            if self.ended() is not None:
                break
            time.sleep(0.01)
        raise Unusable(f"{self.name}: not ready (exit code {self.ended()}):\n{self.log()[-2000:]}")

    def stop(self):
        """Ends it: TERM, TERM again (for servers that drain on the first), then KILL. Returns its exit code."""
        for wait_s in (0.2, STOP_WAIT_S):
            if self.ended() is None:
                self.popen.send_signal(signal.SIGTERM)
                try:
                    self.popen.wait(wait_s)
                except subprocess.TimeoutExpired:
                    pass
        if self.ended() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.wait()


def run(argv, timeout_s, **options):
    """Runs a tool to its end: exit code, output and errors as text. A tool that hangs is killed and has code None."""
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            preexec_fn=_die_with_parent,
            **options,
        )
    except subprocess.TimeoutExpired as expired:
        text = lambda raw: (raw or b"").decode(errors="replace")
        return None, text(expired.stdout), text(expired.stderr)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
