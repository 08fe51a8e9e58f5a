"""Features and identities of a re-ID evaluation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from faults.cases import BAD_DATA, DONE, Case, reading

# Two people, seen by two cameras: the query of each is nearest to the other image of its person.
GOOD: dict[str, Any] = {
    "query": np.array([[1.0, 0], [0, 1]]),
    "gallery": np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.6]]),
    "query_pids": np.array([1, 2]), "query_camids": np.array([0, 0]),
    "gallery_pids": np.array([1, 2, 0]), "gallery_camids": np.array([1, 1, 1]),
}  # fmt: skip
PERFECT = "mAP 1.0000 rank-1 1.0000 queries 2 unmatched 0"


def rank(name: str, says: str, code: int = BAD_DATA, **changes: Any) -> Case:
    """The good evaluation with some arrays replaced."""
    buffer = io.BytesIO()
    np.savez(buffer, **(GOOD | {key: np.asarray(value) for key, value in changes.items()}))
    files = {"f.npz": buffer.getvalue()}
    return Case(f"ranking: {name}", files, reading("ranking", "f.npz"), code, says)


def every(value: float, side: str) -> np.ndarray:
    """The features of a side, all of one value."""
    return np.full_like(GOOD[side], value)


EMPTY = {
    "query": np.zeros((0, 2)),
    "query_pids": np.zeros(0, int),
    "query_camids": np.zeros(0, int),
}
NO_GALLERY = {key.replace("query", "gallery"): value for key, value in EMPTY.items()}
CASES = (
    rank("good", f"{PERFECT} junk 0 distractors 1", DONE),
    rank("no queries", "there are no images", **EMPTY),
    rank("no gallery", "there are no images", **NO_GALLERY),
    rank("NaN in a query", "NaN, infinite", query=[[np.nan, 0], [0, 1]]),
    rank("NaN in the gallery", "NaN, infinite", gallery=[[0.9, 0.1], [0.1, np.nan], [0.5, 0.6]]),
    rank("all of the gallery NaN", "NaN, infinite", gallery=every(np.nan, "gallery")),
    rank("infinite features", "NaN, infinite", query=every(np.inf, "query")),
    rank("features beyond float32", "NaN, infinite", query=every(1e30, "query")),
    rank("all features zero", "all are zero", query=every(0, "query")),
    rank("gallery all zero", "all are zero", gallery=every(0, "gallery")),
    rank("one feature for all queries", "has collapsed", query=every(0.3, "query")),
    rank("one feature for the whole gallery", "has collapsed", gallery=every(0.3, "gallery")),
    rank("all by one camera", "from another camera", gallery_camids=[0, 0, 0]),
    rank("no query's person in the gallery", "no query has an image", gallery_pids=[8, 9, 0]),
    rank("one query's person not in the gallery", "mAP 1.0000 rank-1 1.0000 queries 2 unmatched 1",
         DONE, query_pids=[1, 7]),
    rank("junk before the right one", f"{PERFECT} junk 1 distractors 0", DONE,
         gallery=[[0.9, 0.1], [0.1, 0.9], [1.0, 0.0]], gallery_pids=[1, 2, -1]),
    rank("junk with NaN", f"{PERFECT} junk 1 distractors 0", DONE,
         gallery=[[0.9, 0.1], [0.1, 0.9], [np.nan, 0.0]], gallery_pids=[1, 2, -1]),
    # query 1 finds the distractor first: AP 1/2; query 2 finds its person first: AP 1
    rank("a distractor before the right one", "mAP 0.7500 rank-1 0.5000 queries 2 unmatched 0",
         DONE, gallery=[[0.9, 0.1], [0.1, 0.9], [1.0, 0.0]]),
    # both at one distance: what stands first in the gallery counts as first
    rank("equal distances", "mAP 1.0000 rank-1 1.0000 queries 1", DONE,
         query=[[0.0, 1.0]], query_pids=[2], query_camids=[0],
         gallery=[[1.0, 0.0], [0.1, 0.9], [0.1, 0.9]], gallery_pids=[1, 2, 0]),
    rank("equal distances, the wrong one first", "mAP 0.5000 rank-1 0.0000 queries 1", DONE,
         query=[[0.0, 1.0]], query_pids=[2], query_camids=[0],
         gallery=[[1.0, 0.0], [0.1, 0.9], [0.1, 0.9]], gallery_pids=[1, 0, 2]),
    rank("one person alone", "mAP 1.0000 rank-1 1.0000 queries 1", DONE,
         query=[[1.0, 0.0]], query_pids=[5], query_camids=[0],
         gallery=[[1.0, 0.1]], gallery_pids=[5], gallery_camids=[1]),
    rank("more features than images", "3 features for 2 images", gallery_pids=[1, 2],
         gallery_camids=[1, 1]),
    rank("fewer people than queries", "2 features for 1 images", query_pids=[1]),
    rank("fewer cameras than queries", "2 features for 1 images", query_camids=[0]),
    rank("features of two lengths", "no rows of one length", query=[[1.0, 0, 0], [0, 1, 0]]),
    rank("features in one row", "no rows of one length", query=[1.0, 2.0]),
    Case("query name of a generated image", {},
         reading("names", "0001_c1s1_000000_00_pidm0003.jpg"), BAD_DATA, "must be real"),
    Case("query names of real images", {}, reading("names", "0001_c1s1_000000_00.jpg"), DONE,
         "real"),
)  # fmt: skip
