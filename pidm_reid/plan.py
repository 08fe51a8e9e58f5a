"""Who is generated, in which pose, with which seed: pure data that one can print, diff and edit.

Nothing here draws from a random generator: every choice is made by sorting or indexing with
SHA-256 of (seed, purpose, content). So a plan is the same on every machine, for every numpy, and
whatever the order in which a folder lists its files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from pidm_core import BAD_DATA, Record, UserError, passes_patn

MARKET_IDENTITIES, DEVELOPMENT_IDENTITIES = 751, 100
Role = Literal["train", "eval"]
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """One image to generate."""

    file_name: str  # of the image: <source stem>_pidm0007.jpg
    source: str  # name of the image that gives the person
    source_sha256: str
    pose: str  # name of the image whose joints give the pose
    pose_sha256: str  # of the joints
    replica: int  # running number among the images made from this source
    seed: int  # of the noise
    role: Role = "train"  # eval: query and gallery people; never to be trained on


# ---------------------------------------------------------------- D_tr


def sample_real(records: Sequence[Record], *, ratio: float, seed: int) -> list[Record]:
    """D_tr: round(ratio * N) of the images, at least one of every identity, sorted by name.

    Nested: with one seed, the images of a smaller ratio are among those of a larger one.
    Of 12,936 images of 751 people, ratios 0.2 ... 0.8 give 2,587 / 5,174 / 7,762 / 10,349.
    """
    check_ratio(ratio)
    if not records:
        raise UserError("the training set has no images", BAD_DATA)
    shuffled = sorted(records, key=lambda record: _digest(seed, "D_tr", record.name))
    first = {record.pid: record for record in reversed(shuffled)}  # one image of each identity
    one_each = {record.name for record in first.values()}
    rest = [record for record in shuffled if record.name not in one_each]
    chosen = list(first.values()) + rest[: max(0, round(ratio * len(records)) - len(first))]
    return sorted(chosen, key=lambda record: record.name)


def check_ratio(ratio: float) -> None:
    """UserError unless `ratio` is a share."""
    if 1 < ratio <= 100:
        raise UserError(f"ratio {ratio:g} is not between 0 and 1; did you mean {ratio / 100:g}?")
    if not 0 <= ratio <= 1:
        raise UserError(f"ratio {ratio:g} is not between 0 and 1")


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class PosePool:
    """Poses to choose from: images with joints, all of which pass PATN's rule."""

    keypoints: Mapping[str, np.ndarray]  # image name -> (18, 2) px
    names: tuple[str, ...]
    hashes: tuple[str, ...]  # of the joints
    external: bool = False  # from another file than the training set's own


def pose_pool(
    keypoints: Mapping[str, np.ndarray], *, among: Iterable[str] | None = None, where: str
) -> PosePool:
    """The usable poses of `keypoints`; `among` limits them to these images (None: external).

    Raises UserError (BAD_DATA) naming `where` if no image has joints, or none shows both
    shoulders and both hips.
    """
    wanted = sorted(keypoints if among is None else among)
    known = [name for name in wanted if name in keypoints]
    if not known:
        raise UserError(
            f"{where}: has joints of none of the {len(wanted)} images "
            f"(they are named like {wanted[0] if wanted else '...'}); "
            "is it the keypoint file of another data set or of the test images?",
            BAD_DATA,
        )
    usable = passes_patn(np.stack([keypoints[name] for name in known]))
    names = [name for name, use in zip(known, usable, strict=True) if use]
    if not names:
        raise UserError(
            f"{where}: none of {len(known)} poses shows both shoulders and both hips", BAD_DATA
        )
    hashes = tuple(_pose_hash(keypoints[name]) for name in names)
    return PosePool(keypoints, tuple(names), hashes, external=among is None)


def images_per_source(real_images: int, *, per_image: int, fill_to: int) -> list[int]:
    """How many images each source gives: `per_image` each, or as many as fill up to `fill_to`.

    Every image of D_tr is the source equally often, give or take one. So the generated images
    spread over the people as D_tr's own do, and a network trained on D_aug sees each person as
    often as one trained on D_tr repeated: rows differ by the images alone.
    """
    if per_image < 0:
        raise UserError(f"per-image {per_image} is negative")
    if per_image:
        return [per_image] * real_images
    each, more = divmod(max(0, fill_to - real_images), max(1, real_images))
    return [each + (k < more) for k in range(real_images)]


