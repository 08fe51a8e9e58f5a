"""A contact sheet of an augmented folder: source / pose / generated / true image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pidm_core import encode_png, load_image, resized, skeleton, write_bytes
from pidm_reid.plan import Recipe

HEIGHT, WIDTH, GAP = 256, 128, 4
ROWS, COLUMNS = 4, 3


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
    chosen = [recipes[k] for k in np.linspace(0, len(recipes) - 1, ROWS * COLUMNS).astype(int)]
    tiles = [_tile(recipe, generated, keypoints, truth) for recipe in chosen]
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
    write_bytes(path, encode_png(np.concatenate(rows)))


def _tile(
    recipe: Recipe, generated: Path, keypoints: Mapping[str, np.ndarray], truth: Path | None
) -> np.ndarray:
    source = load_image(generated / recipe.source)
    pose = skeleton(keypoints[recipe.pose], load_image(generated / recipe.pose).shape[:2])
    parts = [source, pose, load_image(generated / recipe.file_name)]
    if truth:
        parts.append(load_image(truth / recipe.file_name))
    gap = np.full((HEIGHT, GAP, 3), 255, dtype=np.uint8)
    shown = np.concatenate(
        [x for part in parts for x in (resized(part, (HEIGHT, WIDTH)), gap)], axis=1
    )
    bottom = np.full((GAP, shown.shape[1], 3), 255, dtype=np.uint8)
    return np.pad(np.concatenate([shown, bottom]), ((0, 0), (0, 4 * GAP), (0, 0)),
                  constant_values=255)  # fmt: skip
