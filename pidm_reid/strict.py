"""A generator that has seen D_tr and nothing else: trained, judged and stopped by its people."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pidm_core import (
    PIDMConfig,
    UserError,
    load_config,
    read_keypoints,
    write_keypoints,
)
from pidm_reid import folder
from pidm_reid.synthesize import Work

WITHHELD = 0.05


def strict_config(file: str, *, seed: int) -> PIDMConfig:
    """The training that a configuration file describes, with the table's seed.

    A twentieth of the people judges when to stop unless the file says otherwise. What the file
    names as data is not used.
    """
    if not file:
        raise UserError("strict: give the configuration file of the generator trained on D_tr")
    config = load_config(PIDMConfig, file)
    withhold = config.train.withhold or WITHHELD
    train = replace(config.train, seed=seed, withhold=withhold)
    return replace(config, data="", keypoints="", pairs="", train=train)


def train_strict(work: Work, keypoints: Path, config: PIDMConfig, run: Path) -> None:
    """Train (or go on with) the generator of a D_tr in its run folder.

    The folder `people` in it holds links to D_tr and their joints: all that the training sees.
    Raises UserError (TERMINATED or 130) when a signal ended it; the same call goes on.
    """
    from pidm_core import train

    home = run / "people" / folder.BASE
    for record in work.real:
        folder.place(record.path, home / folder.TRAIN / record.name, copy=False)
    if strange := {p.name for p in (home / folder.TRAIN).iterdir()} - set(work.split["real"]):
        raise UserError(f"{home}: holds images that are not of this D_tr, such as {min(strange)}")
    joints = read_keypoints(keypoints)
    known = {record.name: joints[record.name] for record in work.real if record.name in joints}
    write_keypoints(home / "market-annotation-train.csv", known)
    config = replace(config, data=str(run / "people"))
    if (run / "config.yaml").is_file():  # more steps are harmless to a run, not to a table
        old = load_config(PIDMConfig, run / "config.yaml").train.steps
        if old != config.train.steps:
            raise UserError(
                f"{run}: was trained for {old} steps, not {config.train.steps}; remove it, or give "
                "the table another name"
            )
    steps = train.train(config, run)
    for step in train.watch(steps, total=config.train.steps, label=f"train {run}"):
        if step.stopping:
            raise UserError(f"{run}: stopped and saved at step {step.step}", step.stopping)


def training_seconds(run: Path) -> float:
    """How long a run folder's training took, from its log; 0 if it has none."""
    log = run / "metrics.jsonl"
    seconds = 0.0
    for line in log.read_text().splitlines() if log.is_file() else []:
        with suppress(ValueError):  # torn by a kill
            seconds += json.loads(line).get("seconds", 0.0)
    return seconds
