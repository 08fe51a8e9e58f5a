"""Models, and ways to sample them, side by side on drawn development people.

Every model draws the same pairs with the same seeds. Besides the probe's scores: the Fréchet
distance of the generated from the true targets, and the diversity over seeds, both in the features
of the probe's identity network, which is trained on drawn people.

Legend: N pairs, S seeds; the first model named is the one that the others are held against.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pidm_core.config import Guidance, Sampler
from pidm_core.feature_metrics import diversity, frechet_distance
from pidm_core.files import UserError, load_array, save_array, sha256
from pidm_core.pipeline import PIDMPipeline
from pidm_core.probe import Probe, Setting
from pidm_core.probe_report import (
    Renderer,
    at_size,
    contact_sheet,
    draw_pairs,
    draw_people,
    make_probe,
)

log = logging.getLogger(__name__)
MOST_DISTANCE, LEAST_TOP_1, LEAST_DIVERSITY = 1.05, 0.97, 0.90  # of the first model's
TRUE = "true target"
_MORE_IS_BETTER = ("diversity", "top_1")
_PLOTTED = {
    "frechet": "Fréchet distance",
    "top_1": "identity top-1",
    "joints": "error of the joints, px",
    "diversity": "diversity over seeds",
}
_COLUMNS = {
    "evaluations": ("evals", ".0f"),
    "frechet": ("Fréchet", ".4f"),
    "frechet_spread": ("spread", ".4f"),
    "diversity": ("diverse", ".4f"),
    "top_1": ("top-1", ".1%"),
    "identity": ("identity", ".3f"),
    "joints": ("joints", ".2f"),
    "ssim": ("SSIM", ".3f"),
}
_LEGEND = """\
evals: network evaluations for an image. Fréchet: distance of all generated images from the true
targets, in unit vectors of the probe's identity network; spread: largest less smallest distance of
the images of one seed. diverse: mean distance of two images of a pair, drawn from other seeds.
top-1, identity, joints (px), SSIM: as in tools/probe_generator.py, means over the seeds."""


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Row:
    """The figures of one model."""

    evaluations: int
    frechet: float
    frechet_of_seeds: tuple[float, ...]
    diversity: float | None
    """None with one seed."""
    top_1: float
    identity: float
    joints: float
    ssim: float

    @property
    def frechet_spread(self) -> float:
        """Largest less smallest distance of one seed's images."""
        return max(self.frechet_of_seeds) - min(self.frechet_of_seeds)


@dataclass(frozen=True)
class Verdict:
    """A model against the first one."""

    frechet: float
    """Share of the first model's distance."""
    frechet_allowed: float
    """1.05, or 1 and the first model's spread over seeds if that is more."""
    top_1: float | None
    """None where the first model's is 0: such a judge tells nothing."""
    diversity: float | None

    @property
    def passed(self) -> bool:
        """Whether the model is as good as the first one."""
        near = self.frechet <= self.frechet_allowed
        return (
            near and (self.top_1 or 0) >= LEAST_TOP_1 and (self.diversity or 0) >= LEAST_DIVERSITY
        )

    def __str__(self) -> str:
        known, varied = (
            "not measured" if share is None else f"{share:.1%}"
            for share in (self.top_1, self.diversity)
        )
        return (
            f"Fréchet distance {self.frechet:.1%} (at most {self.frechet_allowed:.1%}), "
            f"top-1 {known} (at least {LEAST_TOP_1:.0%}), "
            f"diversity {varied} (at least {LEAST_DIVERSITY:.0%}): "
            + ("as good" if self.passed else "not shown to be as good")
        )


def judge(row: Row, first: Row) -> Verdict:
    """Hold a model against the first one."""
    return Verdict(
        row.frechet / first.frechet,
        max(MOST_DISTANCE, 1 + first.frechet_spread / first.frechet),
        _share(row.top_1, first.top_1),
        _share(row.diversity, first.diversity),
    )


def _share(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of


@dataclass(frozen=True)
class Comparison:
    """What was measured."""

    pairs: int
    seeds: int
    true: dict[str, float]
    """Scores of the true targets: what the judging networks make of the truth."""
    rows: dict[str, Row]
    sheet: np.ndarray = field(repr=False)
    """uint8 (H, W, 3): source, pose, each model's image of the first seed and the true one."""

    def verdicts(self) -> dict[str, Verdict]:
        """Every model but the first against it."""
        first, *others = self.rows
        return {name: judge(self.rows[name], self.rows[first]) for name in others}

    def to_json(self) -> dict[str, Any]:
        """Everything but the sheet."""
        return {
            "pairs": self.pairs,
            "seeds": self.seeds,
            "true": self.true,
            "rows": {
                n: {**vars(r), "frechet_spread": r.frechet_spread} for n, r in self.rows.items()
            },
            "verdicts": {n: {**vars(v), "passed": v.passed} for n, v in self.verdicts().items()},
        }

    def text(self) -> str:
        """The table and the verdicts that the tool prints."""
        rows = {TRUE: self.true, **self.to_json()["rows"]}
        width = max(map(len, rows))
        heads = " ".join(f"{head:>8}" for head, _ in _COLUMNS.values())
        lines = [f"{self.pairs} pairs, {self.seeds} seeds", "", f"{'':{width}} {heads}"]
        for name, row in rows.items():
            cells = (_cell(row.get(key), form) for key, (_, form) in _COLUMNS.items())
            lines.append(f"{name:{width}} " + " ".join(cells))
        first = next(iter(self.rows))
        verdicts = (f"{name}: {verdict}" for name, verdict in self.verdicts().items())
        return "\n".join([*lines, _LEGEND, "", f"Against {first}:", *verdicts])


def _cell(value: float | None, form: str) -> str:
    return " " * 8 if value is None else format(format(value, form), ">8")


def front(rows: Mapping[str, Row], figure: str) -> list[str]:
    """The Pareto front of evaluations and a figure, cheapest first: no other row is as cheap and
    better, or as good and cheaper.
    """
    sign = -1 if figure in _MORE_IS_BETTER else 1
    cheapest_first = sorted(
        rows, key=lambda n: (rows[n].evaluations, sign * getattr(rows[n], figure))
    )
    found: list[str] = []
    for name in cheapest_first:
        value = sign * getattr(rows[name], figure)
        if not found or value < sign * getattr(rows[found[-1]], figure):
            found.append(name)
    return found


def plot(rows: Mapping[str, Row]) -> bytes:
    """A PNG file: the figures over the evaluations of an image; the Pareto fronts named.

    A figure that was not measured, as diversity with one seed, has no points.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (name, title) in zip(panels, _PLOTTED.items(), strict=True):
        axes.set(xscale="log", xlabel="evaluations of an image", ylabel=title)
        known = {label: row for label, row in rows.items() if getattr(row, name) is not None}
        if not known:
            continue
        places = {label: (row.evaluations, getattr(row, name)) for label, row in known.items()}
        best = front(known, name)
        axes.plot(*zip(*places.values(), strict=True), "o", color="0.6", markersize=4)
        line = zip(*(places[label] for label in best), strict=True)
        axes.plot(*line, "o-", color="tab:blue", markersize=4, drawstyle="steps-post")
        for label in best:
            axes.annotate(label, places[label], (3, 3), textcoords="offset points", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


# ---------------------------------------------------------------- measuring


def compare(
    models: Sequence[str], *, data: str | Path, cache: str | Path, pairs: int, seeds: int
) -> Comparison:
    """Measure models under their own settings or others: "runs/a", "runs/a:50" (see `load`).

    data: a ToyMarket with development people, drawn if it is not there; cache: folder of the
    judging networks and of what was drawn, so that a run that was cut goes on.
    Raises UserError if there is nothing to compare.
    """
    if not models or seeds < 1:
        raise UserError("give at least one model and one seed")
    pipes = {name: load(name) for name in dict.fromkeys(models)}
    root = draw_people(Path(data))
    probe = make_probe(root, count=pairs, cache=Path(cache))
    rows, first_images = {}, {}
    for name, pipe in pipes.items():
        drawn = [_drawn(name, pipe, probe, Path(cache) / "drawn", seed) for seed in range(seeds)]
        rows[name], first_images[name] = measure(drawn, probe, evaluations(pipe)), drawn[0]
    true = probe.score(probe.crowd.images[probe.targets]).means()
    sheet = contact_sheet(probe, first_images)
    return Comparison(len(probe.pairs), seeds, true, rows, sheet)


def planned(models: Sequence[str], *, pairs: int, seeds: int) -> str:
    """What a comparison would draw, a line for each model."""
    costs = {name: evaluations(load(name)) for name in models}
    images = pairs * seeds
    lines = [f"{name}: {images:,} images, {images * n:,} evaluations" for name, n in costs.items()]
    return "\n".join(lines)


def load(name: str) -> PIDMPipeline:
    """A run folder or bundled model, sampled otherwise than it says if the name goes on.

    By any of steps, sampler, guidance and the interval of guidance: "runs/a:10:dpm++:dcf:0.3-1".
    """
    model, *parts = name.split(":")
    pipe = PIDMPipeline.from_pretrained(model)
    return pipe.with_settings(**dict(_setting(part, name) for part in parts)) if parts else pipe


def _setting(part: str, name: str) -> tuple[str, Any]:
    if part.isdecimal() and int(part):
        return "steps", int(part)
    if part in get_args(Sampler):
        return "sampler", part
    if part in get_args(Guidance):
        return "guidance", part
    if between := re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", part):
        return "interval", (float(between[1]), float(between[2]))
    raise UserError(
        f"models: '{part}' in '{name}' is no number of steps, sampler, guidance or interval (0.3-1)"
    )


def evaluations(pipe: PIDMPipeline) -> int:
    """Network evaluations for an image."""
    own = pipe.settings
    return Setting(own.guidance, own.steps, own.w_p, own.w_s, own.interval).evaluations


def measure(drawn: Sequence[np.ndarray], probe: Probe, evaluations: int) -> Row:
    """Score S times N images, uint8 (N, H, W, 3) each."""
    features = [probe.judges.features(images) for images in drawn]
    true = probe.judges.features(probe.crowd.images[probe.targets])
    means = [probe.score(images).means() for images in drawn]
    score = {key: float(np.mean([mean[key] for mean in means])) for key in means[0]}
    conditions = [str(pair) for pair in range(len(true))] * len(drawn)
    return Row(
        evaluations=evaluations,
        frechet=frechet_distance(np.concatenate(features), true),
        frechet_of_seeds=tuple(frechet_distance(one, true) for one in features),
        diversity=diversity(np.concatenate(features), conditions),
        **{key: score[key] for key in ("top_1", "identity", "joints", "ssim")},
    )


def _drawn(name: str, pipe: PIDMPipeline, probe: Probe, folder: Path, seed: int) -> np.ndarray:
    """The N images of a seed, kept in a file."""
    people = [probe.crowd.records[i].name for i in probe.pairs.flat]
    key = sha256(json.dumps([pipe.describe(), people, seed]).encode())[:16]
    path = folder / f"{key}.npy"
    images = load_array(path)
    if images is None:
        size = probe.crowd.images.shape[1:3]
        renderer = Renderer(f"{name}, seed {seed}", at_size(pipe, size))
        images = draw_pairs(probe, renderer, seed=seed)
        save_array(path, images)
    return images
