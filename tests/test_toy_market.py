"""ToyMarket: layout, counts, determinism, keypoint faults, the oracle, and the frozen world."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from pidm_core.data import read_market1501
from pidm_core.files import UserError, load_image
from pidm_core.folders import only_writer
from pidm_core.keypoints import missing, passes_patn, read_keypoints
from pidm_core.toy_body import body_of, pose_of, pose_skeleton, solids_of
from pidm_core.toy_cameras import CAMERAS
from pidm_core.toy_market import PRESETS, VERSION, make, oracle_render, world_hash
from pidm_core.toy_people import TWIN_EVERY, look_of, stream
from pidm_core.toy_render import HEIGHT, WIDTH, View, cast, fit
from pidm_core.toy_scenes import RANGES, SUBSETS, Scene, draw, exact_joints, found_joints, plan
from tools.make_toy_market import main

NAME = re.compile(r"(-1|\d{4})_c([1-6])s([1-6])_(\d{6})_(\d{2})\.jpg")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy")
    assert main(["--preset", "tiny", "--out", str(out), "--workers", "1"]) == 0
    return out / "market1501"


@pytest.fixture(scope="module")
def full() -> list[Scene]:
    return plan(PRESETS["full"], seed=0)


def _bytes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# ---------------------------------------------------------------- layout


def test_the_files_are_those_of_a_market1501_folder(root: Path) -> None:
    notes = [
        f"{kind}-annotation-{s}.csv" for kind in ("exact", "market") for s in ("test", "train")
    ]
    notes += ["scenes-test.jsonl", "scenes-train.jsonl", "toy_market.json"]
    assert sorted(p.name for p in root.iterdir()) == sorted([*SUBSETS, *notes])
    for subset in SUBSETS:
        for path in (root / subset).iterdir():
            assert NAME.fullmatch(path.name), path.name
            assert load_image(path).shape == (128, 64, 3)


def test_market_readers_read_it(root: Path) -> None:
    counts = PRESETS["tiny"]
    assert len(read_market1501(root)) == counts.train_images
    assert len(read_market1501(root, "query")) == counts.queries
    gallery = Counter(record.pid for record in read_market1501(root, "bounding_box_test"))
    # readers may or may not drop junk; distractors stay
    assert gallery.pop(-1, counts.junk) == counts.junk
    assert gallery.pop(0) == counts.distractors
    assert sum(gallery.values()) == counts.gallery


def test_full_has_the_counts_of_market1501(full: list[Scene]) -> None:
    names = defaultdict(list)
    for scene in full:
        names[scene.subset].append(scene.name.split("_")[0])
    train, query, gallery = (Counter(names[subset]) for subset in SUBSETS)
    assert (train.total(), query.total(), gallery.total()) == (12_936, 3_368, 19_732)
    assert (gallery["0000"], gallery["-1"]) == (2_798, 3_819)
    assert (len(train), len(query), len(gallery)) == (751, 750, 752)
    assert not set(train) & set(query)
    pids = sorted(int(pid) for pid in set(train) | set(query))
    assert pids == list(range(1, 1502))
    assert len({(scene.subset, scene.name) for scene in full}) == len(full)
    assert min(train.values()) >= 2
    assert 30 < max(train.values()) < 100


def test_a_query_is_one_per_camera_and_has_gallery_images_elsewhere(full: list[Scene]) -> None:
    gallery = {(s.person, s.camera) for s in full if s.subset == "bounding_box_test"}
    queries = [(s.person, s.camera) for s in full if s.subset == "query"]
    assert len(set(queries)) == len(queries)
    for person, camera in queries:
        assert any((person, other) in gallery for other in range(1, 7) if other != camera)


def test_demo_is_as_large_as_the_design_says() -> None:
    counts = PRESETS["demo"]
    assert 1200 <= counts.train_images <= 1500
    assert (counts.train_identities, counts.test_identities) == (110, 50)


def test_pretraining_may_have_more_people_than_market() -> None:
    counts = replace(PRESETS["tiny"], train_identities=3000, train_images=24_000)
    scenes = [s for s in plan(counts, seed=0, train_people="pretrain") if s.subset == SUBSETS[0]]
    assert len(scenes) == 24_000
    assert len({s.person for s in scenes}) == 3000
    with pytest.raises(UserError, match="four digits"):
        plan(replace(counts, train_identities=9999, train_images=40_000), seed=0)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(UserError, match="2 to 6"):
        plan(replace(PRESETS["tiny"], train_images=9), seed=0)


# ---------------------------------------------------------------- determinism and resume


def test_two_processes_draw_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = make(tmp_path, preset="tiny", workers=2)
    assert _bytes(again) == _bytes(root)


def test_an_interrupted_run_goes_on(root: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(sizes: Iterable[int], *, total: int) -> Iterator[int]:
        for _ in sizes:
            raise Stop
        yield total

    with pytest.raises(Stop):
        make(tmp_path, preset="tiny", workers=1, progress=stop)
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    again = make(tmp_path, preset="tiny", workers=1)
    assert there
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())
    assert _bytes(again) == _bytes(root)


def test_of_two_processes_that_draw_one_set_the_second_is_refused(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(UserError, match="another process is writing there"):
        make(tmp_path, preset="tiny")
    finished = make(tmp_path, preset="tiny")
    with only_writer(tmp_path):
        assert make(tmp_path, preset="tiny") == finished


def test_a_dry_run_counts_what_would_be_drawn(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sum(1 for subset in SUBSETS for _ in (root / subset).iterdir())
    assert main(["--preset", "tiny", "--out", str(tmp_path), "--dry-run"]) == 0
    assert f": {files} images" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_finished_set_is_left_alone_and_another_refused(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert make(root.parent, preset="tiny") == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(UserError, match="seed is 0, not 1"):
        make(root.parent, preset="tiny", seed=1)


def test_somebody_elses_images_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "market1501" / "query").mkdir(parents=True)
    with pytest.raises(UserError, match="not ToyMarket's"):
        make(tmp_path, preset="tiny")
    assert [p.name for p in tmp_path.rglob("*")] == ["market1501", "query"]


def test_the_world_is_frozen() -> None:
    # Change both together, and run all tables again (design: nobody tunes the world).
    assert (VERSION, world_hash()) == (2, "be343b6b0f86c56b")


# ---------------------------------------------------------------- people


def test_ranges_are_disjoint_and_sets_draw_from_their_own() -> None:
    people = [set(numbers) for numbers in RANGES.values()]
    assert sum(map(len, people)) == len(set.union(*people))
    for train, test in (("train", "test"), ("pretrain", "development")):
        for scene in plan(PRESETS["tiny"], seed=3, train_people=train, test_people=test):
            home = train if scene.subset == SUBSETS[0] else test
            assert scene.person in RANGES["passers-by" if scene.kind == "distractor" else home]


def test_some_people_are_near_twins() -> None:
    for number in range(10_000 + TWIN_EVERY - 1, 10_100, TWIN_EVERY):
        one, other = look_of(0, number - 1), look_of(0, number)
        different = [f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)]
        assert 1 <= len(different) <= 4
    assert look_of(0, 10_000) != look_of(0, 10_001) != look_of(1, 10_001)


def test_people_can_be_seen_from_all_sides_by_all_cameras(full: list[Scene]) -> None:
    assert {scene.camera for scene in full} == set(CAMERAS) == set(range(1, 7))
    directions = np.sort(np.concatenate([camera.directions for camera in CAMERAS.values()]))
    assert np.diff(directions, append=directions[0] + 360).max() < 90


# ---------------------------------------------------------------- geometry and keypoints


def test_the_left_side_of_who_faces_the_camera_is_on_the_right() -> None:
    bones = pose_skeleton(body_of(0, 1), pose_of(stream(1)))
    for azimuth, sign in ((0.0, 1), (np.pi, -1)):
        joints = fit(bones, View(azimuth, 1.5, 8.0, 0.0, 0.9, (0, 0))).pixels(bones.joints)
        assert sign * (joints[5, 0] - joints[2, 0]) > 5  # left and right shoulder
        assert joints[0, 1] < joints[1, 1] < joints[8, 1] < joints[9, 1] < joints[10, 1]


def test_the_box_holds_the_person() -> None:
    for number in range(8):
        bones = pose_skeleton(body_of(0, number), pose_of(stream(number)))
        shot = fit(bones, View(number, 3.0, 7.0, 0.0, 0.9, (0, 0)))
        rows = cast(solids_of(look_of(0, number), bones), shot).depth.min(axis=1) < 1e5
        assert rows.mean() == pytest.approx(0.9, abs=0.06)


@pytest.fixture(scope="module")
def keypoints() -> tuple[np.ndarray, np.ndarray]:
    """Found and exact joints of 150 training pictures of demo."""
    scenes = [scene for scene in plan(PRESETS["demo"], seed=0) if scene.subset == SUBSETS[0]]
    pictures = [(scene, draw(0, scene)) for scene in scenes[:: len(scenes) // 150]]
    found = [found_joints(p, stream(0, "estimator", scene.key)) for scene, p in pictures]
    return np.stack(found), np.stack([exact_joints(p) for _, p in pictures])


def test_joints_have_the_faults_of_openpose(keypoints: tuple[np.ndarray, np.ndarray]) -> None:
    found, exact = keypoints
    assert missing(found).mean() == pytest.approx(0.255, abs=0.03)  # Market-1501: 0.257
    assert np.median((~missing(found)).sum(axis=1)) == 14  # Market-1501: 14
    assert passes_patn(found).mean() == pytest.approx(0.937, abs=0.05)  # 12,116 of 12,936
    assert 0 < missing(found).all(axis=1).mean() < 0.08  # Market-1501: 0.03
    error = np.linalg.norm(found - exact, axis=2)
    assert 0.8 < np.nanmedian(error) < 2.0
    assert missing(exact).mean() < 0.02


def test_keypoint_files_name_every_image(root: Path) -> None:
    for split, subsets in (("train", SUBSETS[:1]), ("test", SUBSETS[1:])):
        names = {p.name for subset in subsets for p in (root / subset).iterdir()}
        for kind in ("market", "exact"):
            assert set(read_keypoints(root / f"{kind}-annotation-{split}.csv")) == names
        lines = (root / f"scenes-{split}.jsonl").read_text().splitlines()
        assert {json.loads(line)["name"] for line in lines} == names


# ---------------------------------------------------------------- the oracle


def test_the_oracle_draws_the_source_in_the_pose(root: Path) -> None:
    render, records = oracle_render(root), read_market1501(root)
    found = read_keypoints(root / "market-annotation-train.csv")
    exact = read_keypoints(root / "exact-annotation-train.csv")
    poses = [record for record in records if not missing(found[record.name]).all()][:24:2]
    sources = np.stack([load_image(r.path) for r in records[1 : 2 * len(poses) : 2]])
    joints = np.stack([found[pose.name] for pose in poses])
    one = render(sources, joints, list(range(len(poses))))
    two = render(sources, joints, list(range(100, 100 + len(poses))))
    assert one.shape == sources.shape
    assert one.dtype == np.uint8
    assert np.array_equal(one, render(sources, joints, list(range(len(poses)))))
    for first, second, pose in zip(one.astype(int), two.astype(int), poses, strict=True):
        # Two seeds move the background and leave the person: the change is small at the joints.
        change = np.abs(first - second).sum(axis=2)
        points = exact[pose.name][[1, 2, 5, 8, 11, 9, 12]]
        x, y = np.rint(points[~missing(points)]).astype(int).T
        assert np.median(change[y, x]) < 1.2 * np.median(change)


def test_the_oracle_keeps_the_box_of_the_pose(root: Path) -> None:
    scenes = [s for s in plan(PRESETS["tiny"], seed=0) if s.subset == SUBSETS[0]]
    source, pose = scenes[0], scenes[-1]
    assert source.person != pose.person
    drawn, wanted = draw(0, source, pose, 7), draw(0, pose)
    assert np.array_equal(drawn.joints, wanted.joints)
    assert drawn.image.shape == (HEIGHT, WIDTH, 3)


def test_the_oracle_refuses_strangers(root: Path) -> None:
    render, record = oracle_render(root), read_market1501(root)[0]
    joints = read_keypoints(root / "market-annotation-train.csv")[record.name]
    with pytest.raises(UserError, match="a source image"):
        render(np.zeros((1, 128, 64, 3), np.uint8), joints[None], [0])
    with pytest.raises(UserError, match="a pose"):
        render(load_image(record.path)[None], joints[None] + 1, [0])


def test_the_next_command_is_one_that_a_shell_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drawn people"
    assert main(["--preset", "tiny", "--out", str(out)]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[words.index("--data") + 1] == str(out)
