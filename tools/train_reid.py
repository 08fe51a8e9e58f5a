"""Train ResNet50 on the real images of an augmented folder, fine-tune it with the generated."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pidm_core import DONE, SKIPPED, UserError, parse, run
from pidm_reid.config import StudentConfig

if TYPE_CHECKING:
    from pidm_reid.retrieval import Ranking


@dataclass(frozen=True)
class Options(StudentConfig):
    """A network, and the folder that it is trained on."""

    augmented: str = ""
    """Augmented folder made by tools/synthesize.py."""
    seed: int = 0
    """Seed of the initial weights and the order."""
    out: str = ""
    """File for the final weights (.safetensors); those of Standard go to OUT_standard beside, and
    what lets the same command go on to OUT_unfinished. Without it nothing is kept."""
    dry_run: bool = False
    """Say what would be trained on and how long it would take here, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Train Standard, fine-tune it, and print both results."""
    options = parse(
        Options,
        argv,
        prog="train_reid",
        description=__doc__,
        example="python tools/train_reid.py --augmented data/market1501_pidm40",
    )
    if not 0 <= options.seed < 2**32:
        raise UserError(f"seed {options.seed} is not between 0 and 2^32")
    if options.out and not options.out.endswith(".safetensors"):
        raise UserError(f"out '{options.out}' does not end in .safetensors")

    from pidm_reid import finetune, folder, weights

    augmented = folder.read_augmented(options.augmented)
    finetune.check_batch(len(augmented.real), options)
    if augmented.missing:
        print(
            f"left out: {augmented.missing:,} planned images are not generated yet; the same "
            "synthesize command makes them",
            file=sys.stderr,
        )
    passes = (options.standard.steps + options.finetune.steps) * options.batch_size
    if options.dry_run:
        hours = passes / finetune.measure_speed(options) / 3600
        print(f"{len(augmented.real):,} real, {len(augmented.synthetic):,} generated images")
        print(f"{passes:,} training image passes, about {hours:.1f} hours here")
        return DONE
    test = finetune.read_test(options.augmented)
    print(f"{passes:,} training image passes; --dry-run says how long they take here", flush=True)
    real = [augmented.train_folder / name for name in augmented.real]
    synthetic = [augmented.train_folder / name for name in augmented.synthetic]
    state, kept = None, []
    for name, stage, added, suffix in (
        ("Standard", options.standard, [], "_standard"),
        ("fine-tuned", options.finetune, synthetic, ""),
    ):
        out = Path(options.out).with_stem(Path(options.out).stem + suffix) if options.out else None
        if out:
            kept.append(out.with_stem(f"{out.stem}_unfinished"))
        items = finetune.train_list(real, added)
        print(f"{name}: {len(items):,} images, {stage.steps:,} iterations", flush=True)
        state, result = finetune.train_and_test(
            items, test, config=options, stage=stage, seed=options.seed, start=state,
            keep=kept[-1] if kept else None, label=name,
        )  # fmt: skip
        print(f"{result.ranking.lines()}\n{_remarks(result.ranking)}")
        if out:
            weights.save_state(out, state)
    for path in kept:
        path.unlink(missing_ok=True)
    where = f"-> {options.out}. " if options.out else ""
    print(f"{where}What it was trained on: python tools/report.py {options.augmented}")
    return SKIPPED if augmented.missing else DONE


def _remarks(ranking: Ranking) -> str:
    text = f"{ranking.queries:,} queries, {ranking.gallery:,} gallery images"
    if ranking.unmatched:
        text += f"; {ranking.unmatched:,} queries have no match and count in no figure"
    return text


if __name__ == "__main__":
    run(main)
