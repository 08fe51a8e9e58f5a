"""Keypoint files as users have them, and what is said about the broken ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pidm_core.files import BAD_DATA, UserError
from pidm_core.keypoints import (
    JOINTS,
    inside,
    mirror,
    orientation,
    passes_patn,
    read_keypoints,
    rescale,
    write_keypoints,
)
from pidm_core.toy_market import PRESETS
from pidm_core.toy_scenes import draw, exact_joints, plan

# The first row of PATN's market-annotation-train.csv, and one with missing joints.
Y = [8, 23, 23, 43, 60, 23, 43, 60, 64, 92, 118, 65, 89, 108, 5, 6, 7, 8]
X = [39, 37, 20, 12, 8, 53, 59, 53, 22, 24, 24, 43, 43, 45, 36, 42, 31, 47]
ROW = f"0224_c6s1_055726_02.jpg: {Y}: {X}"
HEADER = "name:keypoints_y:keypoints_x"
PERSON = np.array([X, Y], dtype=np.float32).T


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def joint(name: str) -> int:
    return JOINTS.index(name)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n{ROW}\n",
        f"{HEADER}\n{ROW}",
        f"{HEADER}\n{ROW.replace(': ', ':')}\n",
        f"{HEADER}\r\n{ROW}\r\n",
        f"\ufeff{HEADER}\n{ROW}\n",
        f"{HEADER},,,,\n{ROW},,,,\n\n",
        f"{HEADER}\n{ROW.replace('23,', '23.0,')}\n",
        f"{HEADER}\n{ROW}\n{ROW}\n",
    ],
    ids=["plain", "no-final-newline", "no-blank", "crlf", "bom", "excel", "floats", "same-twice"],
)
def test_csv_variants_read_the_same(tmp_path: Path, text: str) -> None:
    table = read_keypoints(write(tmp_path / "a.csv", text))
    assert list(table) == ["0224_c6s1_055726_02.jpg"]
    joints = table["0224_c6s1_055726_02.jpg"]
    assert joints.dtype == np.float32
    np.testing.assert_array_equal(joints, PERSON)
    assert joints[joint("right_shoulder")].tolist() == [20, 23]  # x first


def test_minus_one_is_missing_and_comes_back(tmp_path: Path) -> None:
    y, x = [-1, *Y[1:]], [-1, *X[1:]]
    source = write(tmp_path / "a.csv", f"{HEADER}\nb.jpg: {y}: {x}\na.jpg: {Y}: {X}\n")
    table = read_keypoints(source)
    assert np.isnan(table["b.jpg"][0]).all()
    assert not np.isnan(table["b.jpg"][1:]).any()
    write_keypoints(tmp_path / "out" / "b.csv", table)
    lines = (tmp_path / "out" / "b.csv").read_text().splitlines()
    assert lines == [HEADER, f"a.jpg: {Y}: {X}", f"b.jpg: {y}: {x}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (HEADER, "no rows"),
        (f"name,keypoints_y,keypoints_x\n{ROW}\n", ":1: the header"),
        (f"{HEADER}\n{ROW}\n" + ROW.replace(": [", "; ["), ":3: expected 'name"),
        (f"{HEADER}\na.jpg: {Y[1:]}: {X[1:]}\n", ":2: 17 joints instead of 18"),
        (f"{HEADER}\na.jpg: {Y}: {X[1:]}\n", ":2: 17 joints instead of 18"),
        (f"{HEADER}\n{ROW}\na.jpg: {Y}: {X}\na.jpg: {X}: {Y}\n", ":4: 'a.jpg' stands twice"),
        (f"{HEADER}\n{ROW}\na.jpg: {Y}: {['NaN', *X[1:]]}\n".replace("'", ""), ":3: NaN"),
        (f"{HEADER}\na.jpg: {Y}: {['1e400', *X[1:]]}\n".replace("'", ""), ":2: NaN, Infinity"),
        (f"{HEADER}\na.jpg: {Y}: {['null', *X[1:]]}\n".replace("'", ""), ":2: expected a list"),
        (f"{HEADER}\na.jpg: {Y}: {X}".replace("39", '"39"'), ":2: expected a list of numbers"),
        (f"{HEADER}\na.jpg: {Y}: " + "[" * 200_000, ":2: "),
        (f"{HEADER}\na.jpg: {[0.5] * 18}: {[0.25] * 18}\n", "at most 1"),
    ],
)
def test_broken_csv_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(UserError) as caught:
        read_keypoints(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == BAD_DATA


def test_utf16_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="UTF-8"):
        read_keypoints(write(tmp_path / "a.csv", f"{HEADER}\n{ROW}".encode("utf-16")))
    with pytest.raises(UserError, match="no such file"):
        read_keypoints(tmp_path / "none.csv")


def test_swapped_x_and_y_are_noticed_when_the_size_is_known(tmp_path: Path) -> None:
    swapped = write(tmp_path / "a.csv", f"{HEADER}\na.jpg: {X}: {Y}\n")
    with pytest.raises(UserError, match="swapped"):
        read_keypoints(swapped, size=(128, 64))
    right = write(tmp_path / "b.csv", f"{HEADER}\na.jpg: {Y}: {[64, *X[1:]]}\n")
    joints = read_keypoints(right, size=(128, 64))["a.jpg"]
    assert np.isnan(joints[0]).all()  # one joint outside is missing, not an error
    assert not np.isnan(joints[1:]).any()


def test_sizes_may_differ_from_image_to_image() -> None:
    two = np.stack([PERSON, PERSON * 2])
    np.testing.assert_array_equal(inside(two, [(128, 64), (256, 128)], name="a"), two)
    assert np.isnan(inside(two, [(256, 128), (240, 128)], name="a")).sum() == 0
    assert np.isnan(inside(two, [(256, 128), (230, 128)], name="a")).sum() == 2  # an ankle at 236


def crowd(count: int, scale: float = 1) -> np.ndarray:
    """Slim standing people (count, 18, 2) in a frame of 128 x 64 times `scale`."""
    slim = (PERSON - [32, 0]) * [0.6, 1] + [32, 0]
    people = [slim + np.random.default_rng(k).uniform(-2, 2, 2) for k in range(count)]
    return (np.stack(people) * scale).astype(np.float32)


def test_people_who_lie_have_x_and_y_swapped_whatever_the_frame(tmp_path: Path) -> None:
    people = crowd(17)
    people[:4] = people[:4, :, ::-1]  # some do lie
    people[16, joint("left_hip")] = np.nan  # who knows
    path = tmp_path / "a.csv"
    write_keypoints(path, {f"{k}.jpg": one for k, one in enumerate(people)})
    assert len(read_keypoints(path)) == 17
    write_keypoints(path, {f"{k}.jpg": one[:, ::-1] for k, one in enumerate(people)})
    with pytest.raises(UserError, match="75% of 16 people lie; x and y are swapped") as caught:
        read_keypoints(path)
    assert str(path) in str(caught.value)
    assert caught.value.code == BAD_DATA


def test_drawn_people_pass_and_are_noticed_when_something_is_wrong(tmp_path: Path) -> None:
    scenes = plan(PRESETS["tiny"], seed=0)[:48:2]
    people = np.stack([exact_joints(draw(0, scene)) for scene in scenes]).astype(np.float32)
    names, path, size = [f"{k}.jpg" for k in range(len(people))], tmp_path / "a.csv", (128, 64)
    write_keypoints(path, dict(zip(names, people, strict=True)))
    assert list(read_keypoints(path, size=size)) == sorted(names)
    for scale, wrong in [(0.5, "smaller"), (0.727, "smaller"), (1.375, "another"), (2, "another")]:
        with pytest.raises(UserError, match=wrong):
            inside(people * np.float32(scale), size, name="a.csv")
    golden = np.load(Path(__file__).parent / "golden" / "pose_maps.npz")["keypoints"].repeat(16, 0)
    write_keypoints(path, {f"{k}.jpg": one for k, one in enumerate(golden)})
    assert len(read_keypoints(path, size=(256, 256))) == 32
    square = people * np.float32([4, 2])  # 256 x 256, where swapped joints stay inside
    write_keypoints(path, dict(zip(names, square[:, :, ::-1], strict=True)))
    with pytest.raises(UserError, match=r"100% of .* people lie; x and y are swapped"):
        read_keypoints(path)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0.5, "is for smaller images"),
        (0.727, "is for smaller images"),  # of 256 px for 352
        (1.0, ""),
        (1.2, "is for images of another size"),
        (1.375, "is for images of another size"),  # of 352 px for 256
        (2.0, "is for images of another size"),
    ],
)
def test_joints_of_larger_or_smaller_images_are_refused(scale: float, message: str) -> None:
    people = crowd(16, scale)
    if not message:
        np.testing.assert_array_equal(inside(people, (128, 64), name="a.csv"), people)
        return
    with pytest.raises(UserError, match=rf"a\.csv: .*{message}"):
        inside(people, (128, 64), name="a.csv")


# ---------------------------------------------------------------- other formats


def test_gfla_text_folder(tmp_path: Path) -> None:
    rows = [f"{x} {y}" for x, y in zip(X, Y, strict=True)]
    rows[4] = "-1 -1"
    write(tmp_path / "a.txt", "\n".join(rows))
    write(tmp_path / "b.jpg.txt", "\n".join(r.replace(" ", ".5 ") for r in rows) + "\n")
    table = read_keypoints(tmp_path)
    assert list(table) == ["a.jpg", "b.jpg"]
    assert np.isnan(table["a.jpg"][4]).all()
    assert table["a.jpg"][5].tolist() == [53, 23]
    assert table["b.jpg"][5].tolist() == [53.5, 23]


def test_gfla_text_with_17_rows_or_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="17 joints"):
        read_keypoints(write(tmp_path / "a.txt", "1 2\n" * 17))
    with pytest.raises(UserError, match=r"a\.txt:2: expected 'x y'"):
        read_keypoints(write(tmp_path / "a.txt", "1 2\n3,4\n"))


def test_openpose_takes_the_most_confident_person(tmp_path: Path) -> None:
    def person(confidence: float, shift: int) -> dict[str, list[float]]:
        flat = [v for x, y in zip(X, Y, strict=True) for v in (x + shift, y, confidence)]
        return {"pose_keypoints_2d": flat}

    people = [person(0.5, 0), person(0.9, 1), person(0.7, 2)]
    people[1]["pose_keypoints_2d"][:3] = [0, 0, 0]
    path = write(tmp_path / "a_keypoints.json", json.dumps({"version": 1.1, "people": people}))
    joints = read_keypoints(path)["a.jpg"]
    assert np.isnan(joints[0]).all()
    np.testing.assert_array_equal(joints[1:], PERSON[1:] + np.array([1, 0]))


def test_openpose_with_nobody_is_a_person_without_joints(tmp_path: Path) -> None:
    path = write(tmp_path / "a_keypoints.json", '{"people": []}')
    assert np.isnan(read_keypoints(path)["a.jpg"]).all()


def test_openpose_body_25_leaves_out_the_middle_of_the_hips(tmp_path: Path) -> None:
    # BODY_25: 8 = middle of the hips, 9-14 legs, 15-18 eyes and ears, 19-24 feet
    flat = [float(v) for k in range(25) for v in (10 + k, 50 + k, 1)]
    path = write(tmp_path / "a.json", json.dumps({"people": [{"pose_keypoints_2d": flat}]}))
    joints = read_keypoints(path)["a.jpg"]
    assert (joints[:, 0] - 10).tolist() == [*range(8), *range(9, 19)]


def heat_maps(path: Path, binary: bool) -> None:
    """PATN's maps, sigma 6; its fashion script stores them as whole numbers, so 1 at the joint."""
    y, x = np.indices((128, 64))
    maps = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 72) for a, b in zip(X, Y, strict=True)]
    maps[4] = np.zeros((128, 64))
    stack = np.stack(maps, axis=2)
    np.save(path, stack.astype(np.uint8) if binary else stack.astype(np.float32))


