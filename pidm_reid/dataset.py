"""PIDMAugmentedDataset: a torchreid data set with generated images added to its training set.

It is a subclass, made when needed, of the base data set's own class: reading, checking, junk and
the 500k distractors stay torchreid's, query and gallery are not touched, and only `.train`
changes. Every torchreid sampler, engine, `sum()` of data sets and `combineall` work on it.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from pidm_core import BAD_DATA, IMAGE_SUFFIXES, UserError, load_image
from pidm_reid import compat
from pidm_reid import pool as pools
from pidm_reid.folder import PERSON, person, read_augmented

Item = tuple[str, int, int, int]
"""Path, label (0 ... people-1), camera (from 0), data set (0 real, 1 synthetic)."""

log = logging.getLogger(__name__)
REAL, SYNTHETIC = 0, 1
_REFUSED = (
    "cannot read a person or camera number in a file name (Market-1501: persons 0-1501, cameras "
    "1-6); renumber them"
)
_ORIENTATION = 0x0112  # EXIF's tag


class PIDMAugmentedDataset:
    """`base` from `root`, its training set cut to the D_tr of an augmented folder and enlarged.

    Any other keyword is torchreid's (transform, mode, k_tfm, combineall, verbose, …). Synthetic
    images have data set id 1, so RandomDatasetSampler with num_datasets=2 mixes half and half;
    they carry person and camera of their source. With combineall the test people are added as
    torchreid does it, neither cut nor enlarged.

    Raises UserError (BAD_DATA) for a missing folder, before torchreid makes an empty one and
    goes to the network, for an image that does not decode (torchreid would retry it for ever),
    and for an augmented folder that belongs to another data set.

    With `render` (pool.Renders) and `fresh_each_epoch(datamanager)` every epoch has new images:
    the synthetic ones are then read from the folder `pool` (default: the augmented folder's
    pool/). `keypoints` is the file to choose their poses from (default: beside the originals).
    """

    base_name = "market1501"
    folder = Path()
    pool = ""

    # what torchreid's base class brings
    dataset_dir: str
    mode: str
    train: list[Item]
    query: list[Item]
    gallery: list[Item]
    data: list[Item]
    show_summary: Callable[[], None]
    get_num_pids: Callable[[list[Item]], int]
    get_num_datasets: Callable[[list[Item]], int]

    def __new__(
        cls,
        root: str = "",
        *,
        base: str = "",
        augmented: str = "",
        render: pools.Renders | None = None,
        pool: str = "",
        keypoints: str = "",
        **_: Any,
    ) -> Self:
        if cls is PIDMAugmentedDataset:
            if not augmented:
                raise UserError("PIDMAugmentedDataset: needs augmented=DIR, an augmented folder")
            home = _pool(augmented, render, pool, keypoints)
            cls = _class_for(base or cls.base_name, os.path.abspath(augmented), home)
        return object.__new__(cls)

    def __init__(self, root: str = "", *, verbose: bool = True, **options: Any) -> None:
        ours = ("base", "augmented", "render", "pool", "keypoints")  # __new__ has used them
        theirs = {name: value for name, value in options.items() if name not in ours}
        self._load_base(os.fspath(root), theirs)
        if self.mode == "train":
            self._augment()
        check_images(item[0] for item in self.data if item[3] == REAL)
        self.verbose = verbose
        if verbose:
            self.show_summary()

    def __reduce__(self) -> tuple[Any, ...]:  # for loader workers that are spawned, not forked
        return _restore, (self.base_name, str(self.folder), self.pool), self.__dict__

    def _load_base(self, root: str, kwargs: dict[str, Any]) -> None:
        home = Path(root).expanduser() / self.dataset_dir
        if not home.is_dir():
            here = (self.folder / self.dataset_dir).is_dir()  # of people of one's own
            raise UserError(
                f"{home}: no such folder; root must be the folder that holds {self.dataset_dir}"
                + f", or the augmented one, {self.folder}" * here,
                BAD_DATA,
            )
        if found := PERSON.search(os.path.abspath(home)):  # torchreid searches the whole path
            raise UserError(
                f"{home}: torchreid would read person and camera from '{found[0]}' in this path; "
                "rename that folder",
                BAD_DATA,
            )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The current data structure is deprecated")
                super().__init__(root=root, verbose=False, **kwargs)  # type: ignore[call-arg]
        except RuntimeError as error:  # '"…/query" is not found'
            raise UserError(f"{home}: {error}", BAD_DATA) from error
        except IndexError as error:
            raise UserError(f"{home}: training set, query or gallery is empty", BAD_DATA) from error
        except AssertionError as error:  # in its loop over the names
            raise UserError(f"{home}: torchreid's {self.base_name} {_REFUSED}", BAD_DATA) from error
        folders = (getattr(self, f"{part}_dir", "") for part in ("train", "query", "gallery"))
        for part in (Path(part) for part in folders if part):
            images = (n for n in os.listdir(part) if n.lower().endswith(IMAGE_SUFFIXES))
            if unread := sorted(n for n in images if not n.startswith(".") and n[-4:] != ".jpg"):
                raise UserError(
                    f"{part}: torchreid reads names in .jpg alone, so not {len(unread)} images "
                    f"such as {unread[0]}; rename or convert them",
                    BAD_DATA,
                )
        if any(map(_misread, (*self.query, *self.gallery))):  # camera 11 would be camera 1
            raise UserError(f"{home}: torchreid's {self.base_name} {_REFUSED}", BAD_DATA)

    def _augment(self) -> None:
        augmented = read_augmented(self.folder)
        if augmented.missing:
            log.warning("%s: %d images are not generated yet", self.folder, augmented.missing)
        tested = {item[0] for item in (*self.query, *self.gallery)}
        here = {os.path.basename(item[0]): item for item in self.train if item[0] not in tested}
        if missing := [name for name in augmented.real if name not in here]:
            raise UserError(
                f"{self.folder}: its split.json names {len(missing)} images that are not in "
                f"{self.dataset_dir}, such as {missing[0]}; it was made from another data set",
                BAD_DATA,
            )
        train = entries(
            [here[name][0] for name in augmented.real],
            [os.path.join(self.pool or augmented.train_folder, n) for n in augmented.synthetic],
        )
        people = 1 + max(label for _, label, _, _ in train)
        added = [item[0] for item in self.train if item[0] in tested]  # combineall
        train += [(path, people + k, cam, REAL) for path, k, cam, _ in entries(added, ())]
        self.train = train
        self.data = self.train
        self.num_train_pids = self.get_num_pids(train)
        # `a + b` adds this to b's cameras: one more than the largest, should D_tr lack a camera
        self.num_train_cams = 1 + max(camid for _, _, camid, _ in train)
        self.num_datasets = self.get_num_datasets(train)


def register(
    name: str,
    *,
    base: str = "market1501",
    augmented: str | Path,
    render: pools.Renders | None = None,
    pool: str | Path = "",
    keypoints: str | Path = "",
) -> None:
    """Make an augmented folder known to torchreid under `name`; a second time does nothing.

    `render`, `pool` and `keypoints` are those of PIDMAugmentedDataset.
    Raises UserError if the folder is none, the base is unknown, or the name is taken.
    """
    read_augmented(augmented, verify=False)
    home = _pool(augmented, render, pool, keypoints)
    cls = _class_for(base, os.path.abspath(augmented), home)
    known = compat.data_sets()
    if known.setdefault(name, cls) is not cls:
        raise UserError(f"torchreid has a data set named '{name}' already; choose another name")


@functools.cache
def _class_for(base: str, augmented: str, pool: str) -> type[Any]:
    parent = compat.base_class(base)
    return type(
        f"PIDMAugmented{parent.__name__}",
        (PIDMAugmentedDataset, parent),
        {
            "base_name": base,
            "folder": Path(augmented),
            "pool": pool,
            "__doc__": PIDMAugmentedDataset.__doc__,
        },
    )


def _misread(item: Item) -> bool:
    """Whether torchreid took another camera from a test image's name than stands there."""
    found = PERSON.search(os.path.basename(item[0]))
    return found is not None and int(found[2]) != item[2] + 1


