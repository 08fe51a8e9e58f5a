"""Weights of the ResNet50: safetensors of ours, and torchvision's files that lie on the machine."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from pidm_core import BAD_DATA, ENVIRONMENT, UserError, read_weights, sha256, write_bytes
from pidm_reid.config import IMAGENET_FILE

State = dict[str, torch.Tensor]


def save_state(path: Path, state: State) -> None:
    """Write weights as safetensors, whole or not at all."""
    write_bytes(path, safetensors.torch.save({k: v.contiguous() for k, v in state.items()}))


def load_state(path: Path) -> State:
    """Read weights written by `save_state`; UserError (BAD_DATA) if they are damaged."""
    return read_weights(path)


def first_weights_file(weights: str) -> Path | None:
    """The file of the first weights; None = from scratch. Nothing is downloaded."""
    if weights == "none":
        return None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE
    if weights == "auto":
        return cached if cached.is_file() else None
    if not Path(weights).is_file():
        raise UserError(
            f"{weights}: no such file; put torchvision's {IMAGENET_FILE} there or into "
            f"{cached.parent}, or give weights=none to train from scratch",
            ENVIRONMENT,
        )
    return Path(weights)


def describe_weights(weights: str) -> str:
    """What the first training starts from: 'from scratch', or a file and its hash."""
    path = first_weights_file(weights)
    return f"{path.name} {sha256(path)[:8]}" if path else "from scratch"


def backbone(path: Path, model: torch.nn.Module) -> State:
    """The tensors of a ResNet50 file that fit the model: all but the classifier's."""
    found, own = read_weights(path), model.state_dict()
    own = {k: v for k, v in own.items() if not k.startswith("classifier")}
    fitting = {k: v for k, v in found.items() if k in own and v.shape == own[k].shape}
    needed = {k for k in own if "num_batches" not in k}
    if lacking := sorted(needed - set(fitting)):
        raise UserError(
            f"{path}: not a ResNet50; {len(lacking)} tensors lack, as {lacking[0]}", BAD_DATA
        )
    return fitting
