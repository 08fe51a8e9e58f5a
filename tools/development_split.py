"""Withhold a tenth of the training people as a data set for choices, so that tests stay unseen.

Writes a Market-1501 root: the other people as training set, the withheld ones as query and gallery.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pidm_core import BAD_DATA, DONE, UserError, parse, quoted, run

FEW = 100


@dataclass(frozen=True)
class Options:
    """Which data set, and where the development set goes."""

    data: str = "data/market1501"
    """Folder of people in Market-1501 layout; only its training images are used."""
    out: str = ""
    """Folder of the development set (default: the data folder's name and _development)."""
    seed: int = 0
    """Seed of the choice of people."""
    copy: bool = False
    """Copy the images instead of linking to them."""
    dry_run: bool = False
    """Say how many images and people each part would have, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Split, count and link."""
    options = parse(
        Options,
        argv,
        prog="development_split",
        description=__doc__,
        example="python tools/development_split.py --data data/market1501",
    )

    from pidm_core import find_keypoints
    from pidm_core.doctor import next_training
    from pidm_reid import folder, plan

    out = Path(options.out or folder.beside(options.data, "development"))
    if out.resolve() == Path(options.data).resolve():
        raise UserError(f"{out}: is the data set itself; give another --out")
    split = plan.development_split(folder.read_people(options.data), seed=options.seed)
    for subset in ("train", "query", "gallery"):
        records = getattr(split, subset)
        people = {record.pid for record in records}
        print(f"{subset:8} {len(records):6,} images of {len(people):4,} people")
    if not split.train:
        raise UserError(f"{options.data}: has too few people to divide", BAD_DATA)
    if len(split.query) < FEW:
        print(f"{len(split.query)} queries say little: a choice needs some hundred")
    try:
        joints: Path | None = find_keypoints(options.data)
    except UserError as error:
        joints = None
        print(f"no joints to take along: {error}", file=sys.stderr)
    if options.dry_run:
        print(f"{out}: nothing was written")
        return DONE
    folder.write_market1501(
        out, train=split.train, query=split.query, gallery=split.gallery, copy=options.copy
    )
    print(f"-> {out}. Next:")
    if not joints:
        csv = out / "market-annotation-train.csv"
        print(f"  python tools/extract_poses.py --data {quoted(out)} --out {quoted(csv)}")
    print(f"  {next_training(out)}")
    return DONE


if __name__ == "__main__":
    run(main)
