"""The whole measurement of a generator: its settings side by side, as a table, JSON and a sheet."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pidm_core.files import read_json, resized
from pidm_core.hardware import to_uint8
from pidm_core.keypoints import rescale
from pidm_core.pipeline import PIDMPipeline
from pidm_core.pose import pose_map
from pidm_core.probe import Probe, Render, Setting, choose_pairs, read_crowd, settings
from pidm_core.probe_networks import Training, train_judges
from pidm_core.progress import track
from pidm_core.sheets import sheet
from pidm_core.toy_market import make, oracle_render

log = logging.getLogger(__name__)
ORACLE = "drawn by ToyMarket"
_COLUMNS = {
    "ssim": ("SSIM", ".3f"),
    "ssim_256": ("SSIM256", ".3f"),
    "upper": ("upper", ".1f"),
    "lower": ("lower", ".1f"),
    "upper_place": ("up.place", ".1f"),
    "lower_place": ("lo.place", ".1f"),
    "joints": ("joints", ".2f"),
    "identity": ("identity", ".3f"),
    "top_1": ("top-1", ".1%"),
    "evaluations": ("evals", ".0f"),
    "seconds": ("s/image", ".2f"),
}
_LEGEND = """\
SSIM: 51 px window; SSIM256: Gaussian, sigma 1.2. upper, lower: CIELAB distance of the garment's
mean colour, wherever the picture shows it; up.place, lo.place: the same at the pixels where the
true target shows it. joints: px from the true target's joints, as a small network sees them (true
target = its own error). identity: mean cosine to the person's pictures by cameras that took
neither source nor target; top-1: the most similar one of all pictures shows the person. evals:
network evaluations for an image."""


@dataclass(frozen=True)
class Renderer:
    """Something that draws, under the name of its row."""

    name: str
    render: Render
    evaluations: int = 0
    """Network evaluations for each image."""


@dataclass(frozen=True)
class Report:
    """What was measured."""

    pairs: int
    people: int
    cross_camera: float
    """Share of the pairs whose source and target were taken by different cameras."""
    rows: dict[str, dict[str, float]]
    """Name -> mean of each score (probe.Scores), and the cost of renderers."""
    gains: dict[str, dict[str, dict[str, dict[str, float]]]]
    """Renderer -> rival -> score -> by how much the renderer is closer, and 95 % half-width."""
    controls: dict[str, float]
    """Of the first renderer: another source, another pose."""
    sheet: np.ndarray = field(repr=False)
    """uint8 (H, W, 3): source, pose, each renderer's image and the true one of up to 24 pairs."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the sheet."""
        return {key: value for key, value in vars(self).items() if key != "sheet"}

    def text(self) -> str:
        """The tables that the tool prints."""
        width = max(map(len, self.rows))
        heads = " ".join(f"{head:>8}" for head, _ in _COLUMNS.values())
        lines = [
            f"{self.pairs} pairs of {self.people} people, {self.cross_camera:.0%} across cameras"
        ]
        lines += ["", f"{'':{width}} {heads}"]
        for name, row in self.rows.items():
            cells = (
                format(row[key], form) if key in row else "" for key, (_, form) in _COLUMNS.items()
            )
            lines.append(f"{name:{width}} " + " ".join(f"{cell:>8}" for cell in cells))
        lines += [_LEGEND, "", "Closer to the true target than ... by (mean of the people, 95 %):"]
        for name, rivals in self.gains.items():
            lines += [f"{name} - {rival}: {_gain(scores)}" for rival, scores in rivals.items()]
        lines += ["", "Controls:", *(f"{key}: {value:.3f}" for key, value in self.controls.items())]
        return "\n".join(lines)


def _gain(scores: dict[str, dict[str, float]]) -> str:
    shown = ("ssim", "upper", "lower", "upper_place", "lower_place", "joints", "identity")
    told = (k for k in shown if k in scores)
    return ", ".join(f"{k} {scores[k]['mean']:+.3g} ± {scores[k]['half']:.2g}" for k in told)


# ---------------------------------------------------------------- measuring


def probe_generator(
    run: str | Path,
    *,
    data: str | Path,
    cache: str | Path,
    pairs: int,
    seed: int = 0,
    **sampling: Any,
) -> Report:
    """Measure a run folder or bundled model under all combinations of some sampling settings.

    data: a ToyMarket with development people, drawn if it is not there; cache: folder of the
    judging networks; sampling: lists of guidance, steps, w_p, w_s (probe.settings). The last row
    of the renderers is ToyMarket's own drawing.
    """
    pipes = _pipes(run, sampling)  # before the people are drawn: a setting may be wrong
    root = draw_people(Path(data))
    probe = make_probe(root, count=pairs, cache=Path(cache), seed=seed)
    size = probe.crowd.images.shape[1:3]
    log.info(_cost(len(probe.pairs), [*pipes]))
    ours = [
        Renderer(str(setting), at_size(pipe, size), setting.evaluations)
        for setting, pipe in pipes.items()
    ]
    return measure(probe, [*ours, Renderer(ORACLE, oracle_render(root))], seed=seed)


def _pipes(run: str | Path, sampling: Mapping[str, Any]) -> dict[Setting, PIDMPipeline]:
    """The model under each combination of the settings; UserError for one that there is not."""
    pipe = PIDMPipeline.from_pretrained(run)
    chosen = settings(pipe.settings, **sampling)
    return {setting: pipe.with_settings(**asdict(setting)) for setting in chosen}


