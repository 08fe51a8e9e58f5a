"""Views, postures and body heights of poses, against hand-made people."""

from __future__ import annotations

import itertools

import numpy as np
from people import standing

from pidm_core import NOBODY, mirror
from pidm_reid import coverage


def divided(poses: list[np.ndarray]) -> tuple[coverage.Cells, np.ndarray]:
    joints = np.stack(poses)
    cells = coverage.divide(joints, [f"{k:04}" for k in range(len(joints))])
    return cells, cells.of(joints)


def test_views_are_quarter_turns_and_mirror_to_the_other_side() -> None:
    people = np.stack([standing(view) for view in coverage.VIEWS])
    assert coverage.view(people).tolist() == [0, 1, 2, 3]
    assert coverage.view(mirror(people, 32)).tolist() == [0, 3, 2, 1]


def test_who_shows_no_joints_or_stands_on_the_head_has_no_view() -> None:
    upside_down = standing("front") * [1, -1] + [0, 64]
    assert coverage.view(np.stack([NOBODY, upside_down])).tolist() == [-1, -1]


def test_torso_is_measured_between_the_middles_in_any_direction() -> None:
    lying = standing("front", torso=30)[:, ::-1]
    coinciding = np.zeros((18, 2))
    found = coverage.torso(np.stack([standing("back", torso=24), lying, NOBODY, coinciding]))
    np.testing.assert_allclose(found, [24, 30, np.nan, np.nan])


def test_strides_of_two_lengths_are_two_postures_whatever_the_size_and_place() -> None:
    poses = []
    for torso in range(10, 26):
        poses.append(standing("front", torso=torso, shift=0))
        poses.append(standing("front", torso=torso, shift=torso / 2) + 5)
    _, cells = divided(poses)
    assert set(cells[::2]) in ({0}, {1})
    assert set(cells[1::2]) == {0, 1} - set(cells[::2])


def test_centres_are_the_best_next_choice_as_in_pam() -> None:
    poses = [standing("front", shift=k * k / 8) for k in range(64)]
    cells, _ = divided(poses)
    shapes = coverage._shapes(np.stack(poses[:32]))  # of equally complete poses the first half
    table = [[coverage._distances(a[None], b)[0] for b in shapes] for a in shapes]
    chosen: list[int] = []
    for _ in range(4):
        costs = [sum(min(row[k] for k in (*chosen, new)) for row in table) for new in range(32)]
        chosen.append(costs.index(min(costs)))
    np.testing.assert_array_equal(cells.centres[0], shapes[chosen])


def test_distance_counts_the_joints_that_both_show() -> None:
    near, far = standing("front"), standing("front", shift=5)  # ankles a quarter torso apart
    far[10] = np.nan
    found = coverage._distances(coverage._shapes(near[None]), coverage._shapes(far[None])[0])
    assert found.tolist() == [16**2 // 6]  # one ankle of nose, shoulders, hips and ankle


def test_cells_do_not_depend_on_the_order_of_the_poses() -> None:
    poses = np.stack([standing(v, shift=k / 3) for v in coverage.VIEWS for k in range(40)])
    hashes = [f"{k * 7919 % 1009:04}" for k in range(len(poses))]
    straight = coverage.divide(poses, hashes)
    turned = coverage.divide(poses[::-1], hashes[::-1])
    for a, b in zip(straight.centres, turned.centres, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_view_that_no_pose_shows_is_no_cell() -> None:
    cells, found = divided([standing("front"), standing("back"), NOBODY])
    assert found.tolist() == [0, 2 * coverage.POSTURES, -1]
    assert cells.of(standing("left")[None]).tolist() == [-1]


def test_few_poses_are_not_divided_further() -> None:
    for number, postures in itertools.zip_longest((1, 16, 17, 48, 49, 400), (1, 1, 2, 3, 4, 4)):
        cells, _ = divided([standing("right", shift=k / 9) for k in range(number)])
        assert [len(centres) for centres in cells.centres] == [0, postures, 0, 0]


def body(right: float, left: float, nose: float) -> np.ndarray:
    """Joints of a torso of 40 px, its shoulders and nose at these x."""
    joints = np.full((18, 2), np.nan)
    joints[[2, 5, 8, 11]] = [[right, 20], [left, 20], [right, 60], [left, 60]]
    joints[0] = nose, 10
    return joints


def test_people_face_one_of_four_sides_or_nobody_knows() -> None:
    people = [
        body(15, 45, 30),  # the left shoulder on the image's right: from the front
        body(45, 15, np.nan),
        body(30, 30, 48),
        body(30, 30, 12),
        np.full((18, 2), np.nan),
    ]
    assert coverage.facing(np.stack(people)) == ["front", "back", "right", "left", "unknown"]


def test_postures_do_not_depend_on_place_and_size_and_a_missing_joint_is_no_news() -> None:
    small, large = standing("front", torso=20), standing("front", torso=30)
    same = coverage.postures(np.stack([small, large + 7]))
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    gap = standing("front", torso=20)
    gap[0] = np.nan
    one, other = coverage.postures(np.stack([small, gap]))
    np.testing.assert_allclose(one, other, atol=1e-5)
