"""The classifier of cameras, on images whose camera is plain to see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pidm_core import Record, encode_png, write_bytes
from pidm_reid.cameras import confirmed
from pidm_reid.folder import person

PEOPLE, CAMERAS = 8, 3


def images(root: Path, cameras: dict[tuple[int, int], int]) -> list[Record]:
    """One image per person and camera; its background is that of `cameras`, by default its own."""
    records = []
    for pid in range(1, PEOPLE + 1):
        for camera in range(1, CAMERAS + 1):
            shown = cameras.get((pid, camera), camera)
            image = np.full((32, 16, 3), 60 * shown, dtype=np.uint8)
            image[8:24, 4:12] = np.random.default_rng(pid).integers(0, 256, 3)
            path = root / f"{pid:04d}_c{camera}.png"
            write_bytes(path, encode_png(image))
            records.append(Record(path, path.name, pid, camera))
    return records


def test_cameras_of_two_digits_are_read_whole() -> None:
    assert person("0007_c12s1_000001_00_pidm0000.jpg") == (7, 12)


def test_backgrounds_of_other_cameras_are_counted(tmp_path: Path) -> None:
    real = images(tmp_path / "real", {})
    moved = {(pid, 1): 2 for pid in range(1, 7)}  # six of 24 in front of another camera's wall
    made = images(tmp_path / "made", moved)
    assert confirmed(real, made) == (1.0, 18 / 24)


def test_nobody_is_judged_by_their_own_images(tmp_path: Path) -> None:
    swapped = {(1, 1): 3, (1, 3): 1}  # one person's labels are wrong: learning them would hide it
    real = images(tmp_path / "real", swapped)
    assert confirmed(real, images(tmp_path / "made", swapped)) == (22 / 24, 22 / 24)


@pytest.mark.parametrize(("people", "cameras"), [(range(2), [1]), ([1], range(9)), ([], [])])
def test_nothing_is_said_of_one_camera_one_person_or_no_image(
    tmp_path: Path, people: Sequence[int], cameras: Sequence[int]
) -> None:
    real = images(tmp_path, {})
    some = [record for record in real if record.pid in people and record.camid in cameras]
    assert confirmed(some or real, some) is None
