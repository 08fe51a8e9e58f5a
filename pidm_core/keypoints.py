"""Keypoint files of the field -> image name -> (18, 2) float px, NaN = missing; mirror, quality.

Frame: (x, y) in pixels, 0 = centre of the first column or row. Order: OpenPose's 18 joints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core.files import (
    BAD_DATA,
    CONTROL,
    IMAGE_SUFFIXES,
    MAX_JSON_BYTES,
    UserError,
    parse_json,
    read_text,
    refuse_way_out,
    write_bytes,
)

JOINTS: tuple[str, ...] = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
NOSE, NECK, R_SHOULDER, L_SHOULDER, R_HIP, L_HIP = 0, 1, 2, 5, 8, 11
HEADER = "name:keypoints_y:keypoints_x"

# Where each of our 18 joints stands in the other orders; COCO has no neck (-1).
_FROM_BODY_25 = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
_FROM_COCO = [0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
_SWAPPED = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]
NOBODY = np.full((len(JOINTS), 2), np.nan, dtype=np.float32)  # px; no joint was found
_OUTSIDE_LIMIT = 0.1  # drawn people: no joint; for images 1.2 times as large 12 % of them
_REACH = 0.75  # of the height; among any 16 drawn people somebody's joints reach 0.91
_LYING_LIMIT = 2 / 3  # drawn people: none lie; with x and y swapped all do
_LARGEST_PX = 1e6
_MANY = 16  # images; fewer may be an unusual choice


def read_keypoints(
    path: str | Path, *, size: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Read a keypoint file, or a folder of one-image files: image name -> float32 (18, 2) px.

    PATN / pose-gan CSV, OpenPose JSON (18 or 25 joints; of several people the one with the
    largest sum of confidences, the first of equals), COCO-17 JSON (same rule, by score where
    there is one; neck = middle of the shoulders), GFLA / PIDM text (18 rows `x y`) and PATN heat
    maps (.npy, (H, W, 18), their peaks). One-image files are named after the image: `a.txt`,
    `a.jpg.txt`, `a_keypoints.json`, `a.jpg.npy` belong to `a.jpg`, `b/a.txt` to `b/a.jpg`.
    A negative coordinate is a missing joint. With `size` (height, width) joints outside the frame
    are missing too, and what `inside` refuses is refused.
    A file in which people lie rather than stand has x and y swapped and is refused.
    Raises UserError (BAD_DATA) with file and line for anything else.
    """
    path = Path(path)
    table = _read_folder(path) if path.is_dir() else _read_file(path)
    if not table:
        raise UserError(f"{path}: holds no keypoints", BAD_DATA)
    for name in table:
        refuse_way_out(name, str(path))
    joints = np.stack(list(table.values()))
    _refuse_normalised(joints, path)
    _refuse_swapped(joints, path)
    if size is not None:
        joints = inside(joints, size, name=str(path))
    return dict(zip(table, joints, strict=True))


def _read_folder(home: Path) -> dict[str, np.ndarray]:
    table: dict[str, np.ndarray] = {}
    for path in sorted(home.rglob("*")):
        if path.suffix in (".txt", ".json", ".npy"):
            for name, joints in _read_file(path).items():
                _put(table, (path.parent.relative_to(home) / name).as_posix(), joints, str(path))
    return table


def _put(table: dict[str, np.ndarray], name: str, joints: np.ndarray, where: str) -> None:
    """Add joints to a table; UserError (BAD_DATA) if others of that image are in it."""
    if name in table and not np.array_equal(table[name], joints, equal_nan=True):
        raise UserError(f"{where}: '{name}' stands twice, and differs", BAD_DATA)
    table[name] = joints


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npy":
        return {_image_name(path): _read_heat_maps(path)}
    text = read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise UserError(f"{path}: the file is empty", BAD_DATA)
    if start in "{[":
        return _read_json(parse_json(text, str(path)), path)
    if path.suffix == ".txt" and ":" not in text:
        return {_image_name(path): _read_gfla(text, path)}
    return read_csv(text, path)


# ---------------------------------------------------------------- PATN / pose-gan CSV


