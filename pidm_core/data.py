"""Folders of people -> records -> training pairs (source, target, keypoints of the target).

Everything random is a function of the generator or (seed, position) given by the caller.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pidm_core.files import BAD_DATA, CONTROL, IMAGE_SUFFIXES, UserError, load_image, sha256
from pidm_core.keypoints import (
    NOBODY,
    inside,
    mirror,
    missing,
    passes_patn,
    rescale,
    without_outside,
)

log = logging.getLogger(__name__)

_NAME = re.compile(r"(-1|\d{4})_c(\d+)")
_FOLDERS = ("", "market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15")
_PATN_NAMES = {"bounding_box_train": "train", "bounding_box_test": "test"}
_CSV = {"bounding_box_train": "market-annotation-train.csv"}
_TEST_CSV = "market-annotation-test.csv"
_JUNK_PIDS = (-1, 0)
_CACHE_BYTES = 4 << 30
_BROKEN_LIMIT = 0.05
_WITHDRAWN = re.compile(r"duke[-_ ]?mtmc", re.IGNORECASE)
_WITHDRAWN_NAME = re.compile(r"\d{4}_c\d_f\d{7}")  # DukeMTMC's own, whatever the folder's
_PROBES = 64
_SELF_SHARE = 0.1

View = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""An image file and its joints -> the part of the image that counts, and the joints in its px."""


@dataclass(frozen=True)
class Record:
    """One image of a person: file, file name, identity, camera as in the name (c1 -> 1)."""

    path: Path
    name: str
    pid: int
    camid: int


# ---------------------------------------------------------------- folders


def read_market1501(
    root: str | Path, subset: str = "bounding_box_train", *, left_out: list[str] | None = None
) -> list[Record]:
    """List a subset of a folder in Market-1501 layout, sorted by name.

    The subset lies in root, root/market1501 or root/Market-1501-v15.09.15; PATN's folder names
    train and test do as well. Reads .jpg, .jpeg and .png; other and hidden files are ignored, what
    is called an image and is none (a dangling link, a folder, a pipe) is reported as a warning, or
    in `left_out`.
    Raises UserError (BAD_DATA) when there is no such folder, no image, or a name without pid.
    """
    folder = find_subset(Path(root), subset)
    names, strange = list_names(folder)
    if left_out is not None:
        left_out += strange
    elif strange:
        log.warning("%d files left out, the first: %s", len(strange), strange[0])
    if not names:
        raise UserError(f"{folder}: no images (.jpg or .png) in it", BAD_DATA)
    found = [(name, _NAME.match(name)) for name in names]
    if other := [name for name, match in found if not match]:
        raise UserError(
            f"{folder / other[0]}: the name must begin with person and camera, PPPP_cC, such as "
            f"0001_c1_….jpg ({len(other):,} of {len(names):,} names here do not); rename or remove "
            "the file",
            BAD_DATA,
        )
    return [Record(folder / n, n, int(match[1]), int(match[2])) for n, match in found if match]


def list_names(folder: Path) -> tuple[list[str], list[str]]:
    """The images in a folder by name, sorted, and why others with such a name are none.

    Raises UserError (BAD_DATA) for a data set that was withdrawn.
    """
    names, strange = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.lower().endswith(IMAGE_SUFFIXES) or entry.name.startswith("."):
                continue
            if CONTROL.search(entry.name):
                shown = CONTROL.sub("?", entry.name)
                strange.append(f"{folder / shown}: control characters in its name; rename it")
            elif not entry.is_file():
                strange.append(f"{folder / entry.name}: a dangling link, folder or pipe, no image")
            else:
                names.append(entry.name)
    above = "/".join(folder.absolute().parts[-3:])
    if _WITHDRAWN.search(above) or any(map(_WITHDRAWN_NAME.match, names)):
        raise UserError(
            f"{folder}: DukeMTMC was withdrawn in 2019, since the people in it were never asked; "
            "it is not supported",
            BAD_DATA,
        )
    return sorted(names), sorted(strange)


