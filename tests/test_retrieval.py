"""Retrieval figures against hand-worked cases and torchreid's own ranker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

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


def test_blocks_of_queries_and_chunks_of_the_gallery_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 40, 16))
    columns = {
        "query_pids": rng.integers(0, 5, 40),
        "gallery_pids": rng.integers(-1, 5, 40),
        "query_camids": rng.integers(0, 3, 40),
        "gallery_camids": rng.integers(0, 3, 40),
    }
    whole = retrieval.evaluate(*features, **columns)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", 7 * 4 * 40)
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 9 * 4 * 16)
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


def test_features_for_another_number_of_images_are_refused() -> None:
    with pytest.raises(UserError, match="gallery: 2 features for 3 images"):
        rank([0.1, 0.2], pids=[1, 2, 3], camids=[2, 2, 2])


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


def drawn(queries: int, gallery: int, *, features: int, seed: int = 0) -> tuple[Any, ...]:
    """(query, gallery) of 20 noisy people by four cameras, and the columns of both."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, features))
    people = [rng.integers(1, 20, queries), rng.integers(-1, 20, gallery)]
    sides = [centres[pids] + 2 * rng.standard_normal((len(pids), features)) for pids in people]
    cameras = [rng.integers(1, 5, len(pids)) for pids in people]
    columns = dict(zip(("query_pids", "gallery_pids"), people, strict=True))
    columns |= dict(zip(("query_camids", "gallery_camids"), cameras, strict=True))
    return *sides, columns


