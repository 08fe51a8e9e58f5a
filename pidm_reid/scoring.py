"""Features for the selection: two networks of the same D_tr, each judging the other's people."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core import (
    BAD_DATA,
    NOBODY,
    Record,
    UserError,
    find_keypoints,
    read_keypoints,
    to_dict,
    write_bytes,
    write_json,
)
from pidm_reid import coverage, finetune, folder, selection
from pidm_reid.config import SELECTION_RULE, NetworkConfig, SelectionConfig, decisive
from pidm_reid.plan import Recipe, fingerprint, write_recipes
from pidm_reid.selection import Choice
from pidm_reid.weights import describe_weights


def choose(
    real: Sequence[Record],
    recipes: Sequence[Recipe],
    images: Path,
    *,
    joints: Mapping[str, np.ndarray],
    keep: Mapping[int, int],
    student: NetworkConfig,
    config: SelectionConfig,
    seed: int,
) -> tuple[list[Choice], dict[str, float]]:
    """Judge the images of these recipes that lie in a folder; keep `keep[pid]` of every person.

    The choices by file name, and the similarities that `selection.select` found among real images.

    joints: of the recipes' poses, by name. Trains two networks by `config.network`, each on the
    real images of one half of the people.
    """
    pids = {record.name: record.pid for record in real}
    halves = selection.folds(list(pids.values()), seed=seed)
    choices: list[Choice] = []
    among_real: dict[str, float] = {}
    for number, (half, others) in enumerate((halves, halves[::-1])):
        known = [record for record in real if record.pid in half]
        made = [recipe for recipe in recipes if pids[recipe.source] in half]
        made.sort(key=lambda recipe: (recipe.replica, recipe.file_name))  # the plan's order
        if not made:
            continue
        place = {record.name: k for k, record in enumerate(known)}
        drawn = [Record(images / r.file_name, r.file_name, pids[r.source], 0) for r in made]
        features = finetune.train_and_embed(
            finetune.train_list(record.path for record in real if record.pid in others),
            [*known, *drawn],
            config=student,
            stage=config.network,
            seed=seed,
            label=f"judge {number + 1} of 2",
        )
        named = (next((n for n in folder.spellings(r.pose) if n in joints), "") for r in made)
        poses = [joints.get(name, NOBODY) for name in named]
        chosen, similarities = selection.select(
            [recipe.file_name for recipe in made],
            features=features[len(known) :],
            sources=np.array([place[recipe.source] for recipe in made], dtype=int),
            poses=coverage.postures(np.array(poses).reshape(-1, 18, 2)),
            real_names=[record.name for record in known],
            real_features=features[: len(known)],
            real_pids=np.array([record.pid for record in known]),
            keep=keep,
            config=config,
        )
        choices += chosen
        among_real |= similarities
    return sorted(choices, key=lambda choice: choice.file_name), among_real


def check_judges(
    real: Sequence[Record], recipes: Iterable[Recipe], student: NetworkConfig, *, seed: int
) -> None:
    """UserError where a judge of these recipes' images would have fewer images than a batch."""
    pids = {record.name: record.pid for record in real}
    made = {pids[recipe.source] for recipe in recipes}
    halves = selection.folds(list(pids.values()), seed=seed)
    for half, others in (halves, halves[::-1]):  # each is judged by a network of the others
        if made & half:
            known = sum(pid in others for pid in pids.values())
            finetune.check_batch(known, student, "real images that a judge would learn from")


def asked_of(student: NetworkConfig, config: SelectionConfig) -> dict[str, Any]:
    """All settings that decide a selection."""
    names = ("height", "width", "batch_size", "precision", "workers")
    network = {k: value for k, value in decisive(student).items() if k in names}
    rule = {"rule": SELECTION_RULE}
    return {**to_dict(config), **rule, **network, "weights": describe_weights(student.weights)}


