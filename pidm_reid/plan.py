"""Who is generated, in which pose, with which seed: pure data that one can print, diff and edit.

Nothing here draws from a random generator: every choice is made by sorting or indexing with
SHA-256 of (seed, purpose, content). So a plan is the same on every machine, for every numpy, and
whatever the order in which a folder lists its files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, overload

import numpy as np

from pidm_core import BAD_DATA, Record, UserError, passes_patn
from pidm_reid import coverage
from pidm_reid.config import PlanPolicy

log = logging.getLogger(__name__)
MARKET_IDENTITIES, DEVELOPMENT_IDENTITIES = 751, 100
Role = Literal["train", "eval"]
UNIFORM = PlanPolicy()
T = TypeVar("T")


def image_name(source: str, replica: int) -> str:
    """File name of the image number `replica` from a source, named without its ending."""
    return f"{source}_pidm{replica:04d}.jpg"


@dataclass(frozen=True)
class Recipe:
    """One image to generate."""

    file_name: str  # of the image: see image_name
    source: str  # name of the image that gives the person
    source_sha256: str
    pose: str  # name of the image whose joints give the pose
    pose_sha256: str  # of the joints
    replica: int  # running number among the images made from this source
    seed: int  # of the noise
    role: Role = "train"  # eval: query and gallery people; never to be trained on


@dataclass(frozen=True, eq=False)
class Recipes(Sequence[Recipe]):
    """Recipes sorted by file name, each made when it is asked for; they take 4 bytes each.

    A slice, and `take`, give some of the same plan.
    """

    sources: Sequence[Record]  # sorted by stem; of the k-th come the places first[k]:first[k + 1]
    content: Mapping[str, str]  # name of a source -> SHA-256 of its file
    poses: PosePool
    seed: int
    first: np.ndarray  # int (S + 1,)
    chosen: np.ndarray  # int32 (N,), places in the pool of poses
    role: Role = "train"
    among: np.ndarray | None = None  # places of these recipes in the plan, rising; None: all

    def __len__(self) -> int:
        return len(self.chosen if self.among is None else self.among)

    @overload
    def __getitem__(self, index: int) -> Recipe: ...
    @overload
    def __getitem__(self, index: slice) -> Recipes: ...
    def __getitem__(self, index: int | slice) -> Recipe | Recipes:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self)), dtype=np.int32))
        at = range(len(self))[index]
        return self._at(at if self.among is None else int(self.among[at]))

    def __iter__(self) -> Iterator[Recipe]:
        return (self[k] for k in range(len(self)))

    def take(self, indices: np.ndarray) -> Recipes:
        """Those at these indices, which must rise."""
        among = indices if self.among is None else self.among[indices]
        return dataclasses.replace(self, among=among)

    def index_of(self, file_name: str) -> int | None:
        """Where the recipe of an image stands, if it is among these."""
        stem, _, number = file_name.removesuffix(".jpg").rpartition("_pidm")
        k = self._ranks.get(stem)
        if k is None or not number.isdecimal():
            return None
        at = int(self.first[k]) + int(number)
        if at >= self.first[k + 1]:
            return None
        if self.among is None:
            return at
        found = int(np.searchsorted(self.among, at))
        return found if found < len(self.among) and self.among[found] == at else None

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {_stem(record): k for k, record in enumerate(self.sources)}

    def _at(self, place: int) -> Recipe:
        k = int(np.searchsorted(self.first, place, side="right")) - 1
        source, pose, replica = self.sources[k], self.chosen[place], place - int(self.first[k])
        content, joints = self.content[source.name], self.poses.hashes[pose]
        return Recipe(
            file_name=image_name(_stem(source), replica),
            source=source.name,
            source_sha256=content,
            pose=self.poses.names[pose],
            pose_sha256=joints,
            replica=replica,
            seed=image_seed(self.seed, content, joints, replica),
            role=self.role,
        )


def _stem(record: Record) -> str:
    return record.name.rpartition(".")[0]


# ---------------------------------------------------------------- D_tr


def sample_real(records: Sequence[Record], *, ratio: float, seed: int) -> list[Record]:
    """D_tr: round(ratio * N) of the images, at least one of every identity, sorted by name.

    Nested: with one seed, the images of a smaller ratio are among those of a larger one.
    Of 12,936 images of 751 people, ratios 0.2 ... 0.8 give 2,587 / 5,174 / 7,762 / 10,349.
    """
    check_ratio(ratio)
    if not records:
        raise UserError("the training set has no images", BAD_DATA)
    shuffled = sorted(records, key=lambda record: _digest(seed, "D_tr", record.name))
    first = {record.pid: record for record in reversed(shuffled)}  # one image of each identity
    one_each = {record.name for record in first.values()}
    rest = [record for record in shuffled if record.name not in one_each]
    asked = round(ratio * len(records))
    if len(first) > asked:
        share = len(first) / len(records)
        said = "%s of %d images would be %d; one of each of the %d people is kept, which is %.0f%%"
        log.warning(said, per_cent(ratio), len(records), asked, len(first), 100 * share)
    chosen = list(first.values()) + rest[: max(0, asked - len(first))]
    return sorted(chosen, key=lambda record: record.name)


def check_ratio(ratio: float) -> None:
    """UserError unless `ratio` is a share."""
    if 1 < ratio <= 100:
        raise UserError(f"ratio {ratio:g} is not between 0 and 1; did you mean {ratio / 100:g}?")
    if ratio == 0:
        raise UserError("ratio 0 is no share of the images; give one above 0, such as 0.4")
    if not 0 < ratio <= 1:
        raise UserError(f"ratio {ratio:g} is not between 0 and 1")


def per_cent(ratio: float) -> str:
    """A share of the real images as it is read, 0.125 as 12.5%."""
    return f"{100 * ratio:g}%"


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class PosePool:
    """Poses to choose from: images with joints, all of which pass PATN's rule."""

    keypoints: Mapping[str, np.ndarray]  # image name -> (18, 2) px
    names: tuple[str, ...]
    hashes: tuple[str, ...]  # of the joints
    external: bool = False  # from another file than the training set's own


