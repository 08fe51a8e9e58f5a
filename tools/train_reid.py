"""Train ResNet50 on the real images of an augmented folder, fine-tune it with the generated."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidm_core import DONE, SKIPPED, UserError, parse, quoted, run
from pidm_core.options import narrowed
from pidm_reid.config import StudentConfig, decisive

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
    """File for the final weights (.safetensors); those of Standard go to OUT_standard beside,
    settings and results to OUT.json, and what lets the same command go on to OUT_unfinished.
    Without it nothing is kept."""
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

    from pidm_core.progress import duration
    from pidm_reid import finetune, folder, outcome, weights

    augmented = folder.read_augmented(options.augmented)
    finetune.check_batch(len(augmented.real), options)
    if augmented.missing:
        print(
            f"left out: {augmented.missing:,} planned images are not generated yet; the same "
            "synthesize command makes them",
            file=sys.stderr,
        )
    code = SKIPPED if augmented.missing else DONE
    test = finetune.read_test(options.augmented)
    real = [augmented.train_folder / name for name in augmented.real]
    synthetic = [augmented.train_folder / name for name in augmented.synthetic]
    final, asked, results = Path(options.out), dict[str, Any](), {}
    if options.out:
        asked = {
            **decisive(narrowed(StudentConfig, options)),
            "seed": options.seed,
            "first weights": weights.describe_weights(options.weights),
            "real": outcome.contents(real),
            "generated": outcome.contents(synthetic),
            "query": outcome.contents(record.path for record in test.query),
            "gallery": outcome.contents(record.path for record in test.gallery),
        }
        results = outcome.read_outcome(final, asked)
    if len(results) == 2 and final.is_file():
        for name, ranking in results.items():
            print(f"{name}\n{_lines(ranking)}")
        print(f"{final}: trained already")
        return code
    passes = (options.standard.steps + options.finetune.steps) * options.batch_size
    if options.dry_run:
        time = duration(passes / finetune.measure_speed(options))
        print(f"{len(real):,} real, {len(synthetic):,} generated images")
        print(f"{passes:,} training image passes, about {time} here")
        return DONE
    print(f"{passes:,} training image passes; --dry-run says how long they take here", flush=True)
    if options.out:
        outcome.write_outcome(final, asked, results)
    state, kept = None, []
    for name, stage, added, suffix in (
        ("Standard", options.standard, [], "_standard"),
        ("fine-tuned", options.finetune, synthetic, ""),
    ):
        out = final.with_stem(final.stem + suffix) if options.out else None
        if out:
            kept.append(out.with_stem(f"{out.stem}_unfinished"))
        items = finetune.train_list(real, added)
        print(f"{name}: {len(items):,} images, {stage.steps:,} iterations", flush=True)
        try:
            state, result = finetune.train_and_test(
                items, test, config=options, stage=stage, seed=options.seed, start=state,
                keep=kept[-1] if kept else None, label=name,
            )  # fmt: skip
        except KeyboardInterrupt:
            if out:
                raise
            raise KeyboardInterrupt("without --out FILE.safetensors nothing is kept") from None
        print(_lines(result.ranking))
        results[name] = result.ranking
        if out:
            weights.save_state(out, state)
            outcome.write_outcome(final, asked, results)
    for path in kept:
        path.unlink(missing_ok=True)
    where = f"-> {options.out}. " if options.out else ""
    print(f"{where}What it was trained on: python tools/report.py {quoted(options.augmented)}")
    return code


def _lines(ranking: Ranking) -> str:
    text = f"{ranking.lines()}\n{ranking.queries:,} queries, {ranking.gallery:,} gallery images"
    if ranking.unmatched:
        text += f"; {ranking.unmatched:,} queries have no match and count in no figure"
    return text


if __name__ == "__main__":
    run(main)
