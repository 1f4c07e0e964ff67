"""One measurement: one workload on one server, once.

The window opens after the load generator's warm-up and closes when its last operation has ended. What the server costs is
read from /proc on both sides of it, from outside: no server is asked to measure itself.
"""

import json
import os
import re
import time
from dataclasses import dataclass, field

from . import workloads
from .procs import Child, Failed, cores_s, slab_kb

# What a server still does after the client's last byte (its own close, the origin's) belongs to the operations too.
SETTLE_S = 0.1

# How long a load generator may take beyond the time it was given, seconds: warm-up, transfers in flight.
LOAD_SLACK_S = 60.0


@dataclass
class Sample:
    """What one measurement found. Fields a workload does not have stay None."""

    # In the workload's unit: us/op or s/GB of the server, or KiB per connection. The figure that is compared.
    figure: float
    # The same over both cores (server, load and origin), from /proc/stat.
    cores_figure: float | None = None
    per_second: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    ops: int = 0
    errors: int = 0
    not_resumed: int = 0
    # Shares of the window, 0 to 1.
    load_idle: float | None = None
    load_core_idle: float | None = None
    server_core_idle: float | None = None
    # CPU of neither server nor load nor origin, and CPU the hypervisor took: share of both cores.
    foreign: float | None = None
    remarks: list = field(default_factory=list)


class Window:
    """Reads all clocks at its opening and at its closing."""

    def __init__(self, server, origin, bench):
        self.server, self.origin, self.bench = server, origin, bench
        self.before = self._read()

    def _read(self):
        return {
            "time": time.monotonic(),
            "server": self.server.child.cpu_s(),
            "origin": self.origin.cpu_s(),
            "cores": cores_s([self.bench.server_core, self.bench.load_core]),
            "server_core": cores_s([self.bench.server_core]),
            "load_core": cores_s([self.bench.load_core]),
        }

    def close(self):
        time.sleep(SETTLE_S)
        after = self._read()
        self.seconds = after["time"] - self.before["time"]
        self.server_s = after["server"] - self.before["server"]
        self.origin_s = after["origin"] - self.before["origin"]
        self.cores_s, stolen_s, self.all_s = (a - b for a, b in zip(after["cores"], self.before["cores"]))
        self.stolen_s = stolen_s
        self.server_core_idle = self._idle(after, "server_core")
        self.load_core_idle = self._idle(after, "load_core")

    def _idle(self, after, core):
        busy, _, total = (a - b for a, b in zip(after[core], self.before[core]))
        return max(0.0, 1 - busy / total) if total else 0.0

    def foreign(self, load_cpu_s):
        """The share of both cores that went to strangers, the hypervisor included."""
        known = self.server_s + self.origin_s + load_cpu_s
        return max(0.0, (self.cores_s + self.stolen_s - known) / self.all_s) if self.all_s else 0.0