def without_junk(gallery: np.ndarray, columns: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    kept = columns["gallery_pids"] != retrieval.JUNK
    cut = {name: columns[name][kept] for name in ("gallery_pids", "gallery_camids")}
    return gallery[kept], columns | cut


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("rerank", [False, True])
def test_figures_equal_those_of_torchreids_engine(metric: str, rerank: bool) -> None:
    query, gallery, columns = drawn(30, 150, features=8)
    ours = (retrieval.rerank if rerank else retrieval.evaluate)(
        query, gallery, metric=metric, **columns
    )
    real, kept = without_junk(gallery, columns)
    engine = SimpleNamespace(
        use_gpu=False,
        extract_features=lambda images: images,
        parse_data_for_eval=lambda data: data,
    )
    loaders = [
        [[torch.tensor(x) for x in (f.astype(np.float32), kept[f"{s}_pids"], kept[f"{s}_camids"])]]
        for f, s in ((query, "query"), (real, "gallery"))
    ]
    rank_1, precision = compat.torchreid().engine.Engine._evaluate(
        engine, "", *loaders, dist_metric=metric, rerank=rerank
    )
    assert ours.mAP == pytest.approx(precision, abs=1e-6)
    assert ours.rank(1) == pytest.approx(rank_1, abs=1e-6)
    assert ours.junk == 150 - len(real) > 0


def test_reranking_changes_the_ranks() -> None:
    query, gallery, columns = drawn(30, 150, features=8)
    plain = retrieval.evaluate(query, gallery, **columns)
    assert retrieval.rerank(query, gallery, **columns).mAP != pytest.approx(plain.mAP, abs=1e-3)


def test_reranking_half_a_million_images_is_refused_with_its_need() -> None:
    people, distractors = np.ones(3368, int), np.zeros(500_000, int)
    with pytest.raises(UserError, match=r"needs 6,081 GB, over the limit of 16 GB"):
        retrieval.rerank(
            np.zeros((3368, 1)),
            np.zeros((500_000, 1)),
            query_pids=people,
            query_camids=people,
            gallery_pids=distractors,
            gallery_camids=distractors,
        )


def test_reranking_needs_no_more_memory_than_it_says() -> None:
    query, gallery, columns = drawn(20, 980, features=8)
    gallery, columns = without_junk(gallery, columns)
    retrieval.rerank(query, gallery, **columns)  # what is imported for it is not of the matter
    tracemalloc.start()
    retrieval.rerank(query, gallery, **columns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    matrix = 4 * (20 + len(gallery)) ** 2
    assert peak + matrix < 1.05 * retrieval.RERANK_MATRICES * matrix  # one is torch's: not traced


def test_groups_of_queries_have_their_own_mean() -> None:
    result = retrieval.evaluate(
        np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
        np.array([[0.1, 1.0], [0.2, 1.0], [0.9, 1.0]]),
        query_pids=np.array([1, 2, 7]),
        query_camids=np.array([1, 1, 2]),
        gallery_pids=np.array([3, 1, 2]),
        gallery_camids=np.array([3, 3, 3]),
    )
    assert retrieval.by_group(result, ["c1", "c1", "c2"]) == {"c1": (2, (1 / 2 + 1) / 2)}
    assert retrieval.by_group(result, [5, 6, 6]) == {"5": (1, 1 / 2), "6": (1, 1.0)}


def test_junk_of_any_value_changes_nothing() -> None:
    query, gallery, columns = drawn(30, 150, features=8)
    real, kept = without_junk(gallery, columns)
    before = retrieval.evaluate(query, real, **kept)
    gallery[columns["gallery_pids"] == retrieval.JUNK] = [np.nan, np.inf, -np.inf, 0, 0, 0, 0, 0]
    after = retrieval.evaluate(query, gallery, **columns)
    np.testing.assert_array_equal(after.average_precision, before.average_precision)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_gallery_in_float16_on_disk_costs_blocks_and_chunks_only(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, gallery, columns = drawn(64, 20_000, features=256)
    half = np.lib.format.open_memmap(tmp_path / "g.npy", "w+", np.float16, gallery.shape)
    half[:] = gallery
    whole = retrieval.evaluate(query, half.astype(np.float32), metric=metric, **columns)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 1 << 20)
    tracemalloc.start()
    result = retrieval.evaluate(query, half, metric=metric, **columns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20  # as float32 the gallery alone is 20 MB
    assert result.mAP == pytest.approx(whole.mAP, abs=1e-6)


def alone(code: str, *arguments: str) -> str:
    """What a Python process with one thread of its own prints."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **one},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


LARGE = """
import pathlib, sys
import numpy as np
from pidm_reid import retrieval
rng = np.random.default_rng(0)
queries, images = 260, int(sys.argv[2])  # two blocks, the first one full
gallery = np.memmap(sys.argv[1], np.float16, "w+", shape=(images, 2048))  # sparse: zeros
gallery[:: images // queries][:queries] = rng.standard_normal((queries, 2048))
pids = np.zeros(images, int)
pids[:: images // queries][:queries] = range(1, queries + 1)
query = gallery[pids > 0] + np.float16(0.1)
result = retrieval.evaluate(
    query, gallery, query_pids=pids[pids > 0], gallery_pids=pids,
    query_camids=np.ones(queries, int), gallery_camids=np.full(images, 2),
)
assert result.mAP == 1 and result.distractors == images - queries, result
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_half_a_million_distractors_fit_into_4_gb(tmp_path: Path) -> None:
    peak_kb = int(alone(LARGE, str(tmp_path / "gallery"), "519732"))
    assert 2e6 < peak_kb < 4e6  # 2.1 GB of them are pages of the file


COST = """
import time
import numpy as np
from pidm_reid import retrieval
rng = np.random.default_rng(0)
query, gallery = (rng.standard_normal((n, 2048), dtype=np.float32) for n in (512, 19732))
columns = [rng.integers(1, 751, 512), rng.integers(0, 751, 19732)]
columns += [rng.integers(0, 6, 512), rng.integers(0, 6, 19732)]
names = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")
columns = dict(zip(names, columns))
seconds = ([], [])
for _ in range(5):
    for k, job in enumerate(
        (lambda: query @ gallery.T, lambda: retrieval.evaluate(query, gallery, **columns))
    ):
        begin = time.process_time()
        job()
        seconds[k].append(time.process_time() - begin)
print(min(seconds[1]) / min(seconds[0]))
"""


@pytest.mark.slow
def test_evaluation_costs_at_most_half_more_than_its_matrix_product() -> None:
    assert float(alone(COST)) < 1.5


def test_a_ranking_is_many_times_faster_than_torchreids() -> None:
    rng = np.random.default_rng(0)
    distances = rng.random((24, 15913), dtype=np.float32)
    people = rng.integers(1, 751, 24), rng.integers(0, 751, 15913)
    cameras = rng.integers(0, 6, 24), rng.integers(0, 6, 15913)
    theirs = compat.torchreid().metrics.rank.eval_market1501
    seconds = []
    for ranker in (retrieval.evaluate_rank, theirs):
        begin = time.process_time()
        ranker(distances, *people, *cameras, 50)
        seconds.append(time.process_time() - begin)
    assert seconds[0] < seconds[1] / 10
