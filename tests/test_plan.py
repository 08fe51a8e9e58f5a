"""D_tr, the recipes and the development split."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from people import joints, standing

from pidm_core import Record, UserError, sha256
from pidm_reid import coverage, plan
from pidm_reid.config import PlanPolicy


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
        for ratio in (0.01, 0.2, 0.4, 0.6, 0.8, 1.0)
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


def test_a_ratio_that_one_image_of_each_person_exceeds_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = [Record(Path(f"{pid}_{k}"), f"{pid}_{k}", pid, 1) for pid in range(8) for k in "ab"]
    assert len(plan.sample_real(records, ratio=0.2, seed=0)) == 8
    said = "20% of 16 images would be 3; one of each of the 8 people is kept, which is 50%"
    assert caplog.messages == [said]
    assert len(plan.sample_real(records, ratio=0.5, seed=0)) == 8
    assert caplog.messages == [said]


@pytest.mark.parametrize("ratio", [40, -0.1, 1.5, float("nan"), float("inf")])
def test_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="not between 0 and 1"):
        plan.sample_real(MARKET, ratio=ratio, seed=0)


def test_ratio_40_is_answered_with_the_right_one() -> None:
    with pytest.raises(UserError, match=r"did you mean 0\.4\?"):
        plan.check_ratio(40)
    with pytest.raises(UserError, match="ratio 0 is no share"):
        plan.check_ratio(0)


# ---------------------------------------------------------------- recipes


def recipes(records: list[Record], seed: int = 0, **amount: int) -> plan.Recipes:
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
    first = list(plan.make_recipes(records, pool, content=content, seed=0, per_image=2))
    assert list(plan.make_recipes(mixed, pool, content=content, seed=0, per_image=2)) == first
    assert list(plan.make_recipes(records, pool, content=content, seed=1, per_image=2)) != first


def test_every_image_has_a_seed_of_its_own_from_content_pose_and_replica() -> None:
    made = recipes(people(60, 6), per_image=3)
    assert len({recipe.seed for recipe in made}) == len(made)
    assert all(0 <= recipe.seed < 2**63 for recipe in made)
    one = made[0]
    assert one.seed == plan.image_seed(0, one.source_sha256, one.pose_sha256, one.replica)


def test_joints_of_other_images_are_refused_with_the_file() -> None:
    with pytest.raises(UserError, match=r"test\.csv: has joints of none of the 1 images"):
        plan.pose_pool({"b.jpg": joints(0)}, among=["a.jpg"], where="test.csv")


@pytest.mark.parametrize(
    ("policy", "seconds"), [(PlanPolicy(), 2), (PlanPolicy("balanced", 1.3, "cameras"), 5)], ids=str
)
def test_split_and_plan_of_12936_images_take_seconds(policy: PlanPolicy, seconds: float) -> None:
    poses = [standing(coverage.VIEWS[k % 4], torso=15 + k % 9, shift=k / 9) for k in range(50)]
    keypoints = {record.name: poses[k % 50] for k, record in enumerate(MARKET)}
    files = [bytes(3000) for _ in MARKET]
    begin = time.process_time()
    real = plan.sample_real(MARKET, ratio=0.4, seed=0)
    content = {r.name: sha256(data) for r, data in zip(MARKET, files, strict=True)}
    pool = plan.pose_pool(keypoints, among=[record.name for record in real], where="x.csv")
    made = plan.make_recipes(
        real, pool, content=content, seed=0, fill_to=len(MARKET), policy=policy
    )
    assert len(real) + len(made) == 12936
    assert time.process_time() - begin < seconds


# ---------------------------------------------------------------- policies

POLICIES = [
    PlanPolicy(),
    PlanPolicy("balanced"),
    PlanPolicy(same_scale=1.3),
    PlanPolicy(source_policy="cameras"),
    PlanPolicy("balanced", 1.3, "cameras"),
]


def walkers(images: int, identities: int) -> tuple[list[Record], dict[str, np.ndarray]]:
    """People in every view and many sizes; every ninth image has no joints."""
    records = people(images, identities)
    keypoints = {}
    for k, record in enumerate(records):
        view = coverage.VIEWS[k % 7 % 4]
        pose = standing(view, torso=15 + k % 13, shift=k % 5)
        keypoints[record.name] = pose if k % 9 != 8 else np.full_like(pose, np.nan)
    return records, keypoints


def planned(
    records: list[Record],
    keypoints: dict[str, np.ndarray],
    policy: PlanPolicy = PlanPolicy(),  # noqa: B008 (frozen)
    **amount: int,
) -> plan.Recipes:
    pool = plan.pose_pool(keypoints, among=[record.name for record in records], where="x.csv")
    content = {record.name: sha256(record.name.encode()) for record in records}
    return plan.make_recipes(records, pool, content=content, **{"seed": 0, **amount}, policy=policy)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ({"per_image": 3}, "c7d79f742581db4d6597a0dc6b0d22313d4359caff83d3f4f22cf373f37d426c"),
        ({"fill_to": 500}, "32a6f6468fe50b8bdbff7b5505529a000bbb80f2c0330185c26b6d11f46c6857"),
        (
            {"fill_to": 500, "seed": 1},
            "5126ec1e890a66c52fe213c1f124016e010826986b93251644ba35861358fbed",
        ),
    ],
)
def test_the_default_plan_keeps_the_bytes_it_had_before_there_were_policies(
    amount: dict[str, int], expected: str
) -> None:
    made = planned(*walkers(300, 20), **amount)
    assert sha256(plan.write_recipes(made)) == expected


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_smaller_amount_is_part_of_a_larger_one(policy: PlanPolicy) -> None:
    chains: list[list[dict[str, int]]] = [
        [{"fill_to": 110}, {"fill_to": 190}, {"per_image": 1}, {"fill_to": 215}, {"per_image": 3}],
        [{"fill_to": 135, "times": times} for times in (1, 2, 3)],  # less than one per source
        [{"fill_to": 230, "times": times} for times in (1, 2, 3)],  # one and a part
    ]
    records, keypoints = walkers(100, 9)
    for chain in chains:
        plans = [set(planned(records, keypoints, policy, **amount)) for amount in chain]
        assert all(small < large for small, large in itertools.pairwise(plans))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_times_multiplies_the_count_of_every_source(policy: PlanPolicy) -> None:
    once, twice = (
        Counter(r.source for r in planned(*walkers(200, 17), policy, fill_to=330, times=times))
        for times in (1, 2)
    )
    assert twice == Counter({source: 2 * count for source, count in once.items()})


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_no_policy_changes_how_many_images_a_person_gets(policy: PlanPolicy) -> None:
    def per_person(policy: PlanPolicy) -> Counter[str]:
        return Counter(r.source[:4] for r in planned(*walkers(203, 17), policy, fill_to=350))

    assert per_person(policy) == per_person(PlanPolicy())


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_no_source_gets_its_own_pose_under_any_policy(policy: PlanPolicy) -> None:
    made = planned(*walkers(100, 9), policy, per_image=8)
    assert all(recipe.pose != recipe.source for recipe in made)
    if policy.pose_policy == "uniform":
        assert len({(recipe.source, recipe.pose) for recipe in made}) == 800


def crowd(**own: list[str]) -> tuple[list[Record], dict[str, np.ndarray]]:
    """Ten people seen once from each side, and person 9, seen as told by each camera (c1=…)."""
    records, keypoints = [], {}

    def add(pid: int, camera: int, view: str) -> None:
        name = f"{pid:04d}_c{camera}s1_{len(records):06d}_00.jpg"
        records.append(Record(Path(name), name, pid, camera))
        keypoints[name] = standing(view) if view else np.full((18, 2), np.nan)

    for pid in range(20, 30):
        for view in coverage.VIEWS:
            add(pid, 1, view)
    for camera, views in own.items():
        for view in views:
            add(9, int(camera[1:]), view)
    return records, keypoints


def views_of(made: list[plan.Recipe], keypoints: dict[str, np.ndarray]) -> Counter[str]:
    """How often person 9 was given a pose of each view."""
    poses = [keypoints[recipe.pose] for recipe in made if recipe.source.startswith("0009")]
    return Counter(coverage.VIEWS[k] for k in coverage.view(np.stack(poses)))


@pytest.mark.parametrize(
    ("own", "per_image", "expected"),
    [
        (["front", "front"], 3, {"right": 2, "back": 2, "left": 2}),
        (["front", "front"], 5, {"front": 1, "right": 3, "back": 3, "left": 3}),
        (["front", "back", "back"], 3, {"front": 2, "right": 3, "back": 1, "left": 3}),
        (["front", "back", ""], 2, {"front": 1, "right": 2, "back": 1, "left": 2}),
        ([""], 4, {"front": 1, "right": 1, "back": 1, "left": 1}),  # nothing is known of it
    ],
)
def test_balanced_gives_a_person_the_views_that_its_images_lack(
    own: list[str], per_image: int, expected: dict[str, int]
) -> None:
    records, keypoints = crowd(c1=own)
    made = planned(records, keypoints, PlanPolicy("balanced"), per_image=per_image)
    assert views_of(made, keypoints) == expected


def test_balanced_fills_empty_cells_of_a_known_view_last() -> None:
    records, keypoints = crowd(c1=["front", "front"])
    for k in range(40):  # 50 front poses in ten postures: several cells
        name = f"{100 + k:04d}_c1s1_000000_00.jpg"
        records.append(Record(Path(name), name, 100 + k, 1))
        keypoints[name] = standing("front", shift=k % 10)
    made = planned(records, keypoints, PlanPolicy("balanced"), per_image=1)
    found = views_of(made, keypoints)
    assert not found["front"]
    assert max(found.values()) == 1


def test_no_pose_of_a_cell_comes_twice_before_all_had_their_turn() -> None:
    records, keypoints = crowd(c1=["front"])  # ten poses of every view, and the source's own
    made = planned(records, keypoints, PlanPolicy("balanced"), per_image=39)
    assert views_of(made, keypoints) == {"front": 9, "right": 10, "back": 10, "left": 10}
    assert len({recipe.pose for recipe in made if recipe.source.startswith("0009")}) == 39


def test_equal_cells_are_drawn_anew_for_every_person_and_seed() -> None:
    records, keypoints = crowd(c1=["front"])
    first = set()
    for seed in range(20):
        made = planned(records, keypoints, PlanPolicy("balanced"), per_image=1, seed=seed)
        first |= set(views_of(made, keypoints))
    assert first == {"right", "back", "left"}


def test_poses_that_face_nowhere_cannot_be_balanced() -> None:
    records, keypoints = crowd(c1=["front"])
    handstands = {"a.jpg": standing("front") * [1, -1] + [0, 64]}
    pool = plan.pose_pool(handstands, where="a.csv")
    content = dict.fromkeys(keypoints, "x")
    with pytest.raises(UserError, match="none of 1 poses tells where the person faces"):
        plan.make_recipes(
            records, pool, content=content, seed=0, per_image=1,
            policy=PlanPolicy("balanced"), bodies=keypoints,
        )  # fmt: skip


def test_external_poses_are_balanced_against_the_joints_of_the_real_images() -> None:
    records, keypoints = crowd(c1=["front", "back"])
    poses = {f"{view}.jpg": standing(view) for view in coverage.VIEWS}
    made = plan.make_recipes(
        records, plan.pose_pool(poses, where="a.csv"), content=dict.fromkeys(keypoints, "x"),
        seed=0, per_image=1, policy=PlanPolicy("balanced"), bodies=keypoints,
    )  # fmt: skip
    given = {recipe.pose for recipe in made if recipe.source.startswith("0009")}
    assert given == {"right.jpg", "left.jpg"}


def test_cameras_of_a_person_give_as_many_images_each() -> None:
    records, keypoints = crowd(c1=["front", "back", "left"], c2=["front"], c5=["back", ""])
    made = planned(records, keypoints, PlanPolicy(source_policy="cameras"), per_image=2)
    own = Counter(recipe.source for recipe in made if recipe.source.startswith("0009"))
    cameras = Counter[str]()
    for source, count in own.items():
        cameras[source[5:7]] += count
    assert cameras == {"c1": 4, "c2": 4, "c5": 4}
    assert sorted(own.values()) == [1, 1, 2, 2, 2, 4]  # c1: 2, 1, 1; c5: 2, 2; c2: its only image
    assert len({recipe.pose for recipe in made if "_c2" in recipe.source}) == 4


def test_what_does_not_divide_goes_to_the_cameras_give_or_take_one() -> None:
    made = planned(*walkers(203, 17), PlanPolicy(source_policy="cameras"), fill_to=390)
    by_person: dict[str, Counter[str]] = {}
    for recipe in made:
        by_person.setdefault(recipe.source[:4], Counter())[recipe.source[5:7]] += 1
    assert len(by_person) == 17
    assert all(max(c.values()) - min(c.values()) <= 1 for c in by_person.values())


def sized(*torsos: float) -> tuple[list[Record], dict[str, np.ndarray]]:
    records = people(len(torsos), len(torsos))
    poses = [standing("front", torso=torso) for torso in torsos]
    return records, {record.name: pose for record, pose in zip(records, poses, strict=True)}


def test_same_scale_takes_poses_within_the_factor_both_ways() -> None:
    records, keypoints = sized(16, 20, 25, 31, 18)
    keypoints[records[4].name][:] = np.nan  # this source gets any
    made = planned(records, keypoints, PlanPolicy(same_scale=1.3), per_image=12)
    given = {record.name: set[int]() for record in records}
    for recipe in made:
        given[recipe.source].add(round(float(coverage.torso(keypoints[recipe.pose][None])[0])))
    assert list(given.values()) == [{20}, {16, 25}, {20, 31}, {25}, {16, 20, 25, 31}]


def test_a_source_without_a_pose_of_its_size_is_told_of_and_gets_any(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records, keypoints = sized(10, 12, 40)
    made = planned(records, keypoints, PlanPolicy(same_scale=1.25), per_image=2)
    assert {r.pose for r in made if r.source == records[2].name} == {r.name for r in records[:2]}
    assert [record.getMessage() for record in caplog.records] == [
        f"same-scale 1.25: 1 of 3 sources, such as {records[2].name}, have no other pose of "
        "their size and get poses of any size"
    ]


def test_same_scale_within_balanced_takes_the_emptiest_cell_that_has_such_a_pose() -> None:
    records, keypoints = sized(20, 20, 40)
    keypoints[records[1].name] = standing("front", torso=20)
    keypoints[records[2].name] = standing("back", torso=40)
    made = planned(records, keypoints, PlanPolicy("balanced", 1.2), per_image=1)
    assert made[0].pose == records[1].name  # in front again: the only back is twice as tall


@pytest.mark.parametrize("factor", [0.8, -1.2, math.inf])
def test_a_scale_below_one_is_refused(factor: float) -> None:
    with pytest.raises(UserError, match=r"is not a factor of 1 or more, such as 1\.2"):
        PlanPolicy(same_scale=factor)


def test_amounts_that_no_file_name_can_number_are_refused() -> None:
    records, keypoints = crowd(c1=["front"] * 6, c2=["back"])
    for amount in ({"per_image": 10_000}, {"per_image": 5000, "times": 2}):
        with pytest.raises(UserError, match="10000 images of one source are too many"):
            planned(records, keypoints, **amount)
    with pytest.raises(UserError, match="times 0 is not 1 or more"):
        planned(records, keypoints, per_image=1, times=0)
    with pytest.raises(UserError, match="10500 images of one source are too many"):  # of camera 2
        planned(records, keypoints, PlanPolicy(source_policy="cameras"), per_image=3000)


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
