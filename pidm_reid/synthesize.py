"""Plan + any renderer -> an augmented folder; sharded, and resumed by the same call.

An image counts as done when the ledger holds its line (source, pose, seed, settings, renderer)
and its file has the hash written there. Files are whole or not there at all, and appear before
their line; so a run may be killed anywhere, repeated, and shared by many machines. Every image
says in its metadata that it is generated, unless the generator has no mark.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pidm_core import (
    BAD_DATA,
    Record,
    UserError,
    __version__,
    check_frame,
    decode_image,
    encode_jpeg,
    load_image,
    read_image_file,
    read_keypoints,
    refuse_path,
    rescale,
    resized,
    sha256,
    to_dict,
    track,
    write_bytes,
)
from pidm_reid import folder, plan
from pidm_reid.config import PlanPolicy
from pidm_reid.plan import Recipe, Recipes

Render = Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]
"""sources uint8 (B, H, W, 3), keypoints float32 (B, 18, 2) px of the output frame, seeds ->
uint8 (B, H, W, 3)"""
Files = list[tuple[Recipe, bytes]]
"""Recipes with their JPEG files."""
T = TypeVar("T")

MADE_BY = "renderer", "settings", "generator_saw", "marked"  # what split.json says of a generator

BROKEN_LIMIT, BROKEN_ALWAYS_ALLOWED = 0.05, 10


@dataclass(frozen=True)
class Generator:
    """A renderer, and what must be known of it to tell its images from another's."""

    render: Render
    fingerprint: str  # hash of the weights, or name and version
    settings: Mapping[str, Any]  # of sampling; plain JSON values
    size: tuple[int, int] | None = None  # (H, W) px of its images; None = that of the sources
    batch_size: int = 16  # always rendered together; short batches are padded
    saw: str = "unknown"  # D_tr | all train | drawn people | external | unknown
    mark: bool = True  # its files say that a trained algorithm made them


@dataclass(frozen=True)
class Request:
    """What shall be generated."""

    data: Path
    keypoints: Path
    ratio: float
    seed: int = 0
    per_image: int = 0  # 0: fill up to `fill_to`
    fill_to: int = 0  # images, real + generated; 0: the size of the full training set
    times: int = 1  # this amount so many times over, for every source
    poses: Path | None = None  # a keypoint file to choose poses from instead of D_tr's own
    policy: PlanPolicy = field(default_factory=PlanPolicy)


@dataclass(frozen=True)
class Work:
    """A plan with all that its execution needs."""

    real: list[Record]  # D_tr, readable
    recipes: Recipes
    poses: plan.PosePool
    split: dict[str, Any]  # goes into split.json, with what is known of the renderer
    broken: list[str]  # why images were left out, one line each

    def summary(self) -> str:
        """In words."""
        return (
            f"{self.split['full_images']:,} images of {self.split['identities']:,} people, "
            f"{len(self.real):,} of them kept ({plan.per_cent(self.split['ratio'])}), "
            f"{len(self.recipes):,} to be generated"
        )


# ---------------------------------------------------------------- planning


def prepare(request: Request) -> Work:
    """Sample D_tr, leave out its broken images, plan the rest.

    Raises UserError (BAD_DATA) when over 5 % (and over ten) of the images are broken.
    """
    plan.check_ratio(request.ratio)
    no_files: list[str] = []
    records = folder.read_people(request.data, left_out=no_files)
    synthetic = [record.name for record in records if "_pidm" in record.name]
    if synthetic:
        raise UserError(
            f"{request.data}: holds {len(synthetic)} generated images, such as {synthetic[0]}; "
            "give the original data set",
            BAD_DATA,
        )
    of_stem: dict[str, str] = {}
    for record in records:
        refuse_path(record.name, str(request.data))  # no file of ours could name it
        other = of_stem.setdefault(Path(record.name).stem, record.name)
        if other != record.name:
            raise UserError(
                f"{request.data}: {other} and {record.name} differ in their ending alone, so what "
                "is generated from them would have one name; rename one of them",
                BAD_DATA,
            )
    sampled = plan.sample_real(records, ratio=request.ratio, seed=request.seed)
    real, content, sizes, broken = _readable(sampled)
    names = [Path(line.rpartition(": ")[0]).name for line in no_files]
    names += [record.name for record in sampled if record.name not in content]
    keypoints = {}
    if not request.poses or request.policy.compares_poses:
        keypoints = read_keypoints(request.keypoints)
        check_frame(real, keypoints, name=request.keypoints)
    frame = sizes[real[0].name]
    bodies = in_one_frame(real, keypoints, sizes)
    pool = _pose_pool(request, real, keypoints, frame=frame)
    recipes = plan.make_recipes(
        real,
        pool,
        content=content,
        seed=request.seed,
        per_image=request.per_image,
        fill_to=request.fill_to or len(records),
        times=request.times,
        policy=request.policy,
        bodies=bodies,
    )
    split = {
        "format": folder.FORMAT,
        "ratio": request.ratio,
        "seed": request.seed,
        "full_images": len(records),
        "identities": len({record.pid for record in real}),
        "content": plan.fingerprint(content),
        "poses": "external" if pool.external else "D_tr",
        "recipes": len(recipes),
        "plan": sha256(plan.write_recipes(recipes)),
        "broken": names,
        "real": [record.name for record in real],
    }
    if changed := to_dict(request.policy).items() - to_dict(PlanPolicy()).items():
        split["policy"] = dict(sorted(changed))
    return Work(real, recipes, pool, split, no_files + broken)


