"""Which generated images are kept, in a plane where every similarity is a cosine one can draw."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from pidm_core import UserError
from pidm_reid.config import SelectionConfig
from pidm_reid.selection import Choice, folds, select

# Real images of person 1 at 0, 20 and 40 degrees, of person 2 at 100 and 105, of person 3 at 180.
REAL = {"a0": (1, 0), "a20": (1, 20), "a40": (1, 40), "b100": (2, 100), "b105": (2, 105),
        "c180": (3, 180)}  # fmt: skip
CONFIG = SelectionConfig(confused=0.0, copy=1.0, likeness_weight=1.0)


def cosine(degrees: float) -> float:
    return float(np.cos(np.deg2rad(degrees)))


def at(degrees: float) -> tuple[float, float]:
    """A feature in that direction; its length says nothing."""
    angle = np.deg2rad(degrees)
    return 3 * float(np.cos(angle)), 3 * float(np.sin(angle))


def judge(
    *made: tuple[str, float],  # source and direction
    keep: dict[int, int] | None = None,
    config: SelectionConfig = CONFIG,
    poses: list[list[float]] | None = None,
) -> list[Choice]:
    names = list(REAL)
    return select(
        [f"{source}_pidm{k:04d}.jpg" for k, (source, _) in enumerate(made)],
        features=np.array([at(degrees) for _, degrees in made]),
        sources=np.array([names.index(source) for source, _ in made]),
        poses=np.array(poses) if poses else np.zeros((len(made), 1)),
        real_names=names,
        real_features=np.array([at(degrees) for _, degrees in REAL.values()]),
        real_pids=np.array([pid for pid, _ in REAL.values()]),
        keep=keep or {1: 9, 2: 9, 3: 9},
        config=config,
    )[0]


def test_similarities_leave_the_source_out() -> None:
    (choice,) = judge(("a0", 5))
    assert choice.own == pytest.approx(cosine(15), abs=1e-4)  # a20, though a0 is nearer
    assert choice.other == pytest.approx(cosine(95), abs=1e-4)
    assert choice.source == pytest.approx(cosine(5), abs=1e-4)
    assert choice.score == pytest.approx(cosine(15) - cosine(95), abs=2e-4)
    assert choice.nearest == "a20"


def test_an_image_nearer_to_another_person_is_dropped() -> None:
    mine, strange = judge(("a0", 50), ("a0", 75))  # from a40: 10 and 35; from b100: 50 and 25
    assert (mine.reason, strange.reason) == ("", "another person")
    assert strange.nearest == "b100"


def test_a_network_that_confuses_real_people_drops_only_what_is_worse() -> None:
    """Real images are 30 degrees from the other person's, 60 from their own: margin -0.37."""
    angles = {"a0": (1, 0), "b30": (2, 30), "a60": (1, 60), "b90": (2, 90)}
    choices, _ = select(
        ["as real ones are", "worse"],
        features=np.array([at(15), at(-20)]),  # margins -0.26 and -0.47
        sources=np.array([0, 0]),
        poses=np.zeros((2, 1)),
        real_names=list(angles),
        real_features=np.array([at(degrees) for _, degrees in angles.values()]),
        real_pids=np.array([pid for pid, _ in angles.values()]),
        keep={1: 2},
        config=CONFIG,
    )
    assert [c.score for c in choices] == pytest.approx(
        [cosine(45) - cosine(15), cosine(80) - cosine(50)], abs=2e-4
    )
    assert [c.reason == "another person" for c in choices] == [False, True]


def test_a_person_of_one_image_is_judged_by_the_source() -> None:
    """Person 3 has only c180; the margin of the worst real image is above 0, so 0 is asked for."""
    near, far = judge(("c180", 195), ("c180", 135))
    assert near.own is None
    assert near.score == pytest.approx(cosine(15) - cosine(90), abs=2e-4)
    assert (near.reason, far.reason) == ("", "another person")


def test_a_copy_of_the_source_or_of_another_image_is_dropped() -> None:
    """Two real images of a person are at least 5 degrees apart, those of person 2."""
    source, other, new = judge(("a0", 2), ("a0", 22), ("a0", 10.5))
    assert [c.reason for c in (source, other, new)] == ["near copy", "near copy", ""]


def test_the_best_are_kept_then_those_with_a_fault_by_score() -> None:
    made = [("a0", 50.0), ("a0", 30.0), ("a0", 85.0), ("a0", 75.0)]
    assert [c.kept for c in judge(*made, keep={1: 1})] == [False, True, False, False]
    choices = judge(*made, keep={1: 3})
    assert [c.kept for c in choices] == [True, True, False, True]
    assert [c.reason for c in choices] == ["", "", "another person", "another person"]
    assert judge(*made, keep={1: 1})[0].reason == "surplus"


def test_a_new_pose_counts_beside_likeness() -> None:
    made = [("a0", 30.0), ("a0", 29.0), ("a0", 47.0)]
    poses = [[0.0], [0.0], [4.0]]
    by_likeness = judge(*made, keep={1: 2}, poses=poses)
    assert [c.kept for c in by_likeness] == [True, True, False]
    config = SelectionConfig(confused=0.0, copy=1.0, likeness_weight=1.0, pose_weight=0.1)
    by_pose = judge(*made, keep={1: 2}, poses=poses, config=config)
    assert [c.kept for c in by_pose] == [False, True, True]  # the best first, then the new pose


