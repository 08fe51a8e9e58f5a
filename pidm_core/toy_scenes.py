"""What ToyMarket draws: the plan of all scenes, one scene as a picture, and its keypoints.

Everything about a picture follows from its scene and the seed of the set; no random stream is
shared by pictures. So the same seed gives the same bytes, whatever the number of processes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pidm_core.files import UserError
from pidm_core.keypoints import mirror
from pidm_core.toy_body import Skeleton, body_of, pose_of, pose_skeleton
from pidm_core.toy_cameras import (
    CAMERAS,
    Camera,
    Passage,
    cast_shadow,
    cut_background,
    light_of,
    occlude,
    passage_of,
    respond,
    view_of,
)
from pidm_core.toy_people import look_of, stream
from pidm_core.toy_render import HEIGHT, WIDTH, Shot, depth_at, draw_person, fit

RANGES = {  # people of different ranges are never the same
    "pretrain": range(0, 10_000),
    "train": range(10_000, 20_000),
    "development": range(20_000, 30_000),
    "test": range(30_000, 40_000),
    "passers-by": range(40_000, 50_000),
}
SUBSETS = ("bounding_box_train", "query", "bounding_box_test")
MAX_PID = 9999


@dataclass(frozen=True)
class Counts:
    """How many people and files a set has."""

    train_identities: int
    train_images: int
    test_identities: int
    queries: int
    gallery: int
    """Gallery files of test identities, without junk and distractors."""
    junk: int
    distractors: int

    @property
    def images(self) -> int:
        """Files in all."""
        return self.train_images + self.queries + self.gallery + self.junk + self.distractors


@dataclass(frozen=True)
class Scene:
    """One picture: with the seed of the set, everything needed to draw it again."""

    name: str
    subset: str
    person: int
    camera: int
    session: int
    kind: str
    """person, junk (a badly cut person) or distractor (nobody, or a badly cut passer-by)."""
    key: str
    """Names the picture's own random streams."""


# ---------------------------------------------------------------- plan


def plan(
    counts: Counts, *, seed: int, train_people: str = "train", test_people: str = "test"
) -> list[Scene]:
    """All pictures of a set, in the order of subset and name; draws nothing."""
    if min(counts.train_identities, counts.test_identities) < 1:
        raise UserError("a set needs at least one training and one test identity")
    pids = np.arange(1, counts.train_identities + counts.test_identities + 1)
    if pids[-1] > MAX_PID:
        raise UserError(
            f"{pids[-1]} identities do not fit Market's four digits (at most {MAX_PID})"
        )
    stream(seed, "pids").shuffle(pids)
    train, test = pids[: counts.train_identities], pids[counts.train_identities :]
    scenes: list[Scene] = []
    rng = stream(seed, train_people, "train plan")
    seen = _appearances(rng, len(train), min(counts.train_images, 4 * len(train)))
    amounts = _amounts(rng, seen, counts.train_images)
    scenes += _scenes("bounding_box_train", train, RANGES[train_people], seen, amounts, rng)
    rng = stream(seed, test_people, "test plan")
    seen = _appearances(rng, len(test), counts.queries)
    amounts = _amounts(rng, seen, counts.gallery)
    people = RANGES[test_people]
    scenes += _scenes("query", test, people, seen, np.ones_like(amounts), rng, first_box=0)
    scenes += _scenes("bounding_box_test", test, people, seen, amounts, rng)
    scenes += _strangers("junk", counts.junk, people[: len(test)], rng)
    scenes += _strangers("distractor", counts.distractors, RANGES["passers-by"], rng)
    return sorted(scenes, key=lambda scene: (SUBSETS.index(scene.subset), scene.name))


