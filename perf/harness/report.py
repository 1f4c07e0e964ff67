"""From samples to the Markdown page: medians, ratios, targets."""

import statistics

from . import workloads

# Beyond this share of foreign CPU a row says more about the neighbours than about the servers.
FOREIGN_MAX = 0.05

# Beyond this share of handshakes that did not resume, a resumed row measures something else.
NOT_RESUMED_MAX = 0.01

# Each of ours is compared with each of these, in this order.
OURS = ("hostward", "hostward-http")
PEERS = ("nginx", "haproxy", "baseline")


class Results:
    """All samples of a run: (workload, server) -> one sample a round, or None where the round failed."""

    def __init__(self, servers, rounds):
        self.servers = servers
        self.rounds = rounds
        self.samples = {}
        self.failures = []

    def add(self, workload, server, sample):
        self.samples.setdefault((workload.name, server), []).append(sample)

    def fail(self, workload, server, error):
        self.samples.setdefault((workload.name, server), []).append(None)
        self.failures.append(f"{workload.name}, {server}: {error}")

    def values(self, workload, server, attribute):
        samples = self.samples.get((workload.name, server), [])
        values = [getattr(sample, attribute) for sample in samples if sample]
        return [value for value in values if value is not None]

    def median(self, workload, server, attribute="figure"):
        values = self.values(workload, server, attribute)
        return statistics.median(values) if values else None

    def compared(self):
        """Which of ours are compared with which peer: what runs, or the first of ours for its targets' sake."""
        ours = [name for name in OURS if name in self.servers] or OURS[:1]
        return [(name, peer) for name in ours for peer in PEERS]

    def ratio(self, workload, of, ours="hostward"):
        """The median over rounds of our figure by the other's of the same round: drift cancels out."""
        pairs = zip(self.samples.get((workload.name, ours), []), self.samples.get((workload.name, of), []))
        ratios = [mine.figure / theirs.figure for mine, theirs in pairs if mine and theirs and theirs.figure]
        return statistics.median(ratios) if ratios else None

    def spoiled(self, ran):
        """Whether any row is about something else than it says: failures, errors, handshakes that did not resume."""
        rows = [(workload, server) for workload in ran for server in self.servers]
        return bool(self.failures) or any(
            sum(self.values(*row, "errors")) or self.resumed_too_little(*row) for row in rows
        )

    def resumed_too_little(self, workload, server):
        ops = sum(self.values(workload, server, "ops"))
        return ops > 0 and sum(self.values(workload, server, "not_resumed")) > NOT_RESUMED_MAX * ops

    def missed(self, ran):
        """The targets that were measured and not met, as (workload, ours, peer)."""
        return [
            (workload.name, ours, peer)
            for workload in ran
            for ours, peer in self.compared()
            if (target := _target(workload, ours, peer))
            and (ratio := self.ratio(workload, peer, ours))
            and ratio > target
        ]


def markdown(results, ran, heading, facts):
    """The whole page."""
    parts = [f"# {heading}", "", *[f"- {fact}" for fact in facts], ""]
    parts += ["## The figure that is compared", "", *_figures(results, ran), ""]
    parts += ["us/op: user and system CPU of the server's processes per operation; s/GB: the same per 10^9 bytes of body;"]
    parts += ["KiB/connection: growth of the server's PSS by idle connection. Ratios are medians over the rounds' ratios.", ""]
    parts += ["## Throughput and latency", "", *_speed(results, ran), ""]
    parts += ["## What else was going on", "", *_context(results, ran), ""]
    notes = _notes(results, ran)
    if notes:
        parts += ["## Notes", "", *[f"- {note}" for note in notes], ""]
    return "\n".join(parts)


def _figures(results, ran):
    head = ["workload", "unit", *results.servers, *[f"{ours} / {peer}" for ours, peer in results.compared()]]
    rows = []
    for workload in ran:
        cells = [f"{workload.title} (`{workload.name}`)", workload.unit]
        cells += [_number(results.median(workload, server)) for server in results.servers]
        cells += [
            _verdict(results.ratio(workload, peer, ours), _target(workload, ours, peer))
            for ours, peer in results.compared()
        ]
        rows.append(cells)
    return _table(head, rows)


