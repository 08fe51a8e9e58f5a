"""A training of ResNet50 that has not ended, in a file: it goes on at the epoch it had come to.

Between two epochs nothing but weights, optimizer and random numbers decides what comes, so a
training that was cut off ends in the same weights as one that was not, on the same machine.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pidm_core import UserError, sha256
from pidm_reid.weights import State, load_state, save_state

log = logging.getLogger(__name__)
EVERY_S = 120.0  # at least, between two savings of some 400 MB
FIGURES = ("loss", "acc")


class Unfinished:
    """What is kept of one training; with no path nothing is."""

    def __init__(self, path: Path | None, asked: Mapping[str, Any]) -> None:
        """`asked`: all that decides the training; a file of another one is not taken up."""
        self.path, self.asked = path, json.loads(json.dumps(asked))
        self._begin = self._saved = time.monotonic()
        self._steps = 0  # that the file holds
        self.seconds_before = 0.0
        """That the training had taken up to there."""
        self._random: tuple[dict[str, Any], State] | None = None

    def resume(self, engine: Any) -> list[dict[str, float]]:
        """Bring an engine to where the file ends; the figures of the iterations that are done."""
        found = self._read()
        if found is None:
            return []
        about, tensors = found
        engine.model.load_state_dict(_part(tensors, "model."))
        moments = engine.optimizer.state
        for index, weight in enumerate(engine.model.parameters()):
            moments[weight] = {
                # in the layout of the weight, which the fused step takes for granted
                key: torch.empty_like(weight).copy_(value)
                if value.ndim
                else value.to(weight.device)
                for key, value in _part(tensors, f"adam.{index}.").items()
            }
        history = [dict(zip(FIGURES, row, strict=True)) for row in tensors["history"].tolist()]
        engine.epoch, self.seconds_before = about["epoch"], about["seconds"]
        engine.scheduler.last_epoch = len(history)
        for group, rate in zip(engine.optimizer.param_groups, about["rates"], strict=True):
            group["lr"] = rate
        self._random, self._steps = (about, tensors), len(history)
        log.warning("%s: goes on at iteration %d", self.path, len(history))
        return history

    def begin_epoch(self, engine: Any, history: list[dict[str, float]]) -> None:
        """Take up the random numbers of the file, or keep this state if the last one is old."""
        if self._random:
            _set_random(*self._random)
            self._random = None
        else:
            self.keep(engine, history)

    def keep(self, engine: Any, history: list[dict[str, float]], *, end: bool = False) -> None:
        """Write the state at the end, and between two epochs if the last one is old."""
        young = not end and time.monotonic() - self._saved < EVERY_S
        if self.path is None or young or len(history) == self._steps:
            return
        try:
            self._write(self.path, engine, history)
        except OSError as error:  # a full disk: the result itself may still have room
            log.warning("%s: not kept (%s)", self.path, error)
        else:
            self._steps = len(history)
        self._saved = time.monotonic()

    def kept(self) -> str:
        """Where the same command would go on if the training ended now."""
        if not self._steps:
            return "nothing of it is kept, so the same command begins it anew"
        return f"it is kept up to iteration {self._steps:,}, where the same command goes on"

    def _write(self, path: Path, engine: Any, history: list[dict[str, float]]) -> None:
        about, tensors = _get_random(cuda=engine.use_gpu)
        about |= {
            "asked": self.asked,
            "seconds": self.seconds_before + time.monotonic() - self._begin,
            "epoch": engine.epoch,
            "rates": [group["lr"] for group in engine.optimizer.param_groups],
        }
        rows = [[figures[key] for key in FIGURES] for figures in history]
        tensors["history"] = torch.tensor(rows, dtype=torch.float64)
        tensors |= {f"model.{k}": v for k, v in engine.model.state_dict().items()}
        for index, weight in enumerate(engine.model.parameters()):
            moments = engine.optimizer.state[weight]
            tensors |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        text = json.dumps({**about, "tensors": digest(tensors)})
        note = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        save_state(path, {**tensors, "about": note})

    def _read(self) -> tuple[dict[str, Any], State] | None:
        if self.path is None or not self.path.is_file():
            return None
        try:
            tensors = load_state(self.path)
            about = json.loads(tensors.pop("about").numpy().tobytes())
            if about.pop("tensors") != digest(tensors):
                raise ValueError("its checksum differs")
        except (UserError, KeyError, ValueError) as error:
            log.warning("%s: damaged (%s); this training begins anew", self.path, error)
            return None
        if about["asked"] != self.asked:
            log.warning("%s: of another training; this one begins anew", self.path)
            return None
        return about, tensors


def digest(tensors: State) -> str:
    """A SHA-256 of tensors, whatever their order."""
    return str(sha256(tensors[name].contiguous().numpy().tobytes() for name in sorted(tensors)))


def _part(tensors: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _get_random(*, cuda: bool) -> tuple[dict[str, Any], State]:
    """The states of all random numbers that torchreid draws."""
    arrays = np.random.get_state(legacy=False)
    assert isinstance(arrays, dict)
    arrays["state"]["key"] = arrays["state"]["key"].tolist()
    states = {"random.torch": torch.get_rng_state()}
    if cuda:
        states["random.cuda"] = torch.cuda.get_rng_state()
    return {"python": random.getstate(), "numpy": arrays}, states


def _set_random(about: Mapping[str, Any], tensors: State) -> None:
    version, numbers, gauss = about["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(about["numpy"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
