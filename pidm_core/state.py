"""What a training run changes: network, fp32 master weights, Adam, EMA; and how it is kept."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from pidm_core import __version__
from pidm_core.checkpoint import (
    find_model,
    latest_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
    save_model,
)
from pidm_core.config import PIDMConfig, TrainConfig
from pidm_core.hardware import Placement
from pidm_core.model import PIDM


class State:
    """Network, fp32 master weights, Adam, EMA: what a checkpoint holds."""

    def __init__(self, config: PIDMConfig, placement: Placement) -> None:
        self.config, self.placement = config, placement
        torch.manual_seed(config.train.seed)
        network = PIDM(config.model, recompute=config.train.recompute)
        names = [name for name, _ in network.named_parameters()]
        values = [p.detach().clone().to(placement.device) for p in network.parameters()]
        self.model = placement.module(network)
        self.master = dict(zip(names, values, strict=True))
        self.ema = {name: value.clone() for name, value in self.master.items()}
        self._parameters = list(self.model.parameters())
        self.adam = torch.optim.Adam(values, lr=config.train.lr, foreach=True)
        self._publish()

    def update(self, step: int) -> None:
        """Clip, one Adam step on the master weights, EMA, and the new weights to the network."""
        options = self.config.train
        for value, parameter in zip(self.master.values(), self._parameters, strict=True):
            grad = torch.zeros_like(value) if parameter.grad is None else parameter.grad.float()
            value.grad, parameter.grad = grad, None
        nn.utils.clip_grad_norm_(self.master.values(), options.clip_norm, foreach=True)
        self.adam.param_groups[0]["lr"] = learning_rate(step, options)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        # The paper's EMA; while the rate warms up it is a plain copy, as in the official code.
        decay = options.ema_decay if step >= options.warmup_steps else 0.0
        torch._foreach_lerp_(list(self.ema.values()), list(self.master.values()), 1 - decay)
        self._publish()

    def _publish(self) -> None:
        with torch.no_grad():
            for value, parameter in zip(self.master.values(), self._parameters, strict=True):
                parameter.copy_(value)

    def start_from(self, name: str) -> None:
        """Take the weights of another model as initial weights."""
        folder = find_model(name)
        model, *_ = load_model(folder)
        weights = {k: v.to(self.placement.device) for k, v in model.state_dict().items()}
        load_weights(PIDM(self.config.model), weights, folder)  # refuses another architecture
        self._fill(self.master, weights)
        self._fill(self.ema, weights)
        self._publish()

    def save(self, run: Path, step: int, world: int, *, model: bool = True) -> None:
        """Write a checkpoint and, unless told not to, the model folder."""
        adam = self.adam.state_dict()["state"]
        moments = {
            f"{name}.{key}": adam[index][key]
            for index, name in enumerate(self.master)
            for key in ("exp_avg", "exp_avg_sq", "step")
        }
        options = self.config.train
        if model:  # first: a kill in between must not leave a checkpoint whose model is lost
            save_model(run / "model", self.ema, self.config, card=_card(self.config, step, world))
        save_checkpoint(
            run,
            step,
            {"weights": self.master, "ema": self.ema, "adam": moments},
            {"samples": step * options.batch_size * world, "world": world, "version": __version__},
            keep=options.keep,
        )

    def resume(self, run: Path) -> int:
        """Load the newest good checkpoint; return the number of steps that are done."""
        found = latest_checkpoint(run)
        if found is None:
            return 0
        state, tensors = found
        self._fill(self.master, tensors["weights"])
        self._fill(self.ema, tensors["ema"])
        for name, value in self.master.items():
            keys = ("exp_avg", "exp_avg_sq", "step")
            moments = {key: tensors["adam"][f"{name}.{key}"] for key in keys}
            device = self.placement.device
            self.adam.state[value] = {
                key: moment.to("cpu" if key == "step" else device)
                for key, moment in moments.items()
            }
        self._publish()
        return int(state["step"])

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


def _card(config: PIDMConfig, step: int, world: int) -> str:
    images = step * config.train.batch_size * world
    return f"""---
library_name: pidm-reid
tags: [person-image-synthesis, diffusion, re-identification]
---
# PIDM, {config.model.size[0]}x{config.model.size[1]}

Draws a person from a source image in a target pose (Bhunia et al., CVPR 2023).
Trained on `{Path(config.data).name}`: {step:,} steps, {images:,} pairs, seed {config.train.seed}.
Weights: the exponential moving average. Settings: config.json.

Intended use: research on person re-identification, as training data.
Not intended for identifying or tracking people.
Limits: what the source does not show, such as a back, is invented; small patterns and faces are
not kept. A picture drawn of a real person is still about that person.
The terms of the training data hold for this model as well.
"""
