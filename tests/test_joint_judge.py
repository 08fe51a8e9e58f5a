"""The joints of generated images, found by a network that learns from a data set's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_evaluation import TARGETS, folders, settings, tool, values  # noqa: F401

from pidm_core import (
    BAD_DATA,
    USAGE,
    UserError,
    evaluation,
    load_image,
    probe_networks,
    read_keypoints,
    write_keypoints,
)
from pidm_core.evaluation import Judges, evaluate, read_pictures
from pidm_core.joint_judge import JointJudge, read_judge
from pidm_core.probe_networks import INPUT, Training


def middle(images: np.ndarray) -> np.ndarray:
    """Every joint in the middle of the picture."""
    assert images.shape[1:] == (*INPUT, 3)
    return np.full((len(images), 18, 2), (15.5, 31.5), dtype=np.float32)


def by_hand(**asked: np.ndarray) -> JointJudge:
    return JointJudge(middle, asked, examples=7, weights="a" * 64)


def beside_the_middle(*joints: tuple[int, float, float]) -> np.ndarray:
    """Joints asked for in a picture of 128 x 64 px, so far from its middle; the rest missing."""
    asked = np.full((18, 2), np.nan, dtype=np.float32)
    for joint, x, y in joints:
        asked[joint] = 31.5 + x, 63.5 + y
    return asked


def test_an_error_is_the_mean_distance_of_known_joints_in_px_of_the_picture() -> None:
    judge = by_hand(a=beside_the_middle((0, 3, 4), (7, 0, -9)), b=beside_the_middle())
    image = np.zeros((128, 64, 3), dtype=np.uint8)
    assert judge.error(image, "a") == pytest.approx((5 + 9) / 2)
    assert np.isnan([judge.error(image, "b"), judge.error(image, "unknown")]).all()


def test_a_generated_image_is_held_against_its_target_and_a_true_one_against_its_own(
    folders: Path,  # noqa: F811
) -> None:
    first, second = (np.full((18, 2), value, dtype=np.float32) for value in (27.5, 30.5))
    first[:, 1] = second[:, 1] = 31.5  # of 64 x 56 px: 0 and 3 px from the middle
    judges = Judges(None, None, [], by_hand(**{TARGETS[0]: first, TARGETS[1]: second}))
    for folder in ("made", "targets"):
        report = evaluate(read_pictures(folder, "targets"), settings(), judges)
        assert values(report)["joints, px"] == pytest.approx(1.5)
        how = next(str(figure) for figure in report.figures if figure.name == "joints, px")
        assert "a network trained on 7 real images, 2 images" in how
    lacking = evaluate(
        read_pictures("made", "targets"), settings(), Judges(None, None, [], by_hand())
    )
    assert "joints: the keypoint file holds none of the targets'" in lacking.left_out


def test_the_network_learns_from_the_real_images_and_is_kept(
    drawn_people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = {"max_zoom": 0.0, "max_shift": 0.0, "max_tint": 0.0, "batch_size": 8}
    monkeypatch.setattr(probe_networks, "Training", lambda: Training(joint_steps=60, **still))
    table = drawn_people / "exact-annotation-train.csv"
    exact = read_keypoints(table)
    files = sorted((drawn_people / "bounding_box_train").iterdir())[:9]
    write_keypoints(tmp_path / "joints.csv", {path.name: exact[path.name] for path in files[:8]})

    def judged() -> JointJudge:
        return read_judge(files, tmp_path / "joints.csv", table, cache=tmp_path)

    judge = judged()
    assert judge.examples == 8
    images = [load_image(path) for path in files[:8]]
    stems = [path.stem for path in files[:8]]
    own = [judge.error(image, stem) for image, stem in zip(images, stems, strict=True)]
    others = [
        judge.error(image, stem) for image, stem in zip(images, np.roll(stems, 3), strict=True)
    ]
    assert np.nanmean(own) < 0.6 * np.nanmean(others)
    monkeypatch.setattr(probe_networks, "_fit", None)  # the second time it is only read
    again = judged()
    assert [again.error(image, stem) for image, stem in zip(images, stems, strict=True)] == own
    assert again.weights == judge.weights
    with pytest.raises(UserError, match="no joints of the real images") as error:
        read_judge(files[8:], tmp_path / "joints.csv", table, cache=tmp_path)
    assert error.value.code == BAD_DATA
    with pytest.raises(UserError, match="1 real images share their names"):
        read_judge([files[0], *files], tmp_path / "joints.csv", table, cache=tmp_path)
    twice = {path.name: 2 * exact[path.name] for path in files}
    write_keypoints(tmp_path / "twice.csv", twice)
    with pytest.raises(UserError, match=r"twice\.csv: .*for images of another size"):
        read_judge(
            files, tmp_path / "joints.csv", tmp_path / "twice.csv", targets=files, cache=tmp_path
        )
    write_keypoints(tmp_path / "joints.csv", twice)
    with pytest.raises(UserError, match="for images of another size"):
        judged()
    write_keypoints(
        tmp_path / "joints.csv",
        {"a/1.jpg": exact[files[0].name], "b/1.jpg": middle(np.empty((1, *INPUT, 3)))[0]},
    )
    with pytest.raises(UserError, match="share a name without folder"):
        judged()


def test_the_tool_says_what_the_joints_need(
    folders: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--generated", "made", "--real", "real", "--targets", "targets")
    with pytest.raises(UserError, match="needs those of the targets") as error:
        tool("evaluate_images")(*options, "--real-keypoints", "real.csv")
    assert error.value.code == USAGE
    asked = dict.fromkeys(TARGETS, np.full((18, 2), 30.0, dtype=np.float32))
    monkeypatch.setattr(evaluation, "read_judge", lambda *_, **__: by_hand(**asked))
    tool("evaluate_images")(*options, "--real-keypoints", "real.csv", "--keypoints", "made.csv")
    assert "joints, px: " in capsys.readouterr().out
