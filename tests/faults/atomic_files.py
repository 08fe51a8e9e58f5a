"""A file is there whole or not at all, wherever the write breaks off."""

from __future__ import annotations

import tempfile
from pathlib import Path

from faults.harness import Measure, Row, fault, run

WRITE = "import sys; from pidm_core import write_bytes; write_bytes(sys.argv[1], b'new' * 99)"


def write_points(_: int) -> Row:
    """Every write point of `write_bytes`, with every action."""
    row = Row("fault at each write point of one file", "old or new content, no leftovers")
    with tempfile.TemporaryDirectory() as name:
        root, log = Path(name) / "files", Path(name) / "log"
        root.mkdir()
        run(["-c", WRITE, root / "a"], cwd=root, env=fault("none", 0, root=root, log=log))
        points = len(log.read_text().splitlines())
        row.check(points >= 2, f"only {points} write points were seen")
        for action in ("kill", "enospc", "eacces"):
            for at in range(1, points + 1):
                (root / "a").write_bytes(b"old")
                env = fault(action, at, root=root, log=log)
                done = run(["-c", WRITE, root / "a"], cwd=root, env=env)
                content = (root / "a").read_bytes()
                whole = content in (b"old", b"new" * 99)
                left = [p.name for p in root.iterdir() if not p.name.startswith((".tmp-", "a"))]
                row.check(whole and done.code != 0 and not left, f"{action} at {at}: {content!r}")
    return row


MEASURES: tuple[Measure, ...] = (write_points,)