def in_one_frame(
    real: Sequence[Record],
    keypoints: Mapping[str, np.ndarray],
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, np.ndarray]:
    """The joints of these images in the frame of the first; sizes: their (H, W) px, if known."""
    if sizes is None:
        sizes = {record.name: load_image(record.path).shape[:2] for record in real}
    return {
        record.name: rescale(keypoints[record.name], sizes[record.name], sizes[real[0].name])
        for record in real
        if record.name in keypoints
    }


def _readable(
    records: Sequence[Record],
) -> tuple[list[Record], dict[str, str], dict[str, tuple[int, int]], list[str]]:
    """The records that decode, SHA-256 and (H, W) px by name, and why the others do not."""
    good, content, sizes, broken = [], {}, {}, []
    for record in records:
        try:
            data = read_image_file(record.path)
            image = decode_image(data, str(record.path))
        except (UserError, OSError) as error:
            broken.append(str(error))
            continue
        good.append(record)
        content[record.name] = sha256(data)
        sizes[record.name] = image.shape[:2]
    if len(broken) > max(BROKEN_ALWAYS_ALLOWED, BROKEN_LIMIT * len(records)) or not good:
        raise UserError(
            f"{len(broken)} of {len(records)} images are broken, the first: {broken[0]}", BAD_DATA
        )
    return good, content, sizes, broken


def _pose_pool(
    request: Request,
    real: Sequence[Record],
    keypoints: Mapping[str, np.ndarray],
    *,
    frame: tuple[int, int],
) -> plan.PosePool:
    if request.poses:  # in the frame of the sources
        return plan.pose_pool(read_keypoints(request.poses, size=frame), where=str(request.poses))
    names = [record.name for record in real]
    return plan.pose_pool(keypoints, among=names, where=str(request.keypoints))


# ---------------------------------------------------------------- rendering


def synthesize(
    todo: Sequence[Recipe],
    work: Work,
    generator: Generator,
    out: Path,
    *,
    shard: tuple[int, int] = (1, 1),
) -> Iterator[int]:
    """Render what `start` found to do; yields the number of images of each finished batch.

    shard: that of `start`; each part keeps a ledger of its own.
    """
    train, times = out / folder.BASE / folder.TRAIN, _times_made(todo, out)

    def keep(files: Files) -> int:
        for recipe, data in files:
            write_bytes(train / recipe.file_name, data)
        entries = [_again(ledger_entry(recipe, generator, data), times) for recipe, data in files]
        folder.append_ledger(folder.ledger_of(out, shard), entries)
        return len(entries)

    yield from draw(todo, work, generator, keep)


def draw(
    recipes: Sequence[Recipe], work: Work, generator: Generator, keep: Callable[[Files], T]
) -> Iterator[T]:
    """What `keep` returns for each batch of recipes with their JPEG files.

    A batch is encoded and kept in a second thread while the next one is drawn: a GPU would wait
    for the disk. Whoever stops early loses no drawn image.
    """

    def finish(batch: Sequence[Recipe], images: np.ndarray) -> T:
        files = [encode_jpeg(image, generated=generator.mark) for image in images]
        return keep(list(zip(batch, files, strict=True)))

    sizes = _FrameSizes(work)
    before: Future[T] | None = None
    with ThreadPoolExecutor(1) as second:
        for first in range(0, len(recipes), generator.batch_size):
            batch = recipes[first : first + generator.batch_size]
            images = render_batch(batch, work, generator, sizes=sizes)
            kept = [before.result()] if before else []
            before = second.submit(finish, batch, images)  # before the yield, which may be the last
            yield from kept
        if before:
            yield before.result()