def one_person(path: Path, kind: str) -> None:
    """A file with PERSON, whose right wrist is missing, in one of the formats."""
    rows = [(x, y, 0.9) for x, y in zip(X, Y, strict=True)]
    rows[4] = (0, 0, 0)
    if kind.startswith("npy"):
        return heat_maps(path / "a.jpg.npy", kind == "npy-binary")
    if kind == "txt":
        text = "".join("-1 -1\n" if not c else f"{x} {y}\n" for x, y, c in rows)
        return write(path / "a.txt", text).touch()
    if kind == "coco":
        flat = coco_flat()
        order = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]  # ours in COCO's order
        flat[3 * order.index(4) + 2] = 0.0
        value: object = [{"image_id": "a.jpg", "keypoints": flat}]
    else:
        if kind == "openpose-25":
            rows = [*rows[:8], (1, 1, 1), *rows[8:], *[(2, 2, 1)] * 6]
        value = {"people": [{"pose_keypoints_2d": [float(v) for row in rows for v in row]}]}
    return write(path / "a.json", json.dumps(value)).touch()


@pytest.mark.parametrize(
    "kind", ["txt", "openpose-18", "openpose-25", "coco", "npy-float", "npy-binary"]
)
def test_every_format_survives_writing_and_reading(tmp_path: Path, kind: str) -> None:
    (tmp_path / "poses").mkdir()
    one_person(tmp_path / "poses", kind)
    expected = PERSON.copy()
    expected[4] = np.nan
    if kind == "coco":  # its neck is the middle of the shoulders, (36.5, 23), and rounded to even
        expected[1] = [36, 23]
    table = read_keypoints(tmp_path / "poses")
    write_keypoints(tmp_path / "a.csv", table)
    for _ in range(2):
        again = read_keypoints(tmp_path / "a.csv")
        np.testing.assert_array_equal(again["a.jpg"], expected)
        assert list(again) == list(table) == ["a.jpg"]
        write_keypoints(tmp_path / "a.csv", again)


