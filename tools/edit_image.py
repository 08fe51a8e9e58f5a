"""Draw and edit people: `draw` shows a style in a pose, or leaves either or both to chance,
`appearance` redraws a region in another's style, `interpolate` goes from one style to another.

Images are named by path; their joints are looked up by file name in the keypoint file.
`draw --help` and `interpolate --help` show the options of these two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pidm_core import BAD_DATA, DONE, Sampling, UserError, parse, quoted, run

if TYPE_CHECKING:
    import numpy as np

    from pidm_core import PIDMPipeline
    from pidm_core.pipeline import Output

EXAMPLES = {
    "draw": "--style A.jpg --pose B.jpg",
    "appearance": "--style A.jpg --reference B.jpg --mask upper",
    "interpolate": "--style A.jpg --to B.jpg --frames 8",
}
_SHOWN_PX = 256  # least height of an image in the strip


@dataclass(frozen=True)
class Common(Sampling):
    """What every picture needs."""

    run: str = "toy_market"
    """Run folder or bundled model."""
    style: str = ""
    """Image whose appearance is taken; of an interpolation the first."""
    keypoints: str = ""
    """Keypoint file with the joints of the pose's image (default: the one beside the images)."""
    out: str = "edited.png"
    """Picture to write: the images given, then what was drawn."""
    seed: int = 0
    """Seed of the noise."""
    dry_run: bool = False
    """Read the images and joints, say what would be drawn, and stop."""


@dataclass(frozen=True)
class Draw(Common):
    """A person in a pose: the style left out, the pose left out, or both."""

    pose: str = ""
    """Image whose pose is taken."""
    count: int = 4
    """Images, of as many seeds."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError("count: must be at least 1")


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

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError("frames: must be at least 2")


@dataclass(frozen=True)
class Edit:
    """What stands in the strip: images given, images still to draw, images given."""

    before: dict[str, np.ndarray]  # by title
    draw: Callable[[], Output]
    titles: list[str]  # of the drawn ones
    after: dict[str, np.ndarray]


def main(argv: list[str] | None = None) -> int:
    """Edit, write one picture strip, and say where it is."""
    argv = sys.argv[1:] if argv is None else argv
    kind, *rest = argv or [""]
    if kind.startswith("-"):
        kind, rest = "appearance", argv
    kinds: dict[str, type[Common]] = {
        "draw": Draw,
        "appearance": Appearance,
        "interpolate": Interpolate,
    }
    if kind not in kinds:
        raise UserError(f"begin with draw, appearance or interpolate, not '{kind}'")
    tool, example = f"edit_image {kind}", f"python tools/edit_image.py {kind} {EXAMPLES[kind]}"
    options = parse(kinds[kind], rest, prog=tool, description=__doc__, example=example)

    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"out: {out} is no .png, which is what is written")
    read = ("style", "pose", "to", "reference", "mask", "keypoints")
    for name in (name for name in read if getattr(options, name, "")):
        if out.exists() and Path(getattr(options, name)).resolve() == out.resolve():
            raise UserError(f"out: {out} is --{name}, which would be lost; give another --out")

    from pidm_core import PIDMPipeline, encode_png, enlarged, sheet, write_bytes

    pipe = PIDMPipeline.from_pretrained(options.run).with_settings(**options.changes())
    if isinstance(options, Draw):
        edit = _draw(pipe, options)
    elif isinstance(options, Appearance):
        edit = _appearance(pipe, options)
    else:
        assert isinstance(options, Interpolate)
        edit = _interpolate(pipe, options)
    if options.dry_run:
        size, steps = "x".join(map(str, pipe.size)), pipe.settings.steps
        print(f"{options.out}: {len(edit.titles)} images of {size} to draw, {steps} steps each")
        return DONE
    images = [*edit.before.values(), *edit.draw().images, *edit.after.values()]
    images = [enlarged(image, _SHOWN_PX) for image in images]
    titles = [*edit.before, *edit.titles, *edit.after]
    strip = sheet(titles, [images], images[0].shape[:2])
    write_bytes(options.out, encode_png(strip, generated=True))
    print(f"{options.out}: {len(images)} images side by side. The same by hand:")
    print(f"  python tools/studio.py --run {quoted(options.run)}")
    return DONE


def _draw(pipe: PIDMPipeline, options: Draw) -> Edit:
    """The style image and the pose's, where given, and the drawn ones."""
    named = {"style": options.style, "pose": options.pose}
    given = {title: _image(pipe, path, title) for title, path in named.items() if path}
    joints = _joints(pipe, options.keypoints, options.pose)[None] if options.pose else None
    seeds = range(options.seed, options.seed + options.count)
    titles = [f"seed {seed}" for seed in seeds]
    return Edit(given, lambda: pipe(given.get("style"), joints, seeds=seeds), titles, {})


def _appearance(pipe: PIDMPipeline, options: Appearance) -> Edit:
    """Style, reference and the edited image."""
    from pidm_core.garments import garment_mask

    style, reference = (
        _image(pipe, options.style, "style"),
        _image(pipe, options.reference, "reference"),
    )
    joints = _joints(pipe, options.keypoints, options.reference)
    if options.mask in ("upper", "lower"):
        mask = garment_mask(joints, options.mask, pipe.size)
    else:
        if not Path(options.mask).is_file():
            raise UserError(f"mask '{options.mask}' is neither upper nor lower nor an image file")
        mask = _image(pipe, options.mask, "mask", like=options.reference).mean(2) > 127
        if not mask.any():
            said = "marks nothing to redraw; white, grey levels over 127, does"
            raise UserError(f"{options.mask}: {said}", BAD_DATA)

    def draw() -> Output:
        return pipe.edit_appearance(
            style, reference, mask, joints, soften=options.soften, seeds=[options.seed]
        )

    return Edit({"style": style, "reference": reference}, draw, ["edited"], {})


def _interpolate(pipe: PIDMPipeline, options: Interpolate) -> Edit:
    """The first person, the frames, the second person."""
    a, b = _image(pipe, options.style, "style"), _image(pipe, options.to, "to")
    joints = _joints(pipe, options.keypoints, options.pose or options.style)

    def draw() -> Output:
        seeds = (options.seed, options.seed + 1)
        return pipe.interpolate_style(a, b, joints, options.frames, seeds=seeds)

    titles = [f"{step / (options.frames - 1):.0%}" for step in range(options.frames)]
    return Edit({"style": a}, draw, titles, {"to": b})


def _image(pipe: PIDMPipeline, path: str, flag: str, *, like: str = "") -> np.ndarray:
    """An image at the model's size; like: the file that a mask belongs to."""
    from pidm_core import resized
    from pidm_core.datasets import open_image

    if not path:
        raise UserError(f"--{flag} IMAGE is missing")
    return resized(open_image(path, like=like), pipe.size)


def _joints(pipe: PIDMPipeline, file: str, path: str) -> np.ndarray:
    """The joints (18, 2) of an image, in px of the model's size."""
    from pidm_core import rescale
    from pidm_core.datasets import open_image, open_joints
    from pidm_core.keypoints import missing, without_outside

    found, size = open_joints(path, file), open_image(path).shape[:2]
    joints = without_outside(found, size)
    there, left = (int((~missing(some)).sum()) for some in (found, joints))
    if 2 * left <= there:
        said = f"{there - left} of its {there} joints lie outside it" if there else "has no joints"
        raise UserError(f"{path}: {said}", BAD_DATA)
    return rescale(joints, size, pipe.size)


if __name__ == "__main__":
    run(main, again="nothing was kept")
