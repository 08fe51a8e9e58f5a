"""verify: every removed, altered, unlisted or truncated file of run and model folders."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pidm_core import BAD_DATA, DONE, PIDMConfig, UserError
from pidm_core.checkpoint import save_checkpoint, save_model
from pidm_core.config import ASSETS, ModelConfig
from pidm_core.files import sha256
from pidm_core.verify import verify

CONFIG = PIDMConfig(model=ModelConfig(channels=32, channel_mults=(1,), texture_factors=(1,)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints and a model of one tensor."""
    run, tensors = tmp_path / "run", {"a": torch.arange(3.0)}
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    (run / "seen.json").write_text("[]")
    save_model(run / "model", tensors, CONFIG, card="a card")
    for step in (1, 2):
        state = {"model": True, "seen": sha256(run / "seen.json")}
        save_checkpoint(run, step, {"weights": tensors}, state, keep=2)
    return run


def change(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def add(path: Path) -> None:
    (path / "extra").write_text("")


def test_a_run_as_it_was_written_has_no_fault(run: Path) -> None:
    assert verify(run) == []
    assert verify(run / "model") == []
    assert verify(run / "checkpoints" / "step_00000001") == []


@pytest.mark.parametrize("fault", [change, cut, remove])
@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/step_00000001/weights.safetensors",
        "checkpoints/step_00000002/state.json",
        "checkpoints/step_00000002/manifest.json",
        "model/model.safetensors",
        "model/config.json",
        "model/README.md",
        "model/manifest.json",
        "seen.json",
    ],
)
def test_one_changed_file_is_one_line_that_names_it(
    run: Path, name: str, fault: Callable[[Path], None]
) -> None:
    fault(run / name)
    (line,) = verify(run)
    assert line.startswith(f"{run / name}: ")


@pytest.mark.parametrize("name", ["checkpoints/step_00000001", "model"])
def test_a_whole_folder_that_is_gone_is_missed(run: Path, name: str) -> None:
    remove(run / name)
    (line,) = verify(run)
    assert line.startswith(str(run / name))


@pytest.mark.parametrize("name", ["checkpoints/step_00000001", "model", "checkpoints"])
def test_a_file_that_nobody_listed_is_named(run: Path, name: str) -> None:
    add(run / name)
    (line,) = verify(run)
    assert line.startswith(str(run / name / "extra"))


def test_what_a_kill_left_unfinished_is_no_fault(run: Path) -> None:
    (run / "checkpoints" / ".tmp-step_00000003-1-0").mkdir()
    assert verify(run) == []


def test_a_model_without_manifest_is_checked_by_its_weights(run: Path) -> None:
    model = run / "model"
    (model / "manifest.json").unlink()
    assert verify(model) == []
    change(model / "model.safetensors")
    assert verify(model) == [f"{model}/model.safetensors: missing or altered, its checksum differs"]


def test_the_bundled_models_are_as_they_were_made() -> None:
    models = [path.parent for path in ASSETS.glob("*/config.json")]
    assert models
    for model in models:
        assert (model / "manifest.json").is_file()
        assert verify(model) == []


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run folder nor a model folder"):
        verify(tmp_path)


def test_the_tool_says_what_it_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = importlib.import_module("tools.verify")
    model = run / "model"
    assert tool.main([str(run), str(model)]) == DONE
    assert capsys.readouterr().out.splitlines() == [
        f"{run}: every file is as it was written",
        f"{model}: every file is as it was written",
    ]
    cut(model / "README.md")
    assert tool.main([str(model)]) == BAD_DATA
    found, mend = capsys.readouterr().out.splitlines()
    assert found == f"{model}/README.md: 5 bytes instead of 6, its checksum differs"
    assert mend.startswith("Mend a checkpoint by removing its folder")
    with pytest.raises(UserError, match="no folder given"):
        tool.main([])
