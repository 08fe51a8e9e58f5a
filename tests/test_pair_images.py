"""Test pairs drawn by a tiny model: names, truths, joints, seeds, resuming, and the tool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import save_tiny

from pidm_core import PIDMPipeline, UserError, load_image, read_json, read_keypoints, write_json
from pidm_core.data import Record
from pidm_core.datasets import People, read_people
from pidm_core.evaluation import read_pictures
from pidm_core.files import BAD_DATA, encode_png
from pidm_core.pair_images import (
    choose_pairs,
    copy_pairs,
    draw_pairs,
    nearest_poses,
    write_truth,
)
from tools.render_pairs import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def nested(tmp_path: Path) -> People:
    """Two people in folders of their own with equal file names, seen through a view."""
    rng = np.random.default_rng(0)
    records, joints = [], {}
    for pid in (1, 2):
        for view in ("front", "back"):
            name = f"WOMEN/id_{pid}/{view}.png"
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)))
            records.append(Record(path, name, pid, 0))
            joints[name] = rng.uniform(5, 25, (18, 2)).astype(np.float32)

    def view_of(image: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image[:, 5:25], pose - np.array([5, 0], dtype=np.float32)

    return People(records, joints, np.array([[0, 1], [2, 3], [3, 2]]), view_of)


def test_every_pair_has_its_image_its_truth_and_its_pose(
    model: str, nested: People, tmp_path: Path
) -> None:
    pairs, out = choose_pairs(nested), tmp_path / "out"
    write_truth(nested, pairs, out)
    pipe = PIDMPipeline.from_pretrained(model)
    assert list(draw_pairs(pipe, nested, pairs, out / "images")) == [3]
    names = sorted(path.name for path in (out / "images").glob("*.png"))
    assert names[0] == "WOMEN--id_1--front_2_WOMEN--id_1--back_vis.png"
    assert len(names) == 3
    pictures = read_pictures(out / "images", out / "targets")
    assert [p.target.name for p in pictures if p.target] == [
        "WOMEN--id_1--back.png", "WOMEN--id_2--front.png", "WOMEN--id_2--back.png"
    ]  # fmt: skip
    truth = load_image(out / "targets" / "WOMEN--id_1--back.png")
    assert np.array_equal(truth, load_image(nested.records[1].path)[:, 5:25])
    poses = read_keypoints(out / "keypoints.csv")
    true = nested.keypoints[nested.records[1].name] - [5, 0]
    np.testing.assert_allclose(poses["WOMEN--id_1--back.png"], true, atol=0.51)  # whole px
    # The first image is what the pipeline draws from the viewed source and pose.
    source = load_image(out / "sources" / "WOMEN--id_1--front.png")
    pose = nested.keypoints[nested.records[1].name] - np.array([5, 0])
    scaled = (pose + 0.5) * [16 / 20, 32 / 40] - 0.5
    drawn = pipe(source, scaled[None], seeds=[0]).images[0]
    enlarged = Image.fromarray(drawn).resize((20, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(load_image(out / "images" / names[0]), enlarged)


def test_seeds_give_different_images_and_a_second_call_goes_on(
    model: str, nested: People, tmp_path: Path
) -> None:
    pairs, out = choose_pairs(nested), tmp_path / "images"
    pipe = PIDMPipeline.from_pretrained(model)
    assert sum(draw_pairs(pipe, nested, pairs, out, seeds=2)) == 6
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert len(set(before.values())) == 6
    lost = "WOMEN--id_2--front_2_WOMEN--id_2--back_vis_1.png"
    (out / lost).unlink()
    assert list(draw_pairs(pipe, nested, pairs, out, seeds=2)) == [5, 1]
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before
    conditions = {p.condition for p in read_pictures(out, out)}
    assert len(conditions) == 3
    with pytest.raises(UserError, match=r"made with other sample \(steps was 2, is 3\);"):
        sum(draw_pairs(pipe.with_settings(steps=3), nested, pairs, out, seeds=2))


def test_other_pixels_or_joints_under_the_same_names_are_refused(
    model: str, nested: People, tmp_path: Path
) -> None:
    pairs, out, pipe = choose_pairs(nested), tmp_path / "out", PIDMPipeline.from_pretrained(model)
    list(draw_pairs(pipe, nested, pairs, out))
    moved = {name: joints + 1 for name, joints in nested.keypoints.items()}
    with pytest.raises(UserError, match="made with other data"):
        list(draw_pairs(pipe, replace(nested, keypoints=moved), pairs, out))
    path = nested.records[0].path
    path.write_bytes(encode_png(255 - load_image(path)))
    with pytest.raises(UserError, match="made with other data"):
        list(draw_pairs(pipe, nested, pairs, out))
    older = {key: value for key, value in read_json(out / "pairs.json").items() if key != "data"}
    write_json(out / "pairs.json", older)
    list(draw_pairs(pipe, nested, pairs, out))
    write_truth(nested, pairs, tmp_path)
    path.write_bytes(encode_png(255 - load_image(path)))
    write_truth(nested, pairs, tmp_path)
    shown = load_image(tmp_path / "sources" / "WOMEN--id_1--front.png")
    assert np.array_equal(shown, load_image(path)[:, 5:25])


def test_settings_may_change_until_an_image_is_drawn(
    model: str, nested: People, tmp_path: Path
) -> None:
    pairs, pipe = choose_pairs(nested), PIDMPipeline.from_pretrained(model)
    list(draw_pairs(pipe, nested, pairs, tmp_path))
    for image in tmp_path.glob("*.png"):
        image.unlink()
    assert list(draw_pairs(pipe.with_settings(batch_size=2), nested, pairs, tmp_path)) == [2, 1]


def test_two_images_of_one_name_in_a_flat_folder_are_refused(nested: People) -> None:
    records = list(nested.records)
    records[1] = replace(records[0], name="WOMEN/id_1/front.jpg")
    joints = {**nested.keypoints, "WOMEN/id_1/front.jpg": nested.keypoints[records[0].name]}
    with pytest.raises(UserError, match=r"front.png and WOMEN/id_1/front.jpg would have one name"):
        choose_pairs(replace(nested, records=records, keypoints=joints))


def test_a_target_without_joints_is_named(nested: People) -> None:
    del nested.keypoints["WOMEN/id_2/back.png"]
    with pytest.raises(UserError, match=r"1 targets .* such as WOMEN/id_2/back.png") as caught:
        choose_pairs(nested)
    assert caught.value.code == BAD_DATA


def test_the_tool_draws_test_people_for_evaluation_only(
    model: str, drawn_people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    market, out = drawn_people, tmp_path / "pairs"
    options = ["--run", model, "--data", str(market), "--count", "5", "--out", str(out)]
    assert main([*options, "--seeds", "3", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{out}: 15 images of 5 pairs, by {model}\n"
    assert not out.exists()
    assert main([*options, "--guidance", "none"]) == 0
    assert f"--generated {out}/images --targets {out}/targets" in capsys.readouterr().out
    manifest = read_json(out / "images" / "pairs.json")
    assert (manifest["role"], manifest["sample"]["guidance"]) == ("eval", "none")
    people = read_people(market, split="test")
    assert manifest["pairs"] == [
        [people.records[i].name for i in pair] for pair in choose_pairs(people, 5)
    ]
    assert len(list((out / "images").glob("*.png"))) == 5
    shapes = {load_image(path).shape for path in (out / "images").glob("*.png")}
    assert shapes == {(128, 64, 3)}


# ---------------------------------------------------------------- what a generator must beat


def test_a_copied_source_stands_under_the_pairs_name_as_it_counts(
    nested: People, tmp_path: Path
) -> None:
    pairs, out = choose_pairs(nested), tmp_path / "images"
    for _ in range(2):  # the second call goes on
        assert sum(copy_pairs(nested, pairs, nested, pairs[:, 0], out, by="source")) == 3
    image = load_image(out / "WOMEN--id_1--front_2_WOMEN--id_1--back_vis.png")
    assert np.array_equal(image, load_image(nested.records[0].path)[:, 5:25])
    with pytest.raises(UserError, match="other baseline"):
        next(copy_pairs(nested, pairs, nested, pairs[:, 0], out, by="pose"))
    with pytest.raises(UserError, match="other answers"):
        next(copy_pairs(nested, pairs, nested, pairs[:, 1], out, by="source"))


def test_a_joint_of_one_image_alone_counts_half_the_height(nested: People) -> None:
    target = nested.keypoints[nested.records[1].name]
    partial = target.copy()
    partial[:9] = np.nan  # 9 of 18 joints, 20 px each: 10 px on average
    poses = [target + 12, target + 3, partial, np.full_like(target, np.nan)]  # 17, 4.2, 10, 20 px
    train = People(
        nested.records, dict(zip(nested.keypoints, poses, strict=True)), view=nested.view
    )
    pairs, order = np.array([[0, 1]]), []
    while train.keypoints:
        (nearest,) = nearest_poses(nested, pairs, train)
        order.append(int(nearest))
        del train.keypoints[train.records[nearest].name]
    assert order == [1, 2, 0, 3]
    with pytest.raises(UserError, match="no training image has joints"):
        nearest_poses(nested, pairs, train)


def test_the_tool_answers_with_photographs(drawn_people: Path, tmp_path: Path) -> None:
    flags = ["--data", str(drawn_people), "--count", "5"]
    test, train = (read_people(drawn_people, split=split) for split in ("test", "train"))
    pairs = choose_pairs(test, 5)
    answers = {"source": (test, pairs[:, 0]), "pose": (train, nearest_poses(test, pairs, train))}
    for baseline, (owner, indices) in answers.items():
        out = tmp_path / baseline
        assert main([*flags, "--baseline", baseline, "--out", str(out)]) == 0
        assert read_json(out / "images" / "pairs.json")["role"] == "eval"
        for pair, index in zip(pairs, indices, strict=True):
            source, target = (test.records[i].name[:-4] for i in pair)
            image = load_image(out / "images" / f"{source}_2_{target}_vis.png")
            assert np.array_equal(image, owner.open(index)[0])
    with pytest.raises(UserError, match="has no seeds"):
        main([*flags, "--baseline", "pose", "--seeds", "2"])
