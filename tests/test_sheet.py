"""The contact sheet shows source, pose, generated and true image of twelve recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from people import draw_person, planned, render_all
from PIL import Image

from pidm_core import encode_jpeg, find_keypoints, load_image, read_keypoints, write_bytes
from pidm_core.sheets import GAP_PX, TITLE_PX
from pidm_reid.folder import read_augmented
from pidm_reid.sheet import BLOCKS, ROWS, SIZE, write_sheet


def test_a_sheet_shows_the_source_first_and_the_truth_last(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path / "made")
    folder = read_augmented(tmp_path / "made").train_folder
    keypoints = read_keypoints(find_keypoints(market))
    path, truth = tmp_path / "sheet.png", tmp_path / "truth"
    for recipe in work.recipes:
        write_bytes(truth / recipe.file_name, encode_jpeg(draw_person(99, 0)))
    write_sheet(path, work.recipes, generated=folder, keypoints=keypoints, truth=truth)
    sheet = load_image(path)
    height, width = SIZE
    size = TITLE_PX + ROWS * (height + GAP_PX), 4 * BLOCKS * (width + GAP_PX)
    assert sheet.shape == (*size, 3)

    def shown(place: int) -> np.ndarray:
        left = place * (width + GAP_PX)
        return sheet[TITLE_PX : TITLE_PX + height, left : left + width]

    def enlarged(path: Path) -> np.ndarray:
        picture = Image.fromarray(load_image(path))
        return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))

    first = work.recipes[0]
    assert np.array_equal(shown(0), enlarged(folder / first.source))
    assert len(np.unique(shown(1).reshape(-1, 3), axis=0)) > 5  # a skeleton of many colours
    assert np.array_equal(shown(2), enlarged(folder / first.file_name))
    assert np.array_equal(shown(3), enlarged(truth / first.file_name))
