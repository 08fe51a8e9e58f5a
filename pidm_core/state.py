"""What a training run changes: network, fp32 master weights, Adam, EMA; and how it is kept."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidm_core import __version__
from pidm_core.checkpoint import (
    check_weights,
    find_model,
    latest_checkpoint,
    load_model,
    save_checkpoint,
    save_model,
)
from pidm_core.config import PIDMConfig, TrainConfig
from pidm_core.files import BAD_DATA, UserError, sha256
from pidm_core.hardware import Placement
from pidm_core.model import PIDM
from pidm_core.seen import FILE as SEEN

log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")


class State:
    """Network, fp32 master weights, Adam, EMA: what a checkpoint holds."""

    def __init__(self, config: PIDMConfig, placement: Placement, *, about: str = "") -> None:
        self.config, self.placement, self.about = config, placement, about
        self.batch = 0  # pairs of a step, those of all processes together
        self.worlds: dict[str, int] = {}  # processes by the step from which they trained
        torch.manual_seed(config.train.seed)
        network = PIDM(config.model, recompute=config.train.recompute)
        values = [p.detach().clone() for p in network.parameters()]
        self.model = placement.module(network)
        self._parameters: list[Tensor] = [*self.model.parameters()]
        self._names = [name for name, _ in self.model.named_parameters()]
        # One vector of all weights, and of all gradients: the parts have the layout of the
        # network's, for copies from one layout to another are slow, and fused Adam makes them.
        count = sum(value.numel() for value in values)
        self._weights = torch.empty(count, device=placement.device)
        self._weights.grad = gradients = torch.empty_like(self._weights)
        self._gradients = [*self._parts(gradients).values()]
        self.adam = torch.optim.Adam([self._weights], lr=config.train.lr, fused=True)
        self.master = self._parts(self._weights)
        self._fill(self.master, dict(zip(self._names, values, strict=True)))
        self._averages = self._weights.clone()
        self.ema = self._parts(self._averages)
        self._publish()

    def _parts(self, vector: Tensor) -> dict[str, Tensor]:
        """What each parameter has of a vector, in the parameter's layout."""
        sizes = [parameter.numel() for parameter in self._parameters]
        return {
            name: part.as_strided(parameter.shape, parameter.stride())
            for name, parameter, part in zip(
                self._names, self._parameters, torch.split(vector, sizes), strict=True
            )
        }

    def clip(self) -> Tensor:
        """Move the gradients to the master weights, clipped; their norm before that."""
        for gradient, parameter in zip(self._gradients, self._parameters, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)
            parameter.grad = None
        limit = self.config.train.clip_norm
        norm = nn.utils.get_total_norm(self._gradients, foreach=True)
        if norm.device.type != "cpu" or not norm <= limit:  # a GPU would have to be waited for
            nn.utils.clip_grads_with_norm_(self._weights, limit, norm)
        return norm

    def update(self, step: int) -> None:
        """One Adam step with the clipped gradients, EMA, and the new weights to the network."""
        options = self.config.train
        self.adam.param_groups[0]["lr"] = learning_rate(step, options)
        self.adam.step()
        # The paper's EMA; while the rate warms up it is a plain copy, as in the official code.
        decay = options.ema_decay if step >= options.warmup_steps else 0.0
        self._averages.lerp_(self._weights, 1 - decay)
        self._publish()

    def _publish(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, list(self.master.values()))

    def start_from(self, name: str) -> None:
        """Take the weights of another model as initial weights."""
        folder = find_model(name)
        model, *_ = load_model(folder)
        weights = {k: v.to(self.placement.device) for k, v in model.state_dict().items()}
        check_weights(self.master, weights, folder)  # refuses another architecture
        self._fill(self.master, weights)
        self._fill(self.ema, weights)
        self._publish()

    def save(self, run: Path, step: int, *, model: bool = True) -> None:
        """Write a checkpoint and, unless told not to, the model folder."""
        adam = self.adam.state[self._weights]
        moments = {
            f"{name}.{key}": part
            for key in MOMENTS
            for name, part in self._parts(adam[key]).items()
        }
        moments |= {f"{name}.step": adam["step"].clone() for name in self._names}
        samples = step * self.batch
        if model:  # first: a kill in between must not leave a checkpoint whose model is lost
            card = _card(self.config, step, samples, self.about)
            save_model(run / "model", self.ema, self.config, card=card)
        state = {
            "samples": samples,
            "worlds": self.worlds,
            "version": __version__,
            "model": (run / "model").is_dir(),
            "seen": sha256(run / SEEN) if (run / SEEN).is_file() else "",
        }
        parts = {"weights": self.master, "ema": self.ema, "adam": moments}
        save_checkpoint(run, step, parts, state, keep=self.config.train.keep)

    def resume(self, run: Path, world: int) -> int:
        """Load the newest good checkpoint; return the number of steps that are done.

        The pairs of a step stay as many as they were, however many processes share them now.
        Raises UserError for a checkpoint of another network and for a number of processes that
        cannot share them.
        """
        found, step = latest_checkpoint(run), 0
        self.batch = self.config.train.batch_size * world
        if found:
            step = self._position(found[0], run)
            self._take(found[1], run)
        before = next(reversed(self.worlds.values()), 0)
        if self.batch % world:
            raise UserError(
                f"{run}: {world} processes cannot share the {self.batch} pairs of a step equally; "
                f"take as many as before ({before}), or another divisor"
            )
        if before != world:
            self.worlds[str(step)] = world
        if before not in (0, world):
            log.warning(
                "%s: from step %d on %d processes train instead of %d, with %d pairs each: the "
                "same pairs in the same order, but other noise, flips and crops",
                run, step, world, before, self.batch // world,
            )  # fmt: skip
        return step

    def _position(self, state: Any, run: Path) -> int:
        """The step of a checkpoint's state.json; sets what the state says of the batches."""
        try:
            step, self.batch = int(state["step"]), int(state["samples"]) // int(state["step"])
            worlds = state.get("worlds") or {"0": state["world"]}  # 0.1.0 wrote one number
            self.worlds = {str(int(key)): int(number) for key, number in worlds.items()}
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{run}: state.json of a checkpoint is not ours", BAD_DATA) from error
        return step

    def _take(self, tensors: Mapping[str, dict[str, Tensor]], run: Path) -> None:
        """Take the tensors of a checkpoint."""
        moments = {f"{name}.step": torch.zeros(()) for name in self._names}
        for key in MOMENTS:
            moments |= {f"{name}.{key}": value for name, value in self.master.items()}
        for part, own in (("weights", self.master), ("ema", self.ema), ("adam", moments)):
            check_weights(own, tensors.get(part, {}), run / f"checkpoints/…/{part}.safetensors")
        self._fill(self.master, tensors["weights"])
        self._fill(self.ema, tensors["ema"])
        adam = self.adam.state[self._weights]
        adam["step"] = tensors["adam"][f"{self._names[0]}.step"].to(self._weights.device)
        for key in MOMENTS:
            adam[key] = torch.empty_like(self._weights)
            theirs = {name: tensors["adam"][f"{name}.{key}"] for name in self._names}
            self._fill(self._parts(adam[key]), theirs)
        self._publish()

    @staticmethod
    def _fill(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
        for name, value in mine.items():
            value.detach().copy_(theirs[name])

    def averaged(self) -> PIDM:
        """The network with the averaged weights, for sampling."""
        network = self.placement.module(PIDM(self.config.model)).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self.ema[name])
        return network


def learning_rate(step: int, options: TrainConfig) -> float:
    """Linear warm-up, then constant as in the paper, or a cosine that ends at zero."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if not options.cosine:
        return options.lr
    share = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.lr * 0.5 * (1 + math.cos(math.pi * share))


def _card(config: PIDMConfig, step: int, images: int, about: str) -> str:
    seed, data = config.train.seed, Path(os.path.abspath(config.data)).name  # "." has none
    return f"""---
library_name: pidm-reid
tags: [person-image-synthesis, diffusion, re-identification]
---
# PIDM, {config.model.size[0]}x{config.model.size[1]}

Draws a person from a source image in a target pose (Bhunia et al., CVPR 2023).
{about}Trained on `{data}`: {step:,} steps, {images:,} pairs, seed {seed}.
Weights: the exponential moving average. Settings: config.json.

Intended use: research on person re-identification, as training data.
Not intended for identifying or tracking people.
Limits: what the source does not show, such as a back, is invented; small patterns and faces are
not kept. A picture drawn of a real person is still about that person.
The terms of the training data hold for this model as well.
"""