def test_files_in_folders_are_named_by_their_path(tmp_path: Path) -> None:
    rows = "".join(f"{x} {y}\n" for x, y in zip(X, Y, strict=True))
    (tmp_path / "b" / "c").mkdir(parents=True)
    write(tmp_path / "b" / "c" / "a.txt", rows)
    write(tmp_path / "b" / "d.txt", rows)
    assert list(read_keypoints(tmp_path)) == ["b/c/a.jpg", "b/d.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a NumPy array"), (b"\x93NUMPY\x01\x00", "not a NumPy array"), (None, "is not (h")],
)
def test_broken_heat_maps_are_one_clear_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((128, 64, 17)))
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_keypoints(path)
    assert message in str(caught.value)
    assert caught.value.code == BAD_DATA


def coco_flat() -> list[float]:
    pairs = [f"{side}_{part}" for part in ("eye", "ear") for side in ("left", "right")]
    body = ["shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
    order = ["nose", *pairs, *(f"{side}_{part}" for part in body for side in ("left", "right"))]
    return [float(v) for name in order for v in (*PERSON[joint(name)], 2)]


def test_coco_joints_find_their_places_and_the_neck_is_made(tmp_path: Path) -> None:
    value = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 7, "keypoints": coco_flat(), "num_keypoints": 17}],
    }
    joints = read_keypoints(write(tmp_path / "p.json", json.dumps(value)))["a.jpg"]
    expected = PERSON.copy()
    expected[1] = [(20 + 53) / 2, (23 + 23) / 2]
    np.testing.assert_array_equal(joints, expected)