def start(
    work: Work,
    generator: Generator,
    out: Path,
    *,
    shard: tuple[int, int] = (1, 1),
    copy: bool = False,
) -> Recipes:
    """Lay the folder out (or check the one that is there) and list what is still to render.

    With shard (k, n) only of the k-th of n equal parts; parts may be rendered at once, each by
    whoever holds its lease.
    Raises UserError if `out` was made with another configuration.
    """
    _refuse_same_folder(work, out)
    folder.start_folder(out, describe(work, generator))
    path = out / folder.PLAN
    if not path.is_file() or sha256(path) != work.split["plan"]:
        write_bytes(path, plan.write_recipes(work.recipes))
    folder.lay_out(out, work.real, copy=copy)
    return missing(work.recipes[shard[0] - 1 :: shard[1]], generator, out)


def describe(work: Work, generator: Generator) -> dict[str, Any]:
    """The content of split.json: everything that decides what the folder holds."""
    made_by = {
        "renderer": generator.fingerprint,
        "settings": dict(generator.settings),
        "generator_saw": generator.saw,
        **_marked(generator),
    }
    return {**work.split, **made_by}


def missing(recipes: Recipes, generator: Generator, out: Path) -> Recipes:
    """Those of the recipes whose image is not there, or not what the ledger says."""
    there, times = np.zeros(len(recipes), dtype=bool), np.zeros(len(recipes), dtype=np.int32)
    for entry in folder.ledger_entries(out / folder.MANIFEST):
        index, again = recipes.index_of(entry["file_name"]), entry.get(folder.AGAIN, 0)
        if index is not None and again >= times[index]:
            times[index] = again
            there[index] = _is_there(recipes[index], entry, generator, out)
    return recipes.take(np.flatnonzero(~there).astype(np.int32))


def take_over(todo: Sequence[Recipe], generator: Generator, out: Path, other: Path) -> list[Recipe]:
    """Copy the images of these recipes that another folder has; the recipes that are left."""
    ledger, left, entries = folder.read_ledger(other / folder.MANIFEST), [], []
    times = _times_made(todo, out)
    theirs, ours = (root / folder.BASE / folder.TRAIN for root in (other, out))
    for recipe in todo:
        entry = ledger.get(recipe.file_name, {})
        if _is_there(recipe, entry, generator, other):
            write_bytes(ours / recipe.file_name, (theirs / recipe.file_name).read_bytes())
            entries.append(_again(entry, times))
        else:
            left.append(recipe)
    if entries:
        folder.append_ledger(out / folder.MANIFEST, entries)
    return left


def _times_made(todo: Sequence[Recipe], out: Path) -> dict[str, int]:
    """How often images that are to be made were made before, by their file names."""
    if not len(todo):
        return {}  # of a finished folder, whose ledger may be long
    planned = todo.index_of if isinstance(todo, Recipes) else {r.file_name: 0 for r in todo}.get
    times: dict[str, int] = {}
    for entry in folder.ledger_entries(out / folder.MANIFEST):
        if planned(name := entry["file_name"]) is not None:
            times[name] = max(times.get(name, 0), entry.get(folder.AGAIN, 0) + 1)
    return times


def _again(entry: dict[str, Any], times: Mapping[str, int]) -> dict[str, Any]:
    """The entry as the newest of its image, whichever part's ledger it stands in."""
    number = times.get(entry["file_name"], 0)
    entry = {key: value for key, value in entry.items() if key != folder.AGAIN}
    return {**entry, folder.AGAIN: number} if number else entry


def _is_there(recipe: Recipe, entry: Mapping[str, Any], generator: Generator, out: Path) -> bool:
    wanted = {**vars(recipe), **_entry_without_image(generator)}
    same = all(entry.get(key) == value for key, value in wanted.items())
    return same and folder.is_finished(out / folder.BASE / folder.TRAIN, entry)


def render_rest(
    todo: Sequence[Recipe],
    work: Work,
    generator: Generator,
    out: Path,
    *,
    shard: tuple[int, int] = (1, 1),
    label: str,
) -> int:
    """Generate what `start` left to do, say how far it is and note what it cost; how many."""
    if not todo:
        return 0
    with folder.spending(out, "synthesis_seconds"):
        batches = synthesize(todo, work, generator, out, shard=shard)
        return sum(track(batches, total=len(todo), label=label, unit="images"))