class Bench:
    """Where measurements run: the cores, the load generator, the directory for logs."""

    def __init__(self, setting, origin, server_core, load_core, seconds, idle_connections, idle_rest_s):
        self.setting = setting
        self.origin = origin
        self.server_core = server_core
        self.load_core = load_core
        self.seconds = seconds
        self.idle_connections = idle_connections
        self.idle_rest_s = idle_rest_s

    def measure(self, server, workload):
        """Runs the workload once against a running server."""
        if workload.work == "wrk":
            return self._wrk(server, workload)
        if workload.work == "h2load":
            return self._h2load(server, workload)
        if workload.work == "idle":
            return self._idle(server, workload)
        return self._load(server, workload)

    def load_argv(self, server, workload, seconds):
        """The command line of the load generator."""
        argv = [
            str(self.setting.programs / "perf-load"),
            workload.work,
            f"--connect=127.0.0.1:{server.port}",
            f"--pki={self.setting.pki}",
            f"--key={workload.key}",
            f"--hosts={workload.hosts}",
            f"--tls={workload.tls}",
            f"--path={workload.path}",
            f"--concurrency={workload.concurrency}",
            f"--seconds={seconds}",
            f"--bytes={workloads.BULK_BYTES}",
            "--gate",
        ]
        if workload.mutual:
            argv.append("--mutual")
        if workload.work == "idle":
            argv.append(f"--count={self.idle_connections}")
        return argv

    def start_load(self, server, workload, seconds):
        """Starts the generator and returns it when its warm-up is done."""
        log = self.setting.directory / f"load-{workload.name}-{server.name}.log"
        load = Child("load", self.load_argv(server, workload, seconds), self.load_core, log, pipes=True)
        try:
            load.read_line(LOAD_SLACK_S)
        except BaseException:
            load.stop()
            raise
        return load

    def _load(self, server, workload):
        load = self.start_load(server, workload, self.seconds)
        try:
            window = Window(server, self.origin, self)
            load.send_line()
            said = json.loads(load.read_line(self.seconds + LOAD_SLACK_S))
            window.close()
        finally:
            load.stop()
        if not said["ops"]:
            raise Failed(f"{server.name}: no operation succeeded: {'; '.join(said['failures'])}")
        scale = 1e9 / said["bytes"] if workload.bulk else 1e6 / said["ops"]
        return Sample(
            figure=window.server_s * scale,
            cores_figure=window.cores_s * scale,
            per_second=(said["bytes"] / 1e6 if workload.bulk else said["ops"]) / said["seconds"],
            p50_us=said["p50_us"],
            p99_us=said["p99_us"],
            ops=said["ops"],
            errors=said["errors"],
            not_resumed=said["not_resumed"],
            load_idle=said["idle_share"],
            load_core_idle=window.load_core_idle,
            server_core_idle=window.server_core_idle,
            foreign=window.foreign(said["cpu_seconds"]),
            remarks=said["failures"],
        )

    def _wrk(self, server, workload):
        # wrk takes its SNI from the URL and cannot be told another; every server answers names it does not know with
        # the first hostname. The 64 handshakes of a run are inside the window: under 0.3 % of it.
        url = f"https://localhost:{server.port}{workload.path}"
        seconds = max(1, round(self.seconds))
        argv = ["wrk", "-t1", f"-c{workload.concurrency}", f"-d{seconds}s", "--latency", url]
        log = self.setting.directory / f"wrk-{server.name}-{time.monotonic_ns()}.log"
        window = Window(server, self.origin, self)
        wrk = Child("wrk", argv, self.load_core, log)
        try:
            usage = _await_exit(wrk, seconds + LOAD_SLACK_S)
            window.close()
        finally:
            wrk.stop()
        said = parse_wrk(log.read_text())
        load_cpu_s = usage.ru_utime + usage.ru_stime
        scale = 1e6 / said["ops"]
        return Sample(
            figure=window.server_s * scale,
            cores_figure=window.cores_s * scale,
            per_second=said["per_second"],
            p50_us=said["p50_us"],
            p99_us=said["p99_us"],
            ops=said["ops"],
            errors=said["errors"],
            load_idle=max(0.0, 1 - load_cpu_s / seconds),
            load_core_idle=window.load_core_idle,
            server_core_idle=window.server_core_idle,
            foreign=window.foreign(load_cpu_s),
        )

    def _h2load(self, server, workload):
        seconds = max(1, round(self.seconds))
        argv = [
            "h2load",
            f"-D{seconds}",
            f"-c{workload.concurrency}",
            f"-m{workload.streams}",
            "-t1",
            # The windows of a browser, so that downloads are not a test of round trips.
            "-w20",
            "-W24",
            "--npn-list=h2",
            f"--connect-to=127.0.0.1:{server.port}",
        ]
        if workload.body_bytes:
            body = self.setting.directory / f"body-{workload.name}"
            if not body.exists():
                # A message of gRPC begins with a byte that says it is not compressed, and its length.
                frame = bytes(1) + (workload.body_bytes - 5).to_bytes(4, "big") if workload.grpc else b""
                body.write_bytes(frame + bytes(workload.body_bytes - len(frame)))
            argv.append(f"-d{body}")
        if workload.grpc:
            argv += ["-Hcontent-type: application/grpc", "-Hte: trailers"]
        argv.append(f"https://host0.perf.test{workload.path}")
        log = self.setting.directory / f"h2load-{server.name}-{time.monotonic_ns()}.log"
        window = Window(server, self.origin, self)
        h2load = Child("h2load", argv, self.load_core, log)
        try:
            usage = _await_exit(h2load, seconds + LOAD_SLACK_S)
            window.close()
        finally:
            h2load.stop()
        said = parse_h2load(log.read_text())
        load_cpu_s = usage.ru_utime + usage.ru_stime
        bodies_gb = said["ops"] * workloads.BULK_BYTES / 1e9
        scale = 1 / bodies_gb if workload.bulk else 1e6 / said["ops"]
        return Sample(
            figure=window.server_s * scale,
            cores_figure=window.cores_s * scale,
            per_second=bodies_gb * 1000 / seconds if workload.bulk else said["ops"] / seconds,
            p50_us=said["mean_us"],
            p99_us=said["max_us"],
            ops=said["ops"],
            errors=said["errors"],
            load_idle=max(0.0, 1 - load_cpu_s / seconds),
            load_core_idle=window.load_core_idle,
            server_core_idle=window.server_core_idle,
            foreign=window.foreign(load_cpu_s),
            remarks=["h2load tells mean and maximum, which stand for p50 and p99"],
        )

    def _idle(self, server, workload):
        load = self.start_load(server, workload, self.seconds)
        try:
            pss_before, rss_before = server.child.memory_kb()
            slab_before = slab_kb()
            load.send_line()
            opened = json.loads(load.read_line(self.idle_connections / 20 + LOAD_SLACK_S))
            if opened["ops"] < self.idle_connections:
                raise Failed(
                    f"{server.name}: {opened['ops']} of {self.idle_connections} connections opened: "
                    + "; ".join(opened["failures"])
                )
            time.sleep(self.idle_rest_s)
            pss, rss = server.child.memory_kb()
            slab = slab_kb()
            load.send_line()
            alive = json.loads(load.read_line(LOAD_SLACK_S))["alive"]
        finally:
            load.stop()
        count = self.idle_connections
        sample = Sample(figure=(pss - pss_before) / count, ops=count, errors=opened["errors"])
        sample.per_second = opened["ops_per_second"]
        sample.p50_us, sample.p99_us = opened["p50_us"], opened["p99_us"]
        sample.remarks.append(
            f"RSS {(rss - rss_before) / count:.1f} KiB/connection, kernel slab of all ends "
            f"{(slab - slab_before) / count:.1f} KiB/connection, before the first {pss_before} KiB, alive {alive} of {count}"
        )
        # A connection that was dropped meanwhile held no memory, so the figure would be a lie.
        sample.errors += count - alive
        return sample