def pose_pool(
    keypoints: Mapping[str, np.ndarray], *, among: Iterable[str] | None = None, where: str
) -> PosePool:
    """The usable poses of `keypoints`; `among` limits them to these images (None: external).

    Raises UserError (BAD_DATA) naming `where` if no image has joints, or none shows both
    shoulders and both hips.
    """
    wanted = sorted(keypoints if among is None else among)
    known = [name for name in wanted if name in keypoints]
    if not known:
        raise UserError(
            f"{where}: has joints of none of the {len(wanted)} images "
            f"(they are named like {wanted[0] if wanted else '...'}); "
            "is it the keypoint file of another data set or of the test images?",
            BAD_DATA,
        )
    usable = passes_patn(np.stack([keypoints[name] for name in known]))
    names = [name for name, use in zip(known, usable, strict=True) if use]
    if not names:
        raise UserError(
            f"{where}: none of {len(known)} poses shows both shoulders and both hips", BAD_DATA
        )
    hashes = tuple(_pose_hash(keypoints[name]) for name in names)
    return PosePool(keypoints, tuple(names), hashes, external=among is None)


def images_per_source(real_images: int, *, per_image: int, fill_to: int) -> list[int]:
    """How many images each source gives: `per_image` each, or as many as fill up to `fill_to`.

    Every image of D_tr is the source equally often, give or take one. So the generated images
    spread over the people as D_tr's own do, and a network trained on D_aug sees each person as
    often as one trained on D_tr repeated: rows differ by the images alone.
    """
    if per_image < 0:
        raise UserError(f"per-image {per_image} is negative")
    if per_image:
        return [per_image] * real_images
    each, more = divmod(max(0, fill_to - real_images), max(1, real_images))
    return [each + (k < more) for k in range(real_images)]


