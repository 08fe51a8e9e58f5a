"""Features -> distances -> mAP, CMC and mINP: single query, exactly as Market-1501 is evaluated.

Gallery images of the query's identity from the query's own camera are discarded, junk (identity
-1) is dropped, distractors (identity 0) stay. Only the positives of a query are ranked, each by
counting what stands before it, because mAP, CMC and mINP need no other rank; equal distances keep
the gallery's order. Queries are taken in blocks and the gallery in chunks, so that memory stays
bounded whatever the gallery's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pidm_core import BAD_DATA, UserError
from pidm_reid import compat

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Metric = Literal["euclidean", "cosine"]

JUNK, DISTRACTOR = -1, 0
SYNTHETIC_NAME = re.compile(r"_pidm\d+(?=\.[^.]+$)")
BLOCK_BYTES = 512 << 20  # distances of one block of queries to the whole gallery
CHUNK_BYTES = 32 << 20  # features that are made float32 at one time
RERANK_MATRICES = 6  # of (Q + G)^2 float32 at the peak of torchreid's re_ranking
RERANK_GB = 16.0
NO_MATCH = (
    "no query has an image of its person from another camera in the gallery; "
    "are all images from one camera, or query and gallery of different people?"
)


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

    Features may be float16 or memory maps and are never copied whole: beside them this needs
    BLOCK_BYTES and CHUNK_BYTES, so 500,000 distractors of 2048 float16 features fit into 4 GB.
    Raises UserError (BAD_DATA) for an empty side, for features that are not finite, all zero or
    all equal (a dead network would otherwise get a score), and if no query has a counterpart.
    """
    query, gallery = _checked(
        query, gallery, query_pids, query_camids, gallery_pids, gallery_camids
    )
    index = _Positives(gallery_pids, gallery_camids, taken=np.asarray(gallery_pids) != JUNK)
    check_features(query, "query")
    lengths = check_features(gallery, "gallery", taken=index.taken)
    positions: list[Ints] = []
    for block, distances in _blocks(query, gallery, lengths=lengths, metric=metric):
        distances[:, ~index.taken] = np.inf  # behind every rank that counts
        positions += index.positions(distances, query_pids[block], query_camids[block])
    return _summary(positions, max_rank=max_rank, index=index)


