"""Training: exact resume, learning, refusals."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from people import draw_person, make_market
from safetensors.torch import load_file
from tiny import TINY

import pidm_core.train as pidm_train
from pidm_core import (
    PIDMConfig,
    PIDMPipeline,
    UserError,
    encode_jpeg,
    load_config,
    read_json,
    save_config,
    sha256,
    write_json,
)
from pidm_core.config import ASSETS, DiffusionConfig, ModelConfig, SampleConfig, TrainConfig
from pidm_core.data import Pairs
from pidm_core.datasets import read_people, withhold
from pidm_core.diffusion import Diffusion, sample_images
from pidm_core.files import BAD_DATA, DONE, ENVIRONMENT, TERMINATED
from pidm_core.hardware import place
from pidm_core.keypoints import NOBODY, read_keypoints, write_keypoints
from pidm_core.pair_lists import patn_pairs, write_pairs
from pidm_core.seen import read_seen
from pidm_core.state import State, learning_rate
from pidm_core.train import HybridLoss, train
from pidm_core.verify import verify


@pytest.fixture
def config(market: Path) -> PIDMConfig:
    options = TrainConfig(
        steps=6, batch_size=4, lr=1e-3, warmup_steps=2, sample_every=0, save_every=3,
        log_every=1, precision="fp32",
    )  # fmt: skip
    return PIDMConfig(
        data=str(market), model=TINY, train=options, sample=SampleConfig(steps=2, batch_size=3)
    )


@pytest.fixture
def small(config: PIDMConfig) -> PIDMConfig:
    """The smallest network: for what is not about learning."""
    model = ModelConfig(
        size=(16, 8), channels=32, channel_mults=(1,), blocks_per_level=1, texture_factors=(1,)
    )
    return dataclasses.replace(config, model=model)


def finish(config: PIDMConfig, run: Path) -> dict[str, torch.Tensor]:
    for _ in train(config, run):
        pass
    return load_file(run / "checkpoints" / f"step_{config.train.steps:08d}" / "weights.safetensors")


def test_resume_gives_the_same_weights(config: PIDMConfig, tmp_path: Path) -> None:
    straight = finish(config, tmp_path / "straight")
    for progress in train(config, tmp_path / "cut"):
        if progress.step == 4:  # the newest checkpoint is step 3
            break
    resumed = finish(config, tmp_path / "cut")
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("straight", "cut")]
    steps = [[line.split(",")[0] for line in log.splitlines()] for log in logs]
    assert steps[0] == steps[1]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], list[int]]:
    """What is fed: (first sample of a step, rank) -> indices of the pairs."""
    calls: dict[tuple[int, int], list[int]] = {}
    original = pidm_train.order

    def watched(count: int, **where: int) -> np.ndarray:
        indices = original(count, **where)
        calls[where["position"], where["rank"]] = indices.tolist()
        return indices

    monkeypatch.setattr(pidm_train, "order", watched)
    return calls


def stream(config: PIDMConfig, length: int) -> list[int]:
    """The pairs in the order in which they shall be fed: one permutation after the other."""
    count = len(pidm_train.load_pairs(config))
    epochs = range(-(-length // count))
    orders = [
        np.random.default_rng([config.train.seed, e, count]).permutation(count) for e in epochs
    ]
    return np.concatenate(orders)[:length].tolist()


def test_no_sample_is_repeated_or_missed_by_a_resume(
    small: PIDMConfig, tmp_path: Path, fed: dict[tuple[int, int], list[int]]
) -> None:
    for progress in train(small, tmp_path):
        if progress.step == 4:  # the newest checkpoint is step 3
            break
    before, after = dict(fed), fed
    after.clear()
    finish(small, tmp_path)
    expected = stream(small, 6 * 4)
    assert [i for step in range(3) for i in before[4 * step, 0]] == expected[: 3 * 4]
    assert min(after) == (3 * 4, 0)
    assert [i for step in range(3, 6) for i in after[4 * step, 0]] == expected[3 * 4 :]


def test_a_changed_number_of_processes_goes_on_with_the_same_pairs(
    small: PIDMConfig,
    tmp_path: Path,
    fed: dict[tuple[int, int], list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = dataclasses.replace(small, train=dataclasses.replace(small.train, batch_size=2))
    state = State(small, place("fp32"))
    assert state.resume(tmp_path, world=3) == 0
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.clip()
    state.update(0)
    state.save(tmp_path, 2)  # two steps of three processes with two pairs each
    finish(small, tmp_path)
    assert "from step 2 on 1 processes train instead of 3, with 6 pairs each" in caplog.text
    expected = stream(small, 6 * 6)
    assert min(fed) == (2 * 6, 0)
    assert [i for step in range(2, 6) for i in fed[6 * step, 0]] == expected[2 * 6 :]
    last = read_json(tmp_path / "checkpoints" / "step_00000006" / "state.json")
    assert (last["samples"], last["worlds"]) == (36, {"0": 3, "2": 1})
    assert "36 pairs" in (tmp_path / "model" / "README.md").read_text()


def test_processes_that_cannot_share_a_steps_pairs_are_refused(
    small: PIDMConfig, tmp_path: Path
) -> None:
    finish(small, tmp_path)
    shares = []
    for world in (1, 2, 4):
        state = State(small, place("fp32"))
        assert state.resume(tmp_path, world) == 6
        shares.append(state.batch // world)
    assert shares == [4, 2, 1]
    with pytest.raises(UserError, match="3 processes cannot share the 4 pairs of a step equally"):
        State(small, place("fp32")).resume(tmp_path, 3)


def test_a_checkpoint_of_another_network_is_refused_with_five_names(
    small: PIDMConfig, tmp_path: Path
) -> None:
    finish(small, tmp_path)
    model = dataclasses.replace(small.model, channels=64)
    other = State(dataclasses.replace(small, model=model), place("fp32"))
    with pytest.raises(UserError, match=r"weights of another network: ([^;]*; ){4}[^;]*$"):
        other.resume(tmp_path, 1)


# ---------------------------------------------------------------- guards


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], kind: str = "loss") -> None:
    """Make the loss of these steps NaN, or only its gradient infinite."""
    original, done = HybridLoss.forward, iter(range(1, 1000))

    def forward(self: HybridLoss, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mse, vlb = original(self, *batch)
        if next(done) in steps:
            mse = mse * torch.nan if kind == "loss" else mse + (mse - mse.detach()).sqrt()
        return mse, vlb

    monkeypatch.setattr(HybridLoss, "forward", forward)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    steps = dataclasses.replace(small.train, save_every=1, keep=9)
    spoil(monkeypatch, {3}, kind)
    finish(dataclasses.replace(small, train=steps), tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0, 0, 0]
    assert [line["loss"] is None for line in lines] == [False, False, True, False, False, False]
    # the saving of step 3 is put off to step 4, where it falls together with that step's own
    kept = sorted(path.name[-1] for path in (tmp_path / "checkpoints").glob("step_*"))
    assert kept == ["1", "2", "4", "5", "6"]
    moments = load_file(tmp_path / "checkpoints" / "step_00000004" / "adam.safetensors")
    assert {int(v) for k, v in moments.items() if k.endswith(".step")} == {3}  # of four steps


def test_a_training_without_any_finite_loss_says_so(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dataclasses.replace(small.train, steps=3, bad_steps=10)
    spoil(monkeypatch, {1, 2, 3})
    with pytest.raises(UserError, match="no finite loss in 3 steps up to step 3"):
        finish(dataclasses.replace(small, train=options), tmp_path)


def test_too_many_bad_steps_in_a_row_end_at_the_last_good_checkpoint(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dataclasses.replace(small.train, steps=20, bad_steps=3)
    spoil(monkeypatch, {2, 3, *range(5, 20)})  # two in a row are borne
    run = tmp_path / "run"
    with pytest.raises(
        UserError, match=r"no finite loss in 3 steps up to step 7; .* at step 4;"
    ) as e:
        finish(dataclasses.replace(small, train=options), run)
    assert e.value.code == BAD_DATA
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_00000004"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["skipped"]) == (7, 1)


def test_a_stop_waits_for_a_good_step_and_tells_the_signal(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3, 4})
    codes = []
    for progress in train(small, tmp_path):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        codes.append(progress.stopping)
    assert codes == [0, 0, 0, 0, 130]
    assert (tmp_path / "checkpoints" / "step_00000005").is_dir()


def test_too_little_memory_names_the_settings(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [
        lambda: torch.empty(1 << 50),  # what the CPU's allocator says
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")),
    ]
    for number, fail in enumerate(errors):
        monkeypatch.setattr(HybridLoss, "forward", lambda *_, fail=fail: next(iter(fail())))
        with pytest.raises(UserError, match=r"--train.recompute, .* lower --train.batch-size") as e:
            finish(small, tmp_path / str(number))
        assert e.value.code == ENVIRONMENT
    monkeypatch.setattr(HybridLoss, "forward", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        finish(small, tmp_path / "other")


def test_a_line_that_a_kill_tore_is_taken_back(small: PIDMConfig, tmp_path: Path) -> None:
    for progress in train(small, tmp_path):
        if progress.step == 4:
            break
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    finish(small, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_leftovers_of_a_killed_run_are_cleared_and_two_runs_at_once_refused(
    small: PIDMConfig, tmp_path: Path
) -> None:
    for name in ("checkpoints/.tmp-step_00000009-1-0", ".tmp-model-1-0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "half").write_text("")
    (tmp_path / ".tmp-config").write_text("")
    steps = train(small, tmp_path)
    next(steps)
    assert list(tmp_path.rglob(".tmp-*")) == []
    with pytest.raises(UserError, match="another process is writing there"):
        next(train(small, tmp_path))
    steps.close()  # type: ignore[attr-defined]
    finish(small, tmp_path)


def test_a_finished_run_is_left_alone(config: PIDMConfig, tmp_path: Path) -> None:
    finish(config, tmp_path)
    assert list(train(config, tmp_path)) == []


def test_a_model_without_its_run_is_not_trained_into(config: PIDMConfig, tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "toy_market", tmp_path / "copy")
    before = (tmp_path / "copy/metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="a model without its run"):
        next(train(config, tmp_path / "copy"))
    assert (tmp_path / "copy/metrics.jsonl").read_bytes() == before
    finish(config, tmp_path / "run")
    with pytest.raises(UserError, match="a model without its run"):
        next(train(config, tmp_path / "run" / "model"))
    assert verify(tmp_path / "run") == []


def test_pictures_that_cannot_be_drawn_are_refused_before_a_step(
    config: PIDMConfig, tmp_path: Path
) -> None:
    impossible = dataclasses.replace(config, sample=SampleConfig(steps=300, spacing="leading"))
    with pytest.raises(UserError, match="never 300"):
        next(train(impossible, tmp_path / "run"))
    assert finish(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ACCELERATE_MIXED_PRECISION", "bf16"), ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")],
)
def test_what_accelerate_was_told_for_other_trainings_changes_nothing(
    config: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    straight = finish(config, tmp_path / "straight")
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
    monkeypatch.setenv(name, value)
    told = finish(config, tmp_path / "told")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert all(torch.equal(told[key], weight) for key, weight in straight.items())


def test_another_configuration_in_the_same_folder_is_refused(
    config: PIDMConfig, tmp_path: Path
) -> None:
    finish(config, tmp_path)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=5e-4))
    with pytest.raises(UserError, match=r"train.lr was 0.001, is 0.0005"):
        next(train(other, tmp_path))
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    assert [progress.step for progress in train(more, tmp_path)] == [7]


def test_a_run_starts_from_another_models_weights(config: PIDMConfig, tmp_path: Path) -> None:
    finish(config, tmp_path / "first")
    options = dataclasses.replace(config.train, init=str(tmp_path / "first"), lr=0.0, steps=1)
    second = finish(dataclasses.replace(config, train=options), tmp_path / "second")
    first = load_file(tmp_path / "first" / "model" / "model.safetensors")
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_a_model_to_start_from_that_is_not_there_yet_leaves_nothing_behind(
    small: PIDMConfig, tmp_path: Path
) -> None:
    options = dataclasses.replace(small.train, init=str(tmp_path / "first"))
    second = dataclasses.replace(small, train=options)
    with pytest.raises(UserError, match="first: no trained model there"):
        finish(second, tmp_path / "second")
    assert not (tmp_path / "second" / "seen.json").exists()
    finish(small, tmp_path / "first")
    finish(second, tmp_path / "second")
    assert [entry.kind for entry in read_seen(tmp_path / "second") or []] == ["real", "real"]


def test_a_run_of_which_nothing_was_saved_takes_other_settings(
    small: PIDMConfig, market: Path, tmp_path: Path
) -> None:
    next(train(small, tmp_path / "run"))  # killed after its first step
    finish(small, tmp_path / "first")
    options = dataclasses.replace(small.train, init=str(tmp_path / "first"), lr=5e-4)
    finish(dataclasses.replace(small, train=options), tmp_path / "run")
    assert load_config(PIDMConfig, tmp_path / "run" / "config.yaml").train == options
    assert len(read_seen(tmp_path / "run") or []) == 2
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # the model is still of these settings
    with pytest.raises(UserError, match="holds a run with other settings"):
        finish(small, tmp_path / "run")


def judged(config: PIDMConfig, **options: object) -> PIDMConfig:
    """Two of the six people withheld, judged after every second step."""
    train = dataclasses.replace(config.train, withhold=0.3, save_every=2, **options)  # type: ignore[arg-type]
    return dataclasses.replace(config, train=train)


def test_the_model_kept_is_the_one_that_denoises_withheld_people_best(
    config: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {2: 0.5, 4: 0.3, 6: 0.4, 8: 0.6, 10: 0.1}
    losses = iter(script.values())
    monkeypatch.setattr(pidm_train._Judge, "loss", lambda self: next(losses))
    config = judged(config, steps=10, patience=2)
    done = list(train(config, tmp_path))
    assert done[-1].step == 8  # 6 and 8 were worse
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in lines)
    assert seconds == pytest.approx(sum(progress.seconds for progress in done))
    assert read_json(tmp_path / "withheld.json") == {"2": 0.5, "4": 0.3, "6": 0.4, "8": 0.6}
    assert "4 steps" in (tmp_path / "model" / "README.md").read_text()
    assert list(train(config, tmp_path)) == []  # it stays ended


def test_a_training_whose_judge_never_has_a_finite_loss_ends_in_advice(
    config: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pidm_train._Judge, "loss", lambda self: math.nan)
    for _ in range(2):  # and so does the same command again
        with pytest.raises(UserError, match=r"at none of 2 savings .* lower train\.lr"):
            finish(judged(config, steps=4), tmp_path)


def test_a_saving_without_a_finite_loss_is_not_the_best(
    config: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([math.nan, 0.5, math.inf])
    monkeypatch.setattr(pidm_train._Judge, "loss", lambda self: next(losses))
    config = judged(config, steps=4)
    finish(config, tmp_path)
    assert read_json(tmp_path / "withheld.json") == {"2": None, "4": 0.5}
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    assert [progress.step for progress in train(more, tmp_path)] == [5, 6]
    assert read_json(tmp_path / "withheld.json") == {"2": None, "4": 0.5, "6": None}
    assert "4 steps" in (tmp_path / "model" / "README.md").read_text()


def test_the_end_of_a_shorter_training_is_not_judged_when_it_is_prolonged(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {2: 0.3, 4: 0.25, 5: 0.5, 6: 0.4, 7: 0.6}
    losses = iter(())
    monkeypatch.setattr(pidm_train._Judge, "loss", lambda self: next(losses))
    for cut in (False, True):
        for steps in (5, 7)[not cut :]:
            todo = [step for step in script if step in (2, 4, 6, steps)]
            done = read_json(tmp_path / "True" / "withheld.json") if cut and steps == 7 else {}
            losses = iter([script[step] for step in todo if str(step) not in done])
            finish(judged(small, steps=steps, patience=3), tmp_path / str(cut))
    kept = {"2": 0.3, "4": 0.25, "6": 0.4, "7": 0.6}
    assert [read_json(tmp_path / str(cut) / "withheld.json") for cut in (False, True)] == [kept] * 2


def test_a_training_is_not_prolonged_whose_model_a_longer_one_would_not_have_judged(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.4, 0.1])
    monkeypatch.setattr(pidm_train._Judge, "loss", lambda self: next(losses))
    finish(judged(small, steps=5), tmp_path)
    with pytest.raises(UserError, match="the model kept is that of step 5, where a shorter"):
        finish(judged(small, steps=7), tmp_path)
    assert list(train(judged(small, steps=5), tmp_path)) == []
    losses = iter([0.1, 0.5, 0.6])
    finish(judged(small, steps=1), tmp_path / "short")  # no other model was given up for it
    finish(judged(small, steps=4), tmp_path / "short")
    assert read_json(tmp_path / "short" / "withheld.json") == {"2": 0.5, "4": 0.6}
    assert "2 steps" in (tmp_path / "short" / "model" / "README.md").read_text()


def test_a_saving_that_was_put_off_stays_judged_when_a_training_is_prolonged(
    small: PIDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2})
    losses = iter([0.1, 0.5, 0.6])
    monkeypatch.setattr(pidm_train._Judge, "loss", lambda self: next(losses))
    finish(judged(small, steps=4), tmp_path)
    finish(judged(small, steps=6), tmp_path)
    assert read_json(tmp_path / "withheld.json") == {"3": 0.1, "4": 0.5, "6": 0.6}


def test_withheld_people_are_judged_alike_every_time(config: PIDMConfig, tmp_path: Path) -> None:
    config = judged(config)
    finish(config, tmp_path / "straight")
    for progress in train(config, tmp_path / "cut"):
        if progress.step == 3:
            break
    finish(config, tmp_path / "cut")
    straight, cut = (read_json(tmp_path / run / "withheld.json") for run in ("straight", "cut"))
    assert straight == cut
    assert list(straight) == ["2", "4", "6"]
    assert all(0.1 < loss < 3 for loss in straight.values())  # of noise with variance 1


def test_only_people_with_a_pair_are_withheld_and_all_of_them_have_a_say(
    config: PIDMConfig, market: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = read_people(market)
    alone = min(record.pid for record in people.records)
    for record in people.records:
        if record.pid == alone:
            people.keypoints[record.name] = NOBODY
    for seed in range(6):  # of six people two
        rest, away = withhold(people, 0.3, seed=seed)
        assert len({record.pid for record in away.records}) == 2
        assert alone not in {record.pid for record in away.records}
        assert len(rest.records) + len(away.records) == len(people.records)
    with pytest.raises(UserError, match="5 identities with a pair are too few to withhold 5"):
        withhold(people, 0.9, seed=0)
    pairs = Pairs(away.records, people.keypoints, size=config.model.size)
    seen: set[int] = set()
    original = Pairs.batch

    def watched(self: Pairs, indices: np.ndarray, *args: object, **options: object) -> object:
        seen.update(self.records[i].pid for i in self._pairs[indices][:, 1])
        return original(self, indices, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Pairs, "batch", watched)
    monkeypatch.setattr(pidm_train, "JUDGED_IMAGES", 4)
    state = State(config, place("fp32"))
    pidm_train._Judge(Path("nowhere"), 0, state, pairs).loss()
    assert len(seen) == 2


def test_a_signals_saving_does_not_change_which_model_is_kept(
    config: PIDMConfig, tmp_path: Path
) -> None:
    config = judged(config, steps=6, patience=1)
    finish(config, tmp_path / "straight")
    for progress in train(config, tmp_path / "cut"):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # it is heard after the third step
        if progress.stopping:
            assert progress.step == 3
    assert list(read_json(tmp_path / "cut" / "withheld.json")) == ["2"]
    finish(config, tmp_path / "cut")
    straight, cut = (read_json(tmp_path / run / "withheld.json") for run in ("straight", "cut"))
    assert straight == cut
    models = [load_file(tmp_path / run / "model/model.safetensors") for run in ("straight", "cut")]
    assert all(torch.equal(models[1][name], value) for name, value in models[0].items())


def test_seen_json_names_the_images_trained_on_and_those_of_the_model_begun_with(
    config: PIDMConfig, market: Path, tmp_path: Path
) -> None:
    finish(judged(config), tmp_path / "first")
    (first,) = read_seen(tmp_path / "first") or []
    folder = market / "market1501" / "bounding_box_train"
    assert set(first.images) <= {path.name for path in folder.iterdir()}
    assert {name[:4] for name in first.images} == {f"{2 * k:04d}" for k in range(1, 7)}
    name = min(first.images)
    assert first.images[name] == sha256(folder / name)[:16]
    options = dataclasses.replace(config.train, init=str(tmp_path / "first" / "model"))
    finish(dataclasses.replace(config, train=options), tmp_path / "second")
    assert (read_seen(tmp_path / "second") or [])[0] == first
    assert len(read_seen(tmp_path / "second") or []) == 2


def test_a_run_does_not_go_on_with_other_images(config: PIDMConfig, tmp_path: Path) -> None:
    data = make_market(tmp_path / "people")
    config = dataclasses.replace(config, data=str(data))
    finish(config, tmp_path / "run")
    image = data / "market1501/bounding_box_train/0002_c1s1_000000_00.jpg"
    image.write_bytes(encode_jpeg(draw_person(99, 0)))
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    with pytest.raises(UserError, match=r"1 images, such as 0002_c1s1_000000_00.jpg, are not"):
        next(train(more, tmp_path / "run"))


def test_a_run_does_not_go_on_with_other_joints_or_pairs(small: PIDMConfig, tmp_path: Path) -> None:
    people, run = make_market(tmp_path / "people"), tmp_path / "run"
    joints, pairs = people / "market1501/market-annotation-train.csv", tmp_path / "pairs.csv"
    listed, before = patn_pairs(read_keypoints(joints)), joints.read_bytes()
    write_pairs(pairs, listed)
    small = judged(dataclasses.replace(small, data=str(people), pairs=str(pairs)))
    finish(small, run)
    more = dataclasses.replace(small, train=dataclasses.replace(small.train, steps=8))
    moved = {name: np.clip(x - 1, 0, None) for name, x in read_keypoints(joints).items()}
    write_keypoints(joints, moved)
    with pytest.raises(UserError, match="the pairs or their joints are not those"):
        next(train(more, run))
    joints.write_bytes(before)
    write_pairs(pairs, listed[::-1])
    with pytest.raises(UserError, match="the pairs or their joints are not those"):
        next(train(more, run))
    write_pairs(pairs, listed)
    assert [progress.step for progress in train(more, run)] == [7, 8]


def test_a_run_of_before_pairs_were_noted_goes_on(small: PIDMConfig, tmp_path: Path) -> None:
    finish(small, tmp_path)
    notes = read_json(tmp_path / "env.json")
    pairs = notes.pop("pairs_sha256")
    write_json(tmp_path / "env.json", notes)
    more = dataclasses.replace(small, train=dataclasses.replace(small.train, steps=7))
    assert [progress.step for progress in train(more, tmp_path)] == [7]
    assert read_json(tmp_path / "env.json")["pairs_sha256"] == pairs


def test_the_data_folder_that_one_is_in_has_its_name_too(
    small: PIDMConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_market(tmp_path / "people")
    monkeypatch.chdir(data)
    small = dataclasses.replace(small, data=".")
    finish(small, tmp_path / "run")
    assert "Trained on `people`" in (tmp_path / "run" / "model" / "README.md").read_text()
    tool = importlib.import_module("tools.train_pidm")
    assert tool.main(["--config", str(tmp_path / "run/config.yaml"), "--dry-run"]) == DONE
    assert "-> runs/people\n" in capsys.readouterr().out


def test_sigterm_finishes_the_step_and_saves(config: PIDMConfig, tmp_path: Path) -> None:
    endless = dataclasses.replace(config.train, steps=10_000, save_every=10_000)
    save_config(dataclasses.replace(config, train=endless), tmp_path / "config.yaml")
    tool = Path(__file__).parent.parent / "tools" / "train_pidm.py"
    command = [sys.executable, str(tool), "--config", str(tmp_path / "config.yaml")]
    run = tmp_path / "run"
    with subprocess.Popen([*command, "--out", str(run)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        metrics = run / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == TERMINATED
    assert len(list((run / "checkpoints").glob("step_*"))) == 1


def test_a_signal_to_one_of_two_processes_ends_both_at_the_same_step(
    config: PIDMConfig, tmp_path: Path
) -> None:
    endless = dataclasses.replace(
        config.train, steps=10_000, save_every=10_000, batch_size=2, withhold=0.3
    )
    save_config(dataclasses.replace(config, train=endless), tmp_path / "config.yaml")
    tool = Path(__file__).parent.parent / "tools" / "train_pidm.py"
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               str(tool), "--config", str(tmp_path / "config.yaml"), "--out", str(run)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 120
        metrics = run / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if str(tool) in child.cmdline()
        ]
        assert len(workers) == 2
        workers[1].send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) != 0
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    state = read_json(checkpoint / "state.json")
    assert state["worlds"] == {"0": 2}
    assert state["samples"] == 4 * state["step"]
    assert not (run / "withheld.json").exists()  # a signal's saving is not judged
    more = dataclasses.replace(endless, steps=state["step"] + 1)
    (last,) = train(dataclasses.replace(config, train=more), run)  # one process goes on
    assert last.step == state["step"] + 1


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    options = TrainConfig(steps=110, warmup_steps=10, lr=1.0, cosine=True)
    assert learning_rate(0, options) == pytest.approx(0.1)
    assert learning_rate(9, options) == pytest.approx(1.0)
    assert learning_rate(60, options) == pytest.approx(0.5)  # half way along the cosine
    assert learning_rate(110, options) == pytest.approx(0.0)
    assert learning_rate(109, dataclasses.replace(options, cosine=False)) == 1.0


def test_bf16_trains_on_fp32_master_weights(config: PIDMConfig) -> None:
    state = State(config, place("bf16", torch.device("cpu")))
    assert {p.dtype for p in state.model.parameters()} == {torch.bfloat16}
    assert {v.dtype for v in state.master.values()} == {torch.float32}
    before = {name: value.clone() for name, value in state.master.items()}
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.clip()
    state.update(0)
    # Adam's first step is lr = 1e-3 / 2 (warm-up), too little for bf16 to see near 1.0
    name = next(n for n in before if n.endswith("norm_1.weight"))
    torch.testing.assert_close(
        before[name] - state.master[name], torch.full_like(before[name], 5e-4)
    )


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("deepfashion256", 32),
        pytest.param("deepfashion256", 128, marks=pytest.mark.slow),
        pytest.param("deepfashion512", 128, marks=pytest.mark.slow),
    ],
)
def test_the_deepfashion_configurations_train_on_drawn_people(
    name: str, channels: int, market: Path, tmp_path: Path
) -> None:
    config = load_config(PIDMConfig, Path(__file__).parent.parent / "configs" / f"{name}.yaml")
    steps = 20 if channels == 128 else 1  # 128 is the paper's: 10 and 40 s a step on two cores
    options = dataclasses.replace(config.train, steps=steps, batch_size=1, sample_every=0)
    model = dataclasses.replace(config.model, channels=channels)
    config = dataclasses.replace(config, data=str(market), model=model, train=options)
    losses = [step.loss for step in train(config, tmp_path / "run")]
    assert len(losses) == steps
    assert np.isfinite(losses).all()
    pipe = PIDMPipeline.from_pretrained(tmp_path / "run").with_settings(steps=1, batch_size=1)
    pose = np.random.default_rng(0).uniform(0, 170, (1, 18, 2))
    source = np.zeros((*config.model.size, 3), dtype=np.uint8)
    assert pipe(source, pose).images.shape == (1, *config.model.size, 3)


def test_a_small_network_overfits_one_pair(config: PIDMConfig) -> None:
    options = dataclasses.replace(config.train, lr=4e-3, warmup_steps=1, eta=0.0, ema_decay=0.9)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(TINY, size=(16, 8), dropout=0.0),
        diffusion=DiffusionConfig(prediction="y_0"),
        train=options,
    )
    placement = place("fp32", torch.device("cpu"))
    state, diffusion = State(config, placement), Diffusion(config.diffusion)
    loss_of = HybridLoss(state.model, diffusion, config)
    torch.manual_seed(0)
    blocks = np.random.default_rng(0).integers(0, 256, (2, 4, 2, 3), dtype=np.uint8)
    x_s, y_0 = placement.images(np.kron(blocks, np.ones((1, 4, 4, 1), dtype=np.uint8))).split(1)
    x_p = torch.rand(1, 20, 16, 8)
    for step in range(200):
        mse, vlb = loss_of(x_s.repeat(8, 1, 1, 1), x_p.repeat(8, 1, 1, 1), y_0.repeat(8, 1, 1, 1))
        (mse + vlb).backward()
        state.clip()
        state.update(step)
    settings = SampleConfig(steps=8, guidance="none")
    state.model.eval()
    y_T = torch.randn(1, 3, 16, 8)
    texture = state.model.encode(x_s)
    y = sample_images(state.model, diffusion, texture=texture, x_p=x_p, y_T=y_T, settings=settings)
    error, start = ((a - y_0).abs().mean().item() for a in (y, x_s))
    assert error < 0.15 * start