def select_folder(
    source: Path,
    out: Path,
    *,
    keypoints: Path | None,
    keep: float,
    student: NetworkConfig,
    config: SelectionConfig,
    seed: int,
) -> list[Choice]:
    """Make another augmented folder of the better images of one, the share `keep` of each person.

    Shares are rounded up, so that nobody is lost. The first folder is not changed; the second
    links to its images. Done before, it is only read.
    Raises UserError if `out` holds another selection or something else, and (BAD_DATA) for
    imported images whose source is not known.
    """
    augmented = folder.read_augmented(source)
    if augmented.missing:
        raise UserError(
            f"{source}: {augmented.missing:,} planned images are not generated yet; the same "
            "synthesize command makes them, and then the better ones can be chosen",
            BAD_DATA,
        )
    ledger = folder.read_ledger(source / folder.MANIFEST)
    names = [field.name for field in dataclasses.fields(Recipe)]
    needed = {*names, "sha256"}
    if lacking := [name for name, entry in ledger.items() if not entry.keys() >= needed]:
        raise UserError(
            f"{source}: the line of {lacking[0]} in {folder.MANIFEST} lacks what made it", BAD_DATA
        )
    recipes = [Recipe(**{k: entry[k] for k in names}) for _, entry in sorted(ledger.items())]
    if unknown := [recipe.file_name for recipe in recipes if not recipe.source]:
        raise UserError(
            f"{source}: the source of {len(unknown)} images, such as {unknown[0]}, is not known; "
            "without it an image cannot be judged",
            BAD_DATA,
        )
    images = augmented.train_folder
    real = [Record(images / n, n, *folder.person(n)) for n in augmented.real]
    made_of = fingerprint({name: entry["sha256"] for name, entry in ledger.items()})
    pids = {record.name: record.pid for record in real}
    asked = {**asked_of(student, config), "keep": keep, "seed": seed, "images": made_of}
    check_judges(real, recipes, student, seed=seed)
    folder.start_folder(out, {**augmented.split, "selection": asked})
    if not (out / folder.SELECTION).is_file():
        beside = keypoints or find_keypoints(real[0].path.resolve().parent.parent)
        made = Counter(pids[recipe.source] for recipe in recipes)
        choices, among_real = choose(
            real,
            recipes,
            images,
            joints=read_keypoints(beside),
            keep={pid: math.ceil(round(keep * count, 9)) for pid, count in made.items()},
            student=student,
            config=config,
            seed=seed,
        )
        write_choices(out, choices, among_real)
    choices = read_choices(out)
    folder.lay_out(out, real, copy=False)
    kept = [choice.file_name for choice in choices if choice.kept]
    done = folder.read_ledger(out / folder.MANIFEST)
    for name in kept:
        folder.place(images / name, out / folder.BASE / folder.TRAIN / name, copy=False)
    folder.append_ledger(out / folder.MANIFEST, [ledger[n] for n in kept if n not in done])
    chosen = set(kept)
    write_bytes(out / folder.PLAN, write_recipes(r for r in recipes if r.file_name in chosen))
    return choices


def write_choices(out: Path, choices: Sequence[Choice], among_real: Mapping[str, float]) -> None:
    """selection.jsonl of an augmented folder: one line per generated image, kept or not.

    Before it selection_real.json: similarity of each real image to the nearest of its person.
    """
    write_json(out / folder.AMONG_REAL, dict(among_real))
    lines = (folder.checked_line(dataclasses.asdict(choice)) for choice in choices)
    write_bytes(out / folder.SELECTION, b"".join(lines))


def read_choices(out: Path) -> list[Choice]:
    """What `write_choices` wrote."""
    lines = folder.read_lines(out / folder.SELECTION)
    try:
        return [Choice(**line) for line in lines.values()]
    except TypeError as error:
        raise UserError(
            f"{out / folder.SELECTION}: not a selection of this version; remove the folder",
            BAD_DATA,
        ) from error
