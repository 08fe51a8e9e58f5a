"""Read one thing with the product's own reader, as a tool would: python read.py KIND PATH…

Prints what was read, in one line; errors become exit codes as those of every tool do.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pidm_core
from pidm_core import config, files, keypoints, options


def image(path: str) -> str:
    """Size, mean and the first digits of the pixels' hash."""
    pixels = files.load_image(path)
    digest = files.sha256(np.ascontiguousarray(pixels).tobytes())[:8]
    return f"{pixels.shape[0]}x{pixels.shape[1]} mean {pixels.mean():.0f} {digest}"


def images(path: str) -> str:
    """Images below a folder."""
    from pidm_core.datasets import list_images

    return " ".join(record.name for record in list_images(path))


def people(path: str, table: str = "", pairs: str = "") -> str:
    """A data set: images, images with joints, listed pairs."""
    from pidm_core.datasets import read_people

    found = read_people(path, keypoints=table, pairs=pairs)
    listed = "rule" if found.pairs is None else len(found.pairs)
    return f"{len(found.records)} images, {len(found.keypoints)} with joints, pairs: {listed}"


def market(path: str, subset: str = "bounding_box_train") -> str:
    """A subset of a Market-1501 root."""
    return f"{len(pidm_core.read_market1501(path, subset))} images"


def training(path: str) -> str:
    """What training makes of a Market-1501 root with its keypoint file."""
    from pidm_core.data import Pairs

    records = pidm_core.read_market1501(path)
    table = pidm_core.read_keypoints(pidm_core.find_keypoints(path))
    pairs = Pairs(records, table, size=(64, 32))
    return f"{len(pairs)} pairs, {len(pairs.broken)} broken"


def joints(path: str) -> str:
    """A keypoint file: people, joints that are there, the first person's nose."""
    table = keypoints.read_keypoints(path)
    there = sum(int((~keypoints.missing(one)).sum()) for one in table.values())
    nose = next(iter(table.values()))[0].tolist()
    return f"{len(table)} people, {there} joints, {next(iter(table))} nose {nose}"


def pairs(path: str) -> str:
    """A pair list."""
    from pidm_core.pair_lists import read_pairs

    return f"{len(read_pairs(path))} pairs"


def settings(path: str) -> str:
    """A configuration of a training."""
    found = options.load_config(config.PIDMConfig, path)
    return f"lr {found.train.lr} batch {found.train.batch_size} data {found.data}"


def table(path: str) -> str:
    """A configuration of a table of re-ID results."""
    from pidm_reid.config import ReidTable

    return f"ratios {options.load_config(ReidTable, path).ratios}"


def augmented(path: str) -> str:
    """An augmented folder."""
    from pidm_reid.folder import read_augmented

    found = read_augmented(path)
    return f"{len(found.real)} real, {len(found.synthetic)} synthetic"


def lines(path: str) -> str:
    """JSON lines such as plan.jsonl."""
    from pidm_reid.folder import read_lines

    return f"{len(read_lines(Path(path)))} lines"


def ledger(path: str) -> str:
    """manifest.jsonl."""
    from pidm_reid.folder import read_ledger

    return f"{len(read_ledger(Path(path)))} images"


def leaks(path: str) -> str:
    """Whether test images are among the training images."""
    from pidm_reid.leaks import read_contents, refuse_overlap

    refuse_overlap(read_contents(path), path)
    return "no overlap"


def seen(path: str) -> str:
    """seen.json of a run folder."""
    found = pidm_core.read_seen(path)
    return "unknown" if found is None else f"{len(found)} data sets"


def results(path: str) -> str:
    """The results of a table."""
    from pidm_reid.table import read_results

    return f"{len(read_results(Path(path)))} cells"


def ranking(path: str) -> str:
    """Rank the features in an .npz file: query, gallery, their people and cameras."""
    from pidm_reid import retrieval

    with np.load(path) as arrays:
        found = retrieval.evaluate(
            arrays["query"],
            arrays["gallery"],
            query_pids=arrays["query_pids"],
            gallery_pids=arrays["gallery_pids"],
            query_camids=arrays["query_camids"],
            gallery_camids=arrays["gallery_camids"],
        )
    return (
        f"mAP {found.mAP:.4f} rank-1 {found.rank(1):.4f} queries {found.queries} "
        f"unmatched {found.unmatched} junk {found.junk} distractors {found.distractors}"
    )


def names(*listed: str) -> str:
    """Whether these may be names of query images."""
    from pidm_reid.retrieval import check_names

    check_names(listed, "query")
    return "real"


def weights(path: str) -> str:
    """A weight file."""
    return f"{len(pidm_core.read_weights(Path(path)))} tensors"


def model(path: str) -> str:
    """A model folder, run folder or bundled model."""
    from pidm_core.checkpoint import find_model, load_model

    return f"{sum(p.numel() for p in load_model(find_model(path))[0].parameters())} values"


def checkpoint(path: str) -> str:
    """The newest good checkpoint of a run."""
    from pidm_core.checkpoint import latest_checkpoint

    found = latest_checkpoint(Path(path))
    return "none" if found is None else f"step {found[0]['step']}, {sorted(found[1])}"


def official(path: str) -> str:
    """The authors' checkpoint."""
    from pidm_core.official import read_checkpoint

    return f"{len(read_checkpoint(Path(path))[1])} tensors"


READERS: dict[str, Callable[..., str]] = {
    read.__name__: read
    for read in (
        image, images, people, market, training, joints, pairs, settings, table, augmented, lines,
        ledger, leaks, seen, results, ranking, names, weights, model, checkpoint, official,
    )
}  # fmt: skip


def _note_peak(path: str) -> None:
    """Write the most memory that this process has held (kB, without the parent's), and seconds."""
    status = Path("/proc/self/status").read_text()
    Path(path).write_text(f"{status.split('VmHWM:')[1].split()[0]} {time.process_time():.1f}")


def main(_: Any) -> int:
    """Read and print; with PIDM_PEAK=FILE note the memory there."""
    if "PIDM_PEAK" in os.environ:
        atexit.register(_note_peak, os.environ["PIDM_PEAK"])
    kind, *paths = [text for text in sys.argv[1:] if text != "--debug"]
    print(READERS[kind](*paths))
    return pidm_core.DONE


if __name__ == "__main__":
    pidm_core.run(main)