def test_coco_results_keep_the_best_person_and_have_no_neck_without_a_shoulder(
    tmp_path: Path,
) -> None:
    flat = coco_flat()
    flat[15:18] = [0, 0, 0]  # the left shoulder
    value = [
        {"image_id": "a.jpg", "keypoints": coco_flat(), "score": 0.5},
        {"image_id": "a.jpg", "keypoints": flat, "score": 1.5},
    ]
    joints = read_keypoints(write(tmp_path / "p.json", json.dumps(value)))["a.jpg"]
    assert np.isnan(joints[[joint("left_shoulder"), joint("neck")]]).all()
    assert np.isnan(joints).sum() == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "18 or 25 joints"),
        ('{"people": [{"pose_keypoints_2d": [NaN, 2, 3]}]}', "NaN is not a number"),
        ('{"people": [{"pose_keypoints_2d": [1e400, 2, 3]}]}', "1e400 is not a number"),
        ('{"people": [3]}', "flat list"),
        ('{"people": [], "people": []}', "twice"),
        ('{"other": 1}', "neither OpenPose"),
        ('{"images": [], "annotations": null}', "neither OpenPose"),
        ("[1, 2, 3]", "neither OpenPose"),
        ('[{"image_id": 3, "keypoints": []}]', "no file name"),
        ('[{"image_id": "a", "keypoints": [1, 2]}]', "17 joints"),
        ("[" * 200_000, "not valid JSON"),
        ("[]", "no keypoints"),
        ("{", "not valid JSON"),
    ],
)
def test_broken_json_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(UserError, match=message) as caught:
        read_keypoints(path)
    assert str(path) in str(caught.value)
    assert caught.value.code == BAD_DATA