def outlook(work: Work, generator: Generator, out: Path, *, shard: tuple[int, int] = (1, 1)) -> str:
    """What part K of N (`shard`) has still to do in `out`, and its cost, measured on one batch
    that is not kept. Raises UserError where `start` would.
    """
    folder.refuse_occupied(out, describe(work, generator))
    part, parts = shard
    planned = work.recipes[part - 1 :: parts]
    todo = missing(planned, generator, out)
    if not todo:
        return f"{out}: nothing is left to generate"
    batch = todo[: generator.batch_size]
    begin = time.perf_counter()
    images = render_batch(batch, work, generator)
    seconds = (time.perf_counter() - begin) * len(todo) / generator.batch_size
    size = (
        sum(len(encode_jpeg(image, generated=generator.mark)) for image in images)
        * len(todo)
        / len(batch)
    )
    return (
        f"{out}: {len(todo):,} of {len(planned):,} images to generate, "
        f"about {seconds / 60:.1f} minutes here and {size / 2**20:.1f} MiB"
    )


def render_batch(
    recipes: Sequence[Recipe], work: Work, generator: Generator, *, sizes: _FrameSizes | None = None
) -> np.ndarray:
    """Images uint8 (len(recipes), H, W, 3), computed in a batch of the generator's fixed size."""
    sizes = sizes or _FrameSizes(work)
    padded = [*recipes] + [recipes[-1]] * (generator.batch_size - len(recipes))
    sources = [_source(sizes.paths[recipe.source], generator.size) for recipe in padded]
    if len({source.shape for source in sources}) > 1:
        raise UserError("the source images differ in size; the renderer needs one", BAD_DATA)
    keypoints = [
        rescale(work.poses.keypoints[recipe.pose], sizes.of(recipe.pose), sources[0].shape[:2])
        for recipe in padded
    ]
    images = generator.render(
        np.stack(sources), np.stack(keypoints), [recipe.seed for recipe in padded]
    )
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(padded):
        raise TypeError(f"render returned {images.dtype} {images.shape}, not uint8 (B, H, W, 3)")
    return images[: len(recipes)]


class _FrameSizes:
    """(H, W) in pixels of the frame that a pose's joints refer to: its image's own.

    External poses are in the frame of the sources, whatever their images are called.
    """

    def __init__(self, work: Work) -> None:
        self.paths = {record.name: record.path for record in work.real}
        self.default = load_image(work.real[0].path).shape[:2]
        self.external = work.poses.external
        self.known: dict[str, tuple[int, int]] = {}

    def of(self, name: str) -> tuple[int, int]:
        if name not in self.known:
            path = None if self.external else self.paths.get(name)
            self.known[name] = load_image(path).shape[:2] if path else self.default
        return self.known[name]


def _source(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    image: np.ndarray = load_image(path)
    return image if size is None or image.shape[:2] == size else resized(image, size)


def ledger_entry(recipe: Recipe, generator: Generator, data: bytes) -> dict[str, Any]:
    """The line of manifest.jsonl of an image whose file holds `data`."""
    made = {"version": __version__, "sha256": sha256(data)}
    return {**vars(recipe), **_entry_without_image(generator), **made}


def _entry_without_image(generator: Generator) -> dict[str, Any]:
    made_by = {"settings": dict(generator.settings), "renderer": generator.fingerprint}
    return {**made_by, **_marked(generator)}


def _marked(generator: Generator) -> dict[str, bool]:
    return {"marked": True} if generator.mark else {}  # older folders do not say


def _refuse_same_folder(work: Work, out: Path) -> None:
    home = work.real[0].path.parent.parent.resolve()  # the images may be links to elsewhere
    if out.resolve() in (home, home.parent) or home in out.resolve().parents:
        raise UserError(f"{out}: is the data set itself; give another --out")


def folder_name(data: str | Path, *, kind: str, ratio: float, seed: int) -> str:
    """Name of an augmented folder, such as market1501_pidm40 or toy_market_oracle20_seed1."""
    name = Path(data).resolve().name
    name = folder.BASE if name in ("data", folder.ALIAS) else name
    return f"{name}_{kind}{100 * ratio:g}" + (f"_seed{seed}" if seed else "")
