"""Keypoint estimation: weights of the user, whatever is wrong with them, and going on."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from people import draw_person

from pidm_core import (
    BAD_DATA,
    DONE,
    ENVIRONMENT,
    SKIPPED,
    UserError,
    encode_png,
    estimator,
    load_image,
    read_keypoints,
    write_bytes,
)
from pidm_core.keypoints import JOINTS

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools/extract_poses.py"


@pytest.fixture
def tool() -> types.ModuleType:
    return importlib.import_module("tools.extract_poses")


def folder(root: Path, count: int = 5) -> Path:
    """Images of several sizes, one of them in a folder of its own."""
    for k in range(count):
        name = f"b/{k}.png" if k == 1 else f"{k}.png"
        write_bytes(root / "images" / name, encode_png(draw_person(k, k, 64 + 8 * k, 40)))
    return root / "images"


def brightest(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A fake network: the joints depend on the image's size and colours, the neck is unseen."""
    found = []
    for image in images:
        joints = np.tile(np.float32([image.shape[1] - 1, image[2, 2].mean() % 50]), (18, 1))
        joints[1] = np.nan
        joints[2] = [image.shape[1] + 5, 3]  # outside
        found.append(joints)
    return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put the fake in the networks' place; the sizes of its batches come out."""
    sizes: list[int] = []

    def estimate(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        sizes.append(len(images))
        return brightest(images)

    monkeypatch.setattr(estimator, "load_estimator", lambda weights: estimate)
    return sizes


def arguments(tmp_path: Path, weights: bytes = b"weights") -> list[str]:
    write_bytes(tmp_path / "weights/model.safetensors", weights)
    options = {
        "data": tmp_path / "images", "weights": tmp_path / "weights", "out": tmp_path / "p.csv",
        "batch-size": 2,
    }  # fmt: skip
    return [text for key, value in options.items() for text in (f"--{key}", str(value))]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r"--out FILE\.csv must be given"),
        (["--out", "p.csv", "--batch-size", "0"], "batch-size 0 is not at least 1"),
    ],
)
def test_a_wrong_option_is_named_alone(tool: types.ModuleType, given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        tool.main(given)


# ---------------------------------------------------------------- the folder


def test_joints_of_a_folder_become_a_csv_and_a_sheet(
    tool: Any, tmp_path: Path, fake: list[int]
) -> None:
    people = folder(tmp_path)
    assert tool.main(arguments(tmp_path)) == DONE
    table = read_keypoints(tmp_path / "p.csv")
    assert sorted(table) == ["0.png", "2.png", "3.png", "4.png", "b/1.png"]
    for name, joints in table.items():
        (expected,) = brightest([load_image(people / name)])
        expected[2] = np.nan
        np.testing.assert_array_equal(joints, np.rint(expected))
    assert load_image(tmp_path / "p.png").shape == (192, 8 * 128, 3)
    assert not list(tmp_path.glob("*.part"))
    assert fake == [2, 2, 1]


def test_the_sheet_shows_a_skeleton_on_the_person() -> None:
    image = np.full((96, 64, 3), 100, np.uint8)
    joints = np.full((18, 2), np.nan, np.float32)
    for name, place in {"neck": (32, 20), "left_shoulder": (44, 20)}.items():
        joints[JOINTS.index(name)] = place
    drawn = estimator._overlay(image, joints)
    assert drawn.shape == (192, 128, 3)  # twice the image
    changed = (drawn != 100).any(-1)
    assert changed[40, 64:88].all()
    assert not changed[:20].any()
    assert not changed[60:].any()


def test_a_killed_run_goes_on_after_the_last_batch(
    tool: Any, tmp_path: Path, fake: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path)

    def kill(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        if fake:
            raise KeyboardInterrupt
        fake.append(len(images))
        return brightest(images)

    with monkeypatch.context() as patch:
        patch.setattr(estimator, "load_estimator", lambda weights: kill)
        with pytest.raises(KeyboardInterrupt):
            tool.main(arguments(tmp_path))
    assert not (tmp_path / "p.csv").exists()
    with (tmp_path / "p.csv.part").open("a") as part:
        part.write("3.png: [1, 2")  # torn off
    fake.clear()
    assert tool.main(arguments(tmp_path)) == DONE
    assert fake == [2, 1]
    interrupted = (tmp_path / "p.csv").read_bytes()
    (tmp_path / "p.csv").unlink()
    assert tool.main(arguments(tmp_path)) == DONE
    assert (tmp_path / "p.csv").read_bytes() == interrupted


def test_new_images_alone_are_estimated_and_other_weights_refused(
    tool: Any, tmp_path: Path, fake: list[int]
) -> None:
    folder(tmp_path, 2)
    tool.main(arguments(tmp_path))
    folder(tmp_path, 5)
    fake.clear()
    assert tool.main(arguments(tmp_path)) == DONE
    assert fake == [2, 1]
    assert len(read_keypoints(tmp_path / "p.csv")) == 5
    with pytest.raises(UserError, match="begun with other weights"):
        tool.main(arguments(tmp_path, b"others"))
    (tmp_path / "images").rename(tmp_path / "moved")
    folder(tmp_path, 2)
    (tmp_path / "moved/0.png").unlink()
    with pytest.raises(UserError, match="begun with other images"):
        tool.main([*arguments(tmp_path), "--data", str(tmp_path / "moved")])
    (tmp_path / "p.json").unlink()
    with pytest.raises(UserError, match="is not a file of this tool"):
        tool.main(arguments(tmp_path))


def test_a_corrected_weight_file_is_taken_where_nothing_was_estimated(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, 2)
    with pytest.raises(UserError, match="not a whole weight file"):
        tool.main(arguments(tmp_path, b"cut off"))
    monkeypatch.setattr(estimator, "load_estimator", lambda weights: brightest)
    assert tool.main(arguments(tmp_path)) == DONE


def test_the_sheet_among_the_images_is_none_of_them(
    tool: Any, tmp_path: Path, fake: list[int]
) -> None:
    people = folder(tmp_path, 2)
    inside = [*arguments(tmp_path), "--out", str(people / "p.csv")]
    assert tool.main(inside) == DONE
    assert (people / "p.png").is_file()
    folder(tmp_path, 3)
    assert tool.main(inside) == DONE
    assert sorted(read_keypoints(people / "p.csv")) == ["0.png", "2.png", "b/1.png"]


def test_files_of_the_user_are_not_overwritten(tool: Any, tmp_path: Path, fake: list[int]) -> None:
    people = folder(tmp_path, 2)
    before = (people / "0.png").read_bytes()
    with pytest.raises(UserError, match="which the sheet would replace"):
        tool.main([*arguments(tmp_path), "--out", str(people / "0.csv")])
    assert (people / "0.png").read_bytes() == before
    write_bytes(tmp_path / "p.json", b"{}\n")
    with pytest.raises(UserError, match=r"p\.json: is not a note of this tool"):
        tool.main(arguments(tmp_path))
    assert (tmp_path / "p.json").read_bytes() == b"{}\n"


def test_a_run_killed_before_its_last_step_is_finished(
    tool: Any, tmp_path: Path, fake: list[int]
) -> None:
    folder(tmp_path, 2)
    tool.main(arguments(tmp_path))
    whole = (tmp_path / "p.csv").read_bytes()
    (tmp_path / "p.csv").rename(tmp_path / "p.csv.part")
    assert tool.main(arguments(tmp_path)) == DONE
    assert (tmp_path / "p.csv").read_bytes() == whole


def test_two_runs_on_one_file_are_refused(
    tool: Any, tmp_path: Path, fake: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path)

    def second(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        with pytest.raises(UserError, match=r"p\.csv: another process is writing there"):
            tool.main(arguments(tmp_path))
        assert tool.main([*arguments(tmp_path), "--dry-run"]) == DONE
        return brightest(images)

    monkeypatch.setattr(estimator, "load_estimator", lambda weights: second)
    assert tool.main(arguments(tmp_path)) == DONE
    assert len(read_keypoints(tmp_path / "p.csv")) == 5


def test_a_dry_run_counts_what_is_left(
    tool: Any, tmp_path: Path, fake: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path)
    assert tool.main([*arguments(tmp_path), "--dry-run"]) == DONE
    assert f"{tmp_path}/p.csv: 5 of 5 images left to estimate" in capsys.readouterr().out
    assert not (tmp_path / "p.csv").exists()
    assert not fake


def test_broken_images_are_named_and_left_out(
    tool: Any, tmp_path: Path, fake: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    people = folder(tmp_path)
    write_bytes(people / "2.png", b"<html>")
    assert tool.main(arguments(tmp_path)) == SKIPPED
    assert len(read_keypoints(tmp_path / "p.csv")) == 4
    assert capsys.readouterr().err.count("left out: ") == 1


def test_nothing_but_broken_images_is_an_error(tool: Any, tmp_path: Path, fake: list[int]) -> None:
    write_bytes(tmp_path / "images/a.jpg", b"")
    with pytest.raises(UserError, match="no image could be read, as") as caught:
        tool.main(arguments(tmp_path))
    assert caught.value.code == BAD_DATA
    assert not (tmp_path / "p.csv").exists()


# ---------------------------------------------------------------- weights


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        estimator.load_estimator(estimator.find_weights(path))
    assert "\n" not in str(caught.value)
    return caught.value


def test_missing_weights_are_one_line_that_says_which_file_to_put_where(tmp_path: Path) -> None:
    folder(tmp_path, 1)
    (tmp_path / "w").mkdir()
    command = [sys.executable, str(TOOL), "--data", str(tmp_path / "images")]
    command += ["--weights", str(tmp_path / "w"), "--out", str(tmp_path / "p.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ENVIRONMENT
    assert done.stderr.startswith(f"error: {tmp_path / 'w'}: no weights there; put ")
    assert "keypointrcnn_resnet50_fpn_coco-fc266e95.pth" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "p.csv.part").exists()


def test_a_git_lfs_pointer_is_no_weights(tmp_path: Path) -> None:
    for name in ("model.safetensors", estimator.RCNN_FILES[0]):
        pointer = tmp_path / name / name
        write_bytes(pointer, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        error = refusal(pointer.parent)
        assert "Git-LFS pointer" in str(error)
        assert error.code == BAD_DATA


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_broken_and_foreign_weight_files_are_refused(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"PK\x03\x04 cut off")
    assert "not a whole weight file" in str(refusal(tmp_path / name))
    write_bytes(tmp_path / name, b"<html>Sign in</html>")
    assert "a web page" in str(refusal(tmp_path / name))


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "a.pth")
    assert "not a plain state dict" in str(refusal(tmp_path / "a.pth"))
    assert not (tmp_path / "ran").exists()


def test_keypoint_rcnn_loads_a_state_dict_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real loading code with random weights, narrowed for speed by torchvision's options."""
    from torchvision.models import detection, resnet18
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    def small(**_: Any) -> torch.nn.Module:
        layers = {f"layer{k}": str(k - 1) for k in range(1, 5)}
        body = BackboneWithFPN(resnet18(weights=None), layers, [64, 128, 256, 512], 256)
        return detection.KeypointRCNN(body, 2, min_size=64, max_size=64, box_detections_per_img=3)

    monkeypatch.setattr(detection, "keypointrcnn_resnet50_fpn", small)
    torch.manual_seed(0)
    state = small().state_dict()
    torch.save(state, tmp_path / estimator.RCNN_FILES[0])
    network = estimator.load_estimator(estimator.find_weights(tmp_path))
    found = network([draw_person(1, 1), draw_person(2, 2, 48, 24)])
    assert [(one.shape, one.dtype) for one in found] == [((18, 2), np.float32)] * 2
    state.pop("backbone.body.conv1.weight")
    safetensors.torch.save_file(state, tmp_path / "lacking.safetensors")
    error = refusal(tmp_path / "lacking.safetensors")
    assert "1 tensors lack or differ, as backbone.body.conv1.weight" in str(error)


def test_rcnn_results_become_our_joints() -> None:
    coco = torch.arange(34.0).reshape(17, 2)
    scores = torch.full((17,), 3.0)
    scores[9] = 1.0  # the left wrist is doubtful
    found = {
        "scores": torch.tensor([0.9, 0.6]),
        "keypoints": torch.stack([coco, coco * 2])[..., [0, 1, 1]],
        "keypoints_scores": torch.stack([scores, scores]),
    }
    joints = estimator._most_certain(found)
    assert joints[JOINTS.index("nose")].tolist() == [0, 1]
    assert joints[JOINTS.index("neck")].tolist() == [11, 12]  # between (10, 11) and (12, 13)
    assert np.flatnonzero(np.isnan(joints).any(1)).tolist() == [JOINTS.index("left_wrist")]
    found["scores"] = torch.tensor([0.4, 0.3])
    assert np.isnan(estimator._most_certain(found)).all()
    nobody = {name: value[:0] for name, value in found.items()}
    assert np.isnan(estimator._most_certain(nobody)).all()


def test_vitpose_loads_a_folder_and_refuses_an_incomplete_one(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=17)
    torch.manual_seed(0)
    transformers.VitPoseForPoseEstimation(config).save_pretrained(tmp_path)
    network = estimator.load_estimator(estimator.find_weights(tmp_path))
    images = [draw_person(1, 1), draw_person(2, 2, 48, 24)]
    found = network(images)
    assert [(one.shape, one.dtype) for one in found] == [((18, 2), np.float32)] * 2
    np.testing.assert_allclose(network(images[1:])[0], found[1], atol=0.01)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    lost = next(iter(state))
    state.pop(lost)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert "1 tensors lack" in str(refusal(tmp_path))
    write_bytes(tmp_path / "model.safetensors", b"broken")
    assert "not a ViTPose model" in str(refusal(tmp_path))


def test_without_transformers_vitpose_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    write_bytes(tmp_path / "model.safetensors", b"x")
    write_bytes(tmp_path / "config.json", b"{}")
    error = refusal(tmp_path)
    assert "needs transformers" in str(error)
    named = tmp_path / "keypointrcnn_resnet50_fpn_coco-fc266e95.pth"
    write_bytes(named, b"x")
    assert "needs transformers" not in str(refusal(named))  # the file that was named, not its like
    assert error.code == ENVIRONMENT
