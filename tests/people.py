"""A made-up Market-1501 folder for tests: coloured rectangles with joints, and a fake renderer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core import encode_jpeg, write_bytes, write_keypoints
from pidm_reid import compat, synthesize
from pidm_reid.synthesize import Generator, Request, Work, prepare

HEIGHT, WIDTH = 64, 32


def draw_person(pid: int, shot: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 (H, W, 3): shirt and trousers in the person's colours, background by the shot."""
    shirt, trousers = np.random.default_rng(pid).integers(0, 256, (2, 3))
    image = np.full((height, width, 3), 40 + 20 * (shot % 8), dtype=np.uint8)
    left, right = width // 4, width - width // 4
    image[height // 8 : height // 2, left:right] = shirt
    image[height // 2 : height - height // 8, left:right] = trousers
    return image


def joints(shot: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """float32 (18, 2) px, different in every shot; all are missing in every ninth."""
    if shot % 9 == 8:
        return np.full((18, 2), np.nan, dtype=np.float32)
    rng = np.random.default_rng(shot)
    return np.stack(
        [rng.integers(4, width - 4, 18), rng.integers(4, height - 4, 18)], axis=1
    ).astype(np.float32)


def make_market(
    root: Path,
    *,
    train: int = 6,
    test: int = 4,
    cameras: int = 3,
    shots: int = 2,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> Path:
    """Write root/market1501 with train people 2, 4, …, test people 1, 3, …, junk and distractors.

    Every person has `shots` images by each camera; of each test person and camera the first is
    the query. A PATN file of joints lies beside the three folders.
    """
    home, keypoints = root / "market1501", {}

    def write(subset: str, pid: int, camera: int, shot: int) -> None:
        name = (
            f"{pid:04d}_c{camera}s1_{shot:06d}_00.jpg"
            if pid >= 0
            else f"-1_c{camera}s1_{shot:06d}_00.jpg"
        )
        image = draw_person(max(pid, 0), 10 * camera + shot, height, width)
        write_bytes(home / subset / name, encode_jpeg(image))
        if subset == "bounding_box_train":
            keypoints[name] = joints(len(keypoints), height, width)

    for person in range(train):
        for camera in range(1, cameras + 1):
            for shot in range(shots):
                write("bounding_box_train", 2 + 2 * person, camera, shot)
    for person in range(test):
        for camera in range(1, cameras + 1):
            for shot in range(shots):
                write("bounding_box_test" if shot else "query", 1 + 2 * person, camera, shot)
    for shot in range(3):
        write("bounding_box_test", -1, 1, shot)
        write("bounding_box_test", 0, 1, shot)
    write_keypoints(home / "market-annotation-train.csv", keypoints)
    return root


def tint(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
    """A renderer: the source, coloured by the seed and marked where the nose is."""
    images = sources.copy()
    for image, points, seed in zip(images, keypoints, seeds, strict=True):
        image[..., seed % 3] //= 2
        x, y = points[0].astype(int)
        image[y, x] = seed % 251
    return images


TINT = Generator(tint, "tint 1", {"steps": 3}, batch_size=4)


def planned(market: Path, **changes: Any) -> Work:
    """A plan for half of the made-up market, filled up to its size."""
    request = Request(market, market / "market1501/market-annotation-train.csv", 0.5)
    return prepare(dataclasses.replace(request, **changes))


def render_all(work: Work, out: Path, generator: Generator = TINT, **options: Any) -> int:
    """Render what is still to render; the number of images."""
    todo = synthesize.start(work, generator, out, **options)
    shard = options.get("shard", (1, 1))
    return sum(synthesize.synthesize(todo, work, generator, out, shard=shard))


def data_manager(market: Path, sources: list[str], **options: Any) -> Any:
    """torchreid's data manager of small images in batches of twelve."""
    with compat.quiet():
        return compat.torchreid().data.ImageDataManager(
            root=str(market),
            sources=sources,
            targets="market1501",
            height=HEIGHT,
            width=WIDTH,
            batch_size_train=12,
            num_instances=2,
            num_cams=3,
            num_datasets=2,
            use_gpu=False,
            **options,
        )


def standing(view: str, *, torso: float = 20, shift: float = 0) -> np.ndarray:
    """float32 (18, 2) px: somebody upright, `torso` px long, facing as in coverage.VIEWS.

    `shift` px lengthen the stride: another posture in the same view.
    """
    shoulder, nose = {
        "front": (0.3, 0.0), "right": (0.0, 0.4), "back": (-0.3, np.nan), "left": (0.0, -0.4),
    }[view]  # fmt: skip
    places = {
        0: [nose, -0.25],
        2: [-shoulder, 0], 5: [shoulder, 0],
        8: [-0.1, 1], 11: [0.1, 1],
        10: [-0.1 - shift / torso, 2], 13: [0.1 + shift / torso, 2],
    }  # fmt: skip
    person = np.full((18, 2), np.nan, dtype=np.float32)
    for joint, place in places.items():
        person[joint] = np.array([16, 12]) + torso * np.array(place)
    return person
