"""Estimate keypoints of a folder of people, with weights that you have. Rerun to go on.

--weights is a folder (or file) with ViTPose (config.json and model.safetensors) or torchvision's
keypointrcnn_resnet50_fpn_coco-fc266e95.pth; nothing is downloaded.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pidm_core import BAD_DATA, DONE, SKIPPED, UserError, parse, run

if TYPE_CHECKING:
    from pidm_core import Record


@dataclass(frozen=True)
class Options:
    """Which images, which network, and where the joints go."""

    data: str = "data/market1501"
    """Folder of images (of a Market-1501 root the training images)."""
    weights: str = "weights"
    """Folder or file of the network's weights."""
    out: str = ""
    """PATN CSV of the joints, with a contact sheet OUT.png beside it (must be given)."""
    batch_size: int = 16
    """Images estimated together; a killed run loses at most so many."""
    dry_run: bool = False
    """Say how many images are left to estimate, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Estimate what is still missing, write the CSV and the contact sheet."""
    options = parse(
        Options,
        argv,
        prog="extract_poses",
        description=__doc__,
        example="python tools/extract_poses.py --data data/people --weights vitpose --out p.csv",
    )
    if not options.out.endswith(".csv"):
        raise UserError("--out FILE.csv must be given")
    if options.batch_size < 1:
        raise UserError(f"batch-size {options.batch_size} is not at least 1")

    from pidm_core import estimator
    from pidm_core.datasets import pose_images
    from pidm_core.folders import only_writer_of

    out = Path(options.out)
    images, weights = pose_images(options.data), estimator.find_weights(options.weights)
    made_with = estimator.describe(weights, options.data)
    if options.dry_run:
        todo = estimator.unfinished(out, made_with, images)
        print(f"{out}: {len(todo):,} of {len(images):,} images left to estimate by {weights}")
        return DONE
    with only_writer_of(out):
        return _estimate(options, images, weights, made_with)


def _estimate(
    options: Options, images: list[Record], weights: Path, made_with: dict[str, str]
) -> int:
    from pidm_core import estimator
    from pidm_core.doctor import next_training
    from pidm_core.progress import track

    out, broken = Path(options.out), list[str]()
    if todo := estimator.unfinished(out, made_with, images):
        network = estimator.load_estimator(weights)
        done = estimator.estimate_all(
            todo, network, out, made_with=made_with, batch_size=options.batch_size, broken=broken
        )
        for _ in track(done, total=len(todo), label="extract_poses", unit="images"):
            pass
    keypoints = estimator.finish(out)
    if not keypoints:
        raise UserError(f"{options.data}: no image could be read, as {broken[0]}", BAD_DATA)
    estimator.write_sheet(out.with_suffix(".png"), images, keypoints)
    print(f"{out}: joints of {len(keypoints):,} images; look at {out.with_suffix('.png')}. Next:")
    print(f"  {next_training(options.data, keypoints=out)}")
    for line in broken:
        print(f"left out: {line}", file=sys.stderr)
    return SKIPPED if broken else DONE


if __name__ == "__main__":
    run(main)
