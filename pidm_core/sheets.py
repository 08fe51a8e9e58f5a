"""Contact sheets: images side by side under their titles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from pidm_core.files import resized

GAP_PX, TITLE_PX = 4, 20  # white, right of and below each image; and a line of titles above


def sheet(
    titles: Sequence[str], rows: Iterable[Sequence[np.ndarray]], size: tuple[int, int]
) -> np.ndarray:
    """Images under their titles: uint8 (TITLE_PX + rows * (height + GAP_PX), ..., 3).

    rows: of each an image under every title, uint8 (H, W, 3); all are shown at `size` (height,
    width) in px, bicubic where they have another.
    """
    width = size[1] + GAP_PX
    edge = ((0, GAP_PX), (0, GAP_PX), (0, 0))
    shown = [[_title(title, width) for title in titles]]
    for row in rows:
        shown.append([np.pad(resized(image, size), edge, constant_values=255) for image in row])
    return np.concatenate([np.concatenate(row, axis=1) for row in shown])


def _title(text: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, TITLE_PX), "white")
    ImageDraw.Draw(strip).text((2, 3), text, fill="black")
    return np.asarray(strip)


def enlarged(image: np.ndarray, height: int) -> np.ndarray:
    """An image at least `height` px high where a whole factor does it: pixels become squares."""
    factor = max(1, -(-height // len(image)))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
