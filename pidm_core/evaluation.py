"""A folder of generated images -> figures, each with everything it must be printed with."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from pidm_core import feature_metrics as distances
from pidm_core import feature_networks as networks
from pidm_core.config import ImageSettings
from pidm_core.data import list_names
from pidm_core.datasets import list_images
from pidm_core.feature_networks import Extractor, Perceptual
from pidm_core.files import (
    BAD_DATA,
    ENVIRONMENT,
    UserError,
    load_array,
    load_image,
    read_text,
    refuse_way_out,
    save_array,
    sha256,
)
from pidm_core.image_metrics import (
    PRESETS,
    SSIM_WINDOW,
    Preset,
    bring_to,
    gaussian_window,
    ssim,
)
from pidm_core.image_names import named_pair, without_seed
from pidm_core.joint_judge import JointJudge, read_judge
from pidm_core.progress import track

T = TypeVar("T")

_FEW_IMAGES = 2048  # below it, FID says more about the number of images than about the images
_NAMED = 5  # files of one kind that are named before the rest is only counted


@dataclass(frozen=True)
class Picture:
    """A generated image, and what it should look like."""

    path: Path
    source: str  # name without suffix; empty where the name does not tell
    target: Path | None
    condition: str  # equal for images that differ in the seed alone


@dataclass(frozen=True)
class Figure:
    """A number, and what makes it comparable."""

    name: str
    value: float
    how: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4f}  ({self.how})"


@dataclass(frozen=True)
class Report:
    """What was measured, and one line for everything that was not."""

    images: int
    figures: list[Figure]
    left_out: list[str]


@dataclass(frozen=True)
class Judges:
    """The networks that are there, and one line for each that is not."""

    extractor: Extractor | None
    lpips: Perceptual | None
    lacking: list[str]
    joints: JointJudge | None = None


# ---------------------------------------------------------------- files


def image_files(folder: str | Path) -> list[Path]:
    """The images (.jpg, .png) of a folder, by name; UserError (BAD_DATA) if there is none."""
    folder = _folder(folder)
    names, _ = list_names(folder)
    if not names:
        raise UserError(f"{folder}: no images (.jpg or .png) in it", BAD_DATA)
    return [folder / name for name in names]


def images_below(folder: str | Path) -> list[Path]:
    """The same of a folder and all folders in it (DeepFashion's are nested), by path."""
    return [record.path for record in list_images(_folder(folder))]


def images_by_name(folder: str | Path) -> dict[str, list[Path]]:
    """The images below a folder by name without ending; folders may repeat a name."""
    named: dict[str, list[Path]] = {}
    for path in images_below(folder):
        named.setdefault(path.stem, []).append(path)
    return named


def only(paths: Sequence[Path]) -> Path:
    """The image of a name; UserError (BAD_DATA) where several share it."""
    if len(paths) > 1:
        raise UserError(
            f"{paths[1]}: has the same name as {paths[0]}; give them names of their own, or list "
            "the targets in a CSV generated,target",
            BAD_DATA,
        )
    return paths[0]


def read_pictures(generated: str | Path, targets: str | Path) -> list[Picture]:
    """The images of a folder with their true targets, by name.

    targets: a folder, below which the file names are looked up, or a CSV with the header
    `generated,target` (a file name; a path from the CSV's folder). A target of None is unknown.
    Raises UserError (BAD_DATA) for a name that two images share, and for a CSV that is not one.
    """
    files, targets = image_files(generated), Path(targets)
    if targets.is_file():
        listed = _read_targets(targets)
        return [Picture(p, "", listed.get(p.name), without_seed(p.stem)) for p in files]
    known = images_by_name(targets)
    return [_picture(path, known) for path in files]


def _folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder", BAD_DATA)
    return Path(path)


def _read_targets(path: Path) -> dict[str, Path]:
    rows = csv.DictReader(io.StringIO(read_text(path)))
    found: dict[str, Path] = {}
    try:
        if rows.fieldnames != ["generated", "target"]:
            raise UserError(f"{path}: its first line is not 'generated,target'", BAD_DATA)
        for row in rows:
            where, name, target = f"{path}:{rows.line_num}", row["generated"], row["target"]
            if not name or not target:
                raise UserError(f"{where}: a cell is empty; give both or no line", BAD_DATA)
            refuse_way_out(target, where)
            if found.setdefault(name, path.parent / target) != path.parent / target:
                raise UserError(f"{where}: {name} stands twice, with another target", BAD_DATA)
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV ({error})", BAD_DATA) from error
    return found


def _true_images(settings: ImageSettings) -> list[Path]:
    targets = Path(settings.targets or settings.real)
    if targets.is_file():
        return [path for path in _read_targets(targets).values() if path.is_file()]
    return images_below(targets)


def _picture(path: Path, known: Mapping[str, list[Path]]) -> Picture:
    condition = without_seed(path.stem)
    pair = named_pair(path.stem, targets=known)
    if not pair:
        return Picture(path, "", None, condition)
    source, target = pair
    return Picture(path, source, only(known[target]), condition)


# ---------------------------------------------------------------- networks


def find_judges(settings: ImageSettings) -> Judges:
    """Load the networks whose weights lie on the machine; the others are named with their file.

    Raises UserError for a file that is there and is not what it should be.
    """
    given = Path(settings.weights) if settings.weights else None
    size = PRESETS[settings.preset].size
    folder = given.parent if given and settings.features == "reid" else given
    lacking: list[str] = []

    def load(what: str, build: Callable[[], T], remedy: str = "") -> T | None:
        try:
            return build()
        except UserError as error:
            if error.code != ENVIRONMENT:
                raise
            lacking.append(f"{what}: {error}{remedy}")
            return None

    if settings.features == "reid":
        assert given
        extractor: Extractor | None = networks.resnet50(given, settings.reid_size)
    else:
        extractor = load(
            "FID, KID (Inception-v3)",
            lambda: networks.inception(
                networks.find_weights(networks.INCEPTION_FILES, folder), size
            ),
            "; or measure in a re-ID network of yours: --features reid --weights FILE",
        )
    lpips = load(
        "LPIPS (AlexNet)",
        lambda: networks.lpips(networks.find_weights(networks.ALEXNET_FILES, folder)),
    )
    joints = None
    if settings.real_keypoints:
        joints = read_judge(
            images_below(settings.real), settings.real_keypoints, settings.keypoints,
            targets=_true_images(settings), cache=Path(settings.cache),
        )  # fmt: skip
    return Judges(extractor, lpips, lacking, joints)


# ---------------------------------------------------------------- figures


def evaluate(pictures: Sequence[Picture], settings: ImageSettings, judges: Judges) -> Report:
    """Score generated images: SSIM and LPIPS with their targets, FID and KID with the real ones.

    Precision, recall and diversity are measured in the features of FID. Raises UserError for
    files that are broken or of unequal size, and if nothing at all could be measured.
    """
    preset = PRESETS[settings.preset]
    pairs = [picture for picture in pictures if picture.target]
    found: list[Figure | str] = list(judges.lacking)
    found += _unknown_targets(pictures, settings.targets or settings.real)
    if pairs:
        found += _ssim_figures(pairs, preset)
    if pairs and judges.lpips:
        found.append(_lpips_figure(pairs, preset, judges.lpips))
    if judges.joints:
        found += _joint_figure(pictures, judges.joints)
    if judges.extractor:
        found += _set_figures(pictures, settings, judges.extractor)
    figures = [item for item in found if isinstance(item, Figure)]
    left_out = [item for item in found if isinstance(item, str)]
    if not figures:
        raise UserError("; ".join(left_out), ENVIRONMENT if judges.lacking else BAD_DATA)
    return Report(len(pictures), figures, left_out)


def _unknown_targets(pictures: Sequence[Picture], targets: str) -> list[Figure | str]:
    unknown = [picture.path for picture in pictures if not picture.target]
    if len(unknown) == len(pictures):
        return [
            f"SSIM, LPIPS: {unknown[0]}: no target of its name in {targets}, nor of any other's; "
            "name a folder of true images, or a CSV generated,target, with --targets"
        ]
    lines: list[Figure | str] = [
        f"{path}: no target of its name in {targets}; it counts in FID and KID alone"
        for path in unknown[:_NAMED]
    ]
    more = len(unknown) - _NAMED
    return lines + ([f"{more:,} more images without a target in {targets}"] if more > 0 else [])


def _ssim_figures(pairs: Sequence[Picture], preset: Preset) -> Iterator[Figure | str]:
    size = load_image(pairs[0].path).shape[:2]
    smallest = gaussian_window(preset.sigma)
    if min(size) < smallest:
        yield f"SSIM: images of {_px(size)} are smaller than its window of {smallest} px"
        return
    uniform, gaussian = [], []
    for made, true in _pairs(pairs, preset, "SSIM"):
        if min(size) >= SSIM_WINDOW:
            uniform.append(ssim(made, true))
        # An image of one colour has no range: without a floor SSIM_256 is 0/0 (scikit-image's too).
        # One grey level is the least that any other image has, so that no published figure changes.
        levels = np.ptp(made.reshape(len(made), -1), axis=1)
        spread = np.maximum(levels, 1) / 255
        gaussian.append(ssim(made, true, sigma=preset.sigma, data_range=spread))
    where, images = f"preset {preset.name}, {_px(size)}", f"{len(pairs):,} images"
    if uniform:
        window = f"uniform window of {SSIM_WINDOW} px"
        yield Figure("SSIM", _mean(uniform), f"{where}, {window}, {images}")
    else:
        yield f"SSIM: images of {_px(size)} are smaller than its window of {SSIM_WINDOW} px"
    window = f"Gaussian window, sigma {preset.sigma} px"
    yield Figure("SSIM_256", _mean(gaussian), f"{where}, {window}, {images}")


def _lpips_figure(pairs: Sequence[Picture], preset: Preset, lpips: Perceptual) -> Figure:
    values = []
    for made, true in _pairs(pairs[: preset.whole(len(pairs))], preset, "LPIPS"):
        a, b = (np.stack([bring_to(x, preset.size) for x in side]) for side in (made, true))
        values.append(lpips.distance(a, b))
    return Figure(
        "LPIPS",
        _mean(values),
        f"preset {preset.name}, {_px(a.shape[1:3])}, {lpips.name} {lpips.weights[:8]}, "
        f"{preset.whole(len(pairs)):,} of {len(pairs):,} images",
    )


def _joint_figure(pictures: Sequence[Picture], judge: JointJudge) -> Iterator[Figure | str]:
    """The distance of the joints from the target's; of a true image, from its own."""
    errors = []
    for picture in track(pictures, total=len(pictures), label="joints", unit="images", each=1):
        name = (picture.target or picture.path).stem
        errors.append(judge.error(load_image(picture.path), name))
    known = [error for error in errors if not math.isnan(error)]
    if not known:
        yield "joints: the keypoint file holds none of the targets'"
        return
    trained = f"a network trained on {judge.examples:,} real images"
    yield Figure("joints, px", float(np.mean(known)), f"found by {trained}, {len(known):,} images")


def _set_figures(
    pictures: Sequence[Picture], settings: ImageSettings, extractor: Extractor
) -> Iterator[Figure | str]:
    preset = PRESETS[settings.preset]
    files = images_below(settings.real)
    chosen = pictures[: preset.whole(len(pictures))]
    if min(len(chosen), len(files)) < 2:
        yield f"{extractor.titles[0]}: at least two generated and two real images are needed"
        return
    made = _extract([picture.path for picture in chosen], extractor, preset, "generated")
    files = files[: preset.whole(len(files))]
    real = _real_features(files, extractor, preset, Path(settings.cache))
    size = extractor.size or load_image(chosen[0].path).shape[:2]
    network = f"preset {preset.name}, {_px(size)}, {extractor.name} {extractor.weights[:8]}"
    how = f"{network}, {len(made):,} generated of {len(pictures):,}, {len(real):,} real"
    few = min(len(made), len(real)) < _FEW_IMAGES
    bias = f", biased upwards by fewer than {_FEW_IMAGES:,} images" if few else ""
    yield Figure(extractor.titles[0], distances.frechet_distance(real, made), how + bias)
    yield Figure(extractor.titles[1], distances.kernel_distance(real, made), how)
    k = distances.NEIGHBOURS
    if min(len(made), len(real)) > k:
        precision, recall = distances.precision_recall(real, made)
        yield Figure("precision", precision, f"{how}, k = {k}")
        yield Figure("recall", recall, f"{how}, k = {k}")
    conditions = [picture.condition for picture in chosen]
    spread = distances.diversity(made, conditions)
    if spread is not None:
        several = f"{len(made):,} images of {len(set(conditions)):,} conditions"
        yield Figure("diversity", spread, f"{network}, {several}")


# ---------------------------------------------------------------- reading


def _real_features(
    files: Sequence[Path], extractor: Extractor, preset: Preset, cache: Path
) -> np.ndarray:
    """Features of the real images, kept in `cache` under the hash of all that they depend on."""
    key = [extractor.name, extractor.weights, extractor.size, *(sha256(p) for p in files)]
    path = cache / f"{sha256(json.dumps(key).encode())[:24]}.npy"
    features = load_array(path)
    if features is None:
        features = _extract(files, extractor, preset, "real")
        save_array(path, features)
    return features


def _extract(files: Sequence[Path], extractor: Extractor, preset: Preset, label: str) -> np.ndarray:
    """Features (N, D) float32 of image files."""
    size = None if extractor.size else load_image(files[0]).shape[:2]
    rows = []
    for batch in _batches(files, preset.batch_images, f"features, {label}"):
        images = [_of_size(path, size) for path in batch]
        rows.append(extractor.features(np.stack([bring_to(x, extractor.size) for x in images])))
    return np.concatenate(rows)


def _pairs(
    pairs: Sequence[Picture], preset: Preset, label: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of generated and of true images, twice uint8 (B, H, W, 3), all of one size."""
    size = load_image(pairs[0].path).shape[:2]
    for batch in _batches(pairs, preset.batch_images, label):
        made = np.stack([_of_size(picture.path, size) for picture in batch])
        yield made, np.stack([_of_size(p.target, size) for p in batch if p.target])


def _of_size(path: Path, size: tuple[int, ...] | None) -> np.ndarray:
    image = load_image(path)
    if size and image.shape[:2] != size:
        raise UserError(
            f"{path}: {_px(image.shape)}, but the first image has {_px(size)}; bring generated "
            "images and targets to one size first (how changes the figures)",
            BAD_DATA,
        )
    return image


def _batches(items: Sequence[T], size: int, label: str) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in track(items, total=len(items), label=label, unit="images", each=1):
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _mean(batches: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(batches).mean(dtype=np.float64))


def _px(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]} px"
