"""Run every measurement and print the table: python -m faults [N] [NAME …]."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time

import faults
from faults.harness import Row, table


def main(argv: list[str]) -> int:
    """N cases of each kind (20); names of modules choose some of them."""
    number = int(argv[0]) if argv else 20
    names = sorted(m.name for m in pkgutil.iter_modules(faults.__path__) if m.name[0] != "_")
    rows: list[Row] = []
    for name in argv[1:] or names:
        for measure in getattr(importlib.import_module(f"faults.{name}"), "MEASURES", ()):
            begin = time.monotonic()
            rows.append(measure(number))
            took = time.monotonic() - begin
            row = rows[-1]
            done = f"{row.what}: {row.times} in {took:.0f} s, broken promises: {len(row.wrong)}"
            print(done, file=sys.stderr, flush=True)
    print(table(rows))
    return int(any(row.wrong and not row.compared for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
