"""How far the joints of generated images lie from those asked for, by a network of one's own.

A pose network's weights are seldom at hand, but a data set's training images and their joints are:
from them the probe's small network learns to find joints, and it has seen real images alone.
Its own error on the true images is the least that any other can be expected to have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pidm_core.data import Record, check_frame
from pidm_core.files import BAD_DATA, UserError, load_image, resized, sha256
from pidm_core.keypoints import NOBODY, read_keypoints, rescale
from pidm_core.probe_networks import INPUT, Find, Training, train_joints
from pidm_core.progress import track


@dataclass(frozen=True)
class Examples:
    """Real images at the size that the network sees, and their joints in px of that."""

    images: np.ndarray  # uint8 (N, 64, 32, 3)
    exact: np.ndarray  # float32 (N, 18, 2), NaN = missing


@dataclass(frozen=True)
class JointJudge:
    """A network that finds joints, and the joints that images of these names were asked for."""

    find: Find
    asked: Mapping[str, np.ndarray]  # by name without ending: (18, 2) px, NaN = missing
    examples: int  # real images that the network was trained on
    weights: str  # hash of all that made it, and of the joints asked for

    def error(self, image: np.ndarray, name: str) -> float:
        """Mean distance in px of the joints asked for from those found; NaN if none is known."""
        asked = self.asked.get(name)
        if asked is None or np.isnan(asked).any(1).all():
            return float("nan")
        (found,) = self.find(np.stack([resized(image, INPUT)]))
        distance = np.linalg.norm(rescale(found, INPUT, image.shape[:2]) - asked, axis=1)
        return float(np.nanmean(distance))


def read_judge(
    real: Sequence[Path],
    real_keypoints: str | Path,
    asked: str | Path,
    *,
    targets: Sequence[Path] = (),
    cache: Path,
) -> JointJudge:
    """Train the network on the real images whose joints are known, or load it from `cache`.

    Joints are px of the image files. asked: keypoint file of the targets. Raises UserError
    (BAD_DATA) if no image has joints, for joints of another frame, and for images or joints whose
    names do not tell them apart.
    """
    known, wanted = (_by_stem(path) for path in (real_keypoints, asked))
    files = [path for path in real if not np.isnan(known.get(path.stem, NOBODY)).any(1).all()]
    if not files:
        raise UserError(f"{real_keypoints}: holds no joints of the real images", BAD_DATA)
    if (count := len({path.stem for path in files})) < len(files):
        raise UserError(f"{len(files) - count} real images share their names with others", BAD_DATA)
    check_frame([Record(p, p.stem, 0, 0) for p in files], known, name=real_keypoints)
    posed = [Record(p, p.stem, 0, 0) for p in targets if p.stem in wanted]
    if posed:
        check_frame(posed, wanted, name=asked)
    contents = [[path.stem, sha256(path), known[path.stem].tolist()] for path in files]
    name = sha256(json.dumps([asdict(Training()), contents]).encode())
    find = train_joints(lambda: _examples(files, known), cache, name=name)
    joints = json.dumps({stem: one.tolist() for stem, one in sorted(wanted.items())})
    return JointJudge(find, wanted, len(files), sha256((name + joints).encode()))


def _by_stem(path: str | Path) -> dict[str, np.ndarray]:
    table = read_keypoints(path)
    found = {Path(name).stem: joints for name, joints in table.items()}
    if len(found) < len(table):
        raise UserError(f"{path}: several images of it share a name without folder", BAD_DATA)
    return found


def _examples(files: Sequence[Path], known: Mapping[str, np.ndarray]) -> Examples:
    images, joints = [], []
    for path in track(files, total=len(files), label="joints, real", unit="images", each=1):
        image = load_image(path)
        images.append(resized(image, INPUT))
        joints.append(rescale(known[path.stem], image.shape[:2], INPUT))
    return Examples(np.stack(images), np.stack(joints))