def test_without_weights_the_first_good_ones_are_kept() -> None:
    made = [("a0", 47.0), ("a0", 75.0), ("a0", 29.0), ("a0", 30.0)]  # the second is dropped
    config = SelectionConfig(confused=0.0, copy=1.0)
    kept = [
        c.kept for c in judge(*made, keep={1: 2}, poses=[[0.0], [9.0], [0.0], [4.0]], config=config)
    ]
    assert kept == [True, False, True, False]


def test_real_images_are_compared_with_each_other() -> None:
    _, among_real = select(
        ["x"],
        features=np.array([at(10)]),
        sources=np.array([0]),
        poses=np.zeros((1, 1)),
        real_names=list(REAL),
        real_features=np.array([at(degrees) for _, degrees in REAL.values()]),
        real_pids=np.array([pid for pid, _ in REAL.values()]),
        keep={1: 1},
        config=CONFIG,
    )
    assert among_real == {
        **dict.fromkeys(("a0", "a20", "a40"), round(cosine(20), 4)),
        **dict.fromkeys(("b100", "b105"), round(cosine(5), 4)),
    }


def test_dead_features_are_refused() -> None:
    for feature in (np.nan, 1.0):
        with pytest.raises(UserError, match=r"features: (NaN|the same)"):
            select(
                ["x", "y"],
                features=np.full((2, 2), feature),
                sources=np.array([0, 1]),
                poses=np.zeros((2, 1)),
                real_names=["a", "b"],
                real_features=np.array([at(0), at(90)]),
                real_pids=np.array([1, 2]),
                keep={1: 1, 2: 1},
                config=CONFIG,
            )


def test_a_single_person_cannot_be_judged() -> None:
    with pytest.raises(UserError, match="single person"):
        select(
            ["x", "y"],
            features=np.array([at(1), at(2)]),
            sources=np.array([0, 1]),
            poses=np.zeros((2, 1)),
            real_names=["a", "b"],
            real_features=np.array([at(0), at(90)]),
            real_pids=np.array([1, 1]),
            keep={1: 1},
            config=CONFIG,
        )


def test_folds_are_halves_of_the_people_drawn_by_the_seed() -> None:
    first, second = folds([*range(10), 3, 3], seed=0)
    assert first | second == set(range(10))
    assert not first & second
    assert len(first) == len(second) == 5
    assert folds(range(10), seed=0) == (first, second)
    assert folds(range(10), seed=1) != (first, second)
    with pytest.raises(UserError, match="3 people are too few"):
        folds([1, 2, 3], seed=0)


@pytest.mark.parametrize("name", ["confused", "copy"])
def test_shares_outside_their_range_are_refused(name: str) -> None:
    options: dict[str, Any] = {name: 1.5}
    with pytest.raises(UserError, match=rf"selection\.{name}: 1.5 is not between 0 and 1"):
        SelectionConfig(**options)


def test_selecting_market1501s_number_of_images_takes_seconds() -> None:
    import time

    rng = np.random.default_rng(0)
    pids = np.sort(rng.integers(0, 751, 2587))
    centres = rng.normal(size=(751, 256)).astype(np.float32)
    real = centres[pids] + 0.5 * rng.normal(size=(2587, 256)).astype(np.float32)
    sources = rng.integers(0, 2587, 13_000)
    made = centres[pids[sources]] + 0.6 * rng.normal(size=(13_000, 256)).astype(np.float32)
    begin = time.process_time()
    choices, _ = select(
        [str(k) for k in range(13_000)],
        features=made,
        sources=sources,
        poses=rng.normal(size=(13_000, 36)),
        real_names=[str(k) for k in range(2587)],
        real_features=real,
        real_pids=pids,
        keep=dict.fromkeys(range(751), 8),
        config=SelectionConfig(),
    )
    assert time.process_time() - begin < 30
    counts = np.bincount(pids[sources[[int(c.file_name) for c in choices if c.kept]]])
    assert counts.max() == 8


@pytest.mark.slow
def test_13000_images_are_judged_within_a_minute_of_a_processor() -> None:
    rng = np.random.default_rng(0)
    people = np.arange(12936) % 751
    centres = rng.standard_normal((751, 2048), dtype=np.float32)
    sources = np.arange(13000) % len(people)
    real, made = (
        centres[pids] + rng.standard_normal((len(pids), 2048), dtype=np.float32)
        for pids in (people, people[sources])
    )
    begin = time.process_time()
    choices, _ = select(
        [str(k) for k in range(len(made))],
        features=made,
        sources=sources,
        poses=rng.standard_normal((len(made), 36), dtype=np.float32),
        real_names=[str(k) for k in range(len(real))],
        real_features=real,
        real_pids=people,
        keep=dict.fromkeys(range(751), 9),
        config=SelectionConfig(),
    )
    assert time.process_time() - begin < 60
    assert sum(choice.kept for choice in choices) == 751 * 9