# ---------------------------------------------------------------- geometry


def test_mirror_worked_by_hand() -> None:
    joints = np.full((18, 2), np.nan, dtype=np.float32)
    joints[joint("nose")] = [10, 5]
    joints[joint("right_wrist")] = [3, 60]
    joints[joint("left_eye")] = [12, 4]
    flipped = mirror(joints, 64)
    assert flipped[joint("nose")].tolist() == [53, 5]  # 64 - 1 - 10
    assert flipped[joint("left_wrist")].tolist() == [60, 60]
    assert flipped[joint("right_eye")].tolist() == [51, 4]
    assert np.isnan(flipped).sum() == 2 * 15
    np.testing.assert_array_equal(mirror(flipped, 64), joints)
    np.testing.assert_array_equal(mirror(joints[None], 64)[0], flipped)
    for name, other in zip(JOINTS, mirror(np.arange(36).reshape(18, 2), 1)[:, 1] // 2, strict=True):
        twin = name.replace("left", "*").replace("right", "left").replace("*", "right")
        assert JOINTS[other] == twin


def test_patn_rule_needs_both_shoulders_and_both_hips() -> None:
    many = np.repeat(PERSON[None], 18, axis=0)
    many[np.arange(18), np.arange(18)] = np.nan  # each misses one joint
    needed = {"left_shoulder", "right_shoulder", "left_hip", "right_hip"}
    assert {name for name, ok in zip(JOINTS, passes_patn(many), strict=True) if not ok} == needed
    assert bool(passes_patn(PERSON)) is True


def test_orientation_of_four_views() -> None:
    def view(shoulder: float, nose: float) -> np.ndarray:
        person = np.full((18, 2), np.nan)
        person[joint("right_shoulder")] = [32 - shoulder, 30]
        person[joint("left_shoulder")] = [32 + shoulder, 30]
        person[joint("right_hip")], person[joint("left_hip")] = [28, 70], [36, 70]
        person[joint("nose")] = [32 + nose, 10]
        return person

    front, right, left = view(15, 0), view(0, 18), view(0, -18)
    behind = view(-15, np.nan)
    angles = orientation(np.stack([front, right, behind, left]))
    np.testing.assert_allclose(angles, [0, 90, 180, -90])
    assert np.isnan(orientation(np.full((18, 2), np.nan)))


@pytest.mark.skipif("MARKET1501_KEYPOINTS" not in os.environ, reason="needs PATN's train CSV")
def test_the_real_training_annotations() -> None:
    table = read_keypoints(os.environ["MARKET1501_KEYPOINTS"], size=(128, 64))
    joints = np.stack(list(table.values()))
    assert len(table) == 12_936
    assert passes_patn(joints).sum() == 12_116
    assert np.isnan(joints).all((1, 2)).sum() == 419


def test_rescaled_joints_stay_on_their_pixel_squares() -> None:
    # Twice as large: the middle of pixel 0 (from -0.5 to 0.5) is the edge of the new 0 and 1.
    joints = np.array([[0.0, 0.0], [31.0, 63.0], [np.nan, np.nan]], dtype=np.float32)
    moved = rescale(joints, (64, 32), (128, 64))
    np.testing.assert_array_equal(moved, [[0.5, 0.5], [62.5, 126.5], [np.nan, np.nan]])
    assert rescale(joints, (64, 32), (64, 32)) is joints
