"""Draw a data set's test pairs, to be scored by evaluate_images.py and reproduce_table.py images.

Run the same command again to go on. The folder says role: eval; nothing is to be trained on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pidm_core import DONE, Sampling, UserError, parse, quoted, run


@dataclass(frozen=True)
class Options(Sampling):
    """Which pairs, by which model, and where to."""

    run: str = "toy_market"
    """Run folder or bundled model."""
    data: str = "data/market1501"
    """Folder of people: Market-1501 or DeepFashion layout, or any with keypoints and pairs."""
    keypoints: str = ""
    """Keypoint file of the test images (default: the one beside them)."""
    pairs: str = ""
    """Pair list of the test images (default: the data set's own, else PATN's rule)."""
    count: int = 0
    """Pairs that are drawn, chosen evenly by chance (0: all)."""
    baseline: Literal["", "source", "pose"] = ""
    """Draw nothing, but answer with the source image, or (where the data set has its own training
    images) with that of the nearest pose: what a generator must beat."""
    seeds: int = 1
    """Images of each pair; 8 show the diversity."""
    out: str = ""
    """Folder (default: results/pairs/ and the name of the run or the baseline)."""
    dry_run: bool = False
    """Say how many images would be drawn, and stop."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.seeds < 1:
            raise UserError("count: must be at least 1, or 0 for all; seeds: at least 1")
        if self.baseline and self.seeds > 1:
            raise UserError("baseline: a photograph has no seeds")


def main(argv: list[str] | None = None) -> int:
    """Draw the pairs, write sources, truths and joints beside them, and say what to run next."""
    example = "python tools/render_pairs.py --run runs/market1501 --data data/market1501"
    options = parse(Options, argv, prog="render_pairs", description=__doc__, example=example)
    by = options.baseline or options.run
    out = Path(options.out or f"results/pairs/{Path(by).name}")

    from pidm_core import PIDMPipeline, pair_images, track
    from pidm_core.datasets import read_people

    people = read_people(
        options.data, split="test", keypoints=options.keypoints, pairs=options.pairs
    )
    pairs = pair_images.choose_pairs(people, options.count)
    total = len(pairs) * options.seeds
    if options.dry_run:
        print(f"{out}: {total:,} images of {len(pairs):,} pairs, by {by}")
        return DONE
    if options.baseline:
        owner, answers = people, pairs[:, 0]
        if options.baseline == "pose":
            owner = read_people(options.data)
            answers = pair_images.nearest_poses(people, pairs, owner)
        drawn = pair_images.copy_pairs(people, pairs, owner, answers, out / "images", by=by)
    else:
        pipe = PIDMPipeline.from_pretrained(options.run).with_settings(**options.changes())
        drawn = pair_images.draw_pairs(pipe, people, pairs, out / "images", seeds=options.seeds)
    sum(track(drawn, total=total, label="render", unit="images"))
    pair_images.write_truth(people, pairs, out)  # a folder of other pairs has been refused by now
    print(f"{out}: {total:,} images of {len(pairs):,} pairs. Next:")
    print(
        f"  python tools/evaluate_images.py --generated {quoted(out / 'images')} "
        f"--targets {quoted(out / 'targets')} --real FOLDER-OF-TRAINING-IMAGES"
    )
    return DONE


if __name__ == "__main__":
    run(main)
