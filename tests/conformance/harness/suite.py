"""How a suite is written down: cases with a name and what they show, a place to work in, and a judgement.

A case is a function that returns when all is well. It raises `Failed` (or any other exception) when it is not, and
`Skipped` when it cannot be run here. What is expected to fail stands in `expected.toml` with the reason.
"""

import signal
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

# How long one case may take, seconds. Cases bound their own waits more tightly; this is for those that hang anyway.
CASE_LIMIT_S = 60


class Failed(Exception):
    """The program under test did something else than it should."""


class Skipped(Exception):
    """This cannot be run here; says what is missing."""


class _TooLong(Exception):
    pass


@dataclass
class Case:
    name: str
    what: str
    run: Callable
    limit_s: int = CASE_LIMIT_S


@dataclass
class Outcome:
    """What became of a case: passed, failed, skipped, expected (failed as listed), surprise (passed although listed)."""

    case: str
    what: str
    kind: str
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Suite:
    """A named list of cases. `start(place)` returns what the cases get; `stop(it)` ends it."""

    name: str
    title: str
    start: Callable
    stop: Callable
    cases: list = field(default_factory=list)

    def case(self, name, what, limit_s=CASE_LIMIT_S):
        """Registers a function as a case."""
        assert all(case.name != name for case in self.cases), name

        def register(function):
            self.cases.append(Case(name, what, function, limit_s))
            return function

        return register


@dataclass
class Place:
    """Where a suite works: a directory of its own, and the peer that is asked for instead of Hostward, if any."""

    directory: Path
    peer: str = "hostward"


def check(condition, message):
    if not condition:
        raise Failed(message)


def equal(got, wanted, what):
    if got != wanted:
        raise Failed(f"{what}: {got!r} instead of {wanted!r}")


def _ring(_signal, _frame):
    raise _TooLong


def _bounded(function, limit_s):
    before = signal.signal(signal.SIGALRM, _ring)
    signal.alarm(limit_s)
    try:
        return function()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_suite(suite, place, expected, only, say):
    """Runs the cases whose names hold `only`; returns their outcomes. `say` gets each outcome as it comes."""
    outcomes = []

    def tell(outcome):
        outcomes.append(outcome)
        say(outcome)

    try:
        context = _bounded(lambda: suite.start(place), 120)
    except Skipped as missing:
        tell(Outcome("(all)", suite.title, "skipped", str(missing)))
        return outcomes
    except Exception as error:
        tell(Outcome("(start)", suite.title, "failed", _told(error)))
        return outcomes
    try:
        for case in suite.cases:
            if only in case.name:
                tell(_run_case(case, context, expected))
    finally:
        try:
            suite.stop(context)
        except Exception as error:
            tell(Outcome("(stop)", "everything ends in order", "failed", _told(error)))
    return outcomes


def _run_case(case, context, expected):
    began = time.monotonic()
    kind, detail = "passed", ""
    try:
        _bounded(lambda: case.run(context), case.limit_s)
    except Skipped as missing:
        kind, detail = "skipped", str(missing)
    except _TooLong:
        kind, detail = "failed", f"not done after {case.limit_s} s"
    except Exception as error:
        kind, detail = "failed", _told(error)
    if case.name in expected:
        if kind == "failed" and expected[case.name]["fails"] in detail:
            kind, detail = "expected", expected[case.name]["why"]
        elif kind == "passed":
            kind, detail = "surprise", "passes although expected.toml lists it: take it out"
    return Outcome(case.name, case.what, kind, detail, time.monotonic() - began)


def _told(error):
    """A failure in a line; anything that is no judgement of a case brings its traceback."""
    if isinstance(error, (Failed, AssertionError)):
        return str(error) or "an assertion failed:\n" + traceback.format_exc(limit=-2)
    return "".join(traceback.format_exception(error, limit=-4)).strip()
