"""D_tr, the recipes and the development split."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from people import joints

from pidm_core import Record, UserError, sha256
from pidm_reid import plan


def people(images: int, identities: int) -> list[Record]:
    """Records of `identities` people; the first ones have one image more."""
    records = []
    for k in range(images):
        pid, camera = 2 + k % identities, 1 + k // identities % 6
        name = f"{pid:04d}_c{camera}s1_{k:06d}_00.jpg"
        records.append(Record(Path(name), name, pid, camera))
    return records


MARKET = people(12936, 751)


@pytest.mark.parametrize(("ratio", "count"), [(0.2, 2587), (0.4, 5174), (0.6, 7762), (0.8, 10349)])
def test_counts_of_market1501(ratio: float, count: int) -> None:
    chosen = plan.sample_real(MARKET, ratio=ratio, seed=0)
    assert len(chosen) == count
    assert len({record.pid for record in chosen}) == 751


def test_smaller_subsets_lie_in_larger_ones() -> None:
    subsets = [
        {record.name for record in plan.sample_real(MARKET, ratio=ratio, seed=3)}
        for ratio in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    assert all(small < large for small, large in itertools.pairwise(subsets))
    assert (len(subsets[0]), len(subsets[-1])) == (751, 12936)


def test_subset_does_not_depend_on_the_order_of_the_listing() -> None:
    mixed = random.Random(0).sample(MARKET, len(MARKET))
    assert plan.sample_real(mixed, ratio=0.2, seed=1) == plan.sample_real(MARKET, ratio=0.2, seed=1)


def test_seeds_give_different_subsets_and_every_image_the_same_chance() -> None:
    records, drawn = people(60, 6), Counter[str]()
    for seed in range(400):
        drawn.update(record.name for record in plan.sample_real(records, ratio=0.5, seed=seed))
    assert all(abs(count / 400 - 0.5) < 0.13 for count in drawn.values())  # 5 sigma


@pytest.mark.parametrize("ratio", [40, -0.1, 1.5, float("nan"), float("inf")])
def test_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="not between 0 and 1"):
        plan.sample_real(MARKET, ratio=ratio, seed=0)


def test_ratio_40_is_answered_with_the_right_one() -> None:
    with pytest.raises(UserError, match=r"did you mean 0\.4\?"):
        plan.check_ratio(40)


# ---------------------------------------------------------------- recipes


def recipes(records: list[Record], seed: int = 0, **amount: int) -> list[plan.Recipe]:
    keypoints = {record.name: joints(k) for k, record in enumerate(records)}
    pool = plan.pose_pool(keypoints, among=[record.name for record in records], where="x.csv")
    content = {record.name: sha256(record.name.encode()) for record in records}
    return plan.make_recipes(records, pool, content=content, seed=seed, **amount)


def test_fill_to_full_gives_back_the_size_of_the_full_set_evenly_over_the_sources() -> None:
    real = plan.sample_real(people(1000, 50), ratio=0.4, seed=0)
    made = recipes(real, fill_to=1000)
    counts = Counter(recipe.source for recipe in made)
    assert len(real) + len(made) == 1000
    assert set(counts.values()) == {1, 2}
    assert set(counts) == {record.name for record in real}


def test_per_image_makes_as_many_of_every_source_in_different_poses() -> None:
    real = people(60, 6)
    made = recipes(real, per_image=3)
    assert Counter(Counter(recipe.source for recipe in made).values()) == {3: 60}
    assert all(recipe.pose != recipe.source for recipe in made)
    assert len({(recipe.source, recipe.pose) for recipe in made}) == 180


def test_poses_are_those_that_pass_patns_rule() -> None:
    made = recipes(people(60, 6), per_image=9)
    unusable = {record.name for k, record in enumerate(people(60, 6)) if k % 9 == 8}
    assert unusable
    assert not unusable & {recipe.pose for recipe in made}


def test_names_say_source_and_number() -> None:
    made = recipes(people(60, 6), per_image=2)
    assert made[0].file_name == "0002_c1s1_000000_00_pidm0000.jpg"
    assert made[1].file_name == "0002_c1s1_000000_00_pidm0001.jpg"
    assert [recipe.file_name for recipe in made] == sorted({recipe.file_name for recipe in made})


def test_plan_is_a_pure_function_of_seed_and_content() -> None:
    records = people(60, 6)
    mixed = random.Random(0).sample(records, len(records))
    content = {record.name: "same" for record in records}
    keypoints = {record.name: joints(k) for k, record in enumerate(records)}
    pool = plan.pose_pool(keypoints, among=keypoints, where="x.csv")
    first = plan.make_recipes(records, pool, content=content, seed=0, per_image=2)
    assert plan.make_recipes(mixed, pool, content=content, seed=0, per_image=2) == first
    assert plan.make_recipes(records, pool, content=content, seed=1, per_image=2) != first


def test_every_image_has_a_seed_of_its_own_from_content_pose_and_replica() -> None:
    made = recipes(people(60, 6), per_image=3)
    assert len({recipe.seed for recipe in made}) == len(made)
    assert all(0 <= recipe.seed < 2**63 for recipe in made)
    one = made[0]
    assert one.seed == plan.image_seed(0, one.source_sha256, one.pose_sha256, one.replica)


def test_joints_of_other_images_are_refused_with_the_file() -> None:
    with pytest.raises(UserError, match=r"test\.csv: has joints of none of the 1 images"):
        plan.pose_pool({"b.jpg": joints(0)}, among=["a.jpg"], where="test.csv")


def test_split_and_plan_of_12936_images_take_under_two_seconds() -> None:
    poses = [joints(k) for k in range(50)]
    keypoints = {record.name: poses[k % 50] for k, record in enumerate(MARKET)}
    files = [bytes(3000) for _ in MARKET]
    begin = time.process_time()
    real = plan.sample_real(MARKET, ratio=0.4, seed=0)
    content = {r.name: sha256(data) for r, data in zip(MARKET, files, strict=True)}
    pool = plan.pose_pool(keypoints, among=[record.name for record in real], where="x.csv")
    made = plan.make_recipes(real, pool, content=content, seed=0, fill_to=len(MARKET))
    assert len(real) + len(made) == 12936
    assert time.process_time() - begin < 2


# ---------------------------------------------------------------- development split


def test_development_split_withholds_100_people_of_market_and_a_tenth_elsewhere() -> None:
    for records, number in ((MARKET, 100), (people(400, 37), 4)):
        split = plan.development_split(records)
        withheld = {record.pid for record in (*split.query, *split.gallery)}
        assert len(withheld) == number
        assert not withheld & {record.pid for record in split.train}
        assert len(split.train) + len(split.query) + len(split.gallery) == len(records)


def test_every_query_of_the_development_split_has_a_match_by_another_camera() -> None:
    split = plan.development_split(MARKET)
    seen = {(record.pid, record.camid) for record in split.gallery}
    for query in split.query:
        assert any(pid == query.pid and camid != query.camid for pid, camid in seen)
    assert len({(query.pid, query.camid) for query in split.query}) == len(split.query) > 500


def test_joint_hash_does_not_depend_on_the_bits_of_nan() -> None:
    odd = np.frombuffer(np.uint32(0x7FC00001).tobytes(), np.float32)[0]
    first, second = joints(0), joints(0)
    first[3], second[3] = np.nan, odd
    pools = [plan.pose_pool({"a.jpg": k}, where="x") for k in (first, second)]
    assert pools[0].hashes == pools[1].hashes
