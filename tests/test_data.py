"""Folders of people, PATN's pairs, the order of samples and the augmented batches."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from pidm_core import data
from pidm_core.data import (
    Pairs,
    Record,
    check_frame,
    find_keypoints,
    has_market1501,
    make_pairs,
    order,
    read_market1501,
)
from pidm_core.files import BAD_DATA, UserError, encode_png
from pidm_core.keypoints import mirror, read_keypoints

SIZE = (64, 32)
DOUBLE = np.ones((2, 2, 1), np.uint8)


def person(seed: int = 0) -> np.ndarray:
    """Joints with nothing missing, inside a 64x32 frame."""
    return np.random.default_rng(seed).uniform(4, 28, (18, 2)).astype(np.float32)


def record(name: str) -> Record:
    return Record(Path(name), name, int(name.split("_")[0]), int(name.split("_c")[1][0]))


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def people(folder: Path, pids: list[int]) -> tuple[list[Record], dict[str, np.ndarray]]:
    """A Market-1501 training folder with an image for each entry of `pids`, and its joints."""
    home = folder / "market1501" / "bounding_box_train"
    home.mkdir(parents=True)
    for number, pid in enumerate(pids):
        name = f"{pid:04d}_c1s1_{number:06d}_00.png"
        (home / name).write_bytes(encode_png(picture(number)))
    records = read_market1501(folder)
    return records, {r.name: person(k) for k, r in enumerate(records)}


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("inner", ["", "market1501", "Market-1501-v15.09.15"])
def test_market1501_is_found_sorted_and_cleaned(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / inner / "bounding_box_train"
    folder.mkdir(parents=True)
    names = ["0002_c1s1_000451_03.jpg", "-1_c3s1_000001_01.jpg", "0002_c6s1_000002_01_pidm0001.JPG"]
    for name in [*names, "Thumbs.db", "._0002_c1s1_000451_03.jpg", ".DS_Store", "x.part"]:
        (folder / name).touch()
    (folder / "0003_c1s1_000451_03.jpg").mkdir()
    (folder / "0004_c1s1_000451_03.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "0005_c1s1_000451_03.jpg")
    records = read_market1501(tmp_path)
    assert [r.name for r in records] == sorted(names)
    assert [(r.pid, r.camid) for r in records] == [(-1, 3), (2, 1), (2, 6)]
    assert all(r.path.is_file() for r in records)


def test_patn_folder_names_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0002_c1s1_000451_03.jpg").touch()
    assert len(read_market1501(tmp_path)) == 1


def test_a_folder_is_market1501_by_a_name_in_it(tmp_path: Path) -> None:
    assert not has_market1501(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a_1.jpg").touch()
    assert not has_market1501(tmp_path)
    (tmp_path / "train" / "0002_c1s1_000451_03.jpg").touch()
    assert has_market1501(tmp_path)


def test_a_wrong_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder 'query'") as caught:
        read_market1501(tmp_path, "query")
    assert caught.value.code == BAD_DATA
    (tmp_path / "query").mkdir()
    with pytest.raises(UserError, match="no images"):
        read_market1501(tmp_path, "query")
    (tmp_path / "query" / "holiday.jpg").touch()
    (tmp_path / "query" / "0001_c1_beach.jpg").touch()
    with pytest.raises(
        UserError, match=r"holiday\.jpg: .* begin with .* \(1 of 2 names here do not"
    ):
        read_market1501(tmp_path, "query")
    with pytest.raises(UserError, match=f"is the folder of images; give the one above, {tmp_path}"):
        read_market1501(tmp_path / "query", "query")
    with pytest.raises(UserError, match=r"no folder 'gallery' in it, but images; move them into"):
        read_market1501(tmp_path / "query", "gallery")
    with pytest.raises(UserError, match="nowhere: no such folder; give the one"):
        read_market1501(tmp_path / "nowhere")


def test_keypoints_are_found_inside_beside_or_above(tmp_path: Path) -> None:
    home = tmp_path / "market1501"
    (home / "bounding_box_train").mkdir(parents=True)
    (home / "query").mkdir()
    with pytest.raises(UserError, match=r"market-annotation-train\.csv"):
        find_keypoints(tmp_path)
    for folder in (tmp_path, home):
        (folder / "market-annotation-train.csv").touch()
        assert find_keypoints(tmp_path) == folder / "market-annotation-train.csv"
    (home / "market-annotation-test.csv").touch()
    assert find_keypoints(tmp_path, "query").name == "market-annotation-test.csv"


# ---------------------------------------------------------------- pairs


def test_pairs_follow_patns_rule() -> None:
    names = [
        *("0001_c1s1_000001_00", "0001_c2s1_000002_00", "0001_c3s1_000003_00"),
        *("0002_c1s1_000001_00", "0003_c1s1_000001_00", "0003_c1s1_000002_00"),
        *("0000_c1s1_000001_00", "0000_c1s1_000002_00", "-1_c1s1_000001_00", "-1_c1s1_000002_00"),
        *("0004_c1s1_000001_00", "0004_c1s1_000002_00"),
    ]
    records = [record(name) for name in names]
    keypoints = {name: person() for name in names}
    keypoints[names[4]] = keypoints[names[4]].copy()
    keypoints[names[4]][11] = np.nan  # no left hip
    del keypoints[names[10]]
    expected = [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    assert make_pairs(records, keypoints).tolist() == expected
    backwards = make_pairs(records[::-1], keypoints)
    last = len(records) - 1
    assert sorted((last - backwards).tolist()) == expected
    assert make_pairs([], {}).shape == (0, 2)


def test_pairs_equal_itertools_on_random_people() -> None:
    rng = np.random.default_rng(0)
    records = [record(f"{rng.integers(0, 9):04d}_c1s1_{k:06d}_00") for k in range(60)]
    keypoints = {r.name: person(k) for k, r in enumerate(records)}
    for r in records[::7]:
        keypoints[r.name][2] = np.nan
    usable = [k for k, r in enumerate(records) if k % 7 and r.pid]
    expected = [
        (a, b) for a, b in itertools.permutations(usable, 2) if records[a].pid == records[b].pid
    ]
    assert sorted(map(tuple, make_pairs(records, keypoints).tolist())) == sorted(expected)


@pytest.mark.skipif("MARKET1501_KEYPOINTS" not in os.environ, reason="needs PATN's train CSV")
def test_the_real_training_set_has_263632_pairs() -> None:
    table = read_keypoints(os.environ["MARKET1501_KEYPOINTS"])
    assert len(make_pairs([record(name) for name in sorted(table)], table)) == 263_632


# ---------------------------------------------------------------- order


@pytest.mark.parametrize(("count", "batch_size", "world"), [(10, 4, 1), (7, 3, 2), (5, 16, 3)])
def test_order_covers_every_sample_once_an_epoch(count: int, batch_size: int, world: int) -> None:
    step = batch_size * world
    stream = np.concatenate(
        [
            order(count, seed=3, position=k * step, batch_size=batch_size, world=world, rank=rank)
            for k in range(3 * count)
            for rank in range(world)
        ]
    )
    epochs = stream[: len(stream) // count * count].reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 1
    alone = order(count, seed=3, position=0, batch_size=len(stream))
    assert (alone == stream).all()  # the same stream for any batch size and world


def test_order_resumes_anywhere_and_depends_on_the_seed() -> None:
    whole = order(13, seed=1, position=0, batch_size=60)
    np.testing.assert_array_equal(order(13, seed=1, position=17, batch_size=30), whole[17:47])
    assert (order(13, seed=2, position=0, batch_size=60) != whole).any()


# ---------------------------------------------------------------- batches


def test_a_batch_without_enlargement_is_the_files_flipped_or_not(tmp_path: Path) -> None:
    records, keypoints = people(tmp_path, [1, 1, 2, 2, 2])
    pairs = Pairs(records, keypoints, size=SIZE)
    assert len(pairs) == 2 + 6
    flips = set()
    for seed in range(6):
        batch = pairs.batch(np.array([0]), np.random.default_rng(seed), max_scale=0.0)
        flip = bool((batch.source[0] != picture(0)).any())
        flips.add(flip)
        turn = slice(None, None, -1 if flip else 1)
        np.testing.assert_array_equal(batch.source[0], picture(0)[:, turn])
        np.testing.assert_array_equal(batch.target[0], picture(1)[:, turn])  # flipped together
        joints = keypoints[records[1].name]
        expected = mirror(joints, SIZE[1]) if flip else joints
        np.testing.assert_array_equal(batch.keypoints[0], expected)
    assert flips == {True, False}


def test_enlarged_joints_stay_on_their_pixels(tmp_path: Path) -> None:
    home = tmp_path / "bounding_box_train"
    home.mkdir()
    keypoints = {}
    for number in range(2):  # a white dot of 3 x 3 px where the nose is
        image = np.zeros((128, 64, 3), np.uint8)
        image[49:52, 19:22] = 255
        name = f"0001_c1s1_{number:06d}_00.png"
        (home / name).write_bytes(encode_png(image))
        keypoints[name] = np.tile(np.float32([20, 50]), (18, 1))
    pairs = Pairs(read_market1501(tmp_path), keypoints, size=(128, 64))
    batch = pairs.batch(np.zeros(32, int), np.random.default_rng(0), max_scale=0.2)
    weight = batch.target.mean(-1)  # (B, H, W)
    y, x = np.indices((128, 64))
    centre = np.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], 1)
    centre /= weight.sum((1, 2))[:, None]
    assert np.abs(centre - batch.keypoints[:, 0]).max() < 0.15
    assert np.ptp(batch.keypoints[:, 0, 1]) > 4  # they did move
    assert (batch.source != batch.target).any()  # drawn separately


def test_joints_cut_off_are_missing() -> None:
    corner = np.zeros((1, 18, 2), np.float32)
    images = np.zeros((1, *SIZE, 3), np.uint8)
    _, kept = data._enlarge(images, corner, np.array([[1.0, 0.0, 0.0]]), 0.5)
    np.testing.assert_allclose(kept[0, 0], [0.25, 0.25])  # (0 + 0.5) * 1.5 - 0.5
    _, cut = data._enlarge(images, corner, np.array([[1.0, 1.0, 1.0]]), 0.5)
    assert np.isnan(cut).all()


def test_images_of_another_size_are_resized_with_their_joints(tmp_path: Path) -> None:
    records, keypoints = people(tmp_path, [1, 1])
    records[1].path.write_bytes(encode_png(picture(9, (128, 128))))
    keypoints[records[1].name] = np.tile(np.float32([100.5, 20.5]), (18, 1))
    pairs = Pairs(records, keypoints, size=SIZE)
    batch = pairs.batch(np.array([0]), np.random.default_rng(1), max_scale=0.0)
    assert batch.target.shape == (1, *SIZE, 3)
    x = (100.5 + 0.5) * 32 / 128 - 0.5
    assert batch.keypoints[0, 0, 0] in (pytest.approx(x), pytest.approx(31 - x))
    assert batch.keypoints[0, 0, 1] == pytest.approx((20.5 + 0.5) * 64 / 128 - 0.5)


def test_a_batch_is_a_function_of_indices_and_generator_cached_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, keypoints = people(tmp_path, [1, 1, 2, 2, 2, 3])
    indices = np.arange(8)
    cached = Pairs(records, keypoints, size=SIZE)
    monkeypatch.setattr(data, "_CACHE_BYTES", 0)
    direct = Pairs(records, keypoints, size=SIZE)
    first = cached.batch(indices, np.random.default_rng([0, 5]), max_scale=0.05)
    for pairs in (cached, direct):
        batch = pairs.batch(indices, np.random.default_rng([0, 5]), max_scale=0.05)
        np.testing.assert_array_equal(batch.source, first.source)
        np.testing.assert_array_equal(batch.target, first.target)
        np.testing.assert_array_equal(batch.keypoints, first.keypoints)


def test_lonely_identities_train_as_their_own_flip(tmp_path: Path) -> None:
    pids = [1] * 6 + [7, 8, 9]  # 30 pairs and three people with one image
    records, keypoints = people(tmp_path, pids)
    pairs = Pairs(records, keypoints, size=SIZE)
    assert len(pairs) == 30 + 3
    assert len(Pairs(records, keypoints, size=SIZE, self_pairs=False)) == 30
    indices = order(len(pairs), seed=0, position=0, batch_size=330)
    batch = pairs.batch(indices, np.random.default_rng(0), max_scale=0.0)
    own = (batch.source[:, :, ::-1] == batch.target).all((1, 2, 3))
    assert 0 < own.sum() <= 33
    lonely = {picture(k).tobytes() for k in (6, 7, 8)}
    lonely |= {picture(k)[:, ::-1].tobytes() for k in (6, 7, 8)}
    assert {image.tobytes() for image in batch.source[own]} <= lonely
    few = pairs.batch(np.arange(30, 33), np.random.default_rng(0), max_scale=0.0)
    assert (few.source[:, :, ::-1] == few.target).all((1, 2, 3)).sum() == 1


def test_no_pair_at_all_is_refused(tmp_path: Path) -> None:
    records, keypoints = people(tmp_path, [1, 2, 3])
    with pytest.raises(UserError, match="none of 3 images forms a training pair"):
        Pairs(records, keypoints, size=SIZE)


@pytest.mark.parametrize("cache", [0, 1 << 30])
def test_a_broken_image_is_left_out_and_named_once(
    tmp_path: Path,
    cache: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(data, "_CACHE_BYTES", cache)
    records, keypoints = people(tmp_path, [1, 1, 1, 1])
    records[2].path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        pairs = Pairs(records, keypoints, size=SIZE)
        for seed in range(3):
            batch = pairs.batch(np.arange(len(pairs)), np.random.default_rng(seed), max_scale=0.05)
    assert len(batch.source) == len(pairs)
    assert [r.message.count(records[2].name) for r in caplog.records] == [1]
    black = (batch.source.max((1, 2, 3)) == 0) | (batch.target.max((1, 2, 3)) == 0)
    assert not black.any()


def test_over_one_per_cent_of_broken_images_is_an_error(tmp_path: Path) -> None:
    records, keypoints = people(tmp_path, [1, 1, 1, 1])
    for broken in records[:2]:
        broken.path.write_bytes(b"<html>")
    with pytest.raises(UserError, match="2 of 4 training images are broken") as caught:
        Pairs(records, keypoints, size=SIZE)
    assert caught.value.code == BAD_DATA


def test_keypoints_of_other_images_are_refused(tmp_path: Path) -> None:
    records, keypoints = people(tmp_path, [1, 1, 1])
    swapped = {name: joints[:, ::-1] + [0, 30] for name, joints in keypoints.items()}
    check_frame(records, swapped, name="k.csv")
    with pytest.raises(UserError, match=r"k\.csv: .* swapped"):
        check_frame(records, {n: j[:, ::-1] for n, j in swapped.items()}, name="k.csv")
    twice = {name: joints * 2 for name, joints in keypoints.items()}
    with pytest.raises(UserError, match=r"k\.csv: .* of another size"):
        check_frame(records, twice, name="k.csv")
    check_frame(  # what counts is the image that the view shows
        records, twice, name="k.csv", view=lambda image, seen: (np.kron(image, DOUBLE), seen)
    )
    for record in records:
        record.path.write_bytes(b"")  # a matter for those who read them all
    check_frame(records, twice, name="k.csv")
