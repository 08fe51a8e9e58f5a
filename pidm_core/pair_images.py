"""Pairs of test images, drawn by a generator: what Table 1's figures and Figs. 3 to 5 are made of.

The folder's manifest says `role: eval`, since its people are the test set's: nothing may be
trained on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core.data import make_pairs
from pidm_core.datasets import People
from pidm_core.files import (
    BAD_DATA,
    UserError,
    encode_png,
    read_json,
    resized,
    sha256,
    write_bytes,
    write_json,
)
from pidm_core.keypoints import NOBODY, rescale, write_keypoints
from pidm_core.pipeline import PIDMPipeline
from pidm_core.progress import track

MANIFEST = "pairs.json"


def choose_pairs(people: People, count: int = 0) -> np.ndarray:
    """`count` pairs of the data set (0 = all), always the same: int (N, 2), source and target.

    Raises UserError (BAD_DATA) if there is none, a chosen target has no joints, or two chosen
    images would have one name in a flat folder.
    """
    pairs = people.pairs
    if pairs is None:
        pairs = make_pairs(people.records, people.keypoints)
    if not len(pairs):
        raise UserError("no pair of two images of one person passes PATN's rule", BAD_DATA)
    if count:
        chosen = np.random.default_rng(0).permutation(len(pairs))[:count]
        pairs = pairs[np.sort(chosen)]
    names = (people.records[target].name for target in pairs[:, 1])
    if poseless := [name for name in names if name not in people.keypoints]:
        raise UserError(
            f"{len(poseless)} targets of the pair list have no joints, such as {poseless[0]}",
            BAD_DATA,
        )
    stems: dict[str, int] = {}
    for index in np.unique(pairs):
        if (other := stems.setdefault(_stem(people, index), index)) != index:
            both = " and ".join(people.records[k].name for k in (other, index))
            raise UserError(f"{both} would have one name beside each other; rename one", BAD_DATA)
    return np.asarray(pairs)


def write_truth(people: People, pairs: np.ndarray, out: Path) -> None:
    """Write what the drawn images are held against, as the data set's view shows it:

    out/sources/, out/targets/ (PNG) and out/keypoints.csv with the targets' joints in their px.
    """
    write_images(people, np.unique(pairs[:, 0]), out / "sources")
    poses = write_images(people, np.unique(pairs[:, 1]), out / "targets")
    write_keypoints(out / "keypoints.csv", poses)


def write_images(people: People, indices: Iterable[int], out: Path) -> dict[str, np.ndarray]:
    """Write images as the data set's view shows them, PNG; their joints (18, 2) by file name."""
    joints = {}
    for index in indices:
        name = f"{_stem(people, index)}.png"
        image, joints[name] = people.open(index)
        data, path = encode_png(image), out / name
        if not path.is_file() or path.read_bytes() != data:  # each write waits for the disk
            write_bytes(path, data)
    return joints


def draw_pairs(
    pipe: PIDMPipeline, people: People, pairs: np.ndarray, out: Path, *, seeds: int = 1
) -> Iterator[int]:
    """Draw each pair `seeds` times; yield how many images each batch finished, old ones first.

    Writes out/<source>_2_<target>_vis.png at the target's size (bicubic, if the model draws
    another), with `_vis_1` and so on for further seeds. The same call goes on where it stopped.
    Raises UserError if the folder holds images of other weights, settings, pairs or data.
    """
    _start(out, _manifest(pipe, people, pairs, seeds))
    todo = [
        (path, pair, seed * len(pairs) + number)
        for number, pair in enumerate(pairs)
        for seed in range(seeds)
        if not (path := out / _name(people, pair, seed)).is_file()
    ]
    if done := len(pairs) * seeds - len(todo):
        yield done
    for start in range(0, len(todo), pipe.settings.batch_size):
        batch = todo[start : start + pipe.settings.batch_size]
        sources = [people.open(pair[0])[0] for _, pair, _ in batch]
        targets = [people.open(pair[1]) for _, pair, _ in batch]
        poses = np.stack([rescale(joints, image.shape[:2], pipe.size) for image, joints in targets])
        drawn = pipe(sources, poses, seeds=[seed for *_, seed in batch]).images
        for image, (path, *_), (target, _) in zip(drawn, batch, targets, strict=True):
            shown = image if target.shape[:2] == pipe.size else resized(image, target.shape[:2])
            write_bytes(path, encode_png(shown, generated=True))
        yield len(batch)