def _speed(results, ran):
    rows = []
    for workload in ran:
        cells = [f"`{workload.name}`", str(workload.concurrency), "MB/s" if workload.bulk else "1/s"]
        for server in results.servers:
            rate = results.median(workload, server, "per_second")
            p50, p99 = (results.median(workload, server, name) for name in ("p50_us", "p99_us"))
            cells.append("-" if rate is None else f"{rate:.0f}; {_number(_ms(p50))} / {_number(_ms(p99))}")
        rows.append(cells)
    head = ["workload", "at once", "unit", *[f"{server}: rate; p50 / p99 ms" for server in results.servers]]
    return _table(head, rows)


def _context(results, ran):
    head = ["workload", "server", "rounds: lowest to highest", "both cores", "server core idle", "load core idle"]
    head += ["load generator idle", "foreign CPU", "errors", "not resumed"]
    rows = []
    for workload in ran:
        for server in results.servers:
            figures = results.values(workload, server, "figure")
            if not figures:
                continue
            cells = [f"`{workload.name}`", server, f"{_number(min(figures))} to {_number(max(figures))}"]
            cells.append(_number(results.median(workload, server, "cores_figure")))
            for share in ("server_core_idle", "load_core_idle", "load_idle", "foreign"):
                cells.append(_percent(results.median(workload, server, share)))
            for count in ("errors", "not_resumed"):
                cells.append(str(sum(results.values(workload, server, count))))
            rows.append(cells)
    return _table(head, rows)


def _notes(results, ran):
    notes = [f"FAILED: {failure}" for failure in results.failures]
    noisy = []
    for workload in ran:
        for server in results.servers:
            row = f"{workload.name}, {server}"
            foreign = results.median(workload, server, "foreign")
            if foreign is not None and foreign > FOREIGN_MAX:
                noisy.append(f"{row} {_percent(foreign)}")
            if results.resumed_too_little(workload, server):
                ops, missed = (sum(results.values(workload, server, name)) for name in ("ops", "not_resumed"))
                notes.append(f"{row}: {missed} of {ops} handshakes did not resume; the row is not what it says.")
            for sample in results.samples.get((workload.name, server), []):
                if sample and sample.remarks:
                    notes.append(f"{row}: " + "; ".join(sample.remarks))
    if noisy:
        notes.insert(0, "Not a quiet machine; CPU that went to other programs: " + "; ".join(noisy))
    return notes


def _target(workload, ours, peer):
    targets = {"nginx": workload.of_nginx, "haproxy": workload.of_haproxy, "baseline": workload.of_baseline}[peer]
    return targets[OURS.index(ours)] if targets else None


def _verdict(ratio, target):
    if ratio is None:
        return "-" if target is None else f"- (at most {target:.2f})"
    if target is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (at most {target:.2f}: {'met' if ratio <= target else '**missed**'})"


def _number(value):
    """Three significant digits, as far as the measurement carries."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(share):
    return "-" if share is None else f"{share * 100:.0f} %"


def _ms(us):
    return None if us is None else us / 1000


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def progress(round_number, rounds, workload, server, sample):
    """One line while it runs."""
    line = f"{round_number}/{rounds} {workload.name:15} {server:13} {_number(sample.figure):>7} {workload.unit}"
    if workload.unit != workloads.KIB_PER_CONNECTION:
        line += f"  {sample.per_second:8.0f}/s  p99 {_number(_ms(sample.p99_us))} ms"
        line += f"  server core idle {_percent(sample.server_core_idle)}, load core idle {_percent(sample.load_core_idle)}"
    if sample.errors:
        line += f"  ERRORS {sample.errors}"
    if sample.not_resumed:
        line += f"  not resumed {sample.not_resumed}"
    return line
