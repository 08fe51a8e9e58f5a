"""A student of a trained PIDM: guidance folded into one evaluation, a few steps instead of many.

The student begins with its teacher's weights and walks from noise to image by its own steps. At
every noise level that it comes to, the teacher goes on from the very same state, with guidance and
by as many steps as it is given, and the student learns to get there in one: the distillation of
guidance (Meng et al. 2023) and of steps (Salimans & Ho 2022) at once. It learns from the states it
will be in, its own errors among them; noised real images are not such states, since guidance leads
away from them. And the walk costs nothing, for its outputs are those that are compared.

Legend: B pairs; images (B, 3, H, W) in [-1, 1]; a level is a noise level, -1 the image itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidm_core.checkpoint import checkpoints, find_model, load_model
from pidm_core.config import DistillConfig, PIDMConfig, SampleConfig
from pidm_core.diffusion import Denoise, Diffusion, ddim_step, turns
from pidm_core.files import UserError, read_json
from pidm_core.hardware import Placement
from pidm_core.model import PIDM
from pidm_core.train import Progress, train

FILE = "student.json"
FOLDED = ("guidance", "w_p", "w_s", "interval")  # into one evaluation


# ---------------------------------------------------------------- what is taught


def grid(diffusion: Diffusion, steps: int, teacher_steps: int) -> list[list[int]]:
    """The teacher's levels within each step of the student, ends included; most noise first.

    4 steps of 1: [[999, 749], [749, 499], [499, 249], [249, -1]].
    """
    fine = [*diffusion.timesteps(steps * teacher_steps, "trailing"), -1]
    return [fine[k : k + teacher_steps + 1] for k in range(0, steps * teacher_steps, teacher_steps)]


def walk(
    turns: Sequence[Denoise], diffusion: Diffusion, y: Tensor, levels: Sequence[int], *, clip: bool
) -> Tensor:
    """From y at the first level to the last one by DDIM steps, a turn of denoising for each."""
    for denoise, (level, after) in zip(turns, pairwise(levels), strict=True):
        t = torch.full((len(y),), level, device=y.device)
        y_0 = diffusion.predict_y0(y, t, denoise(y, t).float()[:, :3])
        y_0 = y_0.clamp(-1, 1) if clip else y_0
        y = ddim_step(y, y_0, abar=_abar(diffusion, level), abar_before=_abar(diffusion, after))
    return y


def image_between(
    diffusion: Diffusion, y_t: Tensor, y_after: Tensor, level: int, after: int
) -> Tensor:
    """The y_0 with which one DDIM step leads from y_t to y_after (Salimans & Ho 2022, Eq. 43)."""
    abar, abar_after = _abar(diffusion, level), _abar(diffusion, after)
    keep = ((1 - abar_after) / (1 - abar)) ** 0.5  # share of y_t in the step
    y_0: Tensor = (y_after - keep * y_t) / (abar_after**0.5 - keep * abar**0.5)
    return y_0


def _abar(diffusion: Diffusion, level: int) -> float:
    return float(diffusion.abar[level]) if level >= 0 else 1.0


@dataclass(frozen=True)
class Teacher:
    """A trained network and how it is sampled."""

    model: PIDM
    settings: SampleConfig

    def __str__(self) -> str:
        how = self.settings
        if how.guidance == "none":
            return "no guidance"
        begin, end = how.interval
        when = "" if how.interval == (0, 1) else f" from {begin:.0%} to {end:.0%} of the steps"
        return f"{how.guidance} guidance{when}, w_p {how.w_p:g}, w_s {how.w_s:g}"

    def placed(self, like: nn.Module) -> PIDM:
        """The network on the device and in the precision of another."""
        one = next(like.parameters())
        return Placement(one.device, one.dtype).module(self.model).eval()


class StudentLoss(nn.Module):
    """How far the student is from its teacher, at every step of its own way to the image."""

    def __init__(
        self, model: PIDM, diffusion: Diffusion, config: PIDMConfig, *, teacher: Teacher
    ) -> None:
        super().__init__()
        self.model = model.eval()  # no dropout: who imitates a teacher learns nothing by heart
        self.diffusion, self.clip = diffusion, config.sample.clip
        steps = config.sample.steps
        self.levels = grid(diffusion, steps, teacher.settings.steps // steps)
        self.teacher = teacher
        self._network = [teacher.placed(model)]  # in a list: not a part that is trained

    def forward(self, x_s: Tensor, x_p: Tensor, y_0: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error over all steps, of what the network predicts (y_0 or eps); and 0.

        The variance is not taught: a student takes steps without noise. Nor is the true y_0.
        """
        taught = iter(self._turns(x_s, x_p))
        styles = self.model.prepare(self.model.encode(x_s))
        y, errors = torch.randn_like(y_0, dtype=torch.float32), []
        for level, *between, after in self.levels:
            t = torch.full((len(y),), level, device=y.device)
            out = self.model.denoise(y.to(x_p.dtype), t, x_p, styles).float()
            with torch.no_grad():
                path = [level, *between, after]
                part = list(islice(taught, len(path) - 1))
                there = walk(part, self.diffusion, y, path, clip=self.teacher.settings.clip)
                wanted = self._prediction(
                    y, t, image_between(self.diffusion, y, there, level, after)
                )
            errors.append((out[:, :3] - wanted).square().mean())
            y = self._step(y, t, out.detach(), level, after)
        error = torch.stack(errors).mean()
        return error, torch.zeros_like(error)

    def _turns(self, x_s: Tensor, x_p: Tensor) -> list[Denoise]:
        (network,) = self._network
        with torch.no_grad():
            texture = network.encode(x_s)
            how = self.teacher.settings
            return turns(network, self.diffusion, x_p=x_p, texture=texture, settings=how)

    def _prediction(self, y_t: Tensor, t: Tensor, y_0: Tensor) -> Tensor:
        """An image as the network predicts it: itself, or the eps that it implies."""
        if self.diffusion.config.prediction == "y_0":
            return y_0
        return self.diffusion.implied_eps(y_t, t, y_0)

    def _step(self, y: Tensor, t: Tensor, out: Tensor, level: int, after: int) -> Tensor:
        """The student's own step, as a sampler takes it."""
        denoise = partial(self.diffusion.to_eps, out)
        return walk([denoise], self.diffusion, y, [level, after], clip=self.clip)