def copy_pairs(
    people: People, pairs: np.ndarray, owner: People, answers: np.ndarray, out: Path, *, by: str
) -> Iterator[int]:
    """Answer each pair with a photograph instead, which a generator must beat; yields 1 for each.

    answers: (N,) images of `owner`, brought to the targets' sizes; by: what says how they were
    chosen. Otherwise as `draw_pairs`.
    """
    chosen = [owner.records[answer].name for answer in answers]
    listed = {"pairs": _listed(people, pairs), "answers": chosen}
    data = _digest(people, np.unique(pairs))
    _start(out, {"role": "eval", "seeds": 1, "baseline": by, **listed, "data": data})
    for pair, answer in zip(pairs, answers, strict=True):
        path = out / _name(people, pair, 0)
        if not path.is_file():
            (image, _), (target, _) = owner.open(answer), people.open(pair[1])
            if image.shape != target.shape:
                image = resized(image, target.shape[:2])
            write_bytes(path, encode_png(image))
        yield 1


def nearest_poses(people: People, pairs: np.ndarray, train: People) -> np.ndarray:
    """For each pair the image of `train` whose joints lie nearest to the target's: (N,).

    Whoever it shows; by the mean distance of the joints in the frame of the first target. A joint
    known of one image alone counts half that frame's height.
    Raises UserError (BAD_DATA) without training images that have joints.
    """
    size = people.open(pairs[0, 1])[0].shape[:2]

    def posed(owner: People, index: int) -> np.ndarray:
        image, joints = owner.open(index)
        return rescale(joints, image.shape[:2], size)

    known = [i for i, record in enumerate(train.records) if record.name in train.keypoints]
    if not known:
        raise UserError("no training image has joints", BAD_DATA)
    opened = track(known, total=len(known), label="poses", unit="images", each=1)
    joints = np.stack([posed(train, index) for index in opened])  # (M, 18, 2)
    there, found = ~np.isnan(joints).any(2), {}
    for target in np.unique(pairs[:, 1]):
        asked = posed(people, target)
        wanted = ~np.isnan(asked).any(1)
        distance = np.linalg.norm(joints - asked, axis=2)
        distance[there != wanted] = size[0] / 2
        counted = there | wanted
        mean = np.where(counted, distance, 0).sum(1) / np.maximum(1, counted.sum(1))
        found[target] = known[int(mean.argmin())]
    return np.array([found[target] for target in pairs[:, 1]])


def _manifest(pipe: PIDMPipeline, people: People, pairs: np.ndarray, seeds: int) -> dict[str, Any]:
    described = {key: pipe.describe()[key] for key in ("weights", "sample")}
    listed = {"pairs": _listed(people, pairs), "data": _digest(people, np.unique(pairs))}
    return {"role": "eval", "seeds": seeds, **described, **listed}


def _listed(people: People, pairs: np.ndarray) -> list[list[str]]:
    return [[people.records[index].name for index in pair] for pair in pairs]


def _digest(people: People, indices: Iterable[int]) -> str:
    """SHA-256 of the files and joints of some images."""

    def parts() -> Iterator[bytes]:
        for record in (people.records[index] for index in indices):
            yield sha256(record.path).encode()
            joints = people.keypoints.get(record.name, NOBODY)
            yield np.nan_to_num(joints, nan=-1).tobytes()  # there is more than one NaN

    return sha256(parts())


def _start(out: Path, manifest: dict[str, Any]) -> None:
    path = out / MANIFEST
    if not (out.is_dir() and any(out.glob("*.png"))):
        write_json(path, manifest)
        return
    if not path.is_file():
        raise UserError(f"{out}: holds images, but no {MANIFEST}; give another folder")
    there = read_json(path)
    if "data" not in there or there.get("pairs") != manifest["pairs"]:  # an older folder; said so
        there["data"] = manifest["data"]
    if changed := [key for key, value in manifest.items() if there.get(key) != value]:
        old, new = there.get("sample", {}), manifest.get("sample", {})
        told = ", ".join(f"{k} was {old[k]}, is {v}" for k, v in new.items() if old.get(k, v) != v)
        raise UserError(
            f"{out}: its images were made with other {' and '.join(changed)}"
            f"{told and f' ({told})'}; remove the folder, or give another"
        )


def _name(people: People, pair: np.ndarray, seed: int) -> str:
    source, target = (_stem(people, index) for index in pair)
    return f"{source}_2_{target}_vis{f'_{seed}' if seed else ''}.png"


def _stem(people: People, index: int) -> str:
    """The image's name for use in a flat folder; names of nested ones keep their path."""
    return people.records[index].name.rpartition(".")[0].replace("/", "--")
