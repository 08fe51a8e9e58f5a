"""Pose maps against the maps the official code drew (tests/golden/pose_maps.npz)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pidm_core.keypoints import mirror
from pidm_core.pose import CHANNELS, LIMBS, pose_map, skeleton

GOLDEN = Path(__file__).parent / "golden" / "pose_maps.npz"


@pytest.fixture(scope="module")
def golden() -> tuple[torch.Tensor, np.ndarray]:
    """Keypoints (2, 18, 2) and uint8 maps (2, 20, 256, 256); the second person has gaps."""
    with np.load(GOLDEN, allow_pickle=False) as data:
        return torch.tensor(data["keypoints"]), data["maps"]


def test_the_maps_are_the_official_ones(golden: tuple[torch.Tensor, np.ndarray]) -> None:
    keypoints, expected = golden
    maps = pose_map(keypoints, (256, 256))
    assert maps.shape == expected.shape
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    levels = np.abs(maps.numpy() * 255 - expected)
    assert (levels[:, 3:] <= 1.34).all()  # the authors cut distances to whole levels
    assert (levels[:, :3].max(1) <= 2).mean() > 0.998  # in all three colours


def brute_force(start: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """L1 distance, px of the official frame, to a limb's ellipse given by its outline's points."""
    zoom = 256 / size[0]
    start, end = (start + 0.5) * zoom - 0.5, (end + 0.5) * zoom - 0.5
    centre, half = np.trunc((start + end) / 2), np.trunc(np.linalg.norm(start - end) / 2)
    angle = np.radians(np.trunc(np.degrees(np.arctan2(*(start - end)[::-1]))))
    along, across = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turn = np.linspace(0, 2 * np.pi, 2000)[:, None]
    outline = centre + half * np.cos(turn) * along + 4 * np.sin(turn) * across
    y, x = np.indices(size)
    pixels = (np.stack([x, y], axis=-1) + 0.5) * zoom - 0.5
    distance = np.abs(pixels[..., None, :] - outline).sum(-1).min(-1)
    away = pixels - centre
    inside = ((away @ along) / half) ** 2 + ((away @ across) / 4) ** 2 <= 1
    return np.where(inside, 0, distance)


@pytest.mark.parametrize(
    ("start", "end"),
    [((20, 30), (7, 41)), ((3, 9), (30, 9.4)), ((12, 60), (12.2, 30)), ((2, 2), (30, 50))],
)
def test_distances_are_exact(start: tuple[float, float], end: tuple[float, float]) -> None:
    keypoints = torch.full((1, 18, 2), torch.nan)
    keypoints[0, 2], keypoints[0, 3] = torch.tensor(start), torch.tensor(end)
    maps = pose_map(keypoints, (64, 32))[0, 3:].numpy()
    expected = brute_force(np.array(start), np.array(end), (64, 32))
    limb = LIMBS.index((2, 3))
    np.testing.assert_allclose(maps[limb] * 255 * 3, expected, atol=0.15)
    assert (np.delete(maps, limb, axis=0) == 1).all()


def test_a_joint_is_drawn_in_its_colour_at_its_place() -> None:
    keypoints = torch.full((1, 18, 2), torch.nan)
    keypoints[0, 4] = torch.tensor([40.0, 90.0])  # right wrist, drawn alone
    drawing = pose_map(keypoints, (128, 64))[0, :3]
    lit = drawing.sum(0) > 0
    rows, columns = np.nonzero(lit.numpy())
    assert (len(set(rows)), len(set(columns))) == (4, 4)  # radius 4 in a frame twice as high
    assert abs(rows.mean() - 90) <= 0.5
    assert abs(columns.mean() - 40) <= 0.5
    assert (drawing[:, lit] == torch.tensor([0, 255, 170])[:, None] / 255).all()


def test_a_skeleton_is_the_picture_of_the_official_map(
    golden: tuple[torch.Tensor, np.ndarray],
) -> None:
    keypoints, maps = golden
    drawn = skeleton(keypoints[1].numpy(), (256, 256))
    assert (drawn.shape, drawn.dtype) == ((256, 256, 3), np.uint8)
    levels = np.abs(drawn.astype(int) - maps[1, :3].transpose(1, 2, 0))
    assert (levels.max(-1) <= 2).mean() > 0.998


def test_nobody_is_not_the_null_condition() -> None:
    maps = pose_map(torch.full((2, 18, 2), torch.nan), (64, 32))
    assert maps.shape == (2, CHANNELS, 64, 32)
    assert (maps[:, :3] == 0).all()
    assert (maps[:, 3:] == 1).all()


def test_a_larger_frame_shows_the_same_drawing(golden: tuple[torch.Tensor, np.ndarray]) -> None:
    keypoints = golden[0]
    large = pose_map(keypoints, (256, 256))
    small = pose_map((keypoints + 0.5) / 2 - 0.5, (128, 128))
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (small[:, 3:] - halved[:, 3:]).abs().max() < 1 / 255
    assert ((small - halved)[:, :3].abs() < 0.5).float().mean() > 0.995


def test_mirrored_keypoints_swap_the_limbs(golden: tuple[torch.Tensor, np.ndarray]) -> None:
    keypoints = golden[0][:1]
    maps = pose_map(keypoints, (256, 256))
    flipped = pose_map(torch.tensor(mirror(keypoints.numpy(), 256)), (256, 256))
    right, left = 3 + LIMBS.index((2, 3)), 3 + LIMBS.index((5, 6))
    difference = flipped[:, left].flip(-1) - maps[:, right]
    assert difference.abs().max() < 1.5 / 255  # whole pixels are cut on the other side


def test_each_map_is_its_own_whatever_the_batch(golden: tuple[torch.Tensor, np.ndarray]) -> None:
    keypoints = golden[0]
    together = pose_map(keypoints.repeat(3, 1, 1), (64, 32))
    alone = pose_map(keypoints[1:], (64, 32))
    assert torch.equal(together[3], alone[0])


def test_joints_outside_the_frame_and_limbs_without_length_do_no_harm() -> None:
    keypoints = torch.full((1, 18, 2), 5.0)
    keypoints[0, ::3] = torch.tensor([-40.0, 300.0])
    maps = pose_map(keypoints, (128, 64))
    assert torch.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert pose_map(keypoints[:0], (128, 64)).shape == (0, CHANNELS, 128, 64)
