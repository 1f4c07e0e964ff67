"""Child processes: pinned to a core, always ended, and what they cost according to /proc.

Every process of a comparison is started here and ended by its own pid. A child also dies with this script
(PR_SET_PDEATHSIG), so that nothing survives a SIGKILL.
"""

import ctypes
import os
import random
import resource
import select
import signal
import socket
import subprocess
import time

# prctl(2): the signal a child gets when its parent dies.
PR_SET_PDEATHSIG = 1

# How long a child may take to end after a polite signal before it is killed, seconds.
STOP_WAIT_S = 3.0

# How long a server may take until its port accepts, seconds. Ten hostnames take every server well under one.
READY_WAIT_S = 15.0

# Ports servers listen on begin here, above those that services are known by.
PORT_MIN = 10240

# Attempts to find a free one. Nearly every first attempt succeeds.
PORT_TRIES = 100

# Descriptors each process may open: two a connection for 8,000 idle ones, and some. The hard limit may be lower.
FILES = 65536

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A step of a measurement that did not work, in words for whoever runs it."""


class Child:
    """One process (and what it forks) on one core."""

    # All that are running, in order of their start.
    running = []

    def __init__(self, name, argv, core, log_path, pipes=False):
        self.name = name
        self.log_path = log_path
        self._buffer = b""

        def in_child():
            os.sched_setaffinity(0, {core})
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        with open(log_path, "ab") as log:
            try:
                # A session of its own keeps a Ctrl-C for this script, which then ends its children in order.
                self.popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipes else log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=in_child,
                )
            except OSError as e:
                raise Failed(f"{name}: cannot start {argv[0]}: {e.strerror}") from e
        Child.running.append(self)

    def log_tail(self):
        """The last lines of what it said, for an error message."""
        with open(self.log_path, "rb") as log:
            return log.read()[-600:].decode(errors="replace").strip()

    def send_line(self):
        """Answers the gate of the load generator."""
        self.popen.stdin.write(b"\n")
        self.popen.stdin.flush()

    def read_line(self, timeout_s):
        """One line of its stdout; fails when none comes in time or it ends."""
        deadline = time.monotonic() + timeout_s
        fd = self.popen.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise Failed(f"{self.name}: said nothing for {timeout_s:.0f} s")
            got = os.read(fd, 65536)
            if not got:
                raise Failed(f"{self.name}: ended early: {self.log_tail()}")
            self._buffer += got
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def await_port(self, port):
        """Waits until the process accepts on the port."""
        deadline = time.monotonic() + READY_WAIT_S
        while time.monotonic() < deadline:
            if self.popen.poll() is not None:
                raise Failed(f"{self.name}: ended with {self.popen.returncode} while starting: {self.log_tail()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise Failed(f"{self.name}: does not accept on port {port} after {READY_WAIT_S:.0f} s: {self.log_tail()}")

    def stop(self):
        """Ends it: TERM, TERM again (for servers that drain on the first), then KILL for the whole session."""
        if self not in Child.running:
            return
        Child.running.remove(self)
        for _ in range(2):
            if self.popen.poll() is None:
                self.popen.send_signal(signal.SIGTERM)
                try:
                    self.popen.wait(STOP_WAIT_S)
                except subprocess.TimeoutExpired:
                    continue
        if self.popen.poll() is None:
            # Not reaped yet, so the session's id is still ours and nobody else's.
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    # A line that a dead child never read.
                    pass

    def tree(self):
        """The pids of the process and all its descendants."""
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                fields = _stat(int(entry))
                if fields:
                    parents[int(entry)] = int(fields[1])
        pids = [self.popen.pid]
        for pid in pids:
            pids.extend(child for child, parent in parents.items() if parent == pid)
        return pids

    def cpu_s(self):
        """User and system CPU of the process tree, threads and ended children included, in seconds.

        The kernel scales these from the scheduler's exact run time; the resolution is one tick (10 ms).
        """
        ticks = 0
        for pid in self.tree():
            fields = _stat(pid)
            if fields:
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / TICKS_PER_S

    def memory_kb(self):
        """(PSS, RSS) of the process tree in KiB; PSS counts a page that master and worker share once."""
        totals = {"Pss:": 0, "Rss:": 0}
        for pid in self.tree():
            try:
                with open(f"/proc/{pid}/smaps_rollup") as rollup:
                    for line in rollup:
                        words = line.split()
                        if words[0] in totals:
                            totals[words[0]] += int(words[1])
            except OSError:
                continue
        return totals["Pss:"], totals["Rss:"]


def _stat(pid):
    """The fields of /proc/PID/stat from the state on, or None when the process has gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()
    except OSError:
        return None


def stop_all():
    """Ends everything that still runs, the youngest first."""
    for child in reversed(list(Child.running)):
        child.stop()


def free_port():
    """A TCP port nobody listens on, below the range the kernel takes for outgoing connections.

    A port out of that range (what binding port 0 gives) may become some connection's own before the server binds it;
    with tens of thousands of connections a minute that happens.
    """
    with open("/proc/sys/net/ipv4/ip_local_port_range") as ephemeral:
        first_ephemeral = int(ephemeral.read().split()[0])
    if first_ephemeral <= PORT_MIN:
        raise Failed(f"net.ipv4.ip_local_port_range begins at {first_ephemeral}: no ports are left for the servers")
    for _ in range(PORT_TRIES):
        port = random.randrange(PORT_MIN, first_ephemeral)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise Failed(f"no free port between {PORT_MIN} and {first_ephemeral}")


def raise_file_limit():
    """Lifts the limit of open files for this script and its children; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for soft_new, hard_new in ((FILES, max(hard, FILES)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft_new, hard_new))
            return soft_new
        except (OSError, ValueError):
            continue
    return soft


def cores_s(cores):
    """(busy, stolen, all) seconds of the given cores since boot, from /proc/stat."""
    busy = stolen = total = 0
    wanted = {f"cpu{core}" for core in cores}
    with open("/proc/stat") as stat:
        for line in stat:
            name, *values = line.split()
            if name in wanted:
                user, nice, system, idle, iowait, irq, softirq, steal = (int(v) for v in values[:8])
                busy += user + nice + system + irq + softirq
                stolen += steal
                total += user + nice + system + idle + iowait + irq + softirq + steal
    return busy / TICKS_PER_S, stolen / TICKS_PER_S, total / TICKS_PER_S


def slab_kb():
    """The kernel's own memory (sockets of all ends among it), in KiB."""
    with open("/proc/meminfo") as meminfo:
        for line in meminfo:
            if line.startswith("Slab:"):
                return int(line.split()[1])
    return 0
