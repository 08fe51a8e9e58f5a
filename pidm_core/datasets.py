"""Data sets as users have them -> records, keypoints, pairs and a view, ready for `Pairs`.

DeepFashion In-shop in its own folders (img/ or img_highres/) or PATN's flat ones (train/, test/),
Market-1501, and any folder of images with a keypoint file and a pair list.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from pidm_core.data import (
    Record,
    View,
    check_frame,
    find_keypoints,
    has_market1501,
    list_names,
    make_pairs,
    read_market1501,
)
from pidm_core.files import (
    BAD_DATA,
    CONTROL,
    IMAGE_SUFFIXES,
    UserError,
    load_image,
    read_json,
    read_text,
    refuse_way_out,
    sha256,
)
from pidm_core.keypoints import NOBODY, inside, read_keypoints, rescale, without_outside
from pidm_core.pair_lists import fashion_key, name_records, read_pairs

log = logging.getLogger(__name__)

Split = Literal["train", "test"]
PUBLISHED_PAIRS = {
    ("DeepFashion", "train"): 101_966,
    ("DeepFashion", "test"): 8_570,
    ("Market-1501", "train"): 263_632,
    ("Market-1501", "test"): 12_000,
}
_MARKET = {  # images, and the name of one of them
    "train": (12_936, "0002_c1s1_000451_03.jpg"),
    "test": (19_732, "-1_c1s1_000401_03.jpg"),
}
_FASHION_FOLDERS = ("img_highres", "img", "Img/img_highres", "Img/img")
_FASHION_POSES = ("pose", "{}-resize-annotation-{}.csv", "{}-annotation-{}.csv")
_FASHION_PAIRS = ("{}-resize-pairs-{}.csv", "{}-pairs-{}.csv", "{1}_pairs.txt", "{1}_data.json")
_SPELLINGS = ("fasion", "fashion")
_BORDER_PX, _CUT_FRAME, _WHOLE_FRAME = 40, (256, 176), (256, 256)  # In-shop's small images
_WHITE = 250  # of 255; white borders have 255, the grey of the studio 210-240
_PROBES = 32
_DEPTH = 6  # an image's folders up to its data set's: Img/img/WOMEN/Dresses/id_00000001


@dataclass(frozen=True)
class People:
    """A data set: images, joints by image name, pairs (None = PATN's rule), what counts of each."""

    records: list[Record]
    keypoints: dict[str, np.ndarray]
    pairs: np.ndarray | None = None  # int (N, 2): source and target in `records`
    view: View | None = None

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `index` as it counts, uint8 (H, W, 3), and its joints, float32 (18, 2) in its px.

        Raises UserError for a broken image; joints outside the image are missing,
        and so are all of an image that has none.
        """
        record = self.records[index]
        image, joints = load_image(record.path), self.keypoints.get(record.name, NOBODY)
        if self.view:
            image, joints = self.view(image, joints)
        return image, without_outside(joints, image.shape[:2])


def read_people(
    root: str | Path, *, split: Split = "train", keypoints: str | Path = "", pairs: str | Path = ""
) -> People:
    """Read a data set, of whichever of the three kinds `root` is.

    keypoints, pairs: files to be used instead of those found beside the images. A pair list is
    PATN's CSV (`from,to`), GFLA's and PIDM's text (target, source, …) or PCDMs' JSON. Other
    numbers of images and pairs than the published ones are reported as a warning.
    Raises UserError (BAD_DATA) for what is missing, for joints of another frame than the images',
    and for a pair that names an unknown image.
    """
    root = _folder(root)
    if folder := _fashion_folder(root, split):
        return _read_fashion(root, folder, split, keypoints, pairs)
    if has_market1501(root, f"bounding_box_{split}") or not (keypoints and pairs):
        return _read_market(root, split, keypoints, pairs)
    records = list_images(root)
    key = _plain_key(records)
    people = _match(records, read_keypoints(keypoints), key, keypoints)
    check_frame(records, people.keypoints, name=keypoints)
    return _with_pairs(people, pairs, key, root)


def withhold(people: People, share: float, *, seed: int) -> tuple[People, People]:
    """Divide a data set by identity: (the rest, `share` of the identities, at least one).

    Images of a listed pair are of one identity, whatever their names say. Only identities with a
    pair are withheld, for others can judge nothing; who they are depends on the seed and the
    identities alone. Raises UserError (BAD_DATA) if no pair would be left.
    """
    pairs = make_pairs(people.records, people.keypoints) if people.pairs is None else people.pairs
    pids = _identities(people.records, pairs)
    paired = sorted({int(pid) for pid in pids[pairs[:, 1]]})
    count = max(1, round(share * len(set(pids.tolist()))))
    if count >= len(paired):
        raise UserError(
            f"{len(paired)} identities with a pair are too few to withhold {count} of them "
            "(train.withhold)",
            BAD_DATA,
        )
    drawn = sorted(paired, key=lambda pid: sha256(f"{seed}|withheld|{pid}".encode()))[:count]
    away = np.isin(pids, drawn)
    return _part(people, ~away), _part(people, away)


def _identities(records: Sequence[Record], pairs: np.ndarray) -> np.ndarray:
    """The identity of each record, int (N,): of those that pairs join the least."""
    pids = np.array([record.pid for record in records])
    lower: dict[int, int] = {}  # of two identities that are one

    def least(pid: int) -> int:
        while pid in lower:
            pid = lower[pid]
        return pid

    for pair in np.unique(pids[pairs], axis=0).tolist():
        low, high = sorted(map(least, pair))
        if low != high:
            lower[high] = low
    return np.array([least(pid) for pid in pids.tolist()])


def _part(people: People, kept: np.ndarray) -> People:
    """The kept records (a mask) and the pairs of which both are kept."""
    records = [record for record, keep in zip(people.records, kept, strict=True) if keep]
    pairs = people.pairs
    if pairs is not None:
        pairs = (np.cumsum(kept) - 1)[pairs[kept[pairs].all(1)]]
    return replace(people, records=records, pairs=pairs)


def list_images(folder: str | Path) -> list[Record]:
    """Every image below a folder, sorted; named by its path in there, identities from the names.

    Hidden files are ignored, links to folders not followed; files and folders with control
    characters in their name and what is no file (a dangling link, a pipe) are reported as a
    warning.
    Raises UserError (BAD_DATA) if there is none.
    """
    names = []
    for home, folders, _ in os.walk(folder):
        seen = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in seen if not CONTROL.search(name)]
        found, strange = list_names(Path(home))
        strange += [
            f"{Path(home) / CONTROL.sub('?', name)}: control characters in its name; rename it"
            for name in seen
            if name not in folders
        ]
        if strange:
            log.warning("%d files or folders left out, the first: %s", len(strange), strange[0])
        names += [(Path(home) / name).relative_to(folder).as_posix() for name in found]
    if not names:
        raise UserError(f"{folder}: no images (.jpg or .png) in it", BAD_DATA)
    return [Record(Path(folder) / r.name, r.name, r.pid, 0) for r in name_records(sorted(names))]


def _folder(root: str | Path) -> Path:
    if not Path(root).is_dir():
        raise UserError(
            f"{root}: no such folder; give the one that holds the images (docs/getting_started.md)",
            BAD_DATA,
        )
    return Path(root)


def pose_images(root: str | Path) -> list[Record]:
    """The images whose joints `read_people` would look up: names as it looks for them.

    Of a Market-1501 root and of PATN's flat DeepFashion those of training (for others give their
    own folder), of DeepFashion in its own folders and of any other folder all.
    """
    root = _folder(root)
    if folder := _fashion_folder(root, "train"):
        return list_images(folder)
    return read_market1501(root) if has_market1501(root) else list_images(root)


# ---------------------------------------------------------------- DeepFashion


def _fashion_folder(root: Path, split: Split) -> Path | None:
    """Where the images of DeepFashion lie below `root`, the large ones first; None = nowhere."""
    for folder in (root / name for name in (*_FASHION_FOLDERS, split, "")):
        if any((folder / gender).is_dir() for gender in ("WOMEN", "MEN")):
            return folder
        if folder.is_dir():
            with os.scandir(folder) as entries:
                files = (e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES))
                if any(map(fashion_key, files)):
                    return folder
    return None


def _read_fashion(
    root: Path, folder: Path, split: Split, keypoints: str | Path, pairs: str | Path
) -> People:
    records = [record for record in list_images(folder) if fashion_key(record.name)]
    places = (root, folder.parent)
    poses = keypoints or _beside(places, _FASHION_POSES, split)
    if not poses:
        raise UserError(
            f"{root}: no pose/, fasion-resize-annotation-{split}.csv or fasion-annotation-"
            f"{split}.csv in it; name a keypoint file, or make one with tools/extract_poses.py "
            f"--data {folder} --out {root}/fasion-annotation-{split}.csv",
            BAD_DATA,
        )
    pair_list = pairs or _beside(places, _FASHION_PAIRS, split)
    if not pair_list and folder.name != split:
        listed = _fashion_split(root, split)
        records = [record for record in records if fashion_key(record.name) in listed]
    table, framed = _read_fashion_joints(Path(poses))
    view = fashion_view(_border(records), framed=framed)
    people = replace(_match(records, table, fashion_key, poses), view=view)
    check_frame(records, people.keypoints, name=poses, view=view)
    people = _with_pairs(people, pair_list, fashion_key, root)
    return _compared(people, split)


def _read_fashion_joints(poses: Path) -> tuple[dict[str, np.ndarray], bool]:
    """A keypoint file, and whether its joints are px of the cut image; else of the file itself."""
    table, frame = read_keypoints(poses), _frame(poses)
    if frame == "whole":
        shift = np.array([_BORDER_PX, 0], dtype=np.float32)
        table = {name: joints - shift for name, joints in table.items()}
    return table, frame != "own"


def fashion_view(border: bool, *, framed: bool) -> View:
    """Cut In-shop's white borders (40 of 256 px each side), and bring the joints along.

    framed: the joints are px of the cut small image, 176 x 256, whatever the image's size;
    else of the image file itself.
    """

    def view(image: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = round(image.shape[1] * _BORDER_PX / _WHOLE_FRAME[1]) if border else 0
        image = image[:, cut : image.shape[1] - cut]
        if not framed:
            return image, joints - np.array([cut, 0], dtype=np.float32)
        return image, rescale(joints, _CUT_FRAME, image.shape[:2])

    return view


def _frame(poses: Path) -> Literal["whole", "cut", "own"]:
    """Whose px a keypoint file has: the whole small image's, the cut one's, or the file's own."""
    if poses.is_dir():  # text is GFLA's and PIDM's, heat maps are PATN's, JSON is anybody's
        kinds = {path.suffix for path in poses.rglob("*")}
        return "whole" if ".txt" in kinds else "cut" if ".npy" in kinds else "own"
    match = re.match(r"fash?ion-(resize-)?annotation-", poses.name)
    return "own" if not match or _estimated(poses) else "cut" if match[1] else "whole"