def outlook(run: str | Path, *, pairs: int, **asked: Any) -> str:
    """What `probe_generator` with the same arguments would cost."""
    sampling = {name: asked[name] for name in ("guidance", "steps", "w_p", "w_s")}
    text = _cost(pairs, [*_pipes(run, sampling)])
    judges = Path(asked["cache"])
    return text if judges.is_dir() else f"{text}; two judges are trained first, into {judges}"


def _cost(pairs: int, chosen: Sequence[Setting]) -> str:
    evaluations = sum(s.evaluations for s in chosen) + chosen[0].evaluations  # one for controls
    return f"{pairs * (len(chosen) + 1):,} images, {pairs * evaluations:,} network evaluations"


def at_size(pipe: PIDMPipeline, size: tuple[int, int]) -> Render:
    """A pipeline's renderer for pictures of another size than its own (bicubic both ways)."""

    def brought(images: np.ndarray, to: tuple[int, int]) -> np.ndarray:
        return np.stack([resized(image, to) for image in images])

    def render(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
        joints = rescale(keypoints, size, pipe.size)
        return brought(pipe.render(brought(sources, pipe.size), joints, seeds), size)

    return pipe.render if pipe.size == size else render


def draw_people(out: Path) -> Path:
    """The data set of the probe: many training people, development people to test on.

    Draws it unless a finished ToyMarket is there (then any will do), and returns its folder.
    """
    root = out / "market1501"
    note = root / "toy_market.json"
    if note.is_file() and read_json(note).get("finished"):
        return root
    log.info("drawing about 4,200 pictures of people, once -> %s", root)
    return make(
        out,
        test_people="development",
        train_identities=400,  # of few people the identity network learns little
        train_images=3200,
    )


def make_probe(
    root: Path, *, count: int, cache: Path, seed: int = 0, training: Training | None = None
) -> Probe:
    """The probe of a ToyMarket with development people; its networks are trained or loaded."""
    note = read_json(root / "toy_market.json")
    train = {key: value for key, value in note["counts"].items() if key.startswith("train_")}
    name = f"{note['world']} {note['seed']} {note['train_people']} {sorted(train.items())}"
    judges = train_judges(read_crowd(root, "train"), cache, name=name, training=training)
    crowd = read_crowd(root, "test")
    return Probe(crowd, choose_pairs(crowd, count, seed=seed), judges)


def measure(probe: Probe, renderers: Sequence[Renderer], *, seed: int) -> Report:
    """Let every renderer draw the pairs, the first one also with exchanged sources, and score."""
    true, *rivals = (scores := probe.rivals())
    rows, gains, drawn = {true: scores[true].means()}, {}, {}
    for renderer in renderers:
        start = time.monotonic()
        drawn[renderer.name] = draw_pairs(probe, renderer, seed=seed)
        seconds = (time.monotonic() - start) / len(probe.pairs)
        mine = probe.score(drawn[renderer.name])
        cost = {"evaluations": renderer.evaluations, "seconds": round(seconds, 4)}
        rows[renderer.name] = {**mine.means(), **cost}
        gains[renderer.name] = {rival: probe.gain(mine, scores[rival]) for rival in rivals}
    for rival in rivals:
        rows[rival] = scores[rival].means()
        for which, by in _by_camera(probe, rival).items():
            rows[f"{rival}, {which}"] = scores[rival].means(by)
    swapped = draw_pairs(probe, renderers[0], seed=seed, swapped=True)
    cameras = probe.crowd.cameras[probe.pairs]
    return Report(
        pairs=len(probe.pairs),
        people=len(np.unique(probe.people)),
        cross_camera=round(float((cameras[:, 0] != cameras[:, 1]).mean()), 4),
        rows=rows,
        gains=gains,
        controls=probe.controls(drawn[renderers[0].name], swapped),
        sheet=contact_sheet(probe, drawn),
    )


def _by_camera(probe: Probe, rival: str) -> dict[str, np.ndarray]:
    own = probe.by_own_camera().get(rival)
    if own is None:
        return {}
    both = {"target's camera": own, "another camera": ~own}
    return both if own.any() and not own.all() else {}  # else one of the two is the rival itself


def draw_pairs(probe: Probe, renderer: Renderer, *, seed: int, swapped: bool = False) -> np.ndarray:
    """The N images of a renderer: uint8 (N, H, W, 3); says now and then how far it is."""
    parts: list[np.ndarray] = []

    def counts() -> Iterator[int]:
        for images in probe.draw(renderer.render, seed=seed, swapped=swapped):
            parts.append(images)
            yield len(images)

    label = f"{renderer.name}{', sources exchanged' if swapped else ''}"
    sum(track(counts(), total=len(probe.pairs), label=label, unit="images"))
    return np.concatenate(parts)


# ---------------------------------------------------------------- the sheet

_ROWS, _BLOCKS = 6, 4  # pairs below and beside each other


def contact_sheet(probe: Probe, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sheet of a report; `drawn` are the N images of each renderer."""
    crowd, pairs = probe.crowd, probe.pairs[: _ROWS * _BLOCKS]
    size = crowd.images.shape[1:3]
    poses = pose_map(torch.from_numpy(crowd.found[pairs[:, 1]]).float(), size)
    columns = {
        "source": crowd.images[pairs[:, 0]],
        "pose": to_uint8(2 * poses[:, :3] - 1),
        **drawn,
        "true": crowd.images[pairs[:, 1]],
    }
    blocks = -(-len(pairs) // _ROWS)
    rows = [
        [
            images[pair] if pair < len(pairs) else np.full((*size, 3), 255, dtype=np.uint8)
            for pair in range(row, _ROWS * blocks, _ROWS)
            for images in columns.values()
        ]
        for row in range(min(_ROWS, len(pairs)))
    ]
    return sheet(list(columns) * blocks, rows, (2 * size[0], 2 * size[1]))
