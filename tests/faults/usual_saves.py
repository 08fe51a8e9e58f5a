"""A script to be killed: accelerate's own checkpoints, saved again and again.

python usual_saves.py FOLDER LIMIT: as accelerate's documentation shows it, with automatic names
and a limit; the file `saved` appears after the fourth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration


def main(folder: str, limit: int) -> None:
    """Save without end."""
    project = ProjectConfiguration(folder, automatic_checkpoint_naming=True, total_limit=limit)
    accelerator = Accelerator(cpu=True, project_config=project)
    model = torch.nn.Linear(2048, 2048)  # 16 MB, and 32 MB of moments
    adam = torch.optim.Adam(model.parameters())
    model, adam = accelerator.prepare(model, adam)
    model(torch.ones(1, 2048)).sum().backward()
    adam.step()
    saved = 0
    while True:
        accelerator.save_state()
        saved += 1
        if saved == 4:
            (Path(folder) / "saved").touch()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