def make_recipes(
    sources: Sequence[Record],
    poses: PosePool,
    *,
    content: Mapping[str, str],
    seed: int,
    per_image: int = 0,
    fill_to: int = 0,
    role: Role = "train",
) -> list[Recipe]:
    """The recipes, sorted by file name; `content` maps a source's name to its file's SHA-256.

    A source never gets the pose of its own image, and no pose twice before all had their turn.
    """
    shuffled = sorted(sources, key=lambda record: _digest(seed, "sources", record.name))
    counts = images_per_source(len(sources), per_image=per_image, fill_to=fill_to)
    if counts and max(counts) > 9999:
        raise UserError(f"{max(counts)} images of one source are too many; the limit is 9,999")
    has_pose = set(poses.names)
    recipes = []
    for record, count in zip(shuffled, counts, strict=True):
        stem = record.name.rpartition(".")[0]
        own = record.name if record.name in has_pose else ""
        chosen = _choose_poses(poses, own, count=count, key=f"{seed}|{content[record.name]}")
        for replica, k in enumerate(chosen):
            recipes.append(
                Recipe(
                    file_name=f"{stem}_pidm{replica:04d}.jpg",
                    source=record.name,
                    source_sha256=content[record.name],
                    pose=poses.names[k],
                    pose_sha256=poses.hashes[k],
                    replica=replica,
                    seed=image_seed(seed, content[record.name], poses.hashes[k], replica),
                    role=role,
                )
            )
    return sorted(recipes, key=lambda recipe: recipe.file_name)


def _choose_poses(poses: PosePool, own: str, *, count: int, key: str) -> list[int]:
    """Places in the pool; `own` is the name of the source's own pose, '' if it has none there."""
    chosen: list[int] = []
    seen: set[int] = set()
    usable = len(poses.names) - bool(own)
    if usable < 1:  # a single pose, the source's own: better than nothing
        return [0] * count
    attempt = 0
    while len(chosen) < count:
        k = int(_digest(key, "pose", attempt)[:15], 16) % len(poses.names)
        attempt += 1
        if poses.names[k] != own and k not in seen:
            chosen.append(k)
            seen.add(k)
        if len(seen) == usable:
            seen.clear()
    return chosen


def image_seed(seed: int, source_sha256: str, pose_sha256: str, replica: int) -> int:
    """Seed of one image's noise, 63 bits: no clock, rank or order in it."""
    return int(_digest(seed, source_sha256, pose_sha256, replica)[:16], 16) >> 1


def write_recipes(recipes: Iterable[Recipe]) -> bytes:
    """plan.jsonl: one recipe per line, file name first."""
    lines = (json.dumps(dataclasses.asdict(recipe), ensure_ascii=False) for recipe in recipes)
    return "".join(line + "\n" for line in lines).encode()


# ---------------------------------------------------------------- development split


@dataclass(frozen=True)
class Development:
    """Training people divided so that choices can be made without the test set."""

    train: list[Record]
    query: list[Record]
    gallery: list[Record]


def development_split(records: Sequence[Record], *, seed: int = 0) -> Development:
    """Withhold 100 of Market-1501's 751 training people (a tenth in other sets) for development.

    Of each withheld person and camera with several images one becomes a query, if the person
    was seen by another camera too; the rest is the gallery.
    """
    people = sorted({record.pid for record in records})
    number = DEVELOPMENT_IDENTITIES
    if len(people) != MARKET_IDENTITIES:
        number = math.ceil(len(people) / 10)
    shuffled = sorted(people, key=lambda pid: _digest(seed, "development", pid))
    withheld = set(shuffled[:number])
    views: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.name):
        if record.pid in withheld:
            views[record.pid, record.camid].append(record)
    cameras = defaultdict(set)
    for pid, camid in views:
        cameras[pid].add(camid)
    query = [
        min(images, key=lambda record: _digest(seed, "query", record.name))
        for (pid, _), images in sorted(views.items())
        if len(images) > 1 and len(cameras[pid]) > 1
    ]
    if not query:
        raise UserError(
            f"development split: none of the {number} withheld people can be a query "
            "(two images by one camera and one by another are needed)",
            BAD_DATA,
        )
    taken = {record.name for record in query}
    rest = sorted(records, key=lambda record: record.name)
    return Development(
        train=[record for record in rest if record.pid not in withheld],
        query=sorted(query, key=lambda record: record.name),
        gallery=[r for r in rest if r.pid in withheld and r.name not in taken],
    )


# ---------------------------------------------------------------- hashes


def shuffled(items: Iterable[T], *, seed: int, key: Callable[[T], str]) -> list[T]:
    """The items in an order drawn by `seed`, a pure function of their keys."""
    return sorted(items, key=lambda item: _digest(seed, "order", key(item)))


def fingerprint(content: Mapping[str, str]) -> str:
    """SHA-256 of a set of files: names and contents, whatever the order."""
    return _digest(*(f"{name} {content[name]}" for name in sorted(content)))


def _digest(*parts: Any) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _pose_hash(keypoints: np.ndarray) -> str:
    joints = np.where(np.isnan(keypoints), np.nan, keypoints)  # one bit pattern for all NaN
    return hashlib.sha256(np.ascontiguousarray(joints, "<f4").tobytes()).hexdigest()
