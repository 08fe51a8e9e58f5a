"""Make a list of training pairs from a keypoint file, by PATN's rule.

All ordered pairs of images of one person that both show both shoulders and both hips; a person is
what stands before the first '_' of a name (in DeepFashion's names, before the view), 0000 and -1
are nobody. PATN's 12,000 test pairs of Market-1501 are
--keypoints market-annotation-test.csv --sample 12000.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pidm_core import BAD_DATA, DONE, UserError, parse, quoted, run


@dataclass(frozen=True)
class Options:
    """Which keypoints, and where the pairs go."""

    keypoints: str = "data/market1501/market-annotation-train.csv"
    """Keypoint file or folder."""
    out: str = ""
    """CSV of the pairs, from,to (default: a new one beside, 'annotation' replaced by 'pairs')."""
    sample: int = 0
    """So many pairs, drawn as PATN draws them (0 = all)."""
    seed: int = 0
    """Seed of the drawing."""
    dry_run: bool = False
    """Say how many pairs there would be, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Make, count and write the pairs."""
    options = parse(
        Options,
        argv,
        prog="make_pairs",
        description=__doc__,
        example="python tools/make_pairs.py --keypoints data/market-annotation-train.csv",
    )

    from pidm_core import read_keypoints
    from pidm_core.datasets import Split, check_beside, compare_with_published
    from pidm_core.pair_lists import patn_pairs, write_pairs

    source = Path(options.keypoints)
    out = Path(options.out or source.with_name(source.name.replace("annotation", "pairs")))
    if out == source:
        raise UserError(f"{source}: has no 'annotation' in its name; give --out FILE.csv")
    if out.exists() and not options.out:
        raise UserError(f"{out}: exists already, maybe as published; --out {out} replaces it")
    keypoints = read_keypoints(source)
    split: Split = "test" if source.stem.endswith("test") else "train"
    check_beside(source, keypoints, split=split)
    pairs = patn_pairs(keypoints, sample=options.sample, seed=options.seed)
    if not pairs:
        raise UserError(
            f"{source}: no person has two images with both shoulders and both hips", BAD_DATA
        )
    if not options.dry_run:
        write_pairs(out, pairs)
    compare_with_published(keypoints, len(pairs), split=split)
    counted = f"{out}: {len(pairs):,} pairs of {len(keypoints):,} images"
    if options.dry_run:
        print(f"{counted}; nothing was written")
        return DONE
    print(f"{counted}. Next:")
    tool = "render_pairs.py" if split == "test" else "train_pidm.py --config FILE"
    files = f"--data {quoted(source.parent)} --keypoints {quoted(source)} --pairs {quoted(out)}"
    print(f"  python tools/{tool} {files}")
    return DONE


if __name__ == "__main__":
    run(main)
