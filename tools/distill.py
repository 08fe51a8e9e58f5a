"""Train a student that needs a few evaluations and no guidance for what its teacher needs many.

Run the same command again to resume. A student can teach the next one, of half its steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pidm_core.config import DistillConfig
from pidm_core.files import DONE, quoted, run
from pidm_core.options import narrowed, parse


@dataclass(frozen=True)
class Options(DistillConfig):
    """Options of the tool: one training of a student, and where it goes."""

    out: str = "runs/student"
    """Run folder."""
    dry_run: bool = False
    """Print teacher, pairs and steps, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Train until the configured number of steps is reached or a signal asks to stop."""
    example = "python tools/distill.py --config configs/toy_student.yaml --out runs/toy_student"
    options = parse(Options, argv, prog="distill", description=__doc__, example=example)
    config = narrowed(DistillConfig, options)
    folder, total = Path(options.out), config.train.steps

    import torch

    from pidm_core.distill import distill, prepare
    from pidm_core.hardware import place
    from pidm_core.train import load_pairs, watch

    lesson = prepare(config)
    print(
        f"A student of {config.teacher} ({lesson.teacher}): {config.steps} steps, each for "
        f"{config.teacher_steps} of the teacher's; {total:,} training steps of "
        f"{config.train.batch_size} pairs, on {place(config.train.precision)}, "
        f"{torch.get_num_threads()} threads -> {folder}",
        flush=True,
    )
    if options.dry_run:
        print(f"{len(load_pairs(lesson.run)):,} training pairs in {config.data}")
        return DONE
    for step in watch(distill(lesson, folder), total=total, label="distill"):
        if step.stopping:
            print(f"stopped and saved at step {step.step}; the same command goes on")
            return step.stopping
    print(f"{folder}: trained. Next:")
    print(f"  python tools/compare_models.py --models {quoted(f'{config.teacher},{folder}')}")
    return DONE


if __name__ == "__main__":
    run(main)