def make_recipes(
    sources: Sequence[Record],
    poses: PosePool,
    *,
    content: Mapping[str, str],
    seed: int,
    per_image: int = 0,
    fill_to: int = 0,
    times: int = 1,
    policy: PlanPolicy = UNIFORM,
    bodies: Mapping[str, np.ndarray] | None = None,
) -> Recipes:
    """The recipes, sorted by file name; `content` maps a source's name to its file's SHA-256.

    times: the amount of every source, so many times over. bodies: joints of D_tr's images by
    name, in px of one frame, that of the external poses if there are such (None: as in `poses`);
    `balanced` and `same_scale` compare them with the poses.
    A source never gets the pose of its own image, and no pose (under `balanced`: of a cell)
    twice before all had their turn.
    Nested, whatever the policy: with one seed, the recipes of an amount are among those of a
    larger one, and of the same one more times over. (Two amounts, each several times over, are
    not under `balanced` and `cameras`.)
    Raises UserError for times below 1 and over 9,999 images of a source, and (BAD_DATA) if no
    pose can be compared.
    """
    if times < 1:
        raise UserError(f"times {times} is not 1 or more")
    shuffled = sorted(sources, key=lambda record: _digest(seed, "sources", record.name))
    counts = images_per_source(len(sources), per_image=per_image, fill_to=fill_to)
    _check_amount(times * max(counts, default=0))
    turns = [
        record
        for turn in range(max(counts, default=0))
        for record, count in zip(shuffled, counts, strict=True)
        if turn < count
    ]
    if policy.source_policy == "cameras":
        turns = _share_among_cameras(turns, shuffled, seed=seed)
    ordered = sorted(sources, key=_stem)
    amounts = Counter(record.name for record in turns)
    first = np.cumsum([0] + [times * amounts[record.name] for record in ordered])
    _check_amount(int(np.diff(first).max(initial=0)))
    following = {record.name: int(at) for record, at in zip(ordered, first[:-1], strict=True)}
    choice = _PoseChoice(sources, poses, policy, content=content, seed=seed, bodies=bodies)
    chosen = np.empty(first[-1], dtype=np.int32)
    for record in itertools.chain.from_iterable(itertools.repeat(turns, times)):
        chosen[following[record.name]] = choice.next(record)
        following[record.name] += 1
    if choice.misfits:
        log.warning(
            "same-scale %g: %d of %d sources, such as %s, have no other pose of their size "
            "and get poses of any size",
            policy.same_scale, len(choice.misfits), len(sources), choice.misfits[0],
        )  # fmt: skip
    return Recipes(ordered, content, poses, seed, first, chosen)


def _check_amount(most: int) -> None:
    if most > 9999:
        raise UserError(f"{most} images of one source are too many; the limit is 9,999")


