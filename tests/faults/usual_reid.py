"""What torchreid does with a broken image and a dead network, to compare: it is no failure here."""

from __future__ import annotations

import tempfile
from pathlib import Path

from faults.cases.images import JPEG
from faults.harness import Measure, Row, run

PROMISED = "(for comparison)"
READER = (
    "import sys, warnings; warnings.simplefilter('ignore'); import torchreid\n"
    "from torchreid.reid.utils.tools import read_image\n"
    "read_image(sys.argv[1])"
)
RANKER = """
import warnings; warnings.simplefilter("ignore")
import numpy as np, torchreid
from torchreid.reid.metrics import evaluate_rank
pids, gallery = np.arange(3), np.repeat(np.arange(3), 2)
distances = np.full((3, 6), {value})
cmc, mAP = evaluate_rank(distances, pids, gallery, np.zeros(3), np.ones(6), use_cython=False)
print("mAP", mAP)
"""
BROKEN = {
    "half of it": JPEG[: len(JPEG) // 2],
    "zero bytes": b"",
    "last 2 bytes missing": JPEG[:-2],
}


def reader(_: int) -> Row:
    """torchreid's reader on broken JPEGs."""
    row = Row("torchreid read_image, broken JPEG: no end in 20 s", PROMISED, compared=True)
    with tempfile.TemporaryDirectory() as name:
        for what, data in BROKEN.items():
            (Path(name) / "a.jpg").write_bytes(data)
            done = run(("-c", READER, "a.jpg"), cwd=Path(name))
            row.check(not done.hung, what)
    return row


def ranker(_: int) -> Row:
    """torchreid's ranker on the distances of a dead network."""
    row = Row("torchreid evaluate_rank, dead network: a score is given", PROMISED, compared=True)
    for what, value in (("NaN", "np.nan"), ("all equal", "1.0")):
        done = run(("-c", RANKER.format(value=value)), cwd=Path.cwd(), timeout=60)
        row.check("mAP" not in done.out, f"{what}: {done.out.strip()[:20]}")
    return row


MEASURES: tuple[Measure, ...] = (reader, ranker)
