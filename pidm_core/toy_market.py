"""ToyMarket: drawn people in exact Market-1501 layout, with exact keypoints.

`make` writes the files, `oracle_render` draws anybody of them in anybody's pose. The world is
frozen: `VERSION` and `world_hash()` change only together, and then all tables are run again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pidm_core.files import (
    BAD_DATA,
    UserError,
    decode_image,
    encode_jpeg,
    load_image,
    parse_json,
    read_json,
    write_bytes,
    write_json,
)
from pidm_core.folders import only_writer
from pidm_core.keypoints import read_keypoints, write_keypoints
from pidm_core.toy_people import stream
from pidm_core.toy_scenes import (
    RANGES,
    SUBSETS,
    Counts,
    Scene,
    draw,
    exact_joints,
    found_joints,
    plan,
)

VERSION = 2
Preset = Literal["tiny", "demo", "full"]
TrainPeople = Literal["train", "pretrain"]
TestPeople = Literal["test", "development"]
PRESETS = {
    "tiny": Counts(8, 64, 6, 18, 36, 4, 6),
    "demo": Counts(110, 1450, 50, 175, 620, 90, 90),
    "full": Counts(751, 12_936, 750, 3_368, 13_115, 3_819, 2_798),  # Market-1501's own
}
_CHUNK = 128  # pictures between two entries in the ledger
_PER_PROCESS = 400  # fewer pictures than this are not worth another process
_SEEDS = 2**63  # of nuisance streams


def make(
    out: str | Path,
    *,
    preset: Preset = "demo",
    seed: int = 0,
    workers: int | None = None,
    train_people: TrainPeople = "train",
    test_people: TestPeople = "test",
    train_identities: int | None = None,
    train_images: int | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
) -> Path:
    """Draw a data set into `out`/market1501 and return that folder.

    The same arguments go on where an interrupted run stopped, and leave a finished set alone.
    `workers` None = one process per core, and one for small sets; more need an importable
    `__main__`. `progress(sizes, total=…)` passes on how many pictures were drawn at a time
    (`progress.track`). Raises UserError for a folder that holds something else or that another
    process draws into, and for counts that no set can have.
    """
    counts = wanted(preset, train_identities, train_images)
    scenes = plan(counts, seed=seed, train_people=train_people, test_people=test_people)
    root = Path(out) / "market1501"
    settings = {
        "toy_market": VERSION,
        "world": world_hash(),
        "seed": seed,
        "train_people": train_people,
        "test_people": test_people,
        "ranges": {name: [people.start, people.stop] for name, people in RANGES.items()},
        "counts": asdict(counts),
    }
    if not (_open(root, settings) and all((root / s.subset / s.name).is_file() for s in scenes)):
        with only_writer(Path(out)):
            _draw_all(root, seed, scenes, workers, progress)
            _write_lists(root, scenes)
            write_json(root / "toy_market.json", {**settings, "finished": True})
            shutil.rmtree(root / ".toy_market", ignore_errors=True)
    return root


def wanted(preset: str, train_identities: int | None, train_images: int | None) -> Counts:
    """The counts of a preset, with others of training people and images if they are given."""
    if preset not in PRESETS:
        raise UserError(f"preset '{preset}' is none of {', '.join(PRESETS)}")
    changes = {"train_identities": train_identities, "train_images": train_images}
    return replace(PRESETS[preset], **{k: v for k, v in changes.items() if v is not None})


def _open(root: Path, settings: dict[str, Any]) -> bool:
    """Whether the set is finished; refuses a folder that holds another one."""
    note = root / "toy_market.json"
    if not note.exists():
        if any((root / subset).exists() for subset in SUBSETS):
            raise UserError(f"{root}: holds images that are not ToyMarket's; choose another --out")
        write_json(note, {**settings, "finished": False})
        return False
    there = read_json(note)
    finished = isinstance(there, dict) and there.pop("finished", False) is True
    if there != settings:
        old = there if isinstance(there, dict) else {}
        different = [key for key in settings if old.get(key) != settings[key]]
        lines = ", ".join(f"{key} is {old.get(key)}, not {settings[key]}" for key in different)
        raise UserError(f"{root}: holds another ToyMarket ({lines}); choose another --out")
    return finished


# ---------------------------------------------------------------- drawing and the ledger


def _draw_all(
    root: Path,
    seed: int,
    scenes: list[Scene],
    workers: int | None,
    progress: Callable[..., Iterable[int]] | None,
) -> None:
    chunks = [scenes[start : start + _CHUNK] for start in range(0, len(scenes), _CHUNK)]
    open_jobs = [(root, seed, i, c) for i, c in enumerate(chunks) if not _is_done(root, i, c)]
    for subset in SUBSETS:
        (root / subset).mkdir(parents=True, exist_ok=True)
    left = sum(len(job[3]) for job in open_jobs)
    count = workers or min(os.cpu_count() or 1, -(-left // _PER_PROCESS))

    def follow(sizes: Iterable[int]) -> None:
        for _ in progress(sizes, total=left) if progress else sizes:
            pass

    if count <= 1 or len(open_jobs) <= 1:
        follow(map(_draw_chunk, open_jobs))
    else:  # spawn: a fork of a process with threads (torch) can hang
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            follow(pool.imap_unordered(_draw_chunk, open_jobs))


def _ledger(root: Path, index: int) -> Path:
    return root / ".toy_market" / f"{index:05d}.json"


def _is_done(root: Path, index: int, chunk: list[Scene]) -> bool:
    return _ledger(root, index).exists() and all(
        (root / s.subset / s.name).is_file() for s in chunk
    )


def _draw_chunk(job: tuple[Path, int, int, list[Scene]]) -> int:
    """Draw some scenes; their ledger entry is written when all images are on the disk."""
    root, seed, index, chunk = job
    rows = {}
    for scene in chunk:
        picture = draw(seed, scene)
        data = encode_jpeg(picture.image, quality=picture.jpeg)
        _replace(root / scene.subset / scene.name, data)
        found = found_joints(picture, stream(seed, "estimator", scene.key))
        rows[f"{scene.subset}/{scene.name}"] = {
            "found": _plain(found),
            "exact": _plain(exact_joints(picture)),
        }
    os.sync()  # once for all, not once per file: that would take a quarter of the time
    write_bytes(_ledger(root, index), json.dumps(rows).encode())
    return len(chunk)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _plain(joints: np.ndarray) -> list[list[int]]:
    gone = np.isnan(joints).any(axis=1, keepdims=True)
    rows: list[list[int]] = np.where(gone, -1, np.rint(np.nan_to_num(joints))).astype(int).tolist()
    return rows


def _write_lists(root: Path, scenes: list[Scene]) -> None:
    """Keypoints and scenes of the training images, and of query and gallery together."""
    rows: dict[str, Any] = {}
    for entry in sorted((root / ".toy_market").glob("*.json")):
        rows |= read_json(entry)
    for split in ("train", "test"):
        mine = [s for s in scenes if (s.subset == SUBSETS[0]) == (split == "train")]
        for kind, title in (("found", "market"), ("exact", "exact")):
            joints = {s.name: np.array(rows[f"{s.subset}/{s.name}"][kind], float) for s in mine}
            joints = {name: np.where(points < 0, np.nan, points) for name, points in joints.items()}
            write_keypoints(root / f"{title}-annotation-{split}.csv", joints)
        text = "".join(json.dumps(asdict(s)) + "\n" for s in mine)
        write_bytes(root / f"scenes-{split}.jsonl", text.encode())


# ---------------------------------------------------------------- the oracle


def _read_scenes(root: Path, split: str) -> dict[str, Scene]:
    path = root / f"scenes-{split}.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: missing; draw the set with tools/make_toy_market.py", BAD_DATA)
    lines = enumerate(path.read_text("utf-8").splitlines(), 1)
    scenes = [Scene(**parse_json(line, f"{path}:{number}")) for number, line in lines]
    return {f"{scene.subset}/{scene.name}": scene for scene in scenes}


class _Sources:
    """Finds the scene of a picture by its pixels; decodes the training images first."""

    def __init__(self, root: Path, scenes: dict[str, Scene]) -> None:
        self.root, self.known, self.unread = root, dict[bytes, Scene](), list(scenes.values())

    def find(self, image: np.ndarray) -> Scene | None:
        wanted = _digest(image)
        while wanted not in self.known and self.unread:
            subset = self.unread[0].subset
            for scene in [scene for scene in self.unread if scene.subset == subset]:
                path = self.root / scene.subset / scene.name
                self.known.setdefault(_digest(load_image(path)), scene)
            self.unread = [scene for scene in self.unread if scene.subset != subset]
        return self.known.get(wanted)


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()


def _key(joints: np.ndarray) -> bytes:
    return np.where(np.isnan(joints), -1, np.rint(joints)).astype(np.int16).tobytes()


def oracle_render(
    root: str | Path,
) -> Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]:
    """A renderer that knows the truth: the source's person, drawn in the pose's scene.

    `root` is a finished set (DIR or DIR/market1501). Sources are recognised by their pixels and
    poses by their joints, as found or exact, so only images and poses of the set can be given;
    of several poses without any joint the first by name is taken. Body lengths and view come from
    the pose, so that the joints fall where they are asked for; clothes, build, background, light
    and colour response come from the source; the seed decides noise and the place of the box.
    render: uint8 (B, 128, 64, 3), float (B, 18, 2) px, B seeds -> uint8 (B, 128, 64, 3).
    """
    root = Path(root)
    root = root if (root / "toy_market.json").is_file() else root / "market1501"
    note = read_json(root / "toy_market.json")
    if note.get("world") != world_hash():
        raise UserError(f"{root}: drawn by another version of ToyMarket; draw it again", BAD_DATA)
    scenes: dict[str, Scene] = {}
    poses: dict[bytes, Scene] = {}
    for split in ("train", "test"):
        mine = _read_scenes(root, split)
        by_name = {scene.name: scene for scene in mine.values()}
        for title in ("market", "exact"):
            for name, joints in read_keypoints(root / f"{title}-annotation-{split}.csv").items():
                poses.setdefault(_key(joints), by_name[name])
        scenes |= mine
    sources = _Sources(root, scenes)

    def render(images: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
        drawn = []
        for image, joints, luck in zip(images, keypoints, seeds, strict=True):
            source, pose = sources.find(image), poses.get(_key(joints))
            if source is None or pose is None:
                what = "a source image" if source is None else "a pose"
                raise UserError(f"{root}: {what} is not of this data set", BAD_DATA)
            picture = draw(int(note["seed"]), source, pose, luck % _SEEDS)
            data = encode_jpeg(picture.image, quality=picture.jpeg)
            drawn.append(decode_image(data, source.name))
        return np.stack(drawn)

    return render


@functools.cache
def world_hash() -> str:
    """A hash of a few drawn pictures, before JPEG: it changes when anything in the world does."""
    digest = hashlib.sha256(str(VERSION).encode())
    for scene in plan(Counts(4, 12, 4, 12, 12, 2, 2), seed=0):
        picture = draw(0, scene)
        digest.update(picture.image.tobytes())
        digest.update(np.array(_plain(exact_joints(picture))).tobytes())
        found = found_joints(picture, stream(0, "estimator", scene.key))
        digest.update(np.array(_plain(found)).tobytes())
    return digest.hexdigest()[:16]
