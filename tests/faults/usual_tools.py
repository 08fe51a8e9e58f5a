"""What the usual tools do under the same faults, to compare: what they break is no failure."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from faults.harness import Measure, Row, run
from faults.warm import warm

PROMISED = "(for comparison)"
LONGEST_S = 0.8
PILLOW = """
import numpy as np
from PIL import Image
pixels = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
Image.fromarray(pixels).save("image.jpg", quality=95)
"""


def accelerate_kills(number: int) -> Row:
    """accelerate's save_state with a limit of one, killed up to 0.8 s after its fourth saving."""
    row = Row(
        "accelerate save_state, total_limit=1, killed at random while saving: no whole checkpoint "
        "left",
        PROMISED,
        compared=True,
    )
    rng = random.Random(0)
    script = Path(__file__).with_name("usual_saves.py")
    with tempfile.TemporaryDirectory() as name:
        for case in range(number):
            home = Path(name) / str(case)
            warm().run(
                [script, home, "1"],
                cwd=Path(name),
                kill_after=rng.uniform(0, LONGEST_S),
                once=home / "saved",
            )
            left = list((home / "checkpoints").glob("checkpoint_*"))
            row.check(any(whole(folder) for folder in left), f"kill {case + 1}")
    return row


def whole(folder: Path) -> bool:
    """Whether one of accelerate's checkpoints has all its files, and each can be read."""
    try:
        load_file(folder / "model.safetensors")
        torch.load(folder / "optimizer.bin", weights_only=True)
        return (folder / "random_states_0.pkl").stat().st_size > 0
    except Exception:  # a dozen kinds on half-written files
        return False


def pillow_saves(number: int) -> Row:
    """Pillow's own saving of a JPEG where the disk is full after so many bytes."""
    row = Row(
        "Pillow Image.save of a JPEG on a full disk: reports success, file cut off",
        PROMISED,
        compared=True,
    )
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "image.jpg"
        run(["-c", PILLOW], cwd=Path(name))
        size = path.stat().st_size
        for _ in range(number):
            path.unlink(missing_ok=True)
            limit = rng.randrange(1, size)
            done = run(["-c", PILLOW], cwd=Path(name), file_bytes=limit)
            cut = path.is_file() and path.stat().st_size < size
            row.check(not (done.code == 0 and cut), f"{limit} of {size} bytes")
    return row


MEASURES: tuple[Measure, ...] = (accelerate_kills, pillow_saves)