def find_subset(root: Path, subset: str) -> Path:
    """The folder of a subset's images, by its own name or PATN's (train, test)."""
    for name in (subset, *filter(None, [_PATN_NAMES.get(subset)])):
        for folder in _FOLDERS:
            if (root / folder / name).is_dir():
                return root / folder / name
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds '{subset}'", BAD_DATA)
    if root.resolve().name in (subset, _PATN_NAMES.get(subset)):
        above = root.resolve().parent
        raise UserError(f"{root}: is the folder of images; give the one above, {above}", BAD_DATA)
    if any(_NAME.match(path.name) for path in root.iterdir() if path.is_file()):
        raise UserError(
            f"{root}: no folder '{subset}' in it, but images; move them into {root / subset}",
            BAD_DATA,
        )
    raise UserError(
        f"{root}: no folder '{subset}' in it, nor in its market1501 or Market-1501-v15.09.15; "
        "give the folder that holds the Market-1501 layout (docs/getting_started.md shows it)",
        BAD_DATA,
    )


def has_market1501(root: str | Path, subset: str = "bounding_box_train") -> bool:
    """Whether `read_market1501` would find the subset, and a name as it wants them in there."""
    try:
        folder = find_subset(Path(root), subset)
    except UserError:
        return False
    with os.scandir(folder) as entries:
        return any(_NAME.match(entry.name) for entry in entries)


def find_keypoints(root: str | Path, subset: str = "bounding_box_train") -> Path:
    """The PATN keypoint CSV of a subset: in the folder of the subsets, beside it or one above."""
    home = find_subset(Path(root), subset).parent
    name = _CSV.get(subset, _TEST_CSV)
    for folder in (home, home.parent, home.parent.parent):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{home}: no {name} in it, beside it or above; name a keypoint file, or make one with "
        "tools/extract_poses.py",
        BAD_DATA,
    )


