"""Keep the better ones of the generated images of a folder, in a new folder that torchreid reads.

Two ResNet50 are trained on the folder's real images, each to judge the people of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pidm_core import DONE, UserError, parse, quoted, run
from pidm_reid.config import NetworkConfig, SelectionConfig


@dataclass(frozen=True)
class Options(NetworkConfig):
    """Which folder, how many images stay, and how they are judged."""

    augmented: str = ""
    """Augmented folder made by tools/synthesize.py; it is not changed."""
    out: str = ""
    """Folder of the selection (default: the augmented folder's name and _selected)."""
    keypoints: str = ""
    """Keypoint file of the training images (default: the one beside the original ones)."""
    keep: float = 0.5
    """Share of each person's generated images that stays (0-1)."""
    seed: int = 0
    """Seed of the two networks."""
    dry_run: bool = False
    """Say how long the two networks would be trained here, and stop."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """The rules, and how long the networks are trained."""


def main(argv: list[str] | None = None) -> int:
    """Judge, write the new folder, and count."""
    options = parse(
        Options,
        argv,
        prog="select_images",
        description=__doc__,
        example="python tools/select_images.py --augmented data/market1501_pidm40 --keep 0.5",
    )
    if not 0 <= options.seed < 2**32:
        raise UserError(f"seed {options.seed} is not between 0 and 2^32")
    if not 0 < options.keep <= 1:
        raise UserError(f"keep {options.keep:g} is not between 0 and 1")

    from pidm_core.progress import duration
    from pidm_reid import finetune, folder, lease, scoring

    source = Path(options.augmented)
    if options.dry_run:
        passes = 2 * options.selection.network.steps * options.batch_size
        time = duration(passes / finetune.measure_speed(options))
        print(f"{len(folder.read_augmented(source).synthetic):,} generated images to be judged")
        print(f"{passes:,} training image passes before, about {time} here")
        return DONE
    out = Path(options.out or folder.beside(source, "selected"))
    with lease.hold(out):
        choices = scoring.select_folder(
            source,
            out,
            keypoints=Path(options.keypoints) if options.keypoints else None,
            keep=options.keep,
            student=options,
            config=options.selection,
            seed=options.seed,
        )
    kept = [choice for choice in choices if choice.kept]
    print(f"{out}: {len(kept):,} of {len(choices):,} generated images kept; of all of them")
    for reason in ("another person", "near copy"):
        number = sum(choice.reason == reason for choice in choices)
        doubtful = sum(choice.reason == reason for choice in kept)
        print(f"  {number:6,} {reason} ({doubtful:,} kept for want of better ones)")
    print(f"Next:\n  python tools/train_reid.py --augmented {quoted(out)}")
    print(f"  python tools/report.py {quoted(out)}")
    return DONE


if __name__ == "__main__":
    run(main)
