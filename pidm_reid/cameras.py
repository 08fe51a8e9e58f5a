"""Does a generated image look like one by the camera in its name? A classifier of thumbnails asks.

The camera of a generated image is its source's: a label, not a fact, since nothing tells the
network which camera to draw. The classifier is a ridge regression on the pixels, and their
squares, of 16x8 thumbnails; people are judged by what was learnt from the other half of the
people's real images, so that its own error can be read off the real images beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pidm_core import Record, load_image
from pidm_reid import plan

_HEIGHT, _WIDTH = 16, 8
_RIDGE = 3e-3  # of the number of images


def confirmed(real: Sequence[Record], generated: Sequence[Record]) -> tuple[float, float] | None:
    """Share of real and of generated images whose camera the classifier names, 0 ... 1 each.

    None if there are no generated images, a single camera, or fewer than two people.
    """
    people = plan.shuffled({record.pid for record in real}, seed=0, key=str)
    if not generated or len(people) < 2 or len({record.camid for record in real}) < 2:
        return None
    half = set(people[::2])
    known, made = _thumbnails(real), _thumbnails(generated)
    cameras = np.array([record.camid for record in real])
    hits = []
    for records, images in ((real, known), (generated, made)):
        right = 0
        for side in (True, False):
            learnt = np.array([(record.pid in half) != side for record in real])
            judged = np.array([(record.pid in half) == side for record in records])
            named = _classify(known[learnt], cameras[learnt], images[judged])
            labels = np.array([record.camid for record in records])[judged]
            right += int((named == labels).sum())
        hits.append(right / len(records))
    return hits[0], hits[1]


def _classify(known: np.ndarray, cameras: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The camera of each image (N, P), by the known ones (K, P) with their cameras (K,)."""
    names = np.unique(cameras)
    mean, share = known.mean(0), (cameras[:, None] == names).mean(0)
    centred, targets = known - mean, (cameras[:, None] == names) - share
    ridge = _RIDGE * len(known) * np.eye(known.shape[1])
    weights = np.linalg.solve(centred.T @ centred + ridge, centred.T @ targets)
    best: np.ndarray = names[((images - mean) @ weights + share).argmax(1)]
    return best


def _thumbnails(records: Sequence[Record]) -> np.ndarray:
    """Pixels in 0 ... 1 and their squares, float64 (N, 768)."""
    from PIL import Image

    size, box = (_WIDTH, _HEIGHT), Image.Resampling.BOX
    images = [Image.fromarray(load_image(record.path)).resize(size, box) for record in records]
    pixels = np.stack([np.asarray(image).reshape(-1) for image in images]) / 255
    return np.concatenate([pixels, pixels**2], axis=1)
