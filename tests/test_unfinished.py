"""A training of ResNet50 that was cut off: the same weights as if it had not been."""

from __future__ import annotations

import dataclasses
import errno
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from people import planned, render_all

from pidm_reid import finetune, folder, unfinished
from pidm_reid.config import Stage, StudentConfig
from pidm_reid.dataset import Item
from pidm_reid.weights import load_state

pytestmark = pytest.mark.usefixtures("small_network")
SMALL = StudentConfig(height=32, width=16, batch_size=12, weights="none", precision="fp32")
STAGE = Stage(steps=8, lr=1e-3, warmup_steps=2)
LAST = finetune.How(erasing=True, half_real=True, real_last=0.5)  # four steps, then four


class Cut(Exception):
    """What ends a training early."""


@pytest.fixture(scope="module")
def items(market: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """18 real and as many generated images: three batches an epoch."""
    out = tmp_path_factory.mktemp("made")
    render_all(planned(market), out)
    made = folder.read_augmented(out)
    names = ([made.train_folder / name for name in part] for part in (made.real, made.synthetic))
    return finetune.train_list(*names)


@pytest.fixture(scope="module")
def test_set(market: Path) -> finetune.TestSet:
    return finetune.read_test(market)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the iterations in [0]; raises Cut after [1] of them. Every epoch is kept."""
    done, step = [0, 10**9], finetune.FastSoftmaxEngine.forward_backward

    def counted(self: Any, data: Any) -> dict[str, float]:
        if done[0] == done[1]:
            raise Cut
        done[0] += 1
        return step(self, data)

    monkeypatch.setattr(finetune.FastSoftmaxEngine, "forward_backward", counted)
    monkeypatch.setattr(unfinished, "EVERY_S", 0.0)
    return done


def train(items: list[Item], test_set: finetune.TestSet, **options: Any) -> Any:
    given = {"config": SMALL, "stage": STAGE, "seed": 0, **options}
    return finetune.train_and_test(items, test_set, **given)


def same(a: Any, b: Any) -> bool:
    """Whether two trainings ended in the same weights and figures."""
    weights = all(torch.equal(a[0][name], value) for name, value in b[0].items())
    return weights and (a[1].loss, a[1].accuracy, a[1].ranking.mAP) == (
        b[1].loss, b[1].accuracy, b[1].ranking.mAP
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "cut", "again"),
    [
        (finetune.How(), 3, 5),
        (finetune.How(), 4, 5),
        (finetune.How(), 7, 2),
        (LAST, 3, 5),
        (LAST, 4, 4),  # at the beginning of the second part
        (LAST, 6, 2),  # the second part has one batch an epoch
    ],
)
def test_a_training_that_was_cut_off_ends_in_the_same_weights(
    items: list[Item], test_set: finetune.TestSet, count: list[int], tmp_path: Path,
    how: finetune.How, cut: int, again: int,
) -> None:  # fmt: skip
    whole, keep = train(items, test_set, how=how), tmp_path / "unfinished.safetensors"
    count[:] = 0, cut
    with pytest.raises(Cut):
        train(items, test_set, how=how, keep=keep)
    random.seed(9)  # another process begins with other numbers
    np.random.seed(9)
    torch.manual_seed(9)
    count[:] = 0, 10**9
    assert same(train(items, test_set, how=how, keep=keep), whole)
    assert count[0] == again


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        (2, "nothing of it is kept, so the same command begins it anew"),
        (7, "it is kept up to iteration 6, where the same command goes on"),
    ],
)
def test_an_interruption_says_what_is_kept(
    items: list[Item], test_set: finetune.TestSet, count: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, cut: int, kept: str,
) -> None:  # fmt: skip
    counted = finetune.FastSoftmaxEngine.forward_backward

    def interrupted(self: Any, data: Any) -> dict[str, float]:
        if count[0] == cut:
            raise KeyboardInterrupt
        return counted(self, data)

    monkeypatch.setattr(finetune.FastSoftmaxEngine, "forward_backward", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"^ResNet50: {kept}$"):
        train(items, test_set, keep=tmp_path / "unfinished.safetensors")


def test_loaders_in_processes_of_their_own_go_on_as_well(
    items: list[Item], test_set: finetune.TestSet, count: list[int], tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "how": finetune.How(erasing=True),
        "config": dataclasses.replace(SMALL, workers=1),
    }
    whole, keep = train(items, test_set, **given), tmp_path / "unfinished.safetensors"
    count[:] = 0, 4
    with pytest.raises(Cut):
        train(items, test_set, keep=keep, **given)
    count[:] = 0, 10**9
    assert same(train(items, test_set, keep=keep, **given), whole)
    assert count[0] == 5


def test_an_ended_training_is_only_tested(
    items: list[Item], test_set: finetune.TestSet, count: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keep = tmp_path / "unfinished.safetensors"
    monkeypatch.setattr(unfinished, "EVERY_S", 1e9)  # its end is kept however short it was
    first = train(items, test_set, keep=keep)
    assert count[0] == 8
    second = train(items, test_set, keep=keep)
    assert same(second, first)
    assert count[0] == 8
    about = json.loads(load_state(keep)["about"].numpy().tobytes())
    assert 0 < about["seconds"] < second[1].train_seconds  # what it took is not forgotten


@pytest.mark.parametrize(
    "change", ["seed", "stage", "start", "images", "pictures", "cut off", "a bit", "nothing"]
)
def test_another_or_a_damaged_training_is_not_taken_up(
    items: list[Item], test_set: finetune.TestSet, count: list[int], tmp_path: Path,
    caplog: pytest.LogCaptureFixture, change: str,
) -> None:  # fmt: skip
    keep, options = tmp_path / "unfinished.safetensors", dict[str, Any]()
    for path, *_ in items:
        shutil.copy(path, tmp_path)
    items = [(str(tmp_path / Path(path).name), *who) for path, *who in items]
    state, _ = train(items, test_set, keep=keep)
    if change == "seed":
        options = {"seed": 1}
    elif change == "stage":
        options = {"stage": dataclasses.replace(STAGE, lr=2e-3)}
    elif change == "start":
        options = {"start": state}
    elif change == "images":
        items = items[:-1]
    elif change == "pictures":  # of the same names
        shutil.copy(items[0][0], items[-1][0])
    elif change == "cut off":
        keep.write_bytes(keep.read_bytes()[:-100])
    elif change == "a bit":
        data = bytearray(keep.read_bytes())
        data[len(data) // 2] ^= 64
        keep.write_bytes(data)
    elif change == "nothing":
        keep.unlink()
    count[0] = 0
    train(items, test_set, keep=keep, **options)
    assert count[0] == 8
    assert ("begins anew" in caplog.text) is (change != "nothing")


def test_a_full_disk_does_not_end_the_training(
    items: list[Item], test_set: finetune.TestSet, count: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unfinished, "save_state", full)
    train(items, test_set, keep=tmp_path / "unfinished.safetensors")
    assert count[0] == 8
    assert "not kept ([Errno 28] No space left" in caplog.text


def test_nothing_is_kept_unasked_of_fresh_images_or_while_the_last_is_young(
    items: list[Item], test_set: finetune.TestSet, count: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    train(items, test_set)
    monkeypatch.setattr(finetune, "fresh_each_epoch", lambda manager: [])
    train(items, test_set, how=finetune.How(fresh=True), keep=tmp_path / "unfinished.safetensors")
    monkeypatch.setattr(unfinished, "EVERY_S", 3600.0)
    count[:] = 0, 5
    with pytest.raises(Cut):
        train(items, test_set, keep=tmp_path / "unfinished.safetensors")
    assert not list(tmp_path.iterdir())
