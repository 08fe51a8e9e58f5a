"""The doctor: what is missing is named with what to do, and only problems fail."""

from __future__ import annotations

import importlib.metadata
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from people import make_market

from pidm_core import DONE, ENVIRONMENT, UserError, doctor, write_bytes
from pidm_core.doctor import Check
from tools.doctor import main

PACKAGES = {"torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.1.3", "pillow": "12.3.0"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions that importlib.metadata tells; a test may change them."""
    versions = dict(PACKAGES)

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    def requires(name: str) -> list[str]:
        version(name)
        return [
            "torch>=2.10",
            "numpy>=2",
            "pillow",
            'transformers>=4.48; extra == "pose"',
            'pytest>=8; extra == "dev"',
        ]

    versions["pidm-reid"] = "0.1.0"
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", requires)
    return versions


def states(checks: object) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in checks:  # type: ignore[attr-defined]
        assert isinstance(check, Check)
        found.setdefault(check.name, []).append(f"{check.state}: {check.text}")
    return found


# ---------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("found", "requirement", "why"),
    [
        ("2.11.0", "torch>=2.10", ""),
        ("2.9.1", "torch>=2.10", "torch 2.9.1 is older than 2.10"),  # as numbers, not as text
        ("2.10.0+cpu", "torch>=2.10", ""),
        ("1", "torch", ""),
        (None, "torch>=2.10", "torch is not installed"),
    ],
)
def test_versions_are_compared_as_numbers(
    installed: dict[str, str], found: str | None, requirement: str, why: str
) -> None:
    del installed["torch"]
    if found:
        installed["torch"] = found
    assert doctor.lacks(requirement) == why


def test_a_missing_package_is_a_problem_and_a_missing_extra_is_not(
    installed: dict[str, str],
) -> None:
    found = states(doctor.packages("pidm-reid"))
    assert found["packages"] == [
        "ok: all 3 are here",
        "missing: transformers is not installed: tools/extract_poses.py cannot run ViTPose; "
        "pip install -e '.[pose]'",
    ]
    installed.pop("numpy")
    assert states(doctor.packages("pidm-reid"))["packages"][0] == (
        "problem: numpy is not installed; run make setup, or pip install -e ."
    )
    installed.pop("pidm-reid")
    assert states(doctor.packages("pidm-reid"))["packages"] == [
        "problem: pidm-reid is not installed; run make setup"
    ]


@pytest.mark.parametrize(("version", "state"), [((3, 10), "problem"), ((3, 13), "ok")])
def test_python_must_be_one_that_is_tested(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], state: str
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 1, "final", 0))
    (text,) = states(doctor.packages("pidm-reid"))["Python"]
    assert text.startswith(f"{state}: {version[0]}.{version[1]}.1")


@pytest.mark.parametrize("asked", ["torch (==2.10.0)", "torch==2.10.0"])
def test_a_torchvision_of_another_torch_is_a_problem(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy", asked])
    (check,) = doctor.torchvision()
    assert check.state == "problem"
    assert "0.26.0 belongs to torch 2.10.0, but torch 2.11.0 is here" in check.text


def test_a_package_that_breaks_at_its_import_is_a_problem(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(importlib, "import_module", broken)
    (check,) = doctor._guarded("torchvision", doctor.torchvision)
    assert str(check) == (
        "problem  torchvision  RuntimeError: operator torchvision::nms does not exist"
    )


# ---------------------------------------------------------------- machine


@pytest.mark.parametrize(("free", "state"), [(1 << 29, "problem"), (2 << 30, "ok")])
def test_a_full_disk_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, state: str
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    check = doctor.disk(tmp_path)
    assert check.state == state
    assert f"{free / 2**30:.1f} GiB free" in check.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine whose torch sees no GPU")
def test_a_gpu_that_torch_does_not_see_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = doctor.device()
    assert check.state == "ok"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (check,) = doctor.device()
    assert check.state == "missing"
    assert "sees no GPU" in check.text


# ---------------------------------------------------------------- weights


def test_weights_are_looked_for_in_the_folder_and_in_torchs_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    found = states(doctor.weight_files(tmp_path / "mine", "student.pth"))
    assert [text.split(":")[0] for texts in found.values() for text in texts] == ["missing"] * 4
    assert found["ResNet50"] == [
        f"missing: re-ID starts from scratch, until student.pth is in {tmp_path}/cache/checkpoints"
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "cache/checkpoints").mkdir(parents=True)
    weights = {"layer.weight": torch.zeros(20_000)}
    torch.save(weights, tmp_path / "cache/checkpoints/student.pth")
    torch.save(weights, tmp_path / "mine/keypointrcnn_resnet50_fpn_coco-fc266e95.pth")
    write_bytes(tmp_path / "mine/inception_v3_google-0cc3c7bd.pth", b"<!doctype html>")
    found = states(doctor.weight_files(tmp_path / "mine", "student.pth"))
    assert found["ResNet50"][0].endswith("student.pth, 0.02 M values")
    assert found["Inception"][0].startswith("problem: ")
    assert "a web page, not the weights" in found["Inception"][0]
    assert found["AlexNet"][0].startswith("missing: no LPIPS")
    assert found["pose network"][0].startswith("ok: ")
    for file in tmp_path.glob("*/**/*.pth"):
        write_bytes(file, file.read_bytes()[: file.stat().st_size // 2])
    found = states(doctor.weight_files(tmp_path / "mine", "student.pth"))
    for name in ("ResNet50", "pose network"):
        assert found[name][0].startswith("problem: ")
        assert "not a whole weight file, perhaps cut off" in found[name][0]


# ---------------------------------------------------------------- data


def test_a_folder_of_people_is_counted(market: Path) -> None:
    found = states(doctor.people(market))
    home = market / "market1501"
    assert found["images"] == [f"ok: 36 of 6 people in {home / 'bounding_box_train'}"]
    assert found["decoding"] == ["ok: 32 of the images opened"]
    # Every ninth of the 36 shows no joint; those people have 5, 5, 6, 5, 6 and 5 images.
    assert found["joints"] == [
        f"ok: in 32 of 36 images, shoulders and hips in 32; {4 * 5 * 4 + 2 * 6 * 5} training pairs"
    ]
    assert found["query"] == [f"ok: 12 of 4 people in {home / 'query'}"]
    assert found["gallery"] == [f"ok: 18 of 4 people in {home / 'bounding_box_test'}"]


def test_what_lacks_in_a_folder_is_said(tmp_path: Path) -> None:
    home = make_market(tmp_path) / "market1501"
    shutil.rmtree(home / "query")
    (home / "market-annotation-train.csv").unlink()
    first = sorted((home / "bounding_box_train").iterdir())[0]
    first.write_bytes(b"broken")
    found = states(doctor._guarded("data", lambda: doctor.people(tmp_path)))
    assert found["decoding"][0].startswith(f"problem: {first}: not a whole image")
    assert "no market-annotation-train.csv in it" in found["data"][0]
    assert "tools/extract_poses.py" in found["data"][0]


def test_a_folder_without_query_can_still_be_trained_on(tmp_path: Path) -> None:
    home = make_market(tmp_path) / "market1501"
    shutil.rmtree(home / "query")
    assert states(doctor.people(tmp_path))["query"][0].startswith("missing: no folder query")


def test_people_are_counted_only_where_the_names_tell_them(tmp_path: Path) -> None:
    train = make_market(tmp_path) / "market1501/bounding_box_train"
    for number, path in enumerate(sorted(train.iterdir())):
        path.rename(train / f"Alice Müller ({number}).JPG")
    found = states(doctor._guarded("data", lambda: doctor.people(tmp_path / "market1501")))
    assert found["images"] == [f"ok: 66 in {tmp_path / 'market1501/bounding_box_test'}"]
    assert "(36 of 36 names here do not)" in found["data"][0]


@pytest.fixture
def nameless(tmp_path: Path) -> dict[str, str]:
    """A folder whose names tell nobody, and the files that do: --data, --keypoints, --pairs."""
    home = make_market(tmp_path, train=2) / "market1501"
    names = sorted(path.name for path in (home / "bounding_box_train").iterdir())
    joints = (home / "market-annotation-train.csv").read_text()
    (tmp_path / "own people").mkdir()
    for number, name in enumerate(names):
        shutil.move(home / "bounding_box_train" / name, tmp_path / f"own people/{number}.jpg")
        joints = joints.replace(name, f"{number}.jpg")
    write_bytes(tmp_path / "joints.csv", joints.encode())
    write_bytes(tmp_path / "pairs.csv", b"from,to\n1.jpg,2.jpg\n2.jpg,3.jpg\n")
    files = {"data": "own people", "keypoints": "joints.csv", "pairs": "pairs.csv"}
    return {name: str(tmp_path / file) for name, file in files.items()}


def test_people_of_nameless_files_are_told_by_joints_and_pairs(nameless: dict[str, str]) -> None:
    root = Path(nameless["data"])
    with pytest.raises(UserError):
        states(doctor.people(root))
    found = states(doctor.people(root, nameless["keypoints"], nameless["pairs"]))
    assert found["images"] == [f"ok: 12 in {root}"]
    assert found["joints"] == ["ok: in 11 of 12 images, shoulders and hips in 11; 2 training pairs"]


# ---------------------------------------------------------------- the tool


def test_the_tool_names_the_training_on_nameless_files(
    nameless: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for name, file in nameless.items() for word in (f"--{name}", file)]
    assert main(flags) == DONE
    command = capsys.readouterr().out.splitlines()[-1].partition("Next: ")[2]
    assert shlex.split(command)[-6:] == flags
    with pytest.raises(UserError, match="of which people"):
        main(flags[2:])


def test_the_tool_fails_only_for_problems(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(market)]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == {"ok", "missing"}
    size = "small" if torch.cuda.is_available() else "tiny"
    assert lines[-1].endswith(
        f"train_pidm.py --config configs/market1501_{size}.yaml --data {market}"
    )
    assert main(["--data", str(tmp_path / "nowhere")]) == ENVIRONMENT
    out = capsys.readouterr().out
    assert f"problem  data         {tmp_path}/nowhere: no such folder" in out
    assert "problems: 1; mend them" in out
