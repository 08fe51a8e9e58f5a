"""Features -> distances -> mAP, CMC and mINP: single query, exactly as Market-1501 is evaluated.

Gallery images of the query's identity from the query's own camera are discarded, junk (identity
-1) is dropped, distractors (identity 0) stay. Only the positives of a query are ranked (a sort of
the row's values, then a search for each positive), because mAP, CMC and mINP need no other rank;
equal distances keep the gallery's order. Queries are taken in blocks, so memory stays bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pidm_core import BAD_DATA, UserError

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
Metric = Literal["euclidean", "cosine"]

JUNK, DISTRACTOR = -1, 0
SYNTHETIC_NAME = re.compile(r"_pidm\d+(?=\.[^.]+$)")
BLOCK_QUERIES = 256


@dataclass(frozen=True)
class Ranking:
    """How well every query found the other images of its person; shares are in 0 ... 1."""

    mAP: float
    cmc: Floats  # (max_rank,), share of queries with a hit within rank 1, 2, ...
    mINP: float
    queries: int  # all of them, matched or not
    unmatched: int  # queries without a counterpart in another camera: in no figure
    gallery: int  # after dropping junk
    junk: int
    distractors: int
    average_precision: Floats = field(repr=False)  # (queries,), NaN where unmatched

    def rank(self, k: int) -> float:
        """Share of queries with a hit among the first k (the last known rank if k is larger)."""
        return float(self.cmc[min(k, len(self.cmc)) - 1])

    def lines(self) -> str:
        """The result as torchreid prints it, byte for byte, and mINP."""
        ranks = "\n".join(f"Rank-{k:<3}: {self.rank(k):.1%}" for k in (1, 5, 10, 20))
        return f"** Results **\nmAP: {self.mAP:.1%}\nCMC curve\n{ranks}\nmINP: {self.mINP:.1%}"


def evaluate(
    query: Floats,  # (Q, D)
    gallery: Floats,  # (G, D)
    *,
    query_pids: Ints,
    gallery_pids: Ints,
    query_camids: Ints,
    gallery_camids: Ints,
    metric: Metric = "euclidean",
    max_rank: int = 50,
) -> Ranking:
    """Rank the gallery for every query.

    Raises UserError (BAD_DATA) for an empty side, for features that are not finite, all zero or
    all equal (a dead network would otherwise get a score), and if no query has a counterpart.
    """
    keep = np.asarray(gallery_pids) != JUNK
    query, gallery = np.asarray(query, np.float32), np.asarray(gallery, np.float32)[keep]
    check_features(query, "query")
    check_features(gallery, "gallery")
    if metric == "cosine":
        query, gallery = _unit(query), _unit(gallery)
    index = _Positives(gallery_pids=gallery_pids[keep], gallery_camids=gallery_camids[keep])
    positions: list[Ints] = []
    lengths = np.einsum("gd,gd->g", gallery, gallery)
    for start in range(0, len(query), BLOCK_QUERIES):
        block = slice(start, start + BLOCK_QUERIES)
        # |q - g|^2 without |q|^2, which is the same along a row
        distances = lengths - (2 * query[block]) @ gallery.T  # (block, G)
        positions += index.positions(distances, query_pids[block], query_camids[block])
    return _summary(positions, max_rank=max_rank, index=index, junk=int((~keep).sum()))


def evaluate_rank(
    distmat: Floats,  # (Q, G)
    q_pids: Ints,
    g_pids: Ints,
    q_camids: Ints,
    g_camids: Ints,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[Floats, float]:
    """(CMC, mAP) with torchreid's own signature.

    `torchreid.metrics.evaluate_rank = pidm_reid.retrieval.evaluate_rank` makes every torchreid
    engine rank Market-1501 in under half a second instead of a minute, with the same figures.
    """
    if use_metric_cuhk03:
        raise UserError("CUHK03's single-gallery-shot protocol is not offered: use torchreid's own")
    if not np.isfinite(distmat).all():
        raise UserError("distances: NaN or infinite values; the network is broken", BAD_DATA)
    index = _Positives(gallery_pids=g_pids, gallery_camids=g_camids)
    result = _summary(index.positions(distmat, q_pids, q_camids), max_rank=max_rank, index=index)
    return result.cmc, result.mAP


def by_person(ranking: Ranking, query_pids: Ints) -> dict[str, tuple[int, float]]:
    """Identity -> number of its matched queries and the sum of their average precisions."""
    figures: dict[str, tuple[int, float]] = {}
    for pid, precision in zip(query_pids, ranking.average_precision, strict=True):
        if not np.isnan(precision):
            count, total = figures.get(str(pid), (0, 0.0))
            figures[str(pid)] = count + 1, total + float(precision)
    return figures


def check_features(features: Floats, what: str) -> None:
    """Refuse features that cannot rank anything (UserError, BAD_DATA)."""
    if len(features) == 0:
        raise UserError(f"{what}: there are no images", BAD_DATA)
    if not np.isfinite(features).all():
        raise UserError(f"{what} features: NaN or infinite values; the network is broken", BAD_DATA)
    if not features.any():
        raise UserError(f"{what} features: all are zero; the network is broken", BAD_DATA)
    if len(features) > 1 and not np.ptp(features, axis=0).any():
        raise UserError(
            f"{what} features: the same for every image; the network has collapsed", BAD_DATA
        )


def check_names(names: Iterable[str], what: str) -> None:
    """Refuse synthetic images in a query or gallery: a score on them says nothing."""
    if found := [name for name in names if SYNTHETIC_NAME.search(name)]:
        raise UserError(
            f"{what}: {len(found)} synthetic images, such as {found[0]}; "
            "query and gallery must be real",
            BAD_DATA,
        )


class _Positives:
    """The gallery's images by identity, and where those of a query stand in its ranking."""

    def __init__(self, *, gallery_pids: Ints, gallery_camids: Ints) -> None:
        self.pids, self.camids = np.asarray(gallery_pids), np.asarray(gallery_camids)
        self.order = np.argsort(self.pids, kind="stable")
        self.sorted_pids = self.pids[self.order]

    def positions(self, distances: Floats, pids: Ints, camids: Ints) -> list[Ints]:
        """0-based ranks, ascending, of each query's positives among all that is not discarded."""
        return list(self._rows(distances, np.asarray(pids), np.asarray(camids)))

    def _rows(self, distances: Floats, pids: Ints, camids: Ints) -> Iterator[Ints]:
        first = np.searchsorted(self.sorted_pids, pids, "left")
        last = np.searchsorted(self.sorted_pids, pids, "right")
        values = np.sort(distances, axis=1)
        for row, ordered, camid, start, stop in zip(
            distances, values, camids, first, last, strict=True
        ):
            same = self.order[start:stop]
            discard = self.camids[same] == camid
            yield _ranks(row, ordered, same[~discard], same[discard])