def _restore(base: str, augmented: str, pool: str) -> Any:
    return object.__new__(_class_for(base, augmented, pool))


def _pool(
    augmented: str | Path, render: pools.Renders | None, home: str | Path, keypoints: str | Path
) -> str:
    if render is None:
        return ""
    return pools.open_pool(Path(augmented), render, home=str(home), keypoints=str(keypoints))


# ---------------------------------------------------------------- training lists


def entries(real: Sequence[str], synthetic: Sequence[str]) -> list[Item]:
    """torchreid's training tuples of image paths, sorted by file name.

    Labels number the real people by identity, so they depend on no file system's order.
    """
    people = sorted({person(os.path.basename(path))[0] for path in real})
    label = {pid: k for k, pid in enumerate(people)}
    items = []
    for kind, paths in ((REAL, real), (SYNTHETIC, synthetic)):
        for path in sorted(paths, key=os.path.basename):
            pid, camera = person(os.path.basename(path))
            if pid not in label:
                raise UserError(f"{path}: person {pid} has no real image", BAD_DATA)
            items.append((path, label[pid], camera - 1, kind))
    return items


_checked: set[tuple[str, int, int]] = set()


def check_images(paths: Iterable[str]) -> None:
    """Decode every image once in this process; UserError (BAD_DATA) names the first broken one.

    Broken is also what torchreid would take for another picture than we do.
    """
    for path in paths:
        try:
            state = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})", BAD_DATA) from error
        key = (path, state.st_mtime_ns, state.st_size)
        if key not in _checked:
            load_image(path)
            _check_plain(path)
            _checked.add(key)


def _check_plain(path: str) -> None:
    """torchreid reads 16 bits as white, drops transparency, and does not turn as EXIF says."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF blocks
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            if image.mode[0] in "IF" or image.has_transparency_data or turned:
                raise UserError(
                    f"{path}: torchreid would read it otherwise (16 bits, transparent, or turned "
                    "by EXIF); save it as plain RGB of 8 bits",
                    BAD_DATA,
                )
