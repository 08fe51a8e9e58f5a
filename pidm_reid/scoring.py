"""Features for the selection: two networks of the same D_tr, each judging the other's people."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pidm_core import JOINTS, Record, read_text, write_bytes
from pidm_reid import finetune, folder, selection
from pidm_reid.config import SelectionConfig, StudentConfig
from pidm_reid.plan import Recipe
from pidm_reid.selection import Choice
from pidm_reid.synthesize import Work

_SHOULDERS = [JOINTS.index("right_shoulder"), JOINTS.index("left_shoulder")]
_HIPS = [JOINTS.index("right_hip"), JOINTS.index("left_hip")]


def choose(
    work: Work,
    images: Path,
    *,
    keep: Sequence[Recipe],
    student: StudentConfig,
    config: SelectionConfig,
    seed: int,
) -> list[Choice]:
    """Judge the images of a plan that lie in a folder; keep as many of each person as `keep` has.

    Trains two networks by `config.network`, each on one half of D_tr's people.
    """
    pids = {record.name: record.pid for record in work.real}
    count = Counter(pids[recipe.source] for recipe in keep)
    halves = selection.folds([record.pid for record in work.real], seed=seed)
    choices: list[Choice] = []
    for number, (half, others) in enumerate((halves, halves[::-1])):
        real = [record for record in work.real if record.pid in half]
        made = [recipe for recipe in work.recipes if pids[recipe.source] in half]
        place = {record.name: k for k, record in enumerate(real)}
        drawn = [
            Record(images / r.file_name, r.file_name, pids[r.source], real[place[r.source]].camid)
            for r in made
        ]
        features = finetune.train_and_embed(
            finetune.train_list(record.path for record in work.real if record.pid in others),
            [*real, *drawn],
            config=student,
            stage=config.network,
            seed=seed,
            label=f"judge {number + 1} of 2",
        )
        choices += selection.select(
            [recipe.file_name for recipe in made],
            features=features[len(real) :],
            sources=np.array([place[recipe.source] for recipe in made], dtype=int),
            poses=postures(np.stack([work.poses.keypoints[recipe.pose] for recipe in made])),
            real_names=[record.name for record in real],
            real_features=features[: len(real)],
            real_pids=np.array([record.pid for record in real]),
            keep=count,
            config=config,
        )
    return sorted(choices, key=lambda choice: choice.file_name)


def postures(joints: np.ndarray) -> np.ndarray:
    """Joints (N, 18, 2) px from the middle of the hips in units of the torso, (N, 36).

    A missing joint stands where it is on average, so that it makes no pose a new one.
    """
    middle = joints[:, _HIPS].mean(1, keepdims=True)
    torso = np.linalg.norm(joints[:, _SHOULDERS].mean(1, keepdims=True) - middle, axis=2)
    shapes = (joints - middle) / np.maximum(torso[:, :, None], 1e-6)
    known = ~np.isnan(shapes)
    mean = np.where(known, shapes, 0).sum(0) / np.maximum(known.sum(0), 1)
    flat: np.ndarray = np.where(known, shapes, mean).reshape(len(joints), -1)
    return flat


def write_choices(out: Path, choices: Sequence[Choice]) -> None:
    """selection.jsonl of an augmented folder: one line per generated image, kept or not."""
    lines = (json.dumps(dataclasses.asdict(choice), ensure_ascii=False) for choice in choices)
    write_bytes(out / folder.SELECTION, "".join(line + "\n" for line in lines).encode())


def read_choices(out: Path) -> list[Choice]:
    """What `write_choices` wrote."""
    lines = read_text(out / folder.SELECTION).splitlines()
    return [Choice(**json.loads(line)) for line in lines]