def _appearances(rng: np.random.Generator, people: int, total: int) -> np.ndarray:
    """Which person is seen by which camera: (N, 2) rows of (index, camera), at least two each."""
    order = rng.permuted(np.tile(np.arange(1, 7), (people, 1)), axis=1)
    if not 2 * people <= total <= 6 * people:
        raise UserError(f"{total} appearances for {people} identities: needs 2 to 6 for each")
    more = rng.permutation(4 * people)[: total - 2 * people]
    count = 2 + np.bincount(more // 4, minlength=people)
    return np.array([(i, c) for i in range(people) for c in sorted(order[i, : count[i]])])


def _amounts(rng: np.random.Generator, seen: np.ndarray, total: int) -> np.ndarray:
    """Pictures of each appearance: at least one, uneven, `total` in all."""
    weights = rng.gamma(1.6, size=seen[-1, 0] + 1)[seen[:, 0]] * rng.gamma(2.0, size=len(seen))
    if total < len(seen):
        raise UserError(f"{total} images are fewer than {len(seen)} (one for each appearance)")
    return 1 + rng.multinomial(total - len(seen), (weights + 0.25) / (weights + 0.25).sum())


def _scenes(
    subset: str, pids: np.ndarray, people: range, seen: np.ndarray, amounts: np.ndarray,
    rng: np.random.Generator, first_box: int = 1,
) -> Iterator[Scene]:  # fmt: skip
    """Sessions and frame numbers as in Market: a person passes a camera once or twice."""
    for (index, camera), amount in zip(seen.tolist(), amounts.tolist(), strict=True):
        start = int(rng.integers(1, 3800)) * 25 + 1
        for i in range(amount):
            session = 1 + (int(pids[index]) + (i % 5 == 4)) % 6
            frame, box = start + 25 * i, (first_box + i % 3) if first_box else 0
            name = f"{pids[index]:04d}_c{camera}s{session}_{frame:06d}_{box:02d}.jpg"
            key = f"{subset}/{people[index]}/{camera}/{i}"
            yield Scene(name, subset, people[index], camera, session, "person", key)


def _strangers(kind: str, amount: int, people: range, rng: np.random.Generator) -> Iterator[Scene]:
    pid = "-1" if kind == "junk" else "0000"
    for i in range(amount):
        person = people[int(rng.integers(len(people)))]
        camera, session = int(rng.integers(1, 7)), int(rng.integers(1, 7))
        name = f"{pid}_c{camera}s{session}_{25 * i + 1:06d}_{1 + i % 5:02d}.jpg"
        key = f"{kind}/{person}/{i}"
        yield Scene(name, "bounding_box_test", person, camera, session, kind, key)


# ---------------------------------------------------------------- one picture


@dataclass(frozen=True)
class Picture:
    """A drawn scene."""

    image: np.ndarray  # uint8 (128, 64, 3), before JPEG
    joints: np.ndarray  # float64 (18, 2) px, exact
    hidden: np.ndarray  # bool (18,): the person's own body is in front
    jpeg: int  # quality


@functools.lru_cache(maxsize=4)
def _passage(seed: int, scene: Scene) -> tuple[Camera, Passage]:
    camera = CAMERAS[scene.camera]
    rng = stream(seed, "passage", scene.person, scene.camera, scene.session, scene.kind)
    return camera, passage_of(camera, rng)


def _stand(seed: int, scene: Scene) -> tuple[Skeleton, Shot]:
    """The person's bones and the camera on them: all that decides where the joints fall."""
    camera, passage = _passage(seed, scene)
    rng = stream(seed, "pose", scene.key)
    bones = pose_skeleton(body_of(seed, scene.person), pose_of(rng))
    return bones, fit(bones, view_of(camera, passage, rng, scene.kind != "person"))


def draw(
    seed: int, scene: Scene, pose: Scene | None = None, nuisance: int | None = None
) -> Picture:
    """Draw a scene; with `pose` its person in the pose, view and box of that scene.

    `nuisance` replaces the scene's own luck (place in the background, exposure, noise), and then
    nothing stands before the person.
    """
    camera, passage = _passage(seed, scene)
    bones, shot = _stand(seed, pose or scene)
    rng = stream(seed, "nuisance", scene.key, *([] if nuisance is None else [nuisance]))
    canvas = cut_background(scene.camera, rng)
    joints = shot.pixels(bones.joints)
    hidden = np.zeros(18, dtype=bool)
    if scene.kind != "distractor" or rng.random() < 0.5:
        person, depth = draw_person(
            look_of(seed, scene.person), bones, shot, light_of(camera, passage)
        )
        cast_shadow(canvas, joints[[10, 13]], 0.3 + 0.4 * passage.sun)
        canvas = _over(person, canvas)
        hidden = _behind(joints, shot.place(bones.joints)[:, 2], depth)
    else:
        joints = np.full((18, 2), np.nan)
    luck = rng.random()
    if nuisance is None and luck < 0.3 * camera.hidden:
        canvas = _over(_passer_by(seed, scene, rng), canvas)
    image = Image.fromarray(canvas.astype(np.uint8))
    if nuisance is None and 0.3 * camera.hidden <= luck < camera.hidden:
        occlude(image, rng)
    pixels = respond(image, camera, passage, rng)
    return Picture(pixels, joints, hidden, int(rng.integers(*camera.quality, endpoint=True)))


def _over(person: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA over a canvas in 0-255."""
    return person[:, :, :3] + canvas * (1 - person[:, :, 3:] / np.float32(255))


def _behind(joints: np.ndarray, z: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Joints with the surface of another limb in front (a limb's own is at most 14 cm away)."""
    reach = np.array([0.04] + [0.14] * 13 + [0.04, 0.04, 0.05, 0.05])
    return np.asarray(depth_at(depth, joints) < z - reach)


def _passer_by(seed: int, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Somebody else's half, in front of the person."""
    people = RANGES["passers-by"]
    number = people[int(rng.integers(len(people)))]
    camera, passage = _passage(seed, scene)
    bones = pose_skeleton(body_of(seed, number), pose_of(rng))
    view = view_of(camera, passage, rng, bad_box=False)
    aside = float(rng.uniform(0.42, 0.62) * rng.choice([-1.0, 1.0]))
    view = replace(view, shift=(aside, float(rng.uniform(0.0, 0.2))), fill=view.fill * 1.1)
    return draw_person(look_of(seed, number), bones, fit(bones, view), light_of(camera, passage))[0]


# ---------------------------------------------------------------- keypoints as OpenPose gives them

# Chance that a joint is not found: (in view, behind the person's own body).
_LOST = np.array([(0.10, 0.97), (0.003, 0.01)] + [(0.003, 0.012), (0.07, 0.55), (0.14, 0.7)] * 2
                 + [(0.003, 0.01), (0.05, 0.3), (0.12, 0.4)] * 2 + [(0.14, 0.97)] * 2
                 + [(0.10, 0.95)] * 2)  # fmt: skip
_NOBODY = 0.03  # share of pictures in which no person is found
_SWAPPED = 0.025  # share with the legs' or all sides exchanged
_LEGS = [8, 9, 10, 11, 12, 13]


def exact_joints(picture: Picture) -> np.ndarray:
    """(18, 2) px, NaN where the joint is outside the picture."""
    return _inside(picture.joints)


def _inside(joints: np.ndarray) -> np.ndarray:
    whole = np.rint(joints)
    limits = np.array([WIDTH, HEIGHT])
    return np.where(((whole >= 0) & (whole < limits)).all(axis=1)[:, None], joints, np.nan)


def found_joints(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """(18, 2) px as a pose estimator would give them: jitter, swaps, missing joints = NaN."""
    nobody, swap = rng.random(2)
    lost = rng.random(18) < np.where(picture.hidden, _LOST[:, 1], _LOST[:, 0])
    joints = picture.joints + rng.normal(0, 1.0, (18, 2))
    if swap < _SWAPPED / 2:
        joints = mirror(joints, WIDTH)
        joints[:, 0] = WIDTH - 1 - joints[:, 0]
    elif swap < _SWAPPED:
        joints[_LEGS] = joints[_LEGS[3:] + _LEGS[:3]]
    joints[lost] = np.nan
    return np.full((18, 2), np.nan) if nobody < _NOBODY else _inside(joints)
