"""Draw ToyMarket, the embedded data set: people in exact Market-1501 layout, with keypoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from pidm_core.files import DONE, quoted, run
from pidm_core.options import parse


@dataclass(frozen=True)
class Options:
    """What to draw."""

    preset: Literal["tiny", "demo", "full"] = "demo"
    """How much: tiny (tests), demo (2,425 images), full (Market-1501's own counts)."""
    out: str = "data/toy_market"
    """Folder that gets market1501/."""
    seed: int = 0
    """Seed of everything; the same seed gives the same bytes."""
    workers: int | None = None
    """Processes (none = one per core); changes nothing but the time."""
    train_people: Literal["train", "pretrain"] = "train"
    """Range that the training identities come from."""
    test_people: Literal["test", "development"] = "test"
    """Range that the query and gallery identities come from."""
    train_identities: int | None = None
    """Training identities (none = as the preset)."""
    train_images: int | None = None
    """Training images (none = as the preset)."""
    dry_run: bool = False
    """Say how many images would be drawn, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Draw the set; a rerun goes on where it stopped."""
    options = parse(
        Options,
        argv,
        prog="make_toy_market",
        description=__doc__,
        example="python tools/make_toy_market.py --preset demo --out data/toy_market",
    )
    from pidm_core import to_dict, track
    from pidm_core.toy_market import make, wanted

    if options.dry_run:
        counts = wanted(options.preset, options.train_identities, options.train_images)
        print(f"{options.out}/market1501: {counts.images:,} images")
        return DONE
    settings = to_dict(options)
    out, _ = settings.pop("out"), settings.pop("dry_run")
    root = make(out, progress=partial(track, label=f"draw {out}", unit="images"), **settings)
    print(f"{root}: done. Next:")
    print(f"  python tools/synthesize.py --run toy_market --data {quoted(out)} --ratio 0.4")
    return DONE


if __name__ == "__main__":
    run(main)
