"""Run folders: whole or not there, checked when read, never fewer than kept."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pidm_core import PIDMConfig, UserError, checkpoint, read_json
from pidm_core.checkpoint import (
    checkpoints,
    find_model,
    latest_checkpoint,
    load_model,
    save_checkpoint,
    save_model,
)
from pidm_core.config import ModelConfig
from pidm_core.model import PIDM
from pidm_core.verify import verify

CONFIG = PIDMConfig(
    model=ModelConfig(
        size=(16, 8), channels=32, channel_mults=(1,), blocks_per_level=1, texture_factors=(1,)
    )
)


def save(run: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(run, step, {"weights": {"a": torch.full((3,), step)}}, {}, keep=keep)


def test_the_newest_is_loaded_and_the_oldest_pruned(tmp_path: Path) -> None:
    for step in (5, 9, 10):  # 9 and 10 also sort apart as text
        save(tmp_path, step)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["step"] == 10
    assert found[1]["weights"]["a"].tolist() == [10, 10, 10]
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000009", "step_00000010"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-4])
    elif damage == "remove":
        path.unlink()
    else:
        (folder / "manifest.json").unlink()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["step"] == 1
    assert "step_00000002" in caplog.text


def test_nothing_is_left_of_a_checkpoint_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pidm_core.checkpoint.write_json", fail)
    with pytest.raises(OSError, match="space"):
        save(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_a_model_folder_round_trips(tmp_path: Path) -> None:
    model = PIDM(CONFIG.model)
    save_model(tmp_path / "model", model.state_dict(), CONFIG, card="a card")
    loaded, diffusion, settings, digest = load_model(find_model(tmp_path))
    assert (diffusion, settings) == (CONFIG.diffusion, CONFIG.sample)
    assert len(digest) == 64
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_altered_weights_and_other_architectures_are_refused(tmp_path: Path) -> None:
    other = PIDM(ModelConfig(size=(16, 8), channels=64, channel_mults=(1,), texture_factors=(1,)))
    save_model(tmp_path / "other", other.state_dict(), CONFIG, card="")
    with pytest.raises(UserError, match=r"another network: .* is"):
        load_model(tmp_path / "other")
    save_model(tmp_path / "bad", PIDM(CONFIG.model).state_dict(), CONFIG, card="")
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(UserError, match="checksum"):
        load_model(tmp_path / "bad")
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/")
    with pytest.raises(UserError, match="Git-LFS pointer"):
        load_model(tmp_path / "bad")


def test_a_model_that_is_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (PIDM(CONFIG.model).state_dict() for _ in range(2))
    save_model(tmp_path, first, CONFIG, card="")

    def then_saved(path: Path) -> Any:
        monkeypatch.undo()
        before = read_json(path)
        save_model(tmp_path, second, CONFIG, card="")
        return before

    monkeypatch.setattr(checkpoint, "read_json", then_saved)
    loaded, *_ = load_model(tmp_path)
    assert all(torch.equal(value, second[name]) for name, value in loaded.state_dict().items())


def test_no_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_pidm"):
        find_model(tmp_path / "nowhere")


def test_a_run_that_was_stopped_is_told_from_none(tmp_path: Path) -> None:
    save(tmp_path, 1200)
    with pytest.raises(UserError, match="stopped at step 1,200; the same train_pidm command"):
        find_model(tmp_path)


def damage(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_oldest_goes_only_when_enough_newer_ones_verify(tmp_path: Path, keep: int) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=9)
    damage(tmp_path / "checkpoints" / "step_00000002")
    save(tmp_path, 4, keep=keep)
    # of 4, 3, 2 (bad), 1: two good ones are 4 and 3, three are 4, 3 and 1
    kept = [int(path.name[5:]) for path in checkpoints(tmp_path)]
    assert kept == ([4, 3, 2, 1] if keep == 3 else [4, 3])


def test_a_bad_newer_checkpoint_may_be_removed_once_the_run_went_on_before_it(
    tmp_path: Path,
) -> None:
    save(tmp_path, 2)
    bad = save(tmp_path, 4)
    damage(bad)
    save(tmp_path, 3)  # as a signal does where the run went on from step 2
    assert [line.partition(":")[0] for line in verify(tmp_path)] == [f"{bad}/weights.safetensors"]
    shutil.rmtree(bad)
    assert verify(tmp_path) == []


def test_a_run_whose_checkpoints_are_all_bad_does_not_begin_anew(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    damage(save(tmp_path, 1))
    with pytest.raises(UserError, match="none of 1 checkpoints is whole"):
        latest_checkpoint(tmp_path)


def test_what_is_no_number_is_not_resumed_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    tensors = {"weights": {"a": torch.tensor([1.0, float("nan")])}}
    save_checkpoint(tmp_path, 2, tensors, {}, keep=2)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["step"] == 1
    assert "NaN or infinite values in a" in caplog.text


def test_a_pointer_of_git_lfs_is_called_by_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (save(tmp_path, 2) / "weights.safetensors").write_bytes(pointer)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["step"] == 1
    assert "a Git-LFS pointer, not the weights; run git lfs pull" in caplog.text


def test_a_full_disk_while_weights_are_written_is_the_systems_error(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from pidm_core.checkpoint import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "try: write_tensors(Path(sys.argv[1]) / 'w', {'a': torch.zeros(999)})\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
