"""Images that another method generated -> an augmented folder, for comparison in the same table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pidm_core import (
    BAD_DATA,
    IMAGE_SUFFIXES,
    Record,
    UserError,
    content_key,
    encode_jpeg,
    load_image,
    named_pair,
    read_json,
    refuse_path,
    sha256,
    without_seed,
    write_bytes,
)
from pidm_reid import folder, lease, plan
from pidm_reid.plan import Recipe
from pidm_reid.synthesize import Generator, Work, ledger_entry, start


def import_images(
    work: Work,
    images: Path,
    out: Path,
    *,
    real: Mapping[str, str],
    copy: bool = False,
    mark: bool = True,
) -> Iterator[str]:
    """Take over images that another generator made; yields '' for each, or why it was left out.

    Person and camera come from the first `pid_cC` in a name, as in <source>_2_<target>_vis.png;
    without a target the source is the image of the data set with whose name the file's begins.
    real: content_key -> name of the data set's images. Left out: copies of these, broken files,
    people that are not in D_tr, and images made from an image that is not in D_tr (its method
    would have seen more than the others). mark: the files taken over say that they are
    generated. Raises UserError for an empty folder, and for test pairs that
    tools/render_pairs.py drew.
    """
    note = images / "pairs.json"
    if note.is_file() and read_json(note).get("role") == "eval":
        raise UserError(
            f"{images}: test pairs, drawn for evaluation (role: eval in {note.name}); nothing may "
            "be trained on them",
            BAD_DATA,
        )
    named = sorted(p for p in images.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    files, unusable = [], []
    for path in named:
        try:
            refuse_path(path.name, str(images))
            if not path.is_file():
                raise UserError(f"{path}: a dangling link, folder or pipe, no image")
            files.append(path)
        except UserError as error:
            unusable.append(str(error))
    if not files:
        raise UserError(f"{images}: no images (.jpg or .png) in it", BAD_DATA)
    renderer = f"imported:{plan.fingerprint({path.name: sha256(path) for path in files})}"
    foreign = Generator(_no_render, renderer, {}, mark=mark)
    split = {**work.split, "recipes": 0, "plan": ""}
    work = dataclasses.replace(work, recipes=work.recipes[:0], split=split)
    yield from unusable
    with lease.hold(out):
        start(work, foreign, out, copy=copy)
        write_bytes(out / folder.IMPORTING, b"")
        yield from _take_over(files, work, foreign, out, real=real)
        (out / folder.IMPORTING).unlink()


def _take_over(
    files: Sequence[Path], work: Work, foreign: Generator, out: Path, *, real: Mapping[str, str]
) -> Iterator[str]:
    ledger = folder.read_ledger(out / folder.MANIFEST)
    train = out / folder.BASE / folder.TRAIN
    stems = {record.name.rpartition(".")[0]: record for record in work.real}
    known = {Path(name).stem for name in real.values()}
    people = {record.pid for record in work.real}
    numbers: dict[str, int] = {}
    for path in files:
        if twin := real.get(content_key(path)):
            yield f"{path}: is no generated image but a copy of {twin}"
            continue
        try:
            recipe = _imported_recipe(path, stems, known, people, numbers)
            entry = ledger.get(recipe.file_name)
            if not entry or not folder.is_finished(train, entry):
                data = encode_jpeg(load_image(path), generated=foreign.mark)
                write_bytes(train / recipe.file_name, data)
                line = {**ledger_entry(recipe, foreign, data), "imported": path.name}
                folder.append_ledger(out / folder.MANIFEST, [line])
            yield ""
        except UserError as error:
            yield str(error)


def _imported_recipe(
    path: Path,
    stems: Mapping[str, Record],
    known: set[str],
    people: set[int],
    numbers: dict[str, int],
) -> Recipe:
    pid, _ = folder.person(path.name)
    if pid not in people:
        raise UserError(f"{path}: person {pid:04d} is not in the training subset", BAD_DATA)
    source, target = (
        named_pair(path.stem, sources=stems)
        or named_pair(path.stem)
        or (_beginning(path.stem, known) or without_seed(path.stem), "")
    )
    if (target or source in known) and source not in stems:
        raise UserError(f"{path}: its source is not in the training subset", BAD_DATA)
    replica = numbers.get(source, 0)
    numbers[source] = replica + 1
    name = plan.image_name(source, replica)
    if folder.person(name)[0] != pid:
        raise UserError(f"{path}: its name says who is shown after '_vis' only", BAD_DATA)
    if not folder.PERSON.match(name):
        raise UserError(f"{path}: its name must begin with person and camera, 0002_c1…", BAD_DATA)
    return Recipe(name, stems[source].name if source in stems else "", "", target, "", replica, 0)


def _beginning(stem: str, known: set[str]) -> str:
    """The longest of the known names with which a name begins, up to the end or a '_'."""
    words = stem.split("_")
    beginnings = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((name for name in beginnings if name in known), "")


def _no_render(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
    raise UserError("images of another generator cannot be rendered anew")