def _await_exit(child, timeout_s):
    """Waits for a program that ends by itself; returns its resource usage."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        pid, status, usage = os.wait4(child.popen.pid, os.WNOHANG)
        if pid:
            child.popen.returncode = os.waitstatus_to_exitcode(status)
            if child.popen.returncode:
                raise Failed(f"{child.name}: ended with {child.popen.returncode}: {child.log_tail()}")
            return usage
        time.sleep(0.01)
    raise Failed(f"{child.name}: still runs after {timeout_s:.0f} s")


_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


def parse_h2load(text):
    """Reads h2load's report. Requests that were under way at the end of its time are no errors."""
    done = re.search(r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text, re.MULTILINE)
    codes = re.search(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text, re.MULTILINE)
    times = re.search(r"^time for request:\s+\S+\s+([\d.]+)(us|ms|s|m)\s+([\d.]+)(us|ms|s|m)", text, re.MULTILINE)
    if not done or not codes or int(done[1]) == 0:
        raise Failed(f"h2load: no requests were answered: {text.strip()[-400:]}")
    succeeded, failed, errored, timeout = (int(n) for n in done.groups())
    others = sum(int(n) for n in codes.groups()[1:])
    return {
        "ops": succeeded,
        "errors": max(0, failed - errored) + timeout + others,
        "max_us": float(times[1]) * _UNITS_US[times[2]] if times else None,
        "mean_us": float(times[3]) * _UNITS_US[times[4]] if times else None,
    }


def parse_wrk(text):
    """Reads wrk's report."""

    def percentile(which):
        found = re.search(rf"^\s+{which}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
        return float(found[1]) * _UNITS_US[found[2]] if found else None

    done = re.search(r"^\s+(\d+) requests in", text, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    if not done or not rate or int(done[1]) == 0:
        raise Failed(f"wrk: no requests were answered: {text.strip()[-400:]}")
    errors = 0
    if found := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        errors += sum(int(n) for n in found.groups())
    if found := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        errors += int(found[1])
    return {
        "ops": int(done[1]),
        "per_second": float(rate[1]),
        "p50_us": percentile(50),
        "p99_us": percentile(99),
        "errors": errors,
    }