def check_frame(
    records: Sequence[Record],
    keypoints: Mapping[str, np.ndarray],
    *,
    name: str | Path,
    view: View | None = None,
) -> None:
    """Refuse joints of another frame than that of their images, judged by up to 64 of these.

    Raises what `keypoints.inside` raises, naming `name`; broken images are left to others.
    """
    known = [record for record in records if record.name in keypoints]
    sizes, joints = [], []
    for record in known[:: len(known) // _PROBES + 1]:
        try:
            image, seen = load_image(record.path), keypoints[record.name]
        except (UserError, OSError):  # reported when it is read for good
            continue
        image, seen = view(image, seen) if view else (image, seen)
        sizes.append(image.shape[:2])
        joints.append(seen)
    if sizes:
        inside(np.stack(joints), sizes, name=str(name))


# ---------------------------------------------------------------- pairs


def make_pairs(records: Sequence[Record], keypoints: Mapping[str, np.ndarray]) -> np.ndarray:
    """All training pairs by PATN's rule: int (N, 2), indices (source, target) into `records`.

    Ordered pairs of different images of one identity that both show both shoulders and both hips;
    pids 0 (distractor) and -1 (junk) are no identities. Sorted by pid, source, target.
    """
    pids = np.array([record.pid for record in records], dtype=np.int64)
    usable = np.flatnonzero(_usable(records, keypoints))
    usable = usable[np.argsort(pids[usable], kind="stable")]
    _, start, count = np.unique(pids[usable], return_index=True, return_counts=True)
    first, others = np.repeat(start, count), np.repeat(count, count) - 1  # of each usable image
    source = np.repeat(np.arange(len(usable)), others)
    place = np.arange(len(source)) - np.repeat(np.cumsum(others) - others, others)
    target = first[source] + place
    target += target >= source  # an image is no pair with itself
    return np.stack([usable[source], usable[target]], axis=1)


def _usable(records: Sequence[Record], keypoints: Mapping[str, np.ndarray]) -> np.ndarray:
    joints = [keypoints.get(record.name, NOBODY) for record in records]
    people = np.array([record.pid not in _JUNK_PIDS for record in records], dtype=bool)
    usable: np.ndarray = people & passes_patn(np.array(joints).reshape(-1, 18, 2))
    return usable


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng([seed, epoch, count]).permutation(count)
    permutation.setflags(write=False)
    return permutation


def order(
    count: int, *, seed: int, position: int, batch_size: int, world: int = 1, rank: int = 0
) -> np.ndarray:
    """Which samples a rank trains on: int (batch_size,), a pure function of its arguments.

    The stream is one permutation of range(count) per epoch, without end. A step of all ranks
    takes the world * batch_size samples from `position` on, rank by rank; so the position of
    step k is k * world * batch_size, and the set of a step depends on that product alone.
    """
    start = position + rank * batch_size
    places = np.arange(start, start + batch_size)
    epochs = range(start // count, (start + batch_size - 1) // count + 1)
    return np.concatenate(
        [_permutation(count, seed, e)[places[places // count == e] - e * count] for e in epochs]
    )


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """A training batch."""

    source: np.ndarray  # uint8 (B, H, W, 3)
    target: np.ndarray  # uint8 (B, H, W, 3)
    keypoints: np.ndarray  # float32 (B, 18, 2) px of the target, NaN = missing


class Pairs:
    """The training pairs of one data set, with their images in RAM if they need under 4 GB.

    Images of another size than `size` (height, width) are resized, their keypoints with them.
    `view` cuts each image before that and brings its keypoints into its frame.
    Joints outside their image are missing; of images that are not in RAM they count for PATN's
    rule, since that is not known before they are read.
    `pairs` (N, 2), indices (source, target) into `records`, replaces PATN's rule and `self_pairs`;
    of those, pairs whose target has no joint are left out and counted in a warning.
    With `self_pairs` an image of an identity without any pair is the source of its own flip;
    such samples are at most a tenth of an epoch, and of a batch (one in a batch under ten).
    Broken images are reported and left out; over 5 % of them is a UserError (BAD_DATA).
    """

    def __init__(
        self,
        records: Sequence[Record],
        keypoints: Mapping[str, np.ndarray],
        *,
        size: tuple[int, int],
        self_pairs: bool = True,
        pairs: np.ndarray | None = None,
        view: View | None = None,
    ) -> None:
        self.size, self._view = size, view
        used = np.flatnonzero(_usable(records, keypoints)) if pairs is None else np.unique(pairs)
        self.records = [records[int(i)] for i in used]
        self.broken: set[int] = set()
        self._images: np.ndarray | None = None
        joints = [keypoints.get(record.name, NOBODY) for record in self.records]
        self._joints = np.array(joints, dtype=np.float32).reshape(-1, 18, 2)
        if len(self.records) * 3 * size[0] * size[1] <= _CACHE_BYTES:
            self._fill_cache()
        if pairs is None:
            self._pairs, alone = self._by_rule(len(records))
        else:
            self._pairs, alone = self._as_listed(np.searchsorted(used, pairs)), used[:0]
        self._alone = alone if self_pairs else alone[:0]
        most = int(len(self._pairs) * _SELF_SHARE / (1 - _SELF_SHARE))
        self._self_pairs = min(len(self._alone), most)

    def __len__(self) -> int:
        return len(self._pairs) + self._self_pairs

    def digest(self) -> str:
        """SHA-256 of names, joints and pairs: what is used of a keypoint file and a pair list."""
        names = "\n".join(record.name for record in self.records)
        joints = np.nan_to_num(self._joints, nan=-1)  # there is more than one NaN
        return sha256(names.encode() + joints.tobytes() + self._pairs.tobytes())

    def batch(self, indices: np.ndarray, rng: np.random.Generator, *, max_scale: float) -> Batch:
        """The samples at `indices` (B,), augmented: flip, and enlargement with a crop.

        Source and target are flipped together, as in the official code, so that what is worn on
        one side stays there; the joints change sides with the flip, which the official code
        omits. Enlargement (1 ... 1 + max_scale, bicubic) and crop are drawn for each image.
        """
        size = len(indices)
        flip = rng.random(size) < 0.5
        draws = rng.random((2, size, 3))  # of source and target: scale, top, left
        chosen, twin = self._choose(np.asarray(indices), rng)
        images, joints = self._load(chosen, twin, rng)  # (B, 2, …): source and target
        source, _ = _augment(images[:, 0], joints[:, 0], draws[0], flip, max_scale)
        target, moved = _augment(images[:, 1], joints[:, 1], draws[1], flip ^ twin, max_scale)
        return Batch(source, target, moved)

    # ------------------------------------------------------------ choosing

    def _by_rule(self, images: int) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of PATN's rule (N, 2), and the images that are in none (M,)."""
        good = np.flatnonzero(passes_patn(self._joints))  # once more: some lost a joint or a file
        good = good[~np.isin(good, list(self.broken))]
        table = {self.records[i].name: self._joints[i] for i in good}
        pairs = make_pairs(self.records, table)
        if not len(pairs):
            raise UserError(
                f"none of {images} images forms a training pair: no identity has two images "
                "with both shoulders and both hips in the keypoint file and within the image",
                BAD_DATA,
            )
        return pairs, np.setdiff1d(good, pairs)

    def _as_listed(self, pairs: np.ndarray) -> np.ndarray:
        """The pairs of a list that can be used (N, 2)."""
        good = ~np.isin(pairs, list(self.broken)).any(1)
        good &= ~missing(self._joints[pairs[:, 1]]).all(1)
        kept: np.ndarray = pairs[good]
        if lost := len(pairs) - len(kept):
            log.warning(
                "%d of %d listed pairs left out: the target has no joints in the keypoint file, "
                "or an image is broken", lost, len(pairs),
            )  # fmt: skip
        if not len(kept):
            raise UserError(
                f"none of {len(pairs)} listed pairs can be used: no target has joints in the "
                "keypoint file",
                BAD_DATA,
            )
        return kept

    def _choose(
        self, indices: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image numbers (B, 2) of source and target, and whether they are one image (B,)."""
        twin = indices >= len(self._pairs)
        twin &= np.cumsum(twin) <= max(1, int(len(indices) * _SELF_SHARE))
        spare = rng.integers(len(self._pairs), size=len(indices))
        chosen = self._pairs[np.where(indices < len(self._pairs), indices, spare)]
        if twin.any():
            chosen[twin] = rng.choice(self._alone, size=(int(twin.sum()), 1))
        return chosen, twin

    def _load(
        self, chosen: np.ndarray, twin: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, 2, H, W, 3) and joints (B, 2, 18, 2); another pair for one that is broken."""
        if self._images is not None:
            return self._images[chosen], self._joints[chosen]
        read: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for row, pair in enumerate(chosen):  # `pair` is a view: it sees the replacement
            while not all(self._read_into(read, int(index)) for index in pair):
                chosen[row] = self._pairs[rng.integers(len(self._pairs))]
                twin[row] = False
        both = [read[int(index)] for index in chosen.flat]
        images = np.stack([image for image, _ in both]).reshape(-1, 2, *self.size, 3)
        return images, np.stack([joints for _, joints in both]).reshape(-1, 2, 18, 2)

    def _read_into(self, read: dict[int, tuple[np.ndarray, np.ndarray]], index: int) -> bool:
        if index not in read and index not in self.broken and (one := self._read(index)):
            read[index] = one
        return index in read

    # ------------------------------------------------------------ images

    def _fill_cache(self) -> None:
        images = np.zeros((len(self.records), *self.size, 3), dtype=np.uint8)
        for index in range(len(self.records)):
            if read := self._read(index):
                images[index], self._joints[index] = read
        self._images = images

    def _open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One image as the view shows it, and its joints."""
        image, joints = load_image(self.records[index].path), self._joints[index].copy()
        return self._view(image, joints) if self._view else (image, joints)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Decode one image: it and its joints at the training size; None = broken, reported."""
        try:
            image, joints = self._open(index)
        except (UserError, OSError) as error:
            self.broken.add(index)
            log.warning("left out: %s", error)
            if len(self.broken) > max(1, _BROKEN_LIMIT * len(self.records)):
                raise UserError(
                    f"{len(self.broken)} of {len(self.records)} training images are broken, the "
                    f"last is {self.records[index].path}; over 5 % is too many, check the copy of "
                    "the data",
                    BAD_DATA,
                ) from error
            return None
        joints = without_outside(joints, image.shape[:2])
        if image.shape[:2] == self.size:
            return image, joints
        return _resize(image, self.size), rescale(joints, image.shape[:2], self.size)


def _resize(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    from PIL import Image

    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC, box)
    return np.asarray(small)


def _enlarge(
    images: np.ndarray, joints: np.ndarray, draws: np.ndarray, max_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge each image 1 ... 1 + max_scale times and cut it back to its size; joints follow."""
    size = images.shape[1:3]
    scale = 1 + max_scale * draws[:, :1]  # (B, 1)
    window = np.array(size[::-1]) / scale  # (B, 2) width and height of what stays, px
    corner = (np.array(size[::-1]) - window) * draws[:, :0:-1]  # (B, 2) x and y
    boxes = np.concatenate([corner, corner + window], axis=1)
    out = np.stack([_resize(im, size, tuple(b)) for im, b in zip(images, boxes, strict=True)])
    moved = (joints + 0.5 - corner[:, None]) * scale[:, None] - 0.5
    return out, without_outside(moved, size)


def _augment(
    images: np.ndarray, joints: np.ndarray, draws: np.ndarray, flip: np.ndarray, max_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    if max_scale:
        images, joints = _enlarge(images, joints, draws, max_scale)
    images[flip] = images[flip, :, ::-1]
    joints[flip] = mirror(joints[flip], images.shape[2])
    return images, joints
