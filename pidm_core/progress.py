"""Progress of long work on stderr: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY_S = 15.0


def track(
    counts: Iterable[T],
    *,
    total: int,
    label: str,
    unit: str,
    each: int = 0,
    done: int = 0,
    note: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """Pass `counts` on and show how far it is, how fast and how long it will take.

    An item is the number of finished units, or stands for `each` of them; `done` were finished
    before; `note` says more about the newest item.
    """
    if sys.stderr.isatty():
        yield from _bar(
            counts, total=total, label=label, unit=unit, each=each, done=done, note=note
        )
        return
    start = said = time.monotonic()
    before = done
    for item in counts:
        done += each or int(item)  # type: ignore[call-overload]
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
    done: int,
    note: Callable[[T], str] | None,
) -> Iterator[T]:
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=label, unit=f" {unit}", smoothing=0.1) as bar:
        for item in counts:
            bar.update(each or int(item))  # type: ignore[call-overload]
            if note:
                bar.set_postfix_str(note(item), refresh=False)
            yield item
