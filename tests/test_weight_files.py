"""Weight files as torch, torchreid, Git and web servers leave them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from pidm_core import BAD_DATA, ENVIRONMENT, UserError, read_weights, weight_files

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


def refusal(path: Path) -> str:
    """The message, which is one line without colours and quotes none of torch's advice."""
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert caught.value.code == BAD_DATA
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert "weights_only" not in message
    return message


def test_tensors_of_torch_and_safetensors_come_by_name(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    torch.save(nn.DataParallel(nn.Linear(3, 2)).state_dict(), tmp_path / "parallel.pth")
    for name in ("a.pth", "a.safetensors"):
        found = read_weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in STATE.items())
    assert set(read_weights(tmp_path / "parallel.pth")) == {"weight", "bias"}


@pytest.mark.parametrize("rank1", [np.float32(0.9), np.float64(0.9), 0.9])
def test_a_checkpoint_of_torchreids_engine_is_read(tmp_path: Path, rank1: Any) -> None:
    import torchreid

    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 40])
    checkpoint = {"state_dict": model.state_dict(), "epoch": 60, "rank1": rank1}
    checkpoint |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torchreid.utils.save_checkpoint(checkpoint, str(tmp_path))
    found = read_weights(tmp_path / "model.pth.tar-60")
    assert torch.equal(found["weight"], model.weight)


def test_numbers_of_numpy_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    checkpoint = {"state_dict": STATE, "rank1": np.float64(0.9)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    older = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert older != data
    path.write_bytes(older)
    assert set(read_weights(path)) == set(STATE)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git-LFS pointer"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"\xef\xbb\xbf<!-- saved from -->\n<HTML>Sign in</HTML>", "a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page"),
        (b"<head><title>404</title></head>", "a web page"),
        (b"", "not a whole weight file"),
        (b"PK\x03\x04 cut off", "not a whole weight file"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_weight_file_is_refused(
    data: bytes, why: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    assert why in refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(STATE, path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole weight file" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "a.pth"
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=zipped)
    assert "not a plain state dict; nothing in it was run" in refusal(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (nn.Linear(1, 1), "not a plain state dict"),
        (np.zeros(3), "not a plain state dict"),
        ([torch.zeros(1)], "not a plain state dict but a list"),
        ({"rank1": 0.9}, "'rank1' is no named tensor"),
        ({1: torch.zeros(1)}, "'1' is no named tensor"),
        ({"state_dict": 5}, "not a plain state dict but a int"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, content: Any, why: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert why in refusal(tmp_path / "a.pth")


def test_a_header_that_looks_like_a_page_is_none(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header += b" " * (0x613C - len(header))  # a length whose bytes read "<a"
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert re.match(rb"<a", path.read_bytes())
    assert read_weights(path)["a"].shape == (1,)


def test_a_missing_file_is_the_machines_affair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weight file") as caught:
        read_weights(tmp_path / "reid.pth")
    assert caught.value.code == ENVIRONMENT


def test_what_others_allowed_torch_to_load_stays_allowed(tmp_path: Path) -> None:
    """torchreid's own checkpoints need numpy's numbers, which weight files may hold as well."""
    torch.save({"rank1": np.float32(0.5)}, tmp_path / "theirs.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with torch.serialization.safe_globals([]):
        before = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(weight_files._NUMBERS)
        try:
            read_weights(tmp_path / "weights.pth")
            assert torch.load(tmp_path / "theirs.pth", weights_only=True) == {"rank1": 0.5}
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)