def _estimated(poses: Path) -> bool:
    """Whether tools/extract_poses.py made the file: its note of the weights lies beside."""
    note = poses.with_suffix(".json")
    return note != poses and note.is_file() and "weights" in read_json(note)


def _border(records: Sequence[Record]) -> bool:
    """Whether most images are square with white borders, judged by a few of them."""
    votes = []
    for record in records[:: max(1, len(records) // _PROBES)]:
        try:
            image = load_image(record.path)
        except UserError:  # reported when it is read for good
            continue
        edge = image.shape[1] * _BORDER_PX * 3 // (_WHOLE_FRAME[1] * 4)  # not up to the JPEG's rim
        sides = np.concatenate([image[:, :edge], image[:, -edge:]], axis=1)
        votes.append(image.shape[0] == image.shape[1] and sides.mean() > _WHITE)
    return bool(2 * sum(votes) > len(votes))


def _fashion_split(root: Path, split: Split) -> set[str]:
    """Keys of the images of a split, by PATN's train.lst or the partition of the data set."""
    lst = root / f"{split}.lst"
    if lst.is_file():
        return {fashion_key(line) for line in read_text(lst).split()}
    for path in (root / "Anno/list_eval_partition.txt", root / "list_eval_partition.txt"):
        if path.is_file():
            rows = [line.split() for line in read_text(path).splitlines()[2:]]
            wanted = {"train"} if split == "train" else {"query", "gallery"}
            return {fashion_key(row[0]) for row in rows if len(row) == 3 and row[2] in wanted}
    raise UserError(
        f"{root}: nothing says which images are for {split}; put {split}_pairs.txt, "
        f"fasion-resize-pairs-{split}.csv, {split}.lst or Anno/list_eval_partition.txt there",
        BAD_DATA,
    )


def _beside(folders: Iterable[Path], patterns: Iterable[str], split: Split) -> Path | None:
    names = [pattern.format(s, split) for pattern in patterns for s in _SPELLINGS]
    found = (folder / name for folder in folders for name in names if (folder / name).exists())
    return next(found, None)


# ---------------------------------------------------------------- one image


def open_image(path: str | Path, *, like: str | Path = "") -> np.ndarray:
    """One image file as it counts in its data set: DeepFashion's without their white borders.

    like: a file of the data set over which a mask was drawn, which is cut as that is.
    """
    image = load_image(path, ground=0 if like else 255)  # what a mask leaves clear is not marked
    if like and image.shape != load_image(like).shape:  # drawn over what is shown
        return image
    return _fashion_image(Path(like or path))(image, NOBODY)[0]


def open_joints(path: str | Path, keypoints: str | Path = "") -> np.ndarray:
    """The joints, float32 (18, 2) in px of what `open_image` shows of a file.

    keypoints: the file that holds them (default: the one beside the data set's images).
    Raises UserError (BAD_DATA) if none does.
    """
    path = Path(path).absolute()
    if not (key := fashion_key(path.as_posix())):
        source = Path(keypoints or find_keypoints(path.parent.parent, path.parent.name))
        table, parts = read_keypoints(source), path.parts[1:]
        endings = ("/".join(parts[k:]) for k in range(len(parts)))  # the longest first
        if (found := next((name for name in endings if name in table), None)) is None:
            raise UserError(f"{source}: holds no joints of {path.name}", BAD_DATA)
        return table[found]
    splits: tuple[Split, ...] = ("train", "test")
    beside = (_beside(path.parents[:_DEPTH], _FASHION_POSES, split) for split in splits)
    sources = [Path(keypoints)] if keypoints else [found for found in beside if found]
    for source in sources:
        image, (table, framed) = load_image(path), _read_fashion_joints(source)
        named = (name for name in table if fashion_key(name) == key or name == path.name)
        if (name := next(named, None)) is not None:
            return _fashion_image(path, framed=framed)(image, table[name])[1]
    where = ", ".join(map(str, sources)) or "no keypoint file beside the data set"
    raise UserError(f"{where}: holds no joints of {path.name}; name the file", BAD_DATA)


def _fashion_image(path: Path, *, framed: bool = False) -> View:
    """The view of DeepFashion's images where a file is one, judged by those beside it."""
    if not fashion_key(path.absolute().as_posix()):
        return lambda image, joints: (image, joints)
    names, _ = list_names(path.parent)
    return fashion_view(_border([Record(path.parent / n, n, 0, 0) for n in names]), framed=framed)


# ---------------------------------------------------------------- Market-1501, any folder


def _read_market(root: Path, split: Split, keypoints: str | Path, pairs: str | Path) -> People:
    subset = f"bounding_box_{split}"
    try:
        records = read_market1501(root, subset)
    except UserError as error:
        hint = "; for any other layout give --keypoints and --pairs"
        raise UserError(f"{error}{hint}", error.code) from error
    home = records[0].path.parent.parent
    poses = keypoints or find_keypoints(root, subset)
    table = read_keypoints(poses)
    check_frame(records, table, name=poses)
    found = _beside((home, home.parent), ("market-pairs-{1}.csv",), split)
    pairs = pairs or (found if found and split == "test" else "")
    return _compared(_with_pairs(People(records, table), pairs, _base_name, root), split)


def _base_name(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _plain_key(records: Sequence[Record]) -> Callable[[str], str]:
    """Base names where they tell the images apart, else paths."""
    if len({_base_name(record.name) for record in records}) == len(records):
        return _base_name
    return lambda name: str(PurePosixPath(name))


# ---------------------------------------------------------------- joints and pairs of records


def _match(
    records: list[Record],
    table: Mapping[str, np.ndarray],
    key: Callable[[str], str],
    source: str | Path,
) -> People:
    """Records with their joints, found by key.

    Raises UserError (BAD_DATA) where several names of the table stand for one image.
    """
    names: dict[str, list[str]] = {}
    for name in table:
        names.setdefault(key(name), []).append(name)
    found = {}
    for record in records:
        if of_it := names.get(key(record.name)):
            exact = [name for name in of_it if name == record.name] or of_it
            if len(exact) > 1:
                raise UserError(
                    f"{source}: '{exact[0]}' and '{exact[1]}' may both be {record.name}; name the "
                    "folder that holds the file's images, or a file of these images alone",
                    BAD_DATA,
                )
            found[record.name] = table[exact[0]]
    if not found:
        raise UserError(
            f"{source}: none of its {len(table):,} names is an image of the data set, as "
            f"'{next(iter(table))}' is not",
            BAD_DATA,
        )
    return People(records, found)


def _with_pairs(
    people: People, path: str | Path | None, key: Callable[[str], str], root: Path
) -> People:
    """The same people with the pairs of a file; those of PATN's rule without one."""
    if not path:
        return people
    place = {key(record.name): index for index, record in enumerate(people.records)}
    pairs = []
    for *names, line in read_pairs(path):
        for name in names:
            refuse_way_out(name, f"{path}:{line}")
            if key(name) not in place:
                raise UserError(
                    f"{path}:{line}: '{name}' is none of the {len(place):,} images in {root}",
                    BAD_DATA,
                )
        source, target = (place[key(name)] for name in names)
        if source == target or _two_people(people.records[source], people.records[target]):
            what = "one image twice" if source == target else "two people"
            raise UserError(f"{path}:{line}: {what} in a pair, remove the line", BAD_DATA)
        pairs.append([source, target])
    return replace(people, pairs=np.array(pairs))


def _two_people(*records: Record) -> bool:
    """Whether the names say so; of other names than the two data sets' the identity is a guess."""
    told = [record.pid for record in records if fashion_key(record.name) or _is_market(record.name)]
    return len(set(told)) > 1


def _is_market(name: str) -> bool:
    return bool(re.match(r"\d{4}_c\d", _base_name(name)))


# ---------------------------------------------------------------- published numbers


def _compared(people: People, split: Split) -> People:
    pairs = people.pairs
    count = len(make_pairs(people.records, people.keypoints) if pairs is None else pairs)
    compare_with_published([record.name for record in people.records], count, split=split)
    return people


def compare_with_published(names: Collection[str], pairs: int, *, split: Split) -> None:
    """Warn if the images are of a published set, and their number or that of pairs is another.

    DeepFashion is known by its names, Market-1501 by one of them.
    """
    found, (images, name) = [], _MARKET[split]
    if name in names:
        data = "Market-1501"
        if len(names) != images:
            found = [f"{len(names):,} of {images:,} images are there"]
    elif any(map(fashion_key, names)):
        data = "DeepFashion"
    else:
        return
    if pairs != (published := PUBLISHED_PAIRS[data, split]):
        found.append(f"{pairs:,} {split} pairs instead of the published {published:,}")
    if found:
        log.warning("%s: %s; results are not comparable with others'", data, ", ".join(found))


def check_beside(poses: Path, keypoints: Mapping[str, np.ndarray], *, split: Split) -> None:
    """Refuse joints of another frame than DeepFashion's file names or Market-1501's images tell.

    Images are looked for beside the file; without them, and for other data, nothing is checked.
    Raises what `keypoints.inside` raises.
    """
    frame = _frame(poses) if any(map(fashion_key, keypoints)) else "own"
    if frame != "own":
        size = _WHOLE_FRAME if frame == "whole" else _CUT_FRAME
        inside(np.stack(list(keypoints.values())), size, name=str(poses))
    elif has_market1501(poses.parent, subset := f"bounding_box_{split}"):
        check_frame(read_market1501(poses.parent, subset), keypoints, name=poses)