def read_csv(text: str, path: Path) -> dict[str, np.ndarray]:
    """Parse the text of a PATN CSV as `read_keypoints` does; `path` is for the messages."""
    lines = text.splitlines()
    if lines[0].rstrip(",; \t").replace(" ", "") != HEADER:
        raise UserError(f"{path}:1: the header is not '{HEADER}' but '{lines[0][:60]}'", BAD_DATA)
    rows = [(n, line) for n, line in enumerate(lines[1:], 2) if line.strip(",; \t")]
    names, values = [], []
    for number, line in rows:
        name, yx = _parse_row(line, f"{path}:{number}")
        names.append(name)
        values.append(yx)
    if not rows:
        raise UserError(f"{path}: a header and no rows", BAD_DATA)
    array = np.array(values, dtype=np.float64)  # (N, 2, 18), y first
    if not (possible := (np.abs(array) < _LARGEST_PX).all((1, 2))).all():
        number = rows[int(possible.argmin())][0]
        raise UserError(
            f"{path}:{number}: NaN, Infinity or no pixel; write -1 for a missing joint", BAD_DATA
        )
    joints = _with_nan(array[:, ::-1].swapaxes(1, 2))
    table: dict[str, np.ndarray] = {}
    for (number, _), name, one in zip(rows, names, joints, strict=True):
        _put(table, name, one, f"{path}:{number}")
    return table


def _parse_row(line: str, where: str) -> tuple[str, list[list[float]]]:
    parts = line.rstrip(",; \t").rsplit(":", 2)
    if len(parts) != 3:
        raise UserError(
            f"{where}: expected 'name: [18 y]: [18 x]', separated by colons, got '{line[:40]}'",
            BAD_DATA,
        )
    lists = []
    for text in parts[1:]:
        try:
            numbers = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: '{text.strip()[:40]}' is not a list", BAD_DATA) from error
        if not isinstance(numbers, list) or not set(map(type, numbers)) <= {int, float}:
            raise UserError(f"{where}: expected a list of numbers", BAD_DATA)
        if len(numbers) != len(JOINTS):
            raise UserError(f"{where}: {len(numbers)} joints instead of {len(JOINTS)}", BAD_DATA)
        lists.append([min(max(x, -_LARGEST_PX), _LARGEST_PX) for x in numbers])  # 10**400 too
    return parts[0].rstrip(), lists


def write_keypoints(path: str | Path, keypoints: Mapping[str, np.ndarray]) -> None:
    """Write a PATN CSV: whole pixels, -1 = missing, sorted by name, atomic."""
    lines = [HEADER, *(csv_row(name, keypoints[name]) for name in sorted(keypoints))]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def csv_row(name: str, joints: np.ndarray) -> str:
    """One row of a PATN CSV, without its end of line; joints (18, 2) px, NaN = missing."""
    exact = np.asarray(joints, dtype=np.float64)
    pixels = np.where(missing(exact)[:, None], -1, np.rint(exact)).astype(int)
    return f"{name}: {pixels[:, 1].tolist()}: {pixels[:, 0].tolist()}"


# ---------------------------------------------------------------- text, heat maps and JSON


def _read_gfla(text: str, path: Path) -> np.ndarray:
    rows = [(n, line.split()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    values = []
    for number, row in rows:
        try:
            values.append([float(row[0]), float(row[1])])
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}:{number}: expected 'x y', two numbers", BAD_DATA) from error
        if len(row) != 2 or not max(map(abs, values[-1])) < _LARGEST_PX:
            raise UserError(f"{path}:{number}: expected 'x y', two finite numbers", BAD_DATA)
    if len(values) != len(JOINTS):
        raise UserError(f"{path}: {len(values)} joints instead of {len(JOINTS)}", BAD_DATA)
    return _with_nan(np.array(values))


def _read_heat_maps(path: Path) -> np.ndarray:
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path}: no file, or larger than {MAX_JSON_BYTES >> 20} MiB", BAD_DATA)
    try:  # not np.load: it opens archives as well
        maps = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy and Python's own parser raise a dozen kinds on its header
        why = CONTROL.sub(" ", str(error))[:200]
        raise UserError(f"{path}: not a NumPy array ({why})", BAD_DATA) from error
    if maps.dtype.kind not in "fiu" or not np.isfinite(maps).all():
        raise UserError(f"{path}: heat maps of {maps.dtype}, with NaN or none at all", BAD_DATA)
    if maps.ndim != 3 or maps.shape[2] != len(JOINTS) or not maps.size:
        raise UserError(f"{path}: shape {maps.shape} is not (height, width, 18)", BAD_DATA)
    flat = np.asarray(maps).reshape(-1, len(JOINTS))
    y, x = np.divmod(flat.argmax(0), maps.shape[1])
    return _with_nan(np.where(flat.max(0)[:, None] > 0, np.stack([x, y], axis=1), -1))


