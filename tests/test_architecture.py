"""The plan of the house: who may import whom, lazy doors, tools that answer at once."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import pidm_core
import pidm_reid

ROOT = Path(__file__).parent.parent
ANY = {"files", "config", "options"}
ARROWS = {
    "pidm_core": {
        "files": "", "config": "", "options": "", "keypoints": "", "hardware": "",
        "image_metrics": "",
        "folders": "", "packs": "data folders", "image_names": "", "verify": "folders seen",
        "winograd": "", "layers": "winograd", "model": "layers", "diffusion": "", "progress": "",
        "feature_metrics": "",
        "weight_files": "",
        "feature_networks": "checkpoint hardware weight_files",
        "evaluation":
            "data datasets feature_metrics feature_networks image_metrics image_names joint_judge "
            "progress",
        "image_table": "evaluation keypoints pose sheets",
        "pair_images": "data datasets keypoints pipeline progress",
        "ablation": "datasets pair_images pipeline train", "sheets": "",
        "pose": "keypoints",
        "data": "keypoints pose",
        "pair_lists": "data keypoints",
        "datasets": "data keypoints pair_lists",
        "estimator": "data hardware keypoints pose weight_files",
        "checkpoint": "folders low_rank model weight_files", "low_rank": "",
        "official": "model checkpoint weight_files",
        "pipeline": "model diffusion keypoints pose checkpoint hardware",
        "seen": "data",
        "state": "checkpoint hardware model seen",
        "train":
            "checkpoint data datasets diffusion folders hardware keypoints model pose progress "
            "seen state",
        "toy_people": "", "toy_render": "toy_body toy_people",
        "toy_body": "toy_people",
        "toy_cameras": "toy_people toy_render",
        "toy_scenes": "keypoints toy_people toy_render toy_body toy_cameras",
        "toy_market": "folders keypoints toy_people toy_render toy_scenes",
        "garments": "keypoints",
        "parts": "benchmark diffusion hardware layers official",
        "benchmark": "data datasets diffusion hardware model progress state toy_market train",
        "user_study": "data image_names keypoints pose",
        "studio": "datasets diffusion hardware keypoints pipeline pose",
        "doctor":
            "checkpoint data datasets estimator feature_networks hardware keypoints pair_lists "
            "weight_files",
        "distill": "checkpoint diffusion hardware model train",
        "comparison": "feature_metrics pipeline probe probe_report",
        "probe_networks": "hardware keypoints progress",
        "joint_judge": "data keypoints probe_networks progress",
        "probe": "data diffusion garments image_metrics keypoints probe_networks",
        "probe_report":
            "hardware keypoints pipeline pose probe probe_networks progress sheets toy_market",
    },
    "pidm_reid": {
        "config": "", "compat": "", "coverage": "", "folder": "", "plan": "coverage",
        "retrieval": "compat", "small_maps": "",
        "table": "plan", "weights": "", "sheet": "plan",
        "cameras": "plan", "page": "table", "report": "page table",
        "folder_report": "cameras coverage folder page plan table",
        "synthesize": "folder plan",
        "generators": "synthesize config",
        "imported": "synthesize folder lease plan",
        "lease": "folder", "verify": "folder plan",
        "leaks": "folder",
        "selection": "config plan retrieval",
        "scoring": "config coverage finetune folder plan selection weights",
        "strict": "folder synthesize",
        "pool": "folder generators plan synthesize",
        "dataset": "folder compat pool",
        "unfinished": "weights", "outcome": "folder plan retrieval",
        "finetune":
            "dataset folder plan pool retrieval compat small_maps unfinished weights config",
        "identity": "config finetune plan retrieval weights",
        "rows": "config",
        "bench":
            "cameras compat config coverage finetune folder generators identity imported leaks "
            "lease plan pool retrieval rows scoring strict synthesize weights",
        "experiment": "bench config finetune folder lease plan rows scoring sheet table",
    },
}  # fmt: skip
READERS = {"doctor", "verify", "studio"}
WRITERS = {path.stem for path in (ROOT / "tools").glob("*.py")} - READERS
ROOMS = [(package, room) for package, rooms in ARROWS.items() for room in sorted(rooms)]


def imports(path: Path, package: str) -> set[str]:
    """Rooms of `package` that a file imports, for the type checker alone included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == package:
                found |= {alias.name for alias in node.names}
            elif node.module.startswith(f"{package}."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package}.")}
    return found


@pytest.mark.parametrize(("package", "room"), ROOMS)
def test_a_room_imports_only_what_the_plan_allows(package: str, room: str) -> None:
    allowed = {*ARROWS[package][room].split(), *ANY, "__version__"}
    assert imports(ROOT / package / f"{room}.py", package) <= allowed


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_the_plan_names_every_room(package: str) -> None:
    rooms = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert rooms == set(ARROWS[package])


def test_the_core_knows_nothing_of_reid_and_nothing_imports_tools() -> None:
    for path in (ROOT / "pidm_core").glob("*.py"):
        assert "pidm_reid" not in path.read_text(), path
    for package in ("pidm_core", "pidm_reid"):
        for path in (ROOT / package).glob("*.py"):
            tree = ast.parse(path.read_text())
            modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
            assert not [m for m in modules if m.split(".")[0] == "tools"], path


def test_reid_enters_the_core_through_its_door() -> None:
    doors = set(pidm_core.__all__) | {"__version__"}
    for path in (ROOT / "pidm_reid").glob("*.py"):
        assert imports(path, "pidm_core") <= doors, path
        assert "from pidm_core." not in path.read_text(), path


@pytest.mark.parametrize("door", [pidm_core, pidm_reid])
def test_every_name_of_a_door_opens(door: object) -> None:
    names = door.__all__  # type: ignore[attr-defined]
    assert names == sorted(names)
    for name in names:
        assert getattr(door, name) is not None


def test_the_doors_and_the_plan_import_no_torch() -> None:
    code = (
        "import sys, pidm_core, pidm_reid, pidm_reid.plan, pidm_reid.table, pidm_core.config; "
        "from pidm_core import read_market1501, read_keypoints, make_pairs; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda p: p.stem)
def test_help_answers_at_once_with_an_example(tool: Path) -> None:
    seconds = []
    for _ in range(3):  # the best of three, in seconds of the processor: machines are noisy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, str(tool), "--help"], capture_output=True, text=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < 0.4:
            break
    assert done.returncode == 0, done.stderr
    assert f"example:\n  python tools/{tool.name}" in done.stdout
    assert min(seconds) < 0.4  # 0.3 s on a quiet machine


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda p: p.stem)
def test_a_misspelt_flag_is_refused_with_one_line(tool: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(tool), "--sed", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown argument '--sed'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("tool", sorted(WRITERS))
def test_a_tool_that_writes_can_be_asked_what_it_would_do(tool: str) -> None:
    source = (ROOT / f"tools/{tool}.py").read_text()  # tests/test_docs_run.py runs them
    assert "dry_run: bool = False" in source
    assert "if options.dry_run" in source or "if dry_run" in source
