"""Every named bad input, each in a process of its own: one clear line, or read as it should be."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from faults.cases import DONE, READ, Case, images, lists, ranking, settings, weights
from faults.harness import HANGS_S, Finished, Measure, Row, run
from faults.warm import warm

ROOMS = (images, lists, settings, ranking, weights)
CASES: tuple[Case, ...] = tuple(case for room in ROOMS for case in room.CASES)
AT_ONCE = 2
NEEDS_TORCH = ("weights", "model", "checkpoint", "official")
T = TypeVar("T")


def outcome(case: Case) -> str:
    """What is wrong with what came of a case; '' = nothing."""
    with tempfile.TemporaryDirectory(prefix="case-") as name:
        folder = Path(name)
        case.make(folder)
        return judged(case, run_case(case, folder))


def run_case(case: Case, folder: Path, env: Mapping[str, str] | None = None) -> Finished:
    """Run a case's command; what needs torch is forked from a process that has imported it."""
    patience = HANGS_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others work too
    if case.command[0] == READ and case.command[1] in NEEDS_TORCH:
        return warm().run(case.command, cwd=folder, env=env, timeout=patience)
    return run(case.command, cwd=folder, env=env, timeout=patience)


def judged(case: Case, done: Finished) -> str:
    """What is wrong with how a process ended; '' = nothing."""
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    if done.hung:
        return "hangs"
    if done.traceback:
        return "a traceback: " + done.err.strip().splitlines()[-1]
    if done.code != case.code:
        return f"exit code {done.code}, not {case.code}: {(done.err or done.out).strip()[-200:]}"
    if case.code > 1 and len(lines) != 1:
        return f"{len(lines)} lines of errors: {done.err[-200:]}"
    if case.says not in (done.out if case.code == DONE else done.err):
        return f"does not say '{case.says}': {(done.out + done.err)[-200:]}"
    return ""


def _wrong(number: int) -> str:
    try:
        said = outcome(CASES[number])
    except Exception as error:
        said = f"the case itself: {error!r}"
    return said and f"{CASES[number].name}: {said}"


def two_at_once(act: Callable[[T], str], items: Sequence[T]) -> Iterator[str]:
    """What `act` says of each item, in order.

    Not in forked processes: torch's threads are lost in them, and it would wait for these.
    """
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, mp_context=spawned) as pool:
        yield from pool.map(act, items)


def check(numbers: Sequence[int]) -> Row:
    """Run these cases."""
    row = Row("named bad inputs", "one line and its exit code, or read as it should be")
    for said in two_at_once(_wrong, numbers):
        row.check(not said, said)
    return row


def named_bad_inputs(number: int) -> Row:
    """All of them, or (N under 10) every hundredth."""
    return check(range(0, len(CASES), 1 if number >= 10 else 100 // number))


MEASURES: tuple[Measure, ...] = (named_bad_inputs,)