def rerank(
    query: Floats,  # (Q, D)
    gallery: Floats,  # (G, D)
    *,
    query_pids: Ints,
    gallery_pids: Ints,
    query_camids: Ints,
    gallery_camids: Ints,
    metric: Metric = "euclidean",
    max_rank: int = 50,
    k1: int = 20,  # nearest images that must name one another
    k2: int = 6,  # nearest images over which the encoding is averaged
    weight: float = 0.3,  # lambda, the share of the plain distance
    limit_gb: float = RERANK_GB,
) -> Ranking:
    """Rank by k-reciprocal encoding (Zhong et al., CVPR 2017), as torchreid's engine does.

    torchreid's `re_ranking` holds up to six float32 matrices of (Q + G) x (Q + G), which is 9 GB
    for Market-1501's 3,368 queries and 15,913 images; it is for galleries of that size.
    Raises UserError beyond `limit_gb`, and as `evaluate` does.
    """
    query, gallery = _checked(
        query, gallery, query_pids, query_camids, gallery_pids, gallery_camids
    )
    index = _Positives(gallery_pids, gallery_camids, taken=np.asarray(gallery_pids) != JUNK)
    refuse_large(len(query), int(index.taken.sum()), limit_gb)
    check_features(query, "query")
    check_features(gallery, "gallery", taken=index.taken)
    matrices = _torchreid_distances(query, gallery[index.taken], metric=metric)
    distances = np.full((len(query), len(gallery)), np.inf, np.float32)
    distances[:, index.taken] = compat.torchreid().utils.re_ranking(*matrices, k1, k2, weight)
    positions = index.positions(distances, query_pids, query_camids)
    return _summary(positions, max_rank=max_rank, index=index)


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
    engine rank Market-1501 in under a second instead of a minute, with the same figures.
    """
    if use_metric_cuhk03:
        raise UserError("CUHK03's single-gallery-shot protocol is not offered: use torchreid's own")
    if not np.isfinite(distmat).all():
        raise UserError("distances: NaN or infinite values; the network is broken", BAD_DATA)
    index = _Positives(g_pids, g_camids, taken=np.ones(len(g_pids), bool))
    result = _summary(index.positions(distmat, q_pids, q_camids), max_rank=max_rank, index=index)
    return result.cmc, result.mAP


def by_person(ranking: Ranking, query_pids: Iterable[int]) -> dict[str, tuple[int, float]]:
    """Identity -> number of its matched queries and the sum of their average precisions."""
    groups = _grouped(ranking, query_pids)
    return {person: (len(group), sum(group)) for person, group in groups.items()}


def by_group(ranking: Ranking, labels: Iterable[Any]) -> dict[str, tuple[int, float]]:
    """Label of a query, such as its camera -> number of its matched queries and their mAP.

    `labels` holds one for each query; a label without matched queries is left out.
    """
    groups = _grouped(ranking, labels)
    return {label: (len(group), float(np.mean(group))) for label, group in groups.items()}


def _grouped(ranking: Ranking, labels: Iterable[Any]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for label, precision in zip(labels, ranking.average_precision, strict=True):
        if not np.isnan(precision):
            groups.setdefault(str(label), []).append(float(precision))
    return groups


def check_features(features: Floats, what: str, *, taken: Bools | None = None) -> Floats:
    """Refuse features that cannot rank anything (UserError, BAD_DATA); their squared lengths, (N,).

    `taken` (N,) says which rows count; None = all of them.
    """
    taken = np.ones(len(features), bool) if taken is None else taken
    if not taken.any():
        raise UserError(f"{what}: there are no images", BAD_DATA)
    if len(features) != len(taken):
        raise UserError(f"{what}: {len(features)} features for {len(taken)} images", BAD_DATA)
    lengths, collapsed = np.empty(len(features), np.float32), taken.sum() > 1
    first = features[taken.argmax()].astype(np.float32)
    with np.errstate(all="ignore"):  # what is not finite is reported below
        for rows, chunk in _chunks(features):
            lengths[rows] = np.einsum("gd,gd->g", chunk, chunk)
            collapsed = collapsed and not (chunk != first)[taken[rows]].any()
    if not np.isfinite(lengths[taken]).all():
        raise UserError(
            f"{what} features: NaN, infinite or huge values; the network is broken", BAD_DATA
        )
    if not lengths[taken].any():
        raise UserError(f"{what} features: all are zero; the network is broken", BAD_DATA)
    if collapsed:
        raise UserError(
            f"{what} features: the same for every image; the network has collapsed", BAD_DATA
        )
    return lengths


def _checked(
    query: Floats, gallery: Floats, q_pids: Ints, q_camids: Ints, g_pids: Ints, g_camids: Ints
) -> tuple[Floats, Floats]:
    """Both sides as arrays; UserError (BAD_DATA) where features and people do not go together."""
    query, gallery = np.asarray(query), np.asarray(gallery)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query and gallery: features of {query.shape} and {gallery.shape} values are no rows "
            "of one length",
            BAD_DATA,
        )
    for what, side, *labels in (
        ("query", query, q_pids, q_camids),
        ("gallery", gallery, g_pids, g_camids),
    ):
        if counts := [len(label) for label in labels if len(label) != len(side)]:
            raise UserError(f"{what}: {len(side)} features for {counts[0]} images", BAD_DATA)
    return query, gallery


def refuse_large(queries: int, images: int, limit_gb: float = RERANK_GB) -> None:
    """UserError if `rerank` would need more memory for so many queries and gallery images."""
    if (need := RERANK_MATRICES * 4e-9 * (queries + images) ** 2) > limit_gb:
        raise UserError(
            f"re-ranking {queries:,} queries and {images:,} images needs {need:,.0f} GB, over the "
            f"limit of {limit_gb:g} GB; rank without it, or take a smaller gallery"
        )


def refuse_unmatched(query: Iterable[tuple[int, int]], gallery: Iterable[tuple[int, int]]) -> None:
    """UserError (BAD_DATA) if no query has a counterpart: (person, camera) of each image."""
    cameras: dict[int, set[int]] = {}
    for pid, camid in gallery:
        cameras.setdefault(pid, set()).add(camid)
    if not any(cameras.get(pid, set()) - {camid} for pid, camid in query):
        raise UserError(NO_MATCH, BAD_DATA)


def check_names(names: Iterable[str], what: str) -> None:
    """Refuse synthetic images in a query or gallery: a score on them says nothing."""
    if found := [name for name in names if SYNTHETIC_NAME.search(name)]:
        raise UserError(
            f"{what}: {len(found)} synthetic images, such as {found[0]}; "
            "query and gallery must be real",
            BAD_DATA,
        )


def _chunks(features: Floats) -> Iterator[tuple[slice, Floats]]:
    """Rows and what is in them, float32, at most CHUNK_BYTES that the next chunk overwrites."""
    step = max(1, CHUNK_BYTES // (4 * features.shape[1]))
    space = np.empty((min(step, len(features)), features.shape[1]), np.float32)
    for start in range(0, len(features), step):
        rows = slice(start, start + step)
        chunk = features[rows]
        if chunk.dtype != np.float32:
            space[: len(chunk)] = chunk  # into the same memory: twice as fast as a new array
            chunk = space[: len(chunk)]
        yield rows, chunk


def _blocks(
    query: Floats, gallery: Floats, *, lengths: Floats, metric: Metric
) -> Iterator[tuple[slice, Floats]]:
    """Queries and their distances, (block, G) float32 that the next block overwrites.

    Distances lack what is the same along a row: |q|^2, or for the cosine |q| and an offset.
    """
    step = max(1, min(len(query), BLOCK_BYTES // (4 * len(gallery))))
    space = np.empty((step, len(gallery)), np.float32)  # (block, G)
    norms = np.maximum(np.sqrt(lengths), 1e-12)
    for start in range(0, len(query), step):
        block = slice(start, start + step)
        twice = -2 * np.asarray(query[block], np.float32)
        distances = space[: len(twice)]
        with np.errstate(invalid="ignore", over="ignore"):  # junk may be anything
            for columns, chunk in _chunks(gallery):
                part = distances[:, columns]
                np.matmul(twice, chunk.T, out=part)
                if metric == "cosine":
                    part /= norms[columns]
                else:
                    part += lengths[columns]
        yield block, distances


def _torchreid_distances(query: Floats, gallery: Floats, *, metric: Metric) -> list[Floats]:
    """Query to gallery, query to query, gallery to gallery, as torchreid's engine takes them."""
    import torch  # a second; nothing else here needs it

    sides = [torch.from_numpy(np.asarray(side, np.float32)) for side in (query, gallery)]
    distance = compat.torchreid().metrics.compute_distance_matrix
    pairs = ((0, 1), (0, 0), (1, 1))
    return [distance(sides[a], sides[b], metric).numpy() for a, b in pairs]