# ---------------------------------------------------------------- a training


@dataclass(frozen=True)
class Lesson:
    """All that a student's training needs."""

    run: PIDMConfig
    teacher: Teacher
    note: dict[str, Any]
    """What student.json says: whose student it is, and what was folded in."""


def prepare(config: DistillConfig) -> Lesson:
    """Load the teacher and take over what is its own: network, noise levels, guidance.

    Raises UserError for a teacher that is a student itself and does not know the asked steps.
    """
    folder = find_model(config.teacher)
    model, diffusion, own, digest = load_model(folder)
    steps = config.steps * config.teacher_steps
    if _is_student(folder) and own.steps != steps:
        raise UserError(
            f"{config.teacher}: is a student of {own.steps} steps and knows no others; steps "
            f"times teacher_steps must be {own.steps}, not {steps}"
        )
    grid(Diffusion(diffusion), config.steps, config.teacher_steps)  # refuses what cannot be
    given = {name: getattr(config, name) for name in FOLDED}
    given = {name: value for name, value in given.items() if value is not None}
    how = replace(own, steps=steps, **given)
    run = PIDMConfig(
        data=config.data,
        keypoints=config.keypoints,
        pairs=config.pairs,
        model=model.config,
        diffusion=diffusion,
        train=replace(config.train, init=config.teacher, eta=0.0),
        sample=replace(own, steps=config.steps, sampler="ddim", spacing="trailing",
                       guidance="none", interval=(0.0, 1.0)),
    )  # fmt: skip
    folded = {name: getattr(how, name) for name in FOLDED} | {"interval": list(how.interval)}
    note = {"teacher": config.teacher, "weights": digest, "steps": config.teacher_steps, **folded}
    return Lesson(run, Teacher(model, how), note)


def _is_student(folder: Path) -> bool:
    return any((home / FILE).is_file() for home in (folder, folder.parent))


def distill(lesson: Lesson, run: Path) -> Iterator[Progress]:
    """Train a student in a run folder like any other, and yield every step, as train.train does.

    The folder says in student.json whose student it is; its model samples without guidance.
    Raises UserError for a folder that holds another's student, or a training without a teacher.
    """
    path = run / FILE
    if checkpoints(run) or (run / "model").is_dir():
        old = read_json(path) if path.is_file() else {}
        same = [name for name in lesson.note if name != "teacher"]  # the weights tell, not the path
        if changed := [k for k in same if old.get(k) != lesson.note[k]]:
            named = {"steps": "teacher_steps"}
            differences = (
                f"{named.get(k, k)} was {old.get(k)}, is {lesson.note[k]}" for k in changed
            )
            raise UserError(
                f"{run}: holds a run of another teacher ({'; '.join(differences)}); "
                "give another --out"
            )
    loss = partial(StudentLoss, teacher=lesson.teacher)
    yield from train(lesson.run, run, loss=loss, about=_about(lesson), notes={FILE: lesson.note})


def _about(lesson: Lesson) -> str:
    """What the model card says of the teacher."""
    return (
        f"A student of `{lesson.note['teacher']}`: {lesson.run.sample.steps} evaluations an image, "
        f"each for {lesson.note['steps']} of its teacher's steps with {lesson.teacher}.\n"
        f"It knows no other number of steps, no guidance, and only source and pose together.\n"
    )