def _share_among_cameras(
    turns: Sequence[Record], shuffled: Sequence[Record], *, seed: int
) -> list[Record]:
    """As many turns for each person, but its cameras in turn, and each camera's images in turn."""
    views: dict[int, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in shuffled:
        views[record.pid][record.camid].append(record)
    shared = []
    for pid, count in Counter(record.pid for record in turns).items():
        camids = sorted(views[pid], key=lambda camid: _digest(seed, "camera", pid, camid))
        for turn in range(count):
            images = views[pid][camids[turn % len(camids)]]
            shared.append(images[turn // len(camids) % len(images)])
    return shared


class _PoseChoice:
    """The next pose of a source, as a place in the pool.

    The pool is divided into cells: views and postures, or one cell of all poses. A person's next
    pose is of the cell that its real images and the poses it has got fill least, of equal ones in
    the view that they fill least; between equal cells, and within a cell, it is drawn.
    """

    def __init__(
        self,
        sources: Sequence[Record],
        poses: PosePool,
        policy: PlanPolicy,
        *,
        content: Mapping[str, str],
        seed: int,
        bodies: Mapping[str, np.ndarray] | None,
    ) -> None:
        self.content, self.seed, self.policy = content, seed, policy
        self.misfits: list[str] = []  # sources without another pose of their size
        self.place = {name: k for k, name in enumerate(poses.names)}
        self.all = np.arange(len(poses.names))
        self.cells = {0: self.all}  # cell -> places in the pool
        self.filled: dict[int, Counter[int]] = defaultdict(Counter)  # images of a person by cell
        self.torso: dict[str, float] = {}  # px, of the sources
        self.sizes: dict[int, np.ndarray] = {}  # px, of the poses of a cell, rising
        self.draws: dict[str, dict[int, Iterator[int]]] = {}  # of a source, by cell
        if policy.compares_poses:
            bodies = poses.keypoints if bodies is None else bodies
            frame = poses.keypoints if poses.external else bodies
            joints = np.stack([frame[name] for name in poses.names])
            shown = [record for record in sources if record.name in bodies]
            own = np.array([bodies[record.name] for record in shown]).reshape(-1, 18, 2)
            if policy.pose_policy == "balanced":
                self._divide(joints, poses.hashes, shown, own)
            if policy.same_scale:
                self._measure(joints, shown, own)

    def _divide(
        self,
        joints: np.ndarray,
        hashes: Sequence[str],
        shown: Sequence[Record],
        own: np.ndarray,
    ) -> None:
        division = coverage.divide(joints, hashes)
        cells = division.of(joints)
        self.cells = {int(k): np.flatnonzero(cells == k) for k in np.unique(cells[cells >= 0])}
        if not self.cells:
            raise UserError(
                f"pose-policy balanced: none of {len(cells)} poses tells where the person faces "
                "(with the hips below the shoulders); take other poses, or pose-policy uniform",
                BAD_DATA,
            )
        for record, cell in zip(shown, division.of(own), strict=True):
            if cell >= 0:
                self.filled[record.pid][int(cell)] += 1

    def _measure(self, joints: np.ndarray, shown: Sequence[Record], own: np.ndarray) -> None:
        torso = coverage.torso(joints)
        for cell, places in self.cells.items():
            self.cells[cell] = places[np.argsort(torso[places], kind="stable")]  # NaN last
            self.sizes[cell] = torso[self.cells[cell]]
        self.torso = dict(zip((r.name for r in shown), coverage.torso(own), strict=True))

    def next(self, record: Record) -> int:
        """The place of the pose that this source gets now; the person's count goes up."""
        if record.name not in self.draws:
            self.draws[record.name] = self._draws(record)
        draws, filled = self.draws[record.name], self.filled[record.pid]
        best = list(draws)
        if len(best) > 1:
            views: Counter[int] = Counter()
            for cell, count in filled.items():
                views[cell // coverage.POSTURES] += count
            fill = {cell: (filled[cell], views[cell // coverage.POSTURES]) for cell in best}
            least = min(fill.values())
            best = [cell for cell in best if fill[cell] == least]
        cell = best[0]
        if len(best) > 1:
            cell = best[_draw(self.seed, "cell", record.pid, filled.total(), below=len(best))]
        filled[cell] += 1
        return next(draws[cell])

    def _draws(self, record: Record) -> dict[int, Iterator[int]]:
        """Endless draws from every cell that has a pose for this source."""
        key = f"{self.seed}|{self.content[record.name]}"
        own, torso = self.place.get(record.name, -1), self.torso.get(record.name, math.nan)
        fitting = self._fitting(own, torso)
        if not fitting and not math.isnan(torso):
            self.misfits.append(record.name)
            fitting = self._fitting(own, math.nan)
        if not fitting:  # all poses that could be had are the source's own
            fitting = {next(iter(self.cells)): self.all}
        uniform = self.policy.pose_policy == "uniform"
        return {
            cell: _draw_poses(places, own, key if uniform else f"{key}|{cell}")
            for cell, places in fitting.items()
        }

    def _fitting(self, own: int, torso: float) -> dict[int, np.ndarray]:
        """Places by cell that are of the size of `torso` (NaN: any), if not just the own one."""
        found = {}
        for cell, places in self.cells.items():
            if not math.isnan(torso):
                sizes, factor = self.sizes[cell], self.policy.same_scale
                first = np.searchsorted(sizes, torso / factor, side="left")
                last = np.searchsorted(sizes, torso * factor, side="right")
                places = places[first:last]
            if len(places) > (own in places):
                found[cell] = places
        return found


def _draw_poses(places: np.ndarray, own: int, key: str) -> Iterator[int]:
    """Draw without end, the own pose never, none twice before all had their turn."""
    usable = len(places) - (own in places)
    seen = count = 0  # a bit for each pose: a set would take 60 bytes
    for attempt in itertools.count():
        k = int(places[_draw(key, "pose", attempt, below=len(places))])
        if not usable:  # a single pose, the source's own: better than nothing
            yield k
        elif k != own and not seen >> k & 1:
            yield k
            seen, count = seen | 1 << k, count + 1
            if count == usable:
                seen = count = 0


def image_seed(seed: int, source_sha256: str, pose_sha256: str, replica: int) -> int:
    """Seed of one image's noise, 63 bits: no clock, rank or order in it."""
    return int(_digest(seed, source_sha256, pose_sha256, replica)[:16], 16) >> 1


def write_recipes(recipes: Iterable[Recipe]) -> Iterator[bytes]:
    """The lines of plan.jsonl: one recipe each, file name first."""
    for recipe in recipes:
        yield json.dumps(vars(recipe), ensure_ascii=False).encode() + b"\n"


# ---------------------------------------------------------------- development split


@dataclass(frozen=True)
class Development:
    """Training people divided so that choices can be made without the test set."""

    train: list[Record]
    query: list[Record]
    gallery: list[Record]


def development_split(records: Sequence[Record], *, seed: int = 0) -> Development:
    """Withhold 100 of Market-1501's 751 training people (a tenth in other sets) for development.

    Of each withheld person and camera with several images one becomes a query, if the person
    was seen by another camera too; the rest is the gallery.
    """
    people = sorted({record.pid for record in records})
    number = DEVELOPMENT_IDENTITIES
    if len(people) != MARKET_IDENTITIES:
        number = math.ceil(len(people) / 10)
    shuffled = sorted(people, key=lambda pid: _digest(seed, "development", pid))
    withheld = set(shuffled[:number])
    views: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.name):
        if record.pid in withheld:
            views[record.pid, record.camid].append(record)
    cameras = defaultdict(set)
    for pid, camid in views:
        cameras[pid].add(camid)
    query = [
        min(images, key=lambda record: _digest(seed, "query", record.name))
        for (pid, _), images in sorted(views.items())
        if len(images) > 1 and len(cameras[pid]) > 1
    ]
    if not query:
        raise UserError(
            f"development split: none of the {number} withheld people can be a query "
            "(two images by one camera and one by another are needed)",
            BAD_DATA,
        )
    taken = {record.name for record in query}
    rest = sorted(records, key=lambda record: record.name)
    return Development(
        train=[record for record in rest if record.pid not in withheld],
        query=sorted(query, key=lambda record: record.name),
        gallery=[r for r in rest if r.pid in withheld and r.name not in taken],
    )


# ---------------------------------------------------------------- hashes


def shuffled(items: Iterable[T], *, seed: int, key: Callable[[T], str]) -> list[T]:
    """The items in an order drawn by `seed`, a pure function of their keys."""
    return sorted(items, key=lambda item: _digest(seed, "order", key(item)))


def fingerprint(content: Mapping[str, str]) -> str:
    """SHA-256 of a set of files: names and contents, whatever the order."""
    return _digest(*(f"{name} {content[name]}" for name in sorted(content)))


def _digest(*parts: Any) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _draw(*parts: Any, below: int) -> int:
    return int(_digest(*parts)[:15], 16) % below


def _pose_hash(keypoints: np.ndarray) -> str:
    joints = np.where(np.isnan(keypoints), np.nan, keypoints)  # one bit pattern for all NaN
    return hashlib.sha256(np.ascontiguousarray(joints, "<f4").tobytes()).hexdigest()
