"""Edit people: `appearance` redraws a region in another's style, `interpolate` goes between two.

Images are named by path; their joints are looked up by file name in the keypoint file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pidm_core import BAD_DATA, DONE, UserError, parse, run

if TYPE_CHECKING:
    import numpy as np

    from pidm_core import PIDMPipeline

EXAMPLE = (
    "python tools/edit_image.py appearance --style A.jpg --reference B.jpg --mask upper "
    "--keypoints market-annotation-train.csv"
)
_WORDS = {"upper": (2, 5, 8, 11), "lower": (8, 11, 10, 13)}  # shoulders and hips; hips and ankles


@dataclass(frozen=True)
class Common:
    """What both edits need."""

    run: str = "toy_market"
    """Run folder or bundled model."""
    style: str = ""
    """Image whose appearance is taken; of an interpolation the first."""
    keypoints: str = ""
    """Keypoint file with the joints of the pose's image."""
    out: str = "edited.png"
    """Picture to write: the images given, then what was drawn."""
    steps: int = 20
    """Denoising steps."""
    seed: int = 0
    """Seed of the noise."""


@dataclass(frozen=True)
class Appearance(Common):
    """Redraw a region of a picture in another person's appearance."""

    reference: str = ""
    """Image to edit."""
    mask: str = "upper"
    """Region to redraw: 'upper' or 'lower' garment (by the joints), or an image, white = redraw."""
    soften: float = 0.0
    """Pixels over which the redrawn region fades in."""


@dataclass(frozen=True)
class Interpolate(Common):
    """Go from one person's appearance to another's."""

    to: str = ""
    """Image whose appearance is reached at the end."""
    pose: str = ""
    """Image whose pose is taken (default: the --style image's own)."""
    frames: int = 8
    """Images from the one to the other."""


def main(argv: list[str] | None = None) -> int:
    """Edit, write one picture strip, and say where it is."""
    argv = sys.argv[1:] if argv is None else argv
    kind, *rest = argv or [""]
    if kind.startswith("-"):
        kind, rest = "appearance", argv
    kinds = {"appearance": Appearance, "interpolate": Interpolate}
    if kind not in kinds:
        raise UserError(f"'{kind}' is no edit; known are appearance, interpolate ({EXAMPLE})")
    options = parse(kinds[kind], rest, prog="edit_image", description=__doc__, example=EXAMPLE)

    import numpy as np

    from pidm_core import PIDMPipeline, encode_png, write_bytes

    pipe = PIDMPipeline.from_pretrained(options.run)
    if isinstance(options, Appearance):
        images = _appearance(pipe, options)
    else:
        assert isinstance(options, Interpolate)
        images = _interpolate(pipe, options)
    write_bytes(options.out, encode_png(np.concatenate(list(images), axis=1)))
    print(f"{options.out}: {len(images)} images side by side")
    return DONE


def _appearance(pipe: PIDMPipeline, options: Appearance) -> np.ndarray:
    """Style, reference and the edited image."""
    import numpy as np

    style, reference = (
        _image(pipe, options.style, "style"),
        _image(pipe, options.reference, "reference"),
    )
    joints = _joints(pipe, options.keypoints, options.reference)
    mask = _box(joints, options.mask, pipe.size)
    if mask is None:
        mask = _image(pipe, options.mask, "mask").mean(2) > 127
    edited = pipe.edit_appearance(
        style, reference, mask, joints,
        soften=options.soften, seeds=[options.seed], steps=options.steps,
    )  # fmt: skip
    return np.concatenate([style[None], reference[None], edited.images])


def _interpolate(pipe: PIDMPipeline, options: Interpolate) -> np.ndarray:
    """The first person, the frames, the second person."""
    import numpy as np

    a, b = _image(pipe, options.style, "style"), _image(pipe, options.to, "to")
    joints = _joints(pipe, options.keypoints, options.pose or options.style)
    between = pipe.interpolate_style(
        a, b, joints, options.frames, seeds=(options.seed, options.seed + 1), steps=options.steps
    )
    return np.concatenate([a[None], between.images, b[None]])


def _image(pipe: PIDMPipeline, path: str, flag: str) -> np.ndarray:
    """An image at the model's size."""
    import numpy as np
    from PIL import Image

    from pidm_core import load_image

    if not path:
        raise UserError(f"--{flag} IMAGE is missing")
    picture = Image.fromarray(load_image(path))
    return np.asarray(picture.resize(pipe.size[::-1], Image.Resampling.BICUBIC))


def _joints(pipe: PIDMPipeline, file: str, path: str) -> np.ndarray:
    """The joints (18, 2) of an image, in px of the model's size."""
    from pidm_core import load_image, read_keypoints, rescale

    if not file:
        raise UserError("--keypoints FILE is missing")
    table, name = read_keypoints(file), Path(path).name
    if name not in table:
        raise UserError(f"{file}: holds no joints of {name}", BAD_DATA)
    return rescale(table[name], load_image(path).shape[:2], pipe.size)


def _box(joints: np.ndarray, word: str, size: tuple[int, int]) -> np.ndarray | None:
    """The region (H, W) that a word means: the box around its joints and a margin."""
    import numpy as np

    if word not in _WORDS:
        return None
    corners = joints[list(_WORDS[word])]
    if np.isnan(corners).any():
        raise UserError(f"--mask {word}: its joints are not all in the picture", BAD_DATA)
    margin = 0.3 * float(np.ptp(corners[:, 1]))  # sleeves and loose cloth
    aside = np.array([margin, 0])
    low, high = corners.min(0) - aside, corners.max(0) + aside
    y, x = np.indices(size)
    return np.asarray((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))


if __name__ == "__main__":
    run(main)