def _ranks(row: Floats, ordered: Floats, positives: Ints, discarded: Ints) -> Ints:
    """Ranks of `positives` in a stable order of `row` without the `discarded` images."""
    own = row[positives]
    before = np.searchsorted(ordered, own, "left")
    equal = np.searchsorted(ordered, own, "right") - before
    for k in np.flatnonzero(equal > 1):  # ties: those that stand earlier in the gallery
        before[k] += np.count_nonzero(row[: positives[k]] == own[k])
    if len(discarded):
        other = row[discarded][None, :]
        earlier = (other < own[:, None]) | (
            (other == own[:, None]) & (discarded[None, :] < positives[:, None])
        )
        before = before - earlier.sum(1)
    ranks: Ints = np.sort(before)
    return ranks


def _summary(positions: list[Ints], *, max_rank: int, index: _Positives, junk: int = 0) -> Ranking:
    matched = [ranks for ranks in positions if len(ranks)]
    if not positions or not len(index.pids):
        raise UserError("query or gallery: there are no images", BAD_DATA)
    if not matched:
        raise UserError(
            "no query has an image of its person from another camera in the gallery; "
            "are all images from one camera, or query and gallery of different people?",
            BAD_DATA,
        )
    max_rank = min(max_rank, len(index.pids))
    firsts = np.array([ranks[0] for ranks in matched])
    precision = np.array([_average_precision(ranks) for ranks in positions])
    return Ranking(
        mAP=float(np.nanmean(precision)),
        cmc=(firsts[None, :] <= np.arange(max_rank)[:, None]).mean(1),
        mINP=float(np.mean([len(ranks) / (ranks[-1] + 1) for ranks in matched])),
        queries=len(positions),
        unmatched=len(positions) - len(matched),
        gallery=len(index.pids),
        junk=junk,
        distractors=int((index.pids == DISTRACTOR).sum()),
        average_precision=precision,
    )


def _average_precision(ranks: Ints) -> float:
    if not len(ranks):
        return float("nan")
    return float(np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)))


def _unit(features: Floats) -> Floats:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Floats = features / np.maximum(norms, 1e-12)
    return unit
