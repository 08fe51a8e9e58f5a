"""Which generated images to keep: those that are taken for the right person, in new poses.

An image is judged by a network that was trained on other people (see `folds`), because a
network's features of its own training images have collapsed and look alike whatever they show.
Thresholds come from real images by the same network: how like are two real images of a person?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from pidm_core import BAD_DATA, UserError
from pidm_reid import plan, retrieval
from pidm_reid.config import SelectionConfig

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Reason = Literal["", "another person", "near copy", "surplus"]


@dataclass(frozen=True)
class Choice:
    """What became of one generated image, and why. Similarities are cosines, -1 ... 1."""

    file_name: str
    kept: bool
    reason: Reason  # what speaks against it, though it may have been kept for want of better ones
    own: float | None  # to the nearest real image of its person but the source; None = no other
    other: float  # to the nearest real image of another person
    source: float  # to its source
    nearest: str  # the nearest real image but the source
    score: float  # own - other, or source - other


def folds(pids: Sequence[int], *, seed: int) -> tuple[set[int], set[int]]:
    """Two halves of the people, each judged by a network trained on the other half."""
    people = plan.shuffled(set(pids), seed=seed, key=str)
    if len(people) < 4:
        raise UserError(f"selection: {len(people)} people are too few for two halves", BAD_DATA)
    return set(people[::2]), set(people[1::2])


def select(
    names: Sequence[str],
    *,
    features: Floats,  # (C, D) of the generated images
    sources: Ints,  # (C,) index of each one's source among the real images
    poses: Floats,  # (C, P) what tells poses apart, equal distances counting equally
    real_names: Sequence[str],
    real_features: Floats,  # (R, D)
    real_pids: Ints,  # (R,)
    keep: Mapping[int, int],  # images to be kept of each person
    config: SelectionConfig,
) -> tuple[list[Choice], dict[str, float]]:
    """Judge the generated images of one fold and keep `keep[pid]` of every person.

    The choices, and of each real image the similarity to the nearest other one of its person.

    First those against which nothing speaks, by likeness and by how unlike their pose is to the
    poses already kept, as the weights say, and of equal ones the earlier; then, if these are too
    few, the rest by score.
    Raises UserError (BAD_DATA) for features that are not finite or all alike.
    """
    real_pids, sources = np.asarray(real_pids), np.asarray(sources)
    retrieval.check_features(features, "generated images")
    retrieval.check_features(real_features, "real images")
    real, made = _unit(real_features), _unit(features)
    pids = real_pids[sources]
    judged = _similarities(made, pids, sources, real, real_pids)
    known = _similarities(real, real_pids, np.arange(len(real)), real, real_pids)
    # A weak network takes real images for other people's as well: only what is worse tells.
    confused = min(0.0, _quantile(known.own - known.other, config.confused, default=0.0))
    copies = _quantile(known.own, config.copy, default=1.0)
    like = np.where(np.isnan(judged.own), judged.source, judged.own)
    scores = like - judged.other
    reasons: list[Reason] = np.select(
        [
            scores < confused,
            np.fmax(judged.source, like) > copies,
        ],
        ["another person", "near copy"],
        default="",
    ).tolist()
    kept: set[int] = set()
    for pid in np.unique(pids):
        mine = np.flatnonzero(pids == pid)
        kept |= set(_best(mine, scores, poses, reasons, keep.get(int(pid), 0), config))
    choices = [
        Choice(
            file_name=name,
            kept=k in kept,
            reason=reasons[k] or ("" if k in kept else "surplus"),
            own=None if np.isnan(judged.own[k]) else round(float(judged.own[k]), 4),
            other=round(float(judged.other[k]), 4),
            source=round(float(judged.source[k]), 4),
            nearest=real_names[judged.nearest[k]],
            score=round(float(scores[k]), 4),
        )
        for k, name in enumerate(names)
    ]
    pairs = zip(real_names, known.own.tolist(), strict=True)
    return choices, {name: round(own, 4) for name, own in pairs if not np.isnan(own)}


def _best(
    mine: Ints,
    scores: Floats,
    poses: Floats,
    reasons: Sequence[Reason],
    count: int,
    config: SelectionConfig,
) -> list[int]:
    """`count` of one person's images, chosen one after the other."""
    good = [int(k) for k in mine if not reasons[k]]
    bad = sorted((int(k) for k in mine if reasons[k]), key=lambda k: (-scores[k], k))
    chosen: list[int] = []
    while good and len(chosen) < count:
        novelty = [
            min((float(np.linalg.norm(poses[k] - poses[c])) for c in chosen), default=0.0)
            for k in good
        ]
        values = [
            config.likeness_weight * scores[k] + config.pose_weight * new
            for k, new in zip(good, novelty, strict=True)
        ]
        chosen.append(good.pop(int(np.argmax(values))))
    return chosen + bad[: count - len(chosen)]


# ---------------------------------------------------------------- similarities


@dataclass(frozen=True)
class _Similarities:
    own: Floats  # NaN where the person has no image but the source
    other: Floats
    source: Floats
    nearest: Ints


def _similarities(
    images: Floats, pids: Ints, sources: Ints, real: Floats, real_pids: Ints
) -> _Similarities:
    """Of each image to the real ones: nearest of its person, nearest of another, its source."""
    index = faiss.IndexFlatIP(real.shape[1])
    index.add(real)
    most = int(np.unique(real_pids, return_counts=True)[1].max())
    found, ids = index.search(images, min(len(real), most + 1))  # one at least is of another
    strange = real_pids[ids] != pids[:, None]
    if not strange.any(1).all():
        raise UserError("selection: the real images show a single person", BAD_DATA)
    rows, first = np.arange(len(images)), strange.argmax(1)
    own, nearest = np.full(len(images), np.nan, np.float32), ids[rows, first]
    groups: dict[int, list[int]] = defaultdict(list)
    for k, pid in enumerate(real_pids):
        groups[int(pid)].append(k)
    other = found[rows, first]
    for k, pid in enumerate(pids):
        mates = [m for m in groups[int(pid)] if m != sources[k]]
        if mates:
            values = real[mates] @ images[k]
            own[k] = values.max()
            if own[k] >= other[k]:
                nearest[k] = mates[int(values.argmax())]
    return _Similarities(own, other, np.einsum("cd,cd->c", images, real[sources]), nearest)


def _quantile(values: Floats, share: float, *, default: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.quantile(known, share)) if len(known) else default


def _unit(features: Floats) -> Floats:
    features = np.ascontiguousarray(features, np.float32)
    unit: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit
