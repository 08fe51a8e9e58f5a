"""Does a generator draw the same person in the asked pose? Measured on ToyMarket.

Pairs (source, target) of people that no network was trained on. The generated image and four
simple rivals are held against the true target: likeness of the picture, colour of the clothes,
place of the joints, identity. ToyMarket's own drawing shows what can be reached, since nobody can
know the target's background and light.

Legend: M pictures of all people, N pairs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from PIL import Image, ImageFilter

from pidm_core.config import Guidance, SampleConfig
from pidm_core.data import Record, make_pairs, read_market1501
from pidm_core.diffusion import WEIGHTS, guidance_terms, guided_steps
from pidm_core.files import UserError, load_image, read_json
from pidm_core.garments import colour_error
from pidm_core.image_metrics import SSIM_256_SIGMA, ssim
from pidm_core.keypoints import read_keypoints
from pidm_core.probe_networks import Judges

Render = Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]
"""sources uint8 (B, H, W, 3), keypoints (B, 18, 2) px, B seeds -> uint8 (B, H, W, 3)."""

SPLITS = {"train": ("bounding_box_train",), "test": ("query", "bounding_box_test")}
BLUR_PX = 2.0
FALSE_POSE_PX = 8.0
_RENDER_BATCH = 16


# ---------------------------------------------------------------- people and pairs


@dataclass(frozen=True)
class Crowd:
    """Pictures of people, all that is known of them."""

    records: tuple[Record, ...]
    images: np.ndarray  # uint8 (M, H, W, 3)
    found: np.ndarray  # float32 (M, 18, 2) px, as a pose estimator finds them
    exact: np.ndarray  # float32 (M, 18, 2) px, NaN = outside the picture
    pids: np.ndarray  # int (M,)
    cameras: np.ndarray  # int (M,)


def read_crowd(root: str | Path, split: str) -> Crowd:
    """The people of a ToyMarket's training folder ("train") or query and gallery ("test").

    Raises UserError if `root` (DIR/market1501) is no ToyMarket, and for a "test" split that is
    not of development people: generators are chosen by these figures, so the test people must not
    take part.
    """
    root = Path(root)
    note = read_json(root / "toy_market.json")
    if split == "test" and note.get("test_people") != "development":
        raise UserError(
            f"{root}: its query and gallery are of {note.get('test_people')} people; draw a set "
            "with tools/make_toy_market.py --test-people development"
        )
    found = read_keypoints(root / f"market-annotation-{split}.csv")
    exact = read_keypoints(root / f"exact-annotation-{split}.csv")
    listed = [r for subset in SPLITS[split] for r in read_market1501(root, subset) if r.pid > 0]
    return Crowd(
        records=tuple(listed),
        images=np.stack([load_image(record.path) for record in listed]),
        found=np.stack([found[record.name] for record in listed]),
        exact=np.stack([exact[record.name] for record in listed]),
        pids=np.array([record.pid for record in listed]),
        cameras=np.array([record.camid for record in listed]),
    )


def choose_pairs(crowd: Crowd, count: int, *, seed: int) -> np.ndarray:
    """`count` pairs (source, target) of pictures, spread evenly over the people: int (N, 2).

    Of all pairs by PATN's rule, those whose target pose was found truly (no joint over 8 px away,
    which left and right exchanged would be) and whose person a third camera saw too, for the
    identity score. Fewer if there are fewer. Raises UserError if they show fewer than two people.
    """
    names = [record.name for record in crowd.records]
    pairs = make_pairs(crowd.records, dict(zip(names, crowd.found, strict=True)))
    offset = np.linalg.norm(crowd.found - crowd.exact, axis=2)
    true = ~(offset > FALSE_POSE_PX).any(1)  # a joint that was not found is no false one
    elsewhere = np.array([len(_references(crowd, pair)) > 0 for pair in pairs], dtype=bool)
    pairs = pairs[true[pairs[:, 1]] & elsewhere]
    pairs = np.random.default_rng(seed).permutation(pairs)
    people = crowd.pids[pairs[:, 0]]
    turn = np.array([np.sum(people[:i] == pid) for i, pid in enumerate(people)], dtype=int)
    pairs = pairs[np.argsort(turn, kind="stable")][:count]
    if len(np.unique(crowd.pids[pairs[:, 0]])) < 2:
        raise UserError(f"{len(pairs)} pairs do not show two people to compare")
    return pairs


def _references(crowd: Crowd, pair: np.ndarray) -> np.ndarray:
    """The person's pictures by cameras that took neither the source nor the target."""
    same = crowd.pids == crowd.pids[pair[0]]
    return np.flatnonzero(same & ~np.isin(crowd.cameras, crowd.cameras[pair]))


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scores:
    """How N pictures compare with the true targets, (N,) each."""

    ssim: np.ndarray  # window of 51 px
    ssim_256: np.ndarray  # Gaussian window, sigma 1.2 px
    upper: np.ndarray  # CIELAB distance of the upper garment's mean colour, wherever it is worn
    lower: np.ndarray
    upper_place: np.ndarray  # the same at the place of the target's upper garment
    lower_place: np.ndarray
    joints: np.ndarray  # px, mean distance of the 18 joints
    identity: np.ndarray  # mean cosine to the person's pictures by third cameras
    top_1: np.ndarray  # 1.0 where the most similar picture shows the person

    def means(self, which: np.ndarray | None = None) -> dict[str, float]:
        """Each score's mean over the pairs that have it; one that none has is left out.

        which: bool (N,), the pairs that count (default: all).
        """
        chosen = slice(None) if which is None else which
        scores = {field.name: getattr(self, field.name)[chosen] for field in fields(self)}
        return {
            name: round(float(np.nanmean(values)), 4)
            for name, values in scores.items()
            if np.isfinite(values).any()
        }


