"""Which views and postures of people there are: poses sorted into cells.

A view is a quarter turn of the body, a posture a cluster of the poses of one view. Shapes are
whole numbers, so that sums are exact and cells the same on every machine, for every numpy.

(N, 18, 2)  joints in pixels of one frame, NaN = missing
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pidm_core import JOINTS, orientation

VIEWS = ("front", "right", "back", "left")  # where the person faces, as the camera sees it
POSTURES = 4  # clusters of each view, ...
_POSES_EACH = 16  # ... if it has as many poses for each
_SAMPLE = 400  # most complete poses of a view, among which centres are looked for; at most half
_UNIT = 64  # parts of a torso
_SHOULDERS = [JOINTS.index("right_shoulder"), JOINTS.index("left_shoulder")]
_HIPS = [JOINTS.index("right_hip"), JOINTS.index("left_hip")]


def torso(joints: np.ndarray) -> np.ndarray:
    """Middle of the shoulders to middle of the hips, (N, 18, 2) -> (N,) px; NaN = cannot tell."""
    exact = np.asarray(joints, dtype=np.float64)
    x, y = (exact[:, _SHOULDERS].sum(1) - exact[:, _HIPS].sum(1)).T / 2
    length = np.sqrt(x * x + y * y)  # (np.hypot differs between machines)
    return np.where(length > 0, length, np.nan)


def view(joints: np.ndarray) -> np.ndarray:
    """Index into VIEWS, (N, 18, 2) -> (N,) int; -1 = cannot tell."""
    turns = np.rint(orientation(joints) / 90) % len(VIEWS)
    return np.where(np.isnan(turns), -1, turns).astype(int)


def facing(joints: np.ndarray) -> list[str]:
    """The view of each pose (N, 18, 2) as a word: one of VIEWS, or 'unknown'."""
    return [(*VIEWS, "unknown")[k] for k in view(joints)]


@dataclass(frozen=True)
class Cells:
    """Views, each divided by the nearest of its centres."""

    centres: tuple[np.ndarray, ...]  # shapes (postures, 18, 2) of each view

    def of(self, joints: np.ndarray) -> np.ndarray:
        """The cell of each pose, (N, 18, 2) -> (N,) int: view * POSTURES + posture.

        -1 where the view cannot be told, or where no pose of it was divided.
        """
        cells, views = np.full(len(joints), -1), view(joints)
        for k, centres in enumerate(self.centres):
            here = np.flatnonzero(views == k)
            if len(here) and len(centres):
                shapes = _shapes(joints[here])
                distances = np.stack([_distances(shapes, centre) for centre in centres])
                cells[here] = k * POSTURES + distances.argmin(0)
        return cells


def divide(joints: np.ndarray, hashes: Sequence[str]) -> Cells:
    """Cells for poses (N, 18, 2); `hashes` of their joints order those that are equally complete.

    Centres are complete poses: one that shows no limbs would be near to all.
    """
    gaps, views = np.isnan(joints).any(-1).sum(1), view(joints)
    order = np.lexsort((np.array(hashes), gaps))
    centres = []
    for k in range(len(VIEWS)):
        here = order[views[order] == k]
        number = min(POSTURES, math.ceil(len(here) / _POSES_EACH))
        complete = here[: min(_SAMPLE, math.ceil(len(here) / 2))]
        centres.append(_centres(_shapes(joints[complete]), number))
    return Cells(tuple(centres))


def _shapes(joints: np.ndarray) -> np.ndarray:
    """Joints from the middle of the hips in 64ths of the torso, whole numbers; NaN = missing."""
    exact = np.asarray(joints, dtype=np.float64)
    middle = exact[:, _HIPS].sum(1, keepdims=True) / 2
    return np.asarray(np.rint((exact - middle) / torso(exact)[:, None, None] * _UNIT))


def _distances(shapes: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Mean squared distance of the joints that both show, (N, 18, 2), (18, 2) -> (N,), whole."""
    return np.asarray(np.floor(np.nanmean(((shapes - one) ** 2).sum(-1), axis=1)))


def _centres(shapes: np.ndarray, number: int) -> np.ndarray:
    """Those of the shapes that, one after another, bring all nearest to a centre (k-medoids).

    The BUILD step of PAM, Kaufman and Rousseeuw 1990. Unlike the farthest points, centres are
    typical poses, not faulty joints.
    """
    if not number:
        return shapes[:0]
    table = np.stack([_distances(shapes, one) for one in shapes])  # (n, n)
    nearest, chosen = np.full(len(shapes), np.inf), []
    for _ in range(number):
        chosen.append(int(np.minimum(table, nearest).sum(1).argmin()))
        nearest = np.minimum(nearest, table[chosen[-1]])
    return shapes[chosen]


def postures(joints: np.ndarray) -> np.ndarray:
    """Joints (N, 18, 2) px from the middle of the hips in units of the torso, (N, 36).

    A missing joint stands where it is on average, so that it makes no pose a new one.
    """
    middle = joints[:, _HIPS].mean(1, keepdims=True)
    shapes = (joints - middle) / torso(joints)[:, None, None]
    known = ~np.isnan(shapes)
    mean = np.where(known, shapes, 0).sum(0) / np.maximum(known.sum(0), 1)
    flat: np.ndarray = np.where(known, shapes, mean).reshape(len(joints), -1)
    return flat
