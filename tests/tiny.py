"""The smallest PIDM that still has every part."""

from __future__ import annotations

from pathlib import Path

import torch

from pidm_core.checkpoint import save_model
from pidm_core.config import ModelConfig, PIDMConfig, SampleConfig
from pidm_core.model import PIDM

TINY = ModelConfig(
    size=(32, 16), patch=2, channels=32, channel_mults=(1, 2), blocks_per_level=1,
    texture_factors=(2, 4),
)  # fmt: skip


def save_tiny(folder: Path) -> str:
    """Write a model folder of random weights; what starts as zero would hide the conditions."""
    torch.manual_seed(0)
    network = PIDM(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    config = PIDMConfig(model=TINY, sample=SampleConfig(steps=2, batch_size=4))
    save_model(folder, network.state_dict(), config, card="test")
    return str(folder)
