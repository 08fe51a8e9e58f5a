"""The contact sheet shows source, pose, generated and true image of twelve recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from people import planned, render_all
from PIL import Image

from pidm_core import find_keypoints, load_image, read_keypoints
from pidm_reid.folder import read_augmented
from pidm_reid.sheet import COLUMNS, GAP, HEIGHT, ROWS, WIDTH, write_sheet


def test_a_sheet_shows_the_source_first_and_the_truth_last(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path / "made")
    folder = read_augmented(tmp_path / "made").train_folder
    keypoints = read_keypoints(find_keypoints(market))
    path = tmp_path / "sheet.png"
    write_sheet(path, work.recipes, generated=folder, keypoints=keypoints, truth=folder)
    sheet = load_image(path)
    tile = 4 * (WIDTH + GAP) + 4 * GAP
    assert sheet.shape == (ROWS * (HEIGHT + GAP), COLUMNS * tile, 3)

    def shown(place: int) -> np.ndarray:
        return sheet[:HEIGHT, place * (WIDTH + GAP) : place * (WIDTH + GAP) + WIDTH]

    def enlarged(name: str) -> np.ndarray:
        picture = Image.fromarray(load_image(folder / name))
        return np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))

    first = work.recipes[0]
    assert np.array_equal(shown(0), enlarged(first.source))
    assert np.array_equal(shown(2), enlarged(first.file_name))
    assert np.array_equal(shown(3), enlarged(first.file_name))
