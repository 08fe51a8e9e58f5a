"""Progress of long work on stderr: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY_S = 15.0


def duration(*seconds: float) -> str:
    """A guess of a time, or of its limits, in words: minutes below an hour."""
    name, unit = ("minutes", 60) if max(seconds) < 3600 else ("hours", 3600)
    return " to ".join(f"{guess / unit:,.1f}" for guess in seconds) + f" {name}"


def track(
    counts: Iterable[T],
    *,
    total: int,
    label: str,
    unit: str,
    each: int = 0,
    at: Callable[[T], int] | None = None,
    note: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """Pass `counts` on and show how far it is, how fast and how long it will take.

    An item is the number of finished units, or stands for `each` of them; `at` tells how many
    units are done at an item, if some were before; `note` says more about the newest item.
    """
    if sys.stderr.isatty():
        yield from _bar(counts, total=total, label=label, unit=unit, each=each, at=at, note=note)
        return
    start = said = time.monotonic()
    done: int | None = None
    before = 0
    for item in counts:
        units = each or int(item)  # type: ignore[call-overload]
        if done is None:
            done = before = at(item) - units if at else 0
        done += units
        now = time.monotonic()
        if now - said > LINE_EVERY_S or (done >= total and now - start > 1):
            said = now
            rate = (done - before) / max(now - start, 1e-9)
            left = max(0, total - done) / max(rate, 1e-9)
            print(
                f"{label}: {done:,} of {total:,} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left"
                + (f", {note(item)}" if note else ""),
                file=sys.stderr,
                flush=True,
            )
        yield item


def _bar(
    counts: Iterable[T],
    *,
    total: int,
    label: str,
    unit: str,
    each: int,
    at: Callable[[T], int] | None,
    note: Callable[[T], str] | None,
) -> Iterator[T]:
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=f" {unit}", smoothing=0.1) as bar:
        for number, item in enumerate(counts):
            units = each or int(item)  # type: ignore[call-overload]
            if at and not number:
                bar.n = bar.initial = at(item) - units
            bar.update(units)
            if note:
                bar.set_postfix_str(note(item), refresh=False)
            yield item
