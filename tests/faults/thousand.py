"""A thousand images, twenty of them broken in ten ways: the others are done, these are named."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from faults.cases.images import GREYS, HTML, JPEG, LFS, PNG, REFUSED, TRAIN
from faults.cases.lists import csv, person
from faults.harness import Measure, Row, run

IMAGES, BROKEN = 1000, 20
WAYS = (
    b"", HTML, LFS, JPEG[: len(JPEG) // 2], JPEG[:-2], PNG[: len(PNG) // 2],
    REFUSED["JPEG, header and zeros"][0], REFUSED["100 Mpx in a few kB"][0], None, "link",
)  # fmt: skip


def _name(k: int) -> str:
    return f"{2 + k // 10:04d}_c{1 + k % 6}s1_{k:06d}_00.jpg"


def _write(home: Path) -> set[str]:
    """Write the data set; the names that are broken."""
    folder = home / "data" / TRAIN
    folder.mkdir(parents=True)
    broken = {}
    for k in range(IMAGES):
        path, way = folder / _name(k), JPEG
        if k % (IMAGES // BROKEN) == 7:
            way = WAYS[len(broken) % len(WAYS)]
            broken[path.name] = way
        if way is None:
            os.mkfifo(path)
        elif isinstance(way, str):
            path.symlink_to("nowhere")
        else:
            path.write_bytes(way)
    table = {_name(k): person(k % 3) for k in range(IMAGES)}
    (folder.parent / "market-annotation-train.csv").write_text(csv(table))
    (home / "given").mkdir()
    (home / "given/0002_c1_other.png").write_bytes(GREYS["grey, 8 bits"][0])
    return set(broken)


def one_bad_among_many(_: int) -> Row:
    """tools/synthesize.py over the thousand, keeping all that can be read."""
    row = Row(f"{IMAGES:,} images, {BROKEN} broken in 10 ways", "980 done, 20 named, exit code 1")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        broken = _write(home)
        command = ("tools/synthesize.py", "--data", "data", "--ratio", "1", "--out", "out")
        done = run((*command, "--import-from", "given"), cwd=home, timeout=120)
        row.check(done.code == 1 and not done.traceback, f"{done.code}: {done.err[-300:]}")
        if done.code != 1:
            return row
        real = set(json.loads((home / "out/split.json").read_text())["real"])
        row.check(real == {_name(k) for k in range(IMAGES)} - broken, f"{len(real)} kept")
        lines = [x for x in done.err.splitlines() if x.startswith("left out: ")]
        named = {n for n in broken if any(n in line for line in lines)}
        row.check(len(lines) == BROKEN and named == broken, f"{len(named)} named: {lines[:2]}")
    return row


MEASURES: tuple[Measure, ...] = (one_bad_among_many,)
