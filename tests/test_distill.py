"""Distillation: the lesson against closed forms and the sampler, resume, refusals, the folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from people import draw_person, joints
from safetensors.torch import load_file
from tiny import TINY
from torch import Tensor

from pidm_core import (
    PIDMConfig,
    PIDMPipeline,
    UserError,
    load_config,
    read_json,
    save_config,
    write_json,
)
from pidm_core.checkpoint import save_model
from pidm_core.config import DiffusionConfig, DistillConfig, Prediction, SampleConfig, TrainConfig
from pidm_core.diffusion import Diffusion, ddim_step, guided, sample_images
from pidm_core.distill import StudentLoss, distill, grid, image_between, prepare, walk
from pidm_core.model import PIDM
from pidm_core.seen import read_seen
from pidm_core.train import Progress
from pidm_core.verify import verify
from tools.distill import main

TRAIN = TrainConfig(
    steps=4, batch_size=4, lr=1e-3, warmup_steps=1, sample_every=0, save_every=2, log_every=1,
    max_scale=0.0, precision="fp32",
)  # fmt: skip


def save_teacher(folder: Path, sample: SampleConfig, prediction: Prediction = "y_0") -> str:
    """A run folder with a network of random weights: zeros would hide the conditions."""
    torch.manual_seed(0)
    network = PIDM(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    diffusion = DiffusionConfig(prediction=prediction)
    config = PIDMConfig(model=TINY, diffusion=diffusion, sample=sample)
    save_model(folder / "model", network.state_dict(), config, card="test")
    return str(folder)


@pytest.fixture
def config(market: Path, tmp_path: Path) -> DistillConfig:
    sample = SampleConfig(steps=3, guidance="chain", w_p=2.0, w_s=1.5, batch_size=4)
    teacher = save_teacher(tmp_path / "teacher", sample)
    return DistillConfig(data=str(market), teacher=teacher, steps=2, train=TRAIN)


def finish(config: DistillConfig, run: Path) -> dict[str, Tensor]:
    for _ in distill(prepare(config), run):
        pass
    return load_file(run / "checkpoints" / f"step_{config.train.steps:08d}" / "weights.safetensors")


def first_loss(config: DistillConfig) -> float:
    """The loss of a batch before any training; the noise is that of seed 0."""
    lesson = prepare(config)
    diffusion = Diffusion(lesson.run.diffusion)
    student = PIDM(lesson.run.model)
    student.load_state_dict(lesson.teacher.model.state_dict())
    torch.manual_seed(1)
    x_s, x_p = torch.rand(2, 3, 32, 16) * 2 - 1, torch.rand(2, 20, 32, 16)
    loss = StudentLoss(student, diffusion, lesson.run, teacher=lesson.teacher)
    torch.manual_seed(0)
    mse, vlb = loss(x_s, x_p, x_s)
    assert vlb == 0
    return mse.item()


# ---------------------------------------------------------------- what is taught


def test_a_step_of_the_student_is_made_of_the_teachers() -> None:
    diffusion = Diffusion(DiffusionConfig())
    assert grid(diffusion, 4, 1) == [[999, 749], [749, 499], [499, 249], [249, -1]]
    assert grid(diffusion, 2, 2) == [[999, 749, 499], [499, 249, -1]]
    assert grid(diffusion, 1, 3) == [[999, 666, 332, -1]]


class Linear:
    """A network that can be worked out by hand: y_0 = sqrt(abar_t) y_t (1 + pose + style)."""

    def __init__(self, diffusion: Diffusion) -> None:
        self.root = diffusion.abar.sqrt().float()

    def encode(self, x_s: Tensor) -> list[Tensor]:
        return [x_s[:, :1, :1, :1]]

    def prepare(self, texture: list[Tensor]) -> list[tuple[Tensor, ...]]:
        return [(texture[0],)]

    def denoise(
        self, y_t: Tensor, t: Tensor, x_p: Tensor, styles: list[tuple[Tensor, ...]],
        blocks: Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        count = max(blocks or [0]) + 1
        pose, scale = x_p[:, :1, :1, :1], self.root[t][:, None, None, None]
        parts = torch.cat([(scale * y_t).chunk(count)[k] for k in blocks or [0]])
        poses = torch.cat([pose.chunk(count)[k] for k in blocks or [0]])
        y_0 = parts * (1 + poses + styles[0][0])
        return torch.cat([y_0, torch.zeros_like(y_0)], 1)


def test_the_lesson_is_the_teachers_guided_steps_composed() -> None:
    diffusion = Diffusion(DiffusionConfig(prediction="y_0"))
    model, pose, style = Linear(diffusion), 0.2, -0.1
    x_p, x_s = torch.full((1, 20, 4, 2), pose), torch.full((1, 3, 4, 2), style)
    denoise = guided(
        model, diffusion, x_p=x_p, texture=model.encode(x_s), guidance="chain", w_p=2.0, w_s=1.5
    )
    factor, expected = 1 + 2.0 * pose + 1.5 * style, 1.0  # u + w_p (p - u) + w_s (ps - p)
    for level, after in [(999, 749), (749, 499)]:
        a, b = float(diffusion.abar[level]), float(diffusion.abar[after])
        predicted = math.sqrt(a) * factor  # of y_t
        expected *= math.sqrt(b) * predicted + math.sqrt((1 - b) / (1 - a)) * (
            1 - math.sqrt(a) * predicted
        )
    y = torch.randn(1, 3, 4, 2)
    there = walk([denoise] * 2, diffusion, y, [999, 749, 499], clip=False)
    torch.testing.assert_close(there, expected * y)
    y_0 = image_between(diffusion, y, there, 999, 499)
    a, b = float(diffusion.abar[999]), float(diffusion.abar[499])
    torch.testing.assert_close(ddim_step(y, y_0, abar=a, abar_before=b), there)


@pytest.mark.parametrize(("interval", "least"), [((0.0, 1.0), 1e-4), ((0.0, 0.4), 1e-5)])
def test_a_student_of_one_step_learns_the_image_that_the_sampler_draws(
    config: DistillConfig, interval: tuple[float, float], least: float
) -> None:
    config = dataclasses.replace(config, steps=1, teacher_steps=5, interval=interval)
    lesson = prepare(config)
    model, diffusion = lesson.teacher.model, Diffusion(lesson.run.diffusion)
    torch.manual_seed(1)
    x_s, x_p = torch.rand(2, 3, 32, 16) * 2 - 1, torch.rand(2, 20, 32, 16)
    torch.manual_seed(0)
    y_T = torch.randn(2, 3, 32, 16)
    settings = SampleConfig(steps=5, guidance="chain", w_p=2.0, w_s=1.5, interval=interval)
    with torch.inference_mode():
        texture = model.encode(x_s)
        drawn = sample_images(
            model, diffusion, texture=texture, x_p=x_p, y_T=y_T, settings=settings
        )
        alone = model(y_T, torch.full((2,), 999), x_p, texture)[:, :3]
    expected = float((alone - drawn).square().mean())
    assert expected > least
    found = first_loss(config)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prediction", ["y_0", "eps"])
def test_of_an_unguided_teacher_with_its_own_steps_there_is_nothing_to_learn(
    config: DistillConfig, tmp_path: Path, prediction: Prediction
) -> None:
    plain = SampleConfig(guidance="none", clip=False)  # what is clipped is another eps
    teacher = save_teacher(tmp_path / prediction, plain, prediction)
    same = dataclasses.replace(config, teacher=teacher, steps=3)
    assert first_loss(same) < 1e-9
    assert first_loss(dataclasses.replace(same, teacher_steps=2)) > 1e-7
    assert first_loss(dataclasses.replace(same, guidance="chain", w_p=2.0, w_s=2.0)) > 1e-5


def test_a_student_comes_nearer_to_its_teacher(config: DistillConfig, tmp_path: Path) -> None:
    options = dataclasses.replace(TRAIN, steps=60, lr=3e-3, save_every=60)
    losses = [
        step.loss
        for step in distill(
            prepare(dataclasses.replace(config, train=options)), tmp_path / "student"
        )
    ]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:3])


# ---------------------------------------------------------------- a training


def test_resume_gives_the_same_weights(config: DistillConfig, tmp_path: Path) -> None:
    straight = finish(config, tmp_path / "straight")
    for progress in distill(prepare(config), tmp_path / "cut"):
        if progress.step == 3:  # the newest checkpoint is step 2
            break
    resumed = finish(config, tmp_path / "cut")
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())


def test_the_run_folder_is_like_any_other(config: DistillConfig, tmp_path: Path) -> None:
    finish(config, tmp_path / "student")
    pipe = PIDMPipeline.from_pretrained(tmp_path / "student")
    settings = pipe.settings
    assert (settings.steps, settings.guidance, settings.interval) == (2, "none", (0, 1))
    calls = []
    pipe.model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    images = pipe(draw_person(3, 0), joints(0)[None]).images
    assert images.shape == (1, 32, 16, 3)
    assert len(calls) == 2  # one evaluation a step
    run = load_config(PIDMConfig, tmp_path / "student" / "config.yaml")
    assert run.train.init == config.teacher
    assert run.train.eta == 0
    kinds = [seen.kind for seen in read_seen(tmp_path / "student") or []]
    assert kinds == ["unknown", "real"]  # what the teacher saw nobody knows


def test_the_card_and_student_json_name_the_teacher(config: DistillConfig, tmp_path: Path) -> None:
    finish(config, tmp_path / "student")
    card = (tmp_path / "student" / "model" / "README.md").read_text()
    assert f"A student of `{config.teacher}`: 2 evaluations an image" in card
    assert "chain guidance, w_p 2, w_s 1.5" in card
    note = read_json(tmp_path / "student" / "student.json")
    model = read_json(Path(config.teacher) / "model" / "config.json")
    assert note == {
        "teacher": config.teacher, "weights": model["weights_sha256"],
        "guidance": "chain", "w_p": 2.0, "w_s": 1.5, "interval": [0, 1], "steps": 1,
    }  # fmt: skip


def test_a_student_teaches_the_next_one_and_knows_no_other_steps(
    config: DistillConfig, tmp_path: Path
) -> None:
    finish(config, tmp_path / "two")
    next_one = dataclasses.replace(config, teacher=str(tmp_path / "two"), steps=1, teacher_steps=2)
    finish(next_one, tmp_path / "one")
    assert PIDMPipeline.from_pretrained(tmp_path / "one").settings.steps == 1
    wrong = dataclasses.replace(next_one, teacher_steps=3)
    with pytest.raises(UserError, match="steps times teacher_steps must be 2, not 3"):
        prepare(wrong)


def test_the_folder_of_another_teacher_or_training_is_refused(
    config: DistillConfig, tmp_path: Path
) -> None:
    finish(config, tmp_path / "student")
    other = dataclasses.replace(config, w_s=1.2)
    with pytest.raises(UserError, match=r"another teacher \(w_s was 1.5, is 1.2\)"):
        next(distill(prepare(other), tmp_path / "student"))
    save_config(prepare(config).run, tmp_path / "plain" / "config.yaml")
    (tmp_path / "plain" / "model").mkdir()
    with pytest.raises(UserError, match="weights was None, is "):
        next(distill(prepare(config), tmp_path / "plain"))
    assert not (tmp_path / "plain" / "student.json").exists()
    with pytest.raises(UserError, match="teacher_steps was 1, is 2"):
        next(distill(prepare(dataclasses.replace(config, teacher_steps=2)), tmp_path / "student"))


def test_a_folder_in_which_nothing_was_trained_takes_other_settings(
    config: DistillConfig, tmp_path: Path
) -> None:
    lesson = prepare(config)
    save_config(lesson.run, tmp_path / "config.yaml")
    write_json(tmp_path / "student.json", lesson.note)
    next(distill(prepare(dataclasses.replace(config, teacher_steps=2)), tmp_path))
    assert read_json(tmp_path / "student.json")["steps"] == 2


def test_the_weights_tell_a_teacher_not_its_path(config: DistillConfig, tmp_path: Path) -> None:
    finish(config, tmp_path / "student")
    lesson = prepare(config)
    elsewhere = {**lesson.note, "teacher": f"./{lesson.note['teacher']}"}
    list(distill(dataclasses.replace(lesson, note=elsewhere), tmp_path / "student"))


def test_a_refused_folder_stays_as_it_was(config: DistillConfig, tmp_path: Path) -> None:
    model = tmp_path / "teacher" / "model"
    with pytest.raises(UserError, match="a model without its run"):
        next(distill(prepare(config), model))
    assert verify(model) == []
    away = dataclasses.replace(config, data=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such folder"):
        next(distill(prepare(away), tmp_path / "student"))
    next(distill(prepare(dataclasses.replace(config, teacher_steps=2)), tmp_path / "student"))


def test_steps_that_the_noise_levels_do_not_give_are_refused_before_a_folder_is_made(
    config: DistillConfig,
) -> None:
    with pytest.raises(UserError, match="1200 steps are not between"):
        prepare(dataclasses.replace(config, steps=600, teacher_steps=2))


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(UserError, match="a student starts from its teacher"):
        DistillConfig(train=TrainConfig(withhold=0.1))
    with pytest.raises(UserError, match="keeps both conditions"):
        DistillConfig(train=TrainConfig(eta=0.3))
    with pytest.raises(UserError, match="must be at least 1"):
        DistillConfig(steps=0)


def test_the_tool_says_what_it_will_do_and_does_it(
    config: DistillConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(config, tmp_path / "student.yaml")
    flags = ["--config", str(tmp_path / "student.yaml"), "--out", str(tmp_path / "run")]
    assert main([*flags, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "(chain guidance, w_p 2, w_s 1.5): 2 steps, each for 1 of the teacher's" in text
    assert "training pairs in" in text
    assert not (tmp_path / "run").exists()
    assert main(flags) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_signal_gives_its_own_exit_code(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_config(config, tmp_path / "student.yaml")
    stopped = Progress(1, 0.0, 0.0, 0.0, 1.0, 1.0, skipped=False, stopping=130)
    monkeypatch.setattr("pidm_core.distill.distill", lambda lesson, run: iter([stopped]))
    assert main(["--config", str(tmp_path / "student.yaml"), "--out", str(tmp_path / "r")]) == 130
