"""A contact sheet of an augmented folder: source / pose / generated / true image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pidm_core import encode_png, load_image, sheet, skeleton, write_bytes
from pidm_reid.plan import Recipe

SIZE = 256, 128  # height and width in px
ROWS, BLOCKS = 4, 3


def write_sheet(
    path: Path,
    recipes: Sequence[Recipe],
    *,
    generated: Path,
    keypoints: Mapping[str, np.ndarray],
    truth: Path | None = None,
) -> None:
    """Write a PNG of twelve recipes, evenly chosen.

    generated, truth: folders with the image of each recipe (its source beside it) and, for drawn
    people, what it should look like.
    """

    def images(recipe: Recipe) -> list[np.ndarray]:
        source, pose = (load_image(generated / name) for name in (recipe.source, recipe.pose))
        joints = skeleton(keypoints[recipe.pose], pose.shape[:2])
        true = [load_image(truth / recipe.file_name)] if truth else []
        return [source, joints, load_image(generated / recipe.file_name), *true]

    titles = ["source", "pose", "generated", *(["true"] if truth else [])]
    chosen = [recipes[k] for k in np.linspace(0, len(recipes) - 1, ROWS * BLOCKS).astype(int)]
    blocks = [chosen[i : i + BLOCKS] for i in range(0, len(chosen), BLOCKS)]
    rows = [[image for recipe in row for image in images(recipe)] for row in blocks]
    write_bytes(path, encode_png(sheet(titles * BLOCKS, rows, SIZE)))
