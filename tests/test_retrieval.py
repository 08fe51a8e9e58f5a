"""Retrieval figures against hand-worked cases and torchreid's own ranker."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from pidm_core import BAD_DATA, UserError
from pidm_reid import compat, retrieval


def rank(distances: list[float], **columns: Any) -> retrieval.Ranking:
    """One query, person 1 by camera 1, against a gallery at these distances along a line."""
    return retrieval.evaluate(
        np.array([[0.0, 1.0]]),
        np.array([[d, 1.0] for d in distances]),
        query_pids=np.array([1]),
        query_camids=np.array([1]),
        gallery_pids=np.array(columns["pids"]),
        gallery_camids=np.array(columns["camids"]),
    )


def test_average_precision_of_hits_at_ranks_1_and_3() -> None:
    result = rank([0.1, 0.2, 0.3, 0.4], pids=[1, 2, 1, 3], camids=[2, 2, 3, 2])
    assert result.mAP == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert result.mINP == pytest.approx(2 / 3)
    assert list(result.cmc) == [1, 1, 1, 1]


def test_same_person_by_the_same_camera_is_discarded_and_not_counted() -> None:
    result = rank([0.1, 0.2, 0.3], pids=[1, 2, 1], camids=[1, 2, 2])
    assert result.mAP == pytest.approx(1 / 2)
    assert list(result.cmc) == [0, 1, 1]


def test_junk_is_dropped_and_distractors_are_kept() -> None:
    result = rank([0.1, 0.2, 0.3], pids=[-1, 0, 1], camids=[2, 2, 2])
    assert result.mAP == pytest.approx(1 / 2)
    assert (result.junk, result.distractors, result.gallery) == (1, 1, 2)


def test_equal_distances_keep_the_order_of_the_gallery() -> None:
    first = rank([0.5, 0.5, 0.9], pids=[1, 2, 3], camids=[2, 2, 2])
    last = rank([0.5, 0.5, 0.9], pids=[2, 1, 3], camids=[2, 2, 2])
    assert (first.mAP, last.mAP) == (1, pytest.approx(1 / 2))


def random_case(seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    queries, gallery = rng.integers(1, 12), rng.integers(60, 90)
    distances = rng.random((queries, gallery)).astype(np.float32)
    people = [rng.integers(0, 8, n) for n in (queries, gallery)]
    cameras = [rng.integers(0, 4, n) for n in (queries, gallery)]
    return distances, *people, *cameras


@pytest.mark.parametrize("seed", range(100))
def test_figures_equal_torchreids_ranker(seed: int) -> None:
    case = random_case(seed)
    theirs = compat.torchreid().metrics.evaluate_rank(*case, max_rank=20, use_cython=False)
    cmc, precision = retrieval.evaluate_rank(*case, max_rank=20)
    assert precision == pytest.approx(theirs[1], abs=1e-9)
    np.testing.assert_allclose(cmc, theirs[0], atol=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_ties_equal_torchreids_ranker_on_distances_made_distinct_by_position(seed: int) -> None:
    distances, *rest = random_case(seed)
    tied = np.round(distances, 1)
    distinct = tied.astype(float) + 1e-7 * np.arange(tied.shape[1])
    theirs = compat.torchreid().metrics.evaluate_rank(distinct, *rest, use_cython=False)
    cmc, precision = retrieval.evaluate_rank(tied, *rest)
    assert precision == pytest.approx(theirs[1], abs=1e-9)
    np.testing.assert_allclose(cmc, theirs[0], atol=1e-6)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 40, 16))
    columns = {
        "query_pids": rng.integers(0, 5, 40),
        "gallery_pids": rng.integers(-1, 5, 40),
        "query_camids": rng.integers(0, 3, 40),
        "gallery_camids": rng.integers(0, 3, 40),
    }
    whole = retrieval.evaluate(*features, **columns)
    monkeypatch.setattr(retrieval, "BLOCK_QUERIES", 7)
    assert retrieval.evaluate(*features, **columns).mAP == pytest.approx(whole.mAP, abs=1e-9)


def test_queries_without_a_match_are_counted_and_in_no_figure() -> None:
    result = retrieval.evaluate(
        np.array([[0.0, 1.0], [1.0, 0.0]]),
        np.array([[0.1, 1.0], [0.9, 0.0]]),
        query_pids=np.array([1, 7]),
        query_camids=np.array([1, 1]),
        gallery_pids=np.array([1, 2]),
        gallery_camids=np.array([2, 2]),
    )
    assert (result.queries, result.unmatched, result.mAP) == (2, 1, 1.0)
    assert np.isnan(result.average_precision[1])
    assert retrieval.by_person(result, np.array([1, 7])) == {"1": (1, 1.0)}


def test_cosine_ignores_length() -> None:
    columns = {
        "query_pids": np.array([1]),
        "query_camids": np.array([1]),
        "gallery_pids": np.array([1, 2]),
        "gallery_camids": np.array([2, 2]),
    }
    query, gallery = np.array([[1.0, 0.0]]), np.array([[9.0, 1.0], [0.7, 0.7]])
    assert retrieval.evaluate(query, gallery, metric="cosine", **columns).mAP == 1
    assert retrieval.evaluate(query, gallery, metric="euclidean", **columns).mAP == 0.5


@pytest.mark.parametrize(
    ("gallery", "message"),
    [
        (np.zeros((0, 2)), "no images"),
        (np.array([[np.nan, 1], [0, 1]]), "NaN"),
        (np.zeros((2, 2)), "zero"),
        (np.ones((2, 2)), "same for every image"),
    ],
)
def test_features_that_cannot_rank_are_refused(gallery: np.ndarray, message: str) -> None:
    ones = np.ones(len(gallery), dtype=int)
    with pytest.raises(UserError, match=message) as error:
        retrieval.evaluate(
            np.array([[0.0, 1.0]]),
            gallery,
            query_pids=np.array([1]),
            query_camids=np.array([1]),
            gallery_pids=ones,
            gallery_camids=2 * ones,
        )
    assert error.value.code == BAD_DATA


def test_all_images_from_one_camera_are_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="from another camera"):
        rank([0.1, 0.2], pids=[1, 2], camids=[1, 1])


def test_synthetic_images_are_refused_in_query_and_gallery() -> None:
    with pytest.raises(UserError, match=r"2 synthetic images, such as 0002_c1_pidm0007\.jpg"):
        retrieval.check_names(["0002_c1_pidm0007.jpg", "0003_c1_pidm0000.jpg", "1.jpg"], "query")


def test_lines_keep_torchreids_bytes() -> None:
    result = rank([0.1, 0.2, 0.3], pids=[1, 2, 1], camids=[1, 2, 2])
    assert result.lines().splitlines()[:6] == [
        "** Results **",
        "mAP: 50.0%",
        "CMC curve",
        "Rank-1  : 0.0%",
        "Rank-5  : 100.0%",
        "Rank-10 : 100.0%",
    ]


def test_market_size_is_ranked_in_seconds() -> None:
    rng = np.random.default_rng(0)
    distances = rng.random((842, 15913), dtype=np.float32)  # a quarter of the queries
    people = rng.integers(1, 751, 842), rng.integers(0, 751, 15913)
    cameras = rng.integers(0, 6, 842), rng.integers(0, 6, 15913)
    begin = time.process_time()
    retrieval.evaluate_rank(distances, *people, *cameras)
    assert time.process_time() - begin < 2
