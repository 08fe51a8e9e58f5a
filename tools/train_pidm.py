"""Train PIDM on a folder of people. Run the same command again to resume.

On several GPUs or machines: accelerate launch tools/train_pidm.py ...
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pidm_core import DONE, PIDMConfig, parse, quoted, run, stop_after
from pidm_core.options import narrowed


@dataclass(frozen=True)
class Options(PIDMConfig):
    """Options of the tool: one training run, and where it goes."""

    out: str = ""
    """Run folder (default: runs/ and the name of the data folder)."""
    minutes: float = 0.0
    """Stop and save after so many minutes, as SIGTERM does (0: no limit)."""
    dry_run: bool = False
    """Print pairs, parameters, steps and a guess of the time, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Train until the configured number of steps is reached, or a signal or --minutes stops it."""
    options = parse(
        Options,
        argv,
        prog="train_pidm",
        description=__doc__,
        example="python tools/train_pidm.py --config configs/market1501_small.yaml --data data",
    )
    stop_after(options.minutes)
    config = narrowed(PIDMConfig, options)
    name = Path(os.path.abspath(config.data)).name  # "." has none
    folder = Path(options.out or f"runs/{name}")

    import torch

    from pidm_core.hardware import place
    from pidm_core.model import PIDM
    from pidm_core.train import check_sampling, load_pairs, train, watch

    check_sampling(config)

    talks = os.environ.get("RANK", "0") == "0"  # of several processes the first
    with torch.device("meta"):  # to be counted, not to be kept
        parameters = sum(p.numel() for p in PIDM(config.model).parameters()) / 1e6
    say = print if talks else (lambda *_, **__: None)
    say(
        f"PIDM, {parameters:.2f} M parameters, {config.train.steps:,} steps of "
        f"{config.train.batch_size} pairs, on {place(config.train.precision)}, "
        f"{torch.get_num_threads()} threads -> {folder}",
        flush=True,
    )
    if options.dry_run:
        from pidm_core.benchmark import training_hours

        print(f"{len(load_pairs(config)):,} training pairs in {config.data}")
        print(training_hours(config))
        return DONE
    steps = train(config, folder)
    for step in watch(steps, total=config.train.steps, label="train") if talks else steps:
        if step.stopping:
            say(f"stopped and saved at step {step.step}; the same command goes on")
            return step.stopping
    say(f"{folder}: trained. Next: python tools/synthesize.py --run {quoted(folder)} --ratio 0.4")
    return DONE


if __name__ == "__main__":
    run(main)
