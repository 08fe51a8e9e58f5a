"""Distances between feature sets: closed forms, a reference square root, cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pidm_core import feature_metrics
from pidm_core.feature_metrics import (
    diversity,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def gaussian(mean: list[float], sd: list[float], rows: int, seed: int) -> np.ndarray:
    """Rows whose sample mean and (diagonal) sample covariance are exactly those given."""
    values = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    values -= values.mean(0)
    white = values @ np.linalg.inv(np.linalg.cholesky(np.cov(values, rowvar=False))).T
    return np.asarray(white * sd + mean)


def test_frechet_of_two_gaussians_is_the_closed_form() -> None:
    a = gaussian([0, 1, 2], [1, 2, 3], rows=40, seed=0)
    b = gaussian([1, 1, 0], [2, 2, 0.5], rows=60, seed=1)
    means = (0 - 1) ** 2 + (1 - 1) ** 2 + (2 - 0) ** 2
    spreads = (1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 0.5) ** 2
    assert frechet_distance(a, b) == pytest.approx(means + spreads, abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_equals_the_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) for _ in range(2))
    c_a, c_b = (np.cov(x, rowvar=False) for x in (a, b))
    root = np.trace(sqrtm(c_a @ c_b)).real
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = means + np.trace(c_a) + np.trace(c_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_frechet_is_exact_with_fewer_images_than_features() -> None:
    x, y = np.eye(50)[:2]
    a = np.stack([x, -x])  # mean 0, covariance 2 in x
    assert frechet_distance(a, np.stack([y, -y])) == pytest.approx(2 + 2, abs=1e-9)
    assert frechet_distance(a, 3 * a) == pytest.approx((18**0.5 - 2**0.5) ** 2, abs=1e-9)


def test_kernel_distance_worked_by_hand() -> None:
    # (x y + 1)^3: within {0, 1} once 1, within {2, 3} once 7^3, across 1, 1, 3^3, 4^3
    expected = 1 + 7**3 - 2 * (1 + 1 + 3**3 + 4**3) / 4
    assert kernel_distance(column(0, 1), column(2, 3)) == pytest.approx(expected)
    # {0, 1} against itself: within once 1 each, across 1, 1, 1 and 2^3
    same = column(0, 1)
    expected = 1 + 1 - 2 * (1 + 1 + 1 + 2**3) / 4
    assert kernel_distance(same, same) == pytest.approx(expected)
    assert kernel_distance(same, same.copy()) == pytest.approx(expected)


def test_kernel_distance_in_blocks_equals_the_sum_over_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_metrics, "_BLOCK_ROWS", 3)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(8, 5)) + 1

    def mean(x: np.ndarray, y: np.ndarray, *, skip: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (skip and i == j)]
        return float(np.mean([(x[i] @ y[j] / 5 + 1) ** 3 for i, j in pairs]))

    expected = mean(a, a, skip=True) + mean(b, b, skip=True) - 2 * mean(a, b, skip=False)
    assert kernel_distance(a, b) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("block", [2, 1024])
def test_precision_and_recall_worked_by_hand(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_metrics, "_BLOCK_ROWS", block)
    real = column(0, 1, 2, 3)  # k = 1: every ball has radius 1, together they reach -1 ... 4
    near = column(3.5, 4.5, 5.5, 10)  # balls of radius 1, 1, 1, 4.5: they reach 2.5 ... 14.5
    assert precision_recall(real, near, k=1) == (1 / 4, 1 / 4)  # 3.5 is inside; 3 is covered
    assert precision_recall(real, real, k=1) == (1, 1)


def test_a_collapsed_generator_is_precise_and_covers_little() -> None:
    assert precision_recall(column(0, 1, 2, 3), column(1, 1, 1, 1), k=1) == (1, 1 / 4)


def test_k_is_the_number_of_other_points() -> None:
    real, point = column(0, 1, 3, 6), column(9, 9, 9, 9)
    # the ball of 6 reaches its nearest 3 with k = 1, its third 0 with k = 3
    assert precision_recall(real, point, k=1)[0] == 1
    assert precision_recall(real, column(9.5, 9.5, 9.5, 9.5), k=1)[0] == 0
    assert precision_recall(real, column(12, 12, 12, 12), k=3)[0] == 1


def test_diversity_worked_by_hand() -> None:
    features = np.array([[0, 0], [0, 0], [3, 4], [0, 1], [0, 3], [9, 9]], dtype=float)
    conditions = ["a", "b", "a", "b", "b", "c"]
    # a: 5; b: 1, 3 and 2; c is alone
    assert diversity(features, conditions) == pytest.approx((5 + (1 + 3 + 2) / 3) / 2)
    assert diversity(features, list("abcdef")) is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="at least 4"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