def _read_json(value: Any, path: Path) -> dict[str, np.ndarray]:
    if isinstance(value, dict) and isinstance(value.get("people"), list):
        people = [
            _from_openpose(p.get("pose_keypoints_2d", p.get("pose_keypoints")), path)
            if isinstance(p, dict)
            else _from_openpose(None, path)
            for p in value["people"]
        ]
        nobody = (np.full((len(JOINTS), 2), np.nan, np.float32), 0.0)
        return {_image_name(path): max(people, key=lambda person: person[1], default=nobody)[0]}
    best: dict[str, tuple[float, np.ndarray]] = {}
    for name, person in _coco_people(value, path):
        joints, confidence = _from_coco(person.get("keypoints"), f"{path}: '{name}'")
        score = person.get("score", confidence)
        if not isinstance(score, int | float):
            raise UserError(f"{path}: '{name}': the score is not a number", BAD_DATA)
        if name not in best or score > best[name][0]:
            best[name] = (float(score), joints)
    return {name: joints for name, (_, joints) in best.items()}


def _coco_people(value: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (image name, annotation) of a COCO data set or a COCO / AlphaPose result list."""
    wrong = UserError(f"{path}: neither OpenPose ('people') nor COCO ('annotations')", BAD_DATA)
    names: dict[Any, str] = {}
    if isinstance(value, dict):
        try:
            names = {image["id"]: str(image["file_name"]) for image in value["images"]}
            value = value["annotations"]
        except (KeyError, TypeError) as error:
            raise wrong from error
    if not isinstance(value, list):
        raise wrong
    for person in value:
        if not isinstance(person, dict) or not isinstance(person.get("image_id"), str | int):
            raise wrong
        name = names.get(person["image_id"], person["image_id"])
        if not isinstance(name, str):
            raise UserError(f"{path}: image_id {name} has no file name here", BAD_DATA)
        yield name, person


def _from_openpose(flat: Any, path: Path) -> tuple[np.ndarray, float]:
    values = _triples(flat, (18, 25), str(path))
    if len(values) == 25:
        values = values[_FROM_BODY_25]
    return _with_nan(_drop_unseen(values)), float(values[:, 2].sum())


def _from_coco(flat: Any, where: str) -> tuple[np.ndarray, float]:
    values = _triples(flat, (17,), where)
    return from_coco(_with_nan(_drop_unseen(values))), float(values[:, 2].sum())


def from_coco(joints: np.ndarray) -> np.ndarray:
    """COCO's 17 joints (17, 2), NaN = missing, as our 18; the neck is the shoulders' middle."""
    ours = joints[_FROM_COCO]
    ours[NECK] = (ours[R_SHOULDER] + ours[L_SHOULDER]) / 2  # NaN if one is missing
    return ours


def _triples(flat: Any, counts: tuple[int, ...], where: str) -> np.ndarray:
    """A flat list x, y, confidence, x, … as float (joints, 3)."""
    if not isinstance(flat, list) or not set(map(type, flat)) <= {int, float}:
        raise UserError(f"{where}: expected a flat list x, y, confidence, …", BAD_DATA)
    if len(flat) % 3 or len(flat) // 3 not in counts:
        expected = " or ".join(map(str, counts))
        raise UserError(
            f"{where}: {len(flat)} values are not {expected} joints of x, y, confidence", BAD_DATA
        )
    values = np.array(flat, dtype=np.float64).reshape(-1, 3)
    if not (np.abs(values) < _LARGEST_PX).all():
        raise UserError(f"{where}: a number among the joints that is no pixel", BAD_DATA)
    return values


def _drop_unseen(values: np.ndarray) -> np.ndarray:
    return np.where(values[:, 2:] > 0, values[:, :2], -1.0)


def _with_nan(joints: np.ndarray) -> np.ndarray:
    gone = (joints < 0).any(-1, keepdims=True)
    return np.where(gone, np.nan, joints).astype(np.float32)


def _image_name(path: Path) -> str:
    stem = path.stem.removesuffix("_keypoints")
    return stem if stem.lower().endswith(IMAGE_SUFFIXES) else f"{stem}.jpg"


# ---------------------------------------------------------------- checks and geometry


def missing(keypoints: np.ndarray) -> np.ndarray:
    """Which joints are missing: (..., 18, 2) -> bool (..., 18)."""
    return np.asarray(np.isnan(keypoints).any(-1))


def outside(keypoints: np.ndarray, size: Any) -> np.ndarray:
    """Which joints lie outside the frame; size (height, width) or (N, 2) of them."""
    limits = np.asarray(size, dtype=np.float32)[..., None, ::-1] - 0.5  # (…, 1, 2) as (x, y)
    return np.asarray(((keypoints > limits) | (keypoints < -0.5)).any(-1))  # NaN is not outside


def without_outside(keypoints: np.ndarray, size: Any) -> np.ndarray:
    """A copy whose joints outside the frame are NaN, float32; size as in `outside`."""
    return np.where(outside(keypoints, size)[..., None], np.nan, keypoints).astype(np.float32)


def inside(keypoints: np.ndarray, size: Any, *, name: str) -> np.ndarray:
    """Set joints outside the frame to NaN: (N, 18, 2), size (height, width) or (N, 2) of them.

    Raises UserError (BAD_DATA) when over a tenth of all joints lie outside, or when those of 16
    images and more leave the lowest quarter of the frame empty: then x and y are swapped, or the
    file belongs to images of another size.
    """
    out = outside(keypoints, size)
    there = max(1, (~missing(keypoints)).sum())
    if (share := out.sum() / there) > _OUTSIDE_LIMIT:
        swapped = outside(keypoints[..., ::-1], size).sum() / there <= _OUTSIDE_LIMIT
        raise UserError(
            f"{name}: {share:.0%} of the joints lie outside the image; "
            + ("x and y are swapped" if swapped else "the file is for images of another size"),
            BAD_DATA,
        )
    height = np.asarray(size, dtype=np.float32)[..., :1]  # (1,) or (N, 1)
    seen = ~missing(keypoints).all(-1)
    if seen.sum() >= _MANY and not (keypoints[..., 1] > _REACH * height).any():
        raise UserError(
            f"{name}: no joint of {seen.sum()} images lies below {_REACH:.0%} of the height; "
            "the file is for smaller images",
            BAD_DATA,
        )
    return without_outside(keypoints, size)


def _refuse_normalised(joints: np.ndarray, path: Path) -> None:
    there = joints[~missing(joints)]
    if len(there) >= 4 and there.max() <= 1:
        raise UserError(f"{path}: all coordinates are at most 1; pixels are expected", BAD_DATA)


def _refuse_swapped(joints: np.ndarray, path: Path) -> None:
    trunk = joints[:, [R_HIP, L_HIP]].mean(1) - joints[:, [R_SHOULDER, L_SHOULDER]].mean(1)
    trunk = np.abs(trunk[~np.isnan(trunk).any(1)])  # (images that show all four, 2)
    if len(trunk) >= _MANY and (lying := (trunk[:, 0] > trunk[:, 1]).mean()) > _LYING_LIMIT:
        raise UserError(
            f"{path}: {lying:.0%} of {len(trunk):,} people lie; x and y are swapped", BAD_DATA
        )


def rescale(keypoints: np.ndarray, before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
    """Joints (…, 18, 2) of an image of `before` (height, width), in px of its resize to `after`.

    Pixels are squares around whole numbers, as Pillow resizes; equal sizes change no byte.
    """
    if before == after:
        return keypoints
    ratio = np.array([after[1] / before[1], after[0] / before[0]])
    return np.asarray((keypoints + 0.5) * ratio - 0.5, dtype=np.float32)


def mirror(keypoints: np.ndarray, width: int) -> np.ndarray:
    """Keypoints of the flipped image: x -> width - 1 - x, left and right swapped; (..., 18, 2)."""
    flipped = np.array(keypoints)[..., _SWAPPED, :]
    flipped[..., 0] = width - 1 - flipped[..., 0]
    return flipped


def passes_patn(keypoints: np.ndarray) -> Any:
    """PATN's rule: both shoulders and both hips are there; (..., 18, 2) -> bool (...)."""
    return ~missing(keypoints)[..., [R_SHOULDER, L_SHOULDER, R_HIP, L_HIP]].any(-1)


def orientation(keypoints: np.ndarray) -> np.ndarray:
    """Where the person faces, in degrees, (..., 18, 2) -> (...); a coarse rule, NaN = cannot tell.

    0 = the camera, 90 = the image's right edge, 180 = away, -90 = the left edge. Facing the
    camera, the left shoulder lies on the image's right, about 0.75 torso lengths from the right
    one; in profile the nose lies about 0.45 before the shoulders (Market-1501's percentiles).
    """
    x = np.asarray(keypoints, dtype=np.float64)[..., 0]
    y = np.asarray(keypoints, dtype=np.float64)[..., 1]
    torso = (y[..., R_HIP] + y[..., L_HIP] - y[..., R_SHOULDER] - y[..., L_SHOULDER]) / 2
    torso = np.where(torso > 0, torso, np.nan)
    forward = (x[..., L_SHOULDER] - x[..., R_SHOULDER]) / torso / 0.75
    middle = (x[..., L_SHOULDER] + x[..., R_SHOULDER]) / 2
    sideways = np.nan_to_num((x[..., NOSE] - middle) / torso / 0.45)  # no nose: seen from behind
    return np.degrees(np.arctan2(sideways, forward))