BETTER_IF_LARGER = ("ssim", "ssim_256", "identity", "top_1")


class Probe:
    """Scores pictures that claim to be the targets of some pairs."""

    def __init__(self, crowd: Crowd, pairs: np.ndarray, judges: Judges) -> None:
        self.crowd, self.pairs, self.judges = crowd, pairs, judges
        self.sources, self.targets = pairs[:, 0], pairs[:, 1]
        self.people = crowd.pids[self.sources]
        self._features = judges.features(crowd.images)
        self.other = self._next_person()

    def _next_person(self) -> np.ndarray:
        """For each pair, the next one that shows somebody else."""
        count = len(self.pairs)
        steps = range(1, count)
        return np.array(
            [
                next(j for k in steps if self.people[j := (i + k) % count] != self.people[i])
                for i in range(count)
            ]
        )

    def score(self, images: np.ndarray, joints: np.ndarray | None = None) -> Scores:
        """Score N pictures; `joints` (N, 18, 2) are where theirs are (default: the target's)."""
        true, exact = self.crowd.images[self.targets], self.crowd.exact[self.targets]
        colour = colour_error(images, exact if joints is None else joints, true, exact)
        in_place = colour_error(images, exact, true, exact)
        features = self.judges.features(images)
        return Scores(
            ssim=ssim(images, true),
            ssim_256=ssim(images, true, sigma=SSIM_256_SIGMA),
            upper=colour[:, 0],
            lower=colour[:, 1],
            upper_place=in_place[:, 0],
            lower_place=in_place[:, 1],
            joints=self.joint_error(images, self.targets),
            identity=self.identity(features, np.arange(len(self.pairs))),
            top_1=self._top_1(features),
        )

    def joint_error(self, images: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Mean distance (N,) in px of the joints that N pictures show from those of `poses`."""
        distance = np.linalg.norm(self.judges.joints(images) - self.crowd.exact[poses], axis=2)
        return np.asarray(np.nanmean(distance, axis=1))

    def identity(self, features: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Mean cosine (N,) of features (N, F) to the people of the pairs numbered `pairs` (N,)."""
        rows = zip(features, self.pairs[pairs], strict=True)
        return np.array(
            [(self._features[_references(self.crowd, pair)] @ f).mean() for f, pair in rows]
        )

    def _top_1(self, features: np.ndarray) -> np.ndarray:
        likeness = features @ self._features.T  # (N, M)
        cameras = self.crowd.cameras
        for row, pair, person in zip(likeness, self.pairs, self.people, strict=True):
            row[(self.crowd.pids == person) & np.isin(cameras, cameras[pair])] = -np.inf
        return np.asarray(self.crowd.pids[likeness.argmax(1)] == self.people, dtype=float)

    # ------------------------------------------------------------ rivals and renderers

    def rivals(self) -> dict[str, Scores]:
        """The scores of the truth itself and of what one could show without a generator."""
        crowd, nearest = self.crowd, self._nearest
        means = np.stack([self._blurred_mean(target) for target in self.targets])
        return {
            "true target": self.score(crowd.images[self.targets]),
            "source": self.score(crowd.images[self.sources], crowd.exact[self.sources]),
            "nearest pose": self.score(crowd.images[nearest], crowd.exact[nearest]),
            "blurred mean": self.score(means),
        }

    @functools.cached_property
    def _nearest(self) -> np.ndarray:
        return np.array([self._nearest_pose(target) for target in self.targets])

    def by_own_camera(self) -> dict[str, np.ndarray]:
        """Rival -> which of its pictures the target's camera took, bool (N,).

        Of the two rivals that are photographs.
        """
        cameras = self.crowd.cameras
        of = {"source": self.sources, "nearest pose": self._nearest}
        return {rival: cameras[shown] == cameras[self.targets] for rival, shown in of.items()}

    def _others(self, target: int) -> np.ndarray:
        same = np.flatnonzero(self.crowd.pids == self.crowd.pids[target])
        return np.asarray(same[same != target])

    def _nearest_pose(self, target: int) -> int:
        others = self._others(target)
        distance = np.linalg.norm(self.crowd.exact[others] - self.crowd.exact[target], axis=2)
        return int(others[np.nanmean(distance, axis=1).argmin()])

    def _blurred_mean(self, target: int) -> np.ndarray:
        mean = self.crowd.images[self._others(target)].mean(0).round().astype(np.uint8)
        return np.asarray(Image.fromarray(mean).filter(ImageFilter.GaussianBlur(BLUR_PX)))

    def draw(self, render: Render, *, seed: int, swapped: bool = False) -> Iterator[np.ndarray]:
        """Let a renderer draw the targets from the sources, batch after batch of uint8 images.

        With `swapped` the sources are those of other people. Poses are given as a pose estimator
        found them, since that is what generators are trained on.
        """
        sources = self.sources[self.other] if swapped else self.sources
        for start in range(0, len(self.pairs), _RENDER_BATCH):
            rows = np.arange(start, min(start + _RENDER_BATCH, len(self.pairs)))
            seeds = [seed * 1_000_003 + int(row) for row in rows]
            poses = self.crowd.found[self.targets[rows]]
            yield render(self.crowd.images[sources[rows]], poses, seeds)

    def controls(self, images: np.ndarray, swapped: np.ndarray) -> dict[str, float]:
        """Whether the source decides who it is, and the pose where the joints are.

        images: the N generated ones; swapped: the same poses, drawn from other people's sources.
        One comparison is of persons (same pose), the other of poses (same source).
        """
        mine, judges = np.arange(len(self.pairs)), self.judges
        true = self._features[self.targets]
        drawn, strange = judges.features(images), judges.features(swapped)
        values = {
            "identity, generated": self.identity(drawn, mine),
            "identity, generated from another person": self.identity(strange, mine),
            "identity, that one with the other person": self.identity(strange, self.other),
            "identity, real": self.identity(true, mine),
            "identity, real of another person": self.identity(true[self.other], mine),
            "joints, another pose asked: to the new pose": self.joint_error(swapped, self.targets),
            "joints, another pose asked: to the old pose": self.joint_error(
                swapped, self.targets[self.other]
            ),
        }
        return {name: round(float(np.mean(value)), 4) for name, value in values.items()}

    def gain(self, ours: Scores, rival: Scores) -> dict[str, dict[str, float]]:
        """By how much `ours` is closer to the truth, score by score: mean and its 95 % half-width.

        Positive = closer. Differences are averaged for each person first, who counts once; a score
        that fewer than two people have is left out.
        """
        result = {}
        for field in fields(Scores):
            change = getattr(ours, field.name) - getattr(rival, field.name)
            change = change if field.name in BETTER_IF_LARGER else -change
            known = np.isfinite(change)  # a garment may be out of the picture
            people = np.unique(self.people[known])
            if len(people) < 2:
                continue
            means = np.array([change[known & (self.people == pid)].mean() for pid in people])
            half = 1.96 * means.std(ddof=1) / np.sqrt(len(means))
            result[field.name] = {
                "mean": round(float(means.mean()), 4),
                "half": round(float(half), 4),
            }
        return result


# ---------------------------------------------------------------- settings of a generator


@dataclass(frozen=True)
class Setting:
    """One way of sampling."""

    guidance: Guidance
    steps: int
    w_p: float
    w_s: float
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def evaluations(self) -> int:
        """Network evaluations for each image."""
        first, end = guided_steps(self.interval, self.steps)
        guided = len(guidance_terms(self.guidance, self.w_p, self.w_s))
        return self.steps + (end - first) * (guided - 1)

    def __str__(self) -> str:
        weights = (f"{name[-1]}{getattr(self, name):g}" for name in WEIGHTS[self.guidance])
        return " ".join([self.guidance, *weights, f"{self.steps} steps"])


def settings(
    own: SampleConfig,
    *,
    guidance: Sequence[str] = (),
    steps: Sequence[int] = (),
    w_p: Sequence[float] = (),
    w_s: Sequence[float] = (),
) -> list[Setting]:
    """All combinations, where nothing is given the model's `own`.

    Those that differ only in a weight that is not used count once.
    """
    lists = (guidance or [own.guidance], steps or [own.steps], w_p or [own.w_p], w_s or [own.w_s])
    different: dict[Any, Setting] = {}
    for name, count, pose, style in itertools.product(*lists):
        if name not in get_args(Guidance):
            raise UserError(f"guidance '{name}' is none of {', '.join(get_args(Guidance))}")
        one = Setting(cast(Guidance, name), count, pose, style, own.interval)
        different.setdefault((tuple(guidance_terms(one.guidance, pose, style)), count), one)
    return list(different.values())
