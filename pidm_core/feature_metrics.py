"""Distances between two sets of features: Fréchet, kernel, precision and recall; diversity of one.

Features are the rows of (N, D) arrays, from any network. FID and KID are the Fréchet and the kernel
distance of Inception features; in other features the same numbers are not called so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
NEIGHBOURS = 3  # k of precision and recall, as in the paper that introduced them
_BLOCK_ROWS = 1024


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance of the Gaussians with the mean and covariance of each set (at least 2 rows).

    |m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al. 2017. With C = F^T F the last
    term is the sum of the singular values of F_a F_b^T. This stays exact where a covariance is
    singular (fewer images than features) and a matrix square root is not.
    """
    _check(a, b, rows=2)
    (mean_a, factor_a), (mean_b, factor_b) = _gaussian(a), _gaussian(b)
    shared = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = (factor_a**2).sum() + (factor_b**2).sum() - 2 * shared
    return float(((mean_a - mean_b) ** 2).sum() + spread)


def _gaussian(features: Features) -> tuple[Features, Features]:
    """The mean (D,), and a factor F with F^T F = sample covariance, of at most D rows."""
    values = features.astype(np.float64)
    mean = values.mean(0)
    values -= mean
    values /= np.sqrt(len(values) - 1)
    if len(values) > values.shape[1]:
        values = np.asarray(np.linalg.qr(values, mode="r"))
    return mean, values


def kernel_distance(a: Features, b: Features) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, Bińkowski et al. 2018; may be negative.

    Over all rows of both sets (at least 2 each); the usual mean over random subsets of 1,000
    estimates the same number with more noise.
    """
    _check(a, b, rows=2)
    within = _mean_kernel(a, a, skip_itself=True) + _mean_kernel(b, b, skip_itself=True)
    return within - 2 * _mean_kernel(a, b)


def _mean_kernel(a: Features, b: Features, *, skip_itself: bool = False) -> float:
    """Mean of the kernel over all pairs of rows; skip_itself: `b` is `a`, no row with itself."""
    width = a.shape[1]
    other = b.astype(np.float64).T
    total = sum(((rows @ other / width + 1) ** 3).sum() for rows in _blocks(a))
    if not skip_itself:
        return float(total / (len(a) * len(b)))
    same = (((a.astype(np.float64) ** 2).sum(1) / width + 1) ** 3).sum()
    return float((total - same) / (len(a) * (len(a) - 1)))


def precision_recall(
    real: Features, generated: Features, *, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Fidelity and mode coverage (Kynkäänniemi et al. 2019), both in 0 ... 1.

    Precision is the share of generated points that lie in a ball around some real point which
    reaches to its k-th nearest other real point; recall is the same with the sets exchanged.
    Raises ValueError for a set of fewer than k + 1 rows.
    """
    _check(real, generated, rows=k + 1)
    real_radius, generated_radius = _radii(real, k), _radii(generated, k)
    precise, recalled = [], np.zeros(len(real), dtype=bool)
    for distance, radius in zip(
        _distances(generated, real), _blocks(generated_radius), strict=True
    ):
        precise.append((distance <= real_radius).any(1))
        recalled |= (distance <= radius[:, None]).any(0)
    return float(np.concatenate(precise).mean()), float(recalled.mean())


def _radii(points: Features, k: int) -> Features:
    """Squared distance of each point to its k-th nearest other point."""
    # column 0 of the sorted row is the point itself
    return np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(points, points)])


def _distances(a: Features, b: Features) -> Iterator[Features]:
    """Squared Euclidean distances of blocks of rows of `a` to all of `b`."""
    other = b.astype(np.float64)
    lengths = (other**2).sum(1)
    for rows in _blocks(a):
        squares = (rows**2).sum(1)[:, None] + lengths - 2 * rows @ other.T
        yield np.maximum(squares, 0)


def diversity(features: Features, conditions: Sequence[str]) -> float | None:
    """Mean Euclidean distance of two images of one condition (other seeds), mean over conditions.

    conditions: what each row was generated from; those with a single image do not count.
    None where no condition has two.
    """
    from scipy.spatial.distance import pdist  # type: ignore[import-untyped]

    groups: dict[str, list[int]] = defaultdict(list)
    for row, condition in enumerate(conditions):
        groups[condition].append(row)
    means = [pdist(features[rows]).mean() for rows in groups.values() if len(rows) > 1]
    return float(np.mean(means)) if means else None


def _blocks(values: Features) -> Iterator[Features]:
    for start in range(0, len(values), _BLOCK_ROWS):
        yield values[start : start + _BLOCK_ROWS].astype(np.float64)


def _check(a: Features, b: Features, *, rows: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"shapes {a.shape} and {b.shape}; expected (N, D) and (M, D)")
    if min(len(a), len(b)) < rows:
        raise ValueError(f"{len(a)} and {len(b)} rows; at least {rows} each are needed")