class _Positives:
    """The gallery's images by identity, and where those of a query stand in its ranking."""

    def __init__(self, pids: Ints, camids: Ints, *, taken: Bools) -> None:
        self.taken, self.camids = taken, np.asarray(camids)
        order = np.argsort(pids, kind="stable")
        self.order = order[taken[order]]
        self.sorted_pids = np.asarray(pids)[self.order]

    def positions(self, distances: Floats, pids: Ints, camids: Ints) -> list[Ints]:
        """0-based ranks, ascending, of each query's positives among all that is not discarded.

        What is not taken must be at infinity; everything else must be finite.
        """
        return list(self._rows(distances, np.asarray(pids), np.asarray(camids)))

    def _rows(self, distances: Floats, pids: Ints, camids: Ints) -> Iterator[Ints]:
        first = np.searchsorted(self.sorted_pids, pids, "left")
        last = np.searchsorted(self.sorted_pids, pids, "right")
        for row, camid, start, stop in zip(distances, camids, first, last, strict=True):
            same = self.order[start:stop]
            discard = self.camids[same] == camid
            yield _ranks(row, same[~discard], same[discard])


def _ranks(row: Floats, positives: Ints, discarded: Ints) -> Ints:
    """Ranks of `positives` in a stable order of `row` without the `discarded` images."""
    row = row.copy()
    row[discarded] = np.inf
    counts = [  # of equal distances, those that stand earlier in the gallery are before it
        np.count_nonzero(row[:k] <= own) + np.count_nonzero(row[k:] < own)
        for k, own in zip(positives.tolist(), row[positives], strict=True)
    ]
    return np.sort(np.array(counts, dtype=np.int64))


def _summary(positions: list[Ints], *, max_rank: int, index: _Positives) -> Ranking:
    matched = [ranks for ranks in positions if len(ranks)]
    if not positions or not len(index.order):
        raise UserError("query or gallery: there are no images", BAD_DATA)
    if not matched:
        raise UserError(NO_MATCH, BAD_DATA)
    max_rank = min(max_rank, len(index.order))
    firsts = np.array([ranks[0] for ranks in matched])
    precision = np.array([_average_precision(ranks) for ranks in positions])
    return Ranking(
        mAP=float(np.nanmean(precision)),
        cmc=(firsts[None, :] <= np.arange(max_rank)[:, None]).mean(1),
        mINP=float(np.mean([len(ranks) / (ranks[-1] + 1) for ranks in matched])),
        queries=len(positions),
        unmatched=len(positions) - len(matched),
        gallery=len(index.order),
        junk=int((~index.taken).sum()),
        distractors=int((index.sorted_pids == DISTRACTOR).sum()),
        average_precision=precision,
    )


def _average_precision(ranks: Ints) -> float:
    if not len(ranks):
        return float("nan")
    return float(np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)))
