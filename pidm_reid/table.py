"""result.json files -> table.json, table.md and table.csv: mean, spread, and the paired gain.

Cells of one row and ratio are the same experiment with different seeds. A row is compared with
Standard-same-steps seed by seed, with the 95 % interval of Student's t over seeds, and another
from a bootstrap over the people in the query. A gain is one whose interval over seeds excludes 0.
Published figures stand beside ours and in rows of their own; no difference is taken from them.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core import BAD_DATA, UserError, read_json, write_bytes, write_json
from pidm_reid.plan import per_cent

REFERENCE, ERASING = "Standard-same-steps", "-erasing"
RESAMPLES = 2000
TABLE_FILES = ("table.json", "table.md", "table.csv")
CONFIG = "config.yaml"  # in a table's folder: the settings of the last call
FIGURES = ("mAP", "rank-1", "rank-5", "rank-10", "mINP")
MARKET_IMAGES = 12_936  # training images of Market-1501
PUBLISHED: Mapping[str, Mapping[float, float]] = {  # mAP in per cent by share of real images
    "Standard": {0.2: 33.4, 0.4: 56.6, 0.6: 64.9, 0.8: 69.2, 1.0: 76.7},
    "PTN": {0.2: 55.6, 0.4: 57.3, 0.6: 67.1, 0.8: 72.5},
    "GFLA": {0.2: 57.3, 0.4: 59.7, 0.6: 67.6, 0.8: 73.2},
    "DPTN": {0.2: 58.1, 0.4: 62.6, 0.6: 69.0, 0.8: 74.2},
    "PIDM-paper": {0.2: 61.3, 0.4: 64.8, 0.6: 71.6, 0.8: 75.3},
    "PCDMs": {0.2: 63.8, 0.4: 67.1, 0.6: 73.3, 0.8: 76.4},
    "IMAGPose": {0.2: 66.4, 0.4: 69.2, 0.6: 75.1, 0.8: 77.6},
}
PUBLISHED_NOTE = (
    "published: mAP on Market-1501, ResNet50 with ImageNet weights, of Table 3 of the PIDM paper; "
    "PCDMs and IMAGPose of their own papers. No gain is computed from it."
)
HOURS = ("generator", "synthesis", "training")
OF_A_ROW = ("erasing", "half_real", "real_last")  # of a fine-tuning; all else is alike in a table


@dataclass(frozen=True)
class Line:
    """A row of the table at one ratio; figures in per cent.

    A row of published figures alone has no mean, no seed and no image.
    """

    name: str
    ratio: float
    label: str  # what the row is called for readers
    mean: dict[str, float]  # mAP, rank-1, rank-5, rank-10, mINP
    sd: dict[str, float]  # over seeds; empty with one seed
    images: int  # entries of the training list
    synthetic: int
    steps: int
    seeds: tuple[int, ...]
    generator_saw: str
    weights: str
    gain: float | None  # in mAP over Standard-same-steps, mean over the seeds of both
    interval: tuple[float, float] | None  # 95 % over seeds, with two seeds or more
    people_interval: tuple[float, float] | None  # 95 % over the people in the query
    published: float | None = None  # mAP of the row of this name at this ratio
    hours: dict[str, float] = field(default_factory=dict)  # HOURS, mean over seeds
    distinct_images: int | None = None  # different images seen in training, mean over seeds
    camera: dict[str, float] = field(default_factory=dict)  # cameras.confirmed, mean over seeds
    identity: dict[str, float] = field(default_factory=dict)  # identity.recognised, the same
    reranked: dict[str, float] = field(default_factory=dict)  # as mean, without mINP
    by_camera: dict[str, tuple[int, float]] = field(default_factory=dict)  # queries, mAP
    by_orientation: dict[str, tuple[int, float]] = field(default_factory=dict)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All result.json below a table's folder; UserError (BAD_DATA) if there is none, or one is
    not a cell's result.
    """
    paths = sorted(folder.glob("*/result.json"))
    if not paths:
        raise UserError(f"{folder}: no result.json in its folders; run reproduce_table", BAD_DATA)
    results = [read_json(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        try:
            markdown(summarise([result]))
            sorted(result["by_person"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: not the result of a cell ({type(error).__name__}: {error}); remove its "
                "folder and run reproduce_table again",
                BAD_DATA,
            ) from error
    return results


def is_market1501(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a cell had Market-1501's 12,936 images to choose from, and of real people."""
    data = [result.get("configuration", {}).get("data", {}) for result in results]
    full = any(values.get("full_images") == MARKET_IMAGES for values in data)
    return full and not any(result.get("drawn_people") for result in results)


def summarise(results: Sequence[Mapping[str, Any]], *, published: bool = False) -> list[Line]:
    """One line per row and ratio: by ratio, first the rows Standard, then the others by mAP.

    published: with the figures of the papers, beside those of rows of the same name, otherwise in
    lines of their own after the others.
    """
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["ratio"], result["row"]].append(result)
    lines = [
        _line(ratio, row, cells, groups.get((ratio, _reference(cells[0])), []))
        for (ratio, row), cells in groups.items()
    ]
    if published:
        lines = _with_published(lines)
    order = ("Standard", REFERENCE)
    return sorted(
        lines,
        key=lambda line: (
            line.ratio,
            not line.mean,
            order.index(line.name) if line.name in order else len(order),
            line.mean.get("mAP", line.published),
        ),
    )


def _reference(cell: Mapping[str, Any]) -> str:
    """What a row is compared with: random erasing is no gain of the generated images."""
    finetune = cell.get("configuration", {}).get("finetune", {})
    erasing = bool(finetune.get("erasing")) and cell["row"] != REFERENCE + ERASING
    return REFERENCE + ERASING * erasing


def _with_published(lines: Sequence[Line]) -> list[Line]:
    known = {(line.name, line.ratio) for line in lines}
    beside = [
        replace(line, published=PUBLISHED.get(line.name, {}).get(line.ratio)) for line in lines
    ]
    alone = [
        _published_line(name, ratio, figures[ratio])
        for ratio in sorted({line.ratio for line in lines})
        for name, figures in PUBLISHED.items()
        if ratio in figures and (name, ratio) not in known
    ]
    return [*beside, *alone]


def _published_line(name: str, ratio: float, figure: float) -> Line:
    return Line(
        name=name,
        ratio=ratio,
        label=f"{name} (published)",
        mean={},
        sd={},
        images=0,
        synthetic=0,
        steps=0,
        seeds=(),
        generator_saw="",
        weights="",
        gain=None,
        interval=None,
        people_interval=None,
        published=figure,
    )


def _line(
    ratio: float,
    row: str,
    cells: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
) -> Line:
    cells = sorted(cells, key=lambda cell: cell["seed"])
    _refuse_mixed(f"{row}, {per_cent(ratio)}", cells, reference)
    values = {name: [100 * _figure(cell, name) for cell in cells] for name in FIGURES}
    if row == REFERENCE:
        reference = []  # not compared with itself
    gain, interval = paired(cells, reference)
    first = cells[0]
    return Line(
        name=row,
        ratio=ratio,
        label=(_joined(cells, "label") or row) + _otherwise_begun(cells, reference),
        mean={name: statistics.fmean(v) for name, v in values.items()},
        sd={name: statistics.stdev(v) for name, v in values.items()} if len(cells) > 1 else {},
        images=first["images"]["entries"],
        synthetic=first["images"]["synthetic"],
        steps=first["steps"],
        seeds=tuple(cell["seed"] for cell in cells),
        generator_saw=_joined(cells, "generator_saw"),
        weights=_joined(cells, "weights"),
        gain=gain,
        interval=interval,
        people_interval=bootstrap(cells, reference),
        hours=_hours(cells),
        distinct_images=_mean_count(
            [c["distinct_images"] for c in cells if "distinct_images" in c]
        ),
        camera=_mean_shares(cells, "camera"),
        identity=_mean_shares(cells, "identity"),
        reranked={
            name: statistics.fmean(100 * _figure(c["reranked"], name) for c in again)
            for name in FIGURES[:4]
            if (again := [cell for cell in cells if cell.get("reranked")])
        },
        by_camera=_by_group(cells, "by_camera"),
        by_orientation=_by_group(cells, "by_orientation"),
    )


def _refuse_mixed(
    what: str, cells: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> None:
    """UserError for cells of one row that were made differently, or otherwise than their like."""

    def facts(cell: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
        known = cell.get("configuration", {})
        found = {"student": known.get("student")}
        stage = known.get("finetune") or {}
        stage = {"start": "standard", **stage} if stage else {}
        found |= {f"finetune.{k}": value for k, value in stage.items() if k not in without}
        found |= {key: cell[key] for key in ("precision",) if key in cell}
        data = known.get("data", {})
        return found | {f"{s} images": data[s] for s in ("train", "test") if s in data}

    def generated(cell: Mapping[str, Any]) -> dict[str, Any]:
        """Where the row's images come from; seeds differ in which are planned, not in how many."""
        known, images = cell.get("configuration", {}), cell["images"]
        found = {key: known.get(key) for key in ("renderer", "settings", "selection", "images")}
        found["change"] = cell.get("change")
        if "real" in images and not known.get("images"):
            found["generated for a real image"] = round(images["synthetic"] / images["real"], 1)
        if generator := known.get("generator"):
            training = {k: v for k, v in generator["train"].items() if k != "seed"}
            found["generator"] = {**generator, "train": training, "init": known.get("init")}
        return found

    for verdict, groups in (
        ("its cells were made differently", [{**facts(c), **generated(c)} for c in cells]),
        (
            "was made otherwise than what it is compared with",
            [facts(cell, OF_A_ROW) for cell in (*cells[:1], *reference)],
        ),
    ):
        first = groups[0]
        for other in groups[1:]:
            if changed := [k for k in first.keys() & other.keys() if first[k] != other[k]]:
                raise UserError(
                    f"{what}: {verdict} ({', '.join(sorted(changed))}); give the table a new "
                    "--name",
                    BAD_DATA,
                )


def _otherwise_begun(
    cells: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> str:
    """What a row's name says where a seed began with another Standard than the reference's."""
    theirs = {cell["seed"]: cell.get("standard") for cell in reference}
    began = [(cell.get("standard"), theirs.get(cell["seed"])) for cell in cells]
    return ", from another Standard" if any(a and b and a != b for a, b in began) else ""


def _joined(cells: Sequence[Mapping[str, Any]], key: str) -> str:
    """What the seeds of a row say, once if they agree."""
    return ", ".join(dict.fromkeys(str(cell[key]) for cell in cells if key in cell))


def _hours(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the row alone: fine-tuned ones start from the network of the row Standard."""
    costs = [cell["cost"] for cell in cells if "cost" in cell]
    if not costs:
        return {}
    seconds = {
        "generator": [cost.get("generator_seconds", 0) for cost in costs],
        "synthesis": [
            cost.get("synthesis_seconds", 0) + cost.get("selection_seconds", 0) for cost in costs
        ],
        "training": [cost.get("train_seconds", 0) for cost in costs],
    }
    return {name: statistics.fmean(seconds[name]) / 3600 for name in HOURS}


def _mean_shares(cells: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """The shares of those cells that have any, in per cent."""
    told = [cell[key] for cell in cells if cell.get(key)]
    return (
        {kind: statistics.fmean(100 * shares[kind] for shares in told) for kind in told[0]}
        if told
        else {}
    )


def _mean_count(counts: Sequence[float]) -> int | None:
    return round(statistics.fmean(counts)) if counts else None


def _by_group(cells: Sequence[Mapping[str, Any]], key: str) -> dict[str, tuple[int, float]]:
    """Group -> its queries and their mAP, mean over the seeds; without groups of no figure."""
    groups: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for cell in cells:
        for group, (queries, precision) in (cell.get(key) or {}).items():
            if precision is not None:
                groups[group].append((queries, 100 * precision))
    return {
        group: (max(q for q, _ in values), statistics.fmean(p for _, p in values))
        for group, values in groups.items()
    }


def _figure(cell: Mapping[str, Any], name: str) -> float:
    return float(cell["cmc"][name[5:]] if name.startswith("rank-") else cell[name])


def paired(
    cells: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> tuple[float | None, tuple[float, float] | None]:
    """Mean difference in mAP (points) over common seeds, and its 95 % t-interval if two or more."""
    other = {cell["seed"]: cell["mAP"] for cell in reference}
    gains = [100 * (c["mAP"] - other[c["seed"]]) for c in cells if c["seed"] in other]
    if not gains:
        return None, None
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return mean, None
    from scipy.stats import t  # type: ignore[import-untyped]

    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return mean, (mean - half, mean + half)


def bootstrap(
    cells: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> tuple[float, float] | None:
    """95 % interval of the difference in mAP (points) when the query's people are drawn anew."""
    other = {cell["seed"]: cell["by_person"] for cell in reference}
    pairs = [(c["by_person"], other[c["seed"]]) for c in cells if c["seed"] in other]
    if not pairs:
        return None
    people = sorted(pairs[0][0])
    counts = np.array([pairs[0][0][pid][0] for pid in people])
    gains = np.mean([[ours[p][1] - theirs[p][1] for p in people] for ours, theirs in pairs], axis=0)
    drawn = np.random.default_rng(0).integers(len(people), size=(RESAMPLES, len(people)))
    means = 100 * gains[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# ---------------------------------------------------------------- writing


def write_table(folder: Path, *, published: bool | None = None) -> list[Line]:
    """Read all results below `folder` and write table.json, table.md and table.csv into it.

    published: whether the papers' figures stand in it (None: if it is of Market-1501).
    """
    lines = read_table(folder, published=published)
    write_json(folder / "table.json", [asdict(line) for line in lines])
    write_bytes(folder / "table.md", markdown(lines).encode())
    write_bytes(folder / "table.csv", comma_separated(lines).encode())
    return lines


def read_table(folder: Path, *, published: bool | None = None) -> list[Line]:
    """The lines of all results below `folder`; `published` as in `write_table`."""
    results = read_results(folder)
    shown = is_market1501(results) if published is None else published
    return summarise(results, published=shown)


class Strong(str):
    """The text of a cell that is to be set in bold."""


@dataclass(frozen=True)
class Grid:
    """A table for reading: every cell as text."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Columns = Sequence[tuple[str, Callable[[Line], str]]]


def grids(lines: Sequence[Line]) -> list[Grid]:
    """The figures, then their cost, then mAP by camera and orientation, as far as there are any.

    A gain in bold has an interval over seeds that excludes 0.
    """
    measured = [line for line in lines if line.mean]
    known = any(line.published is not None for line in lines)
    figures = [column for column in COLUMNS if known or column[0] != "published"]
    found = [_grid("Figures", PUBLISHED_NOTE if known else "", figures, lines)]
    identity = IDENTITY_NOTE if any(line.identity for line in measured) else ""
    for title, note, columns in (
        ("Cost and details", COST_NOTE + identity, COST),
        (
            "By camera and orientation",
            GROUPS_NOTE,
            [*_groups(measured, "by_camera"), *_groups(measured, "by_orientation")],
        ),
    ):
        if there := [(name, text) for name, text in columns if any(map(text, measured))]:
            found.append(_grid(title, note, [*COLUMNS[:2], *there], measured))
    return found


def _grid(title: str, note: str, columns: Columns, lines: Sequence[Line]) -> Grid:
    rows = tuple(tuple(text(line) for _, text in columns) for line in lines)
    return Grid(title, note, tuple(name for name, _ in columns), rows)


def _figure_of(name: str) -> tuple[str, Callable[[Line], str]]:
    def text(line: Line) -> str:
        if not line.mean:
            return ""
        return f"{line.mean[name]:.1f}" + (f" ± {line.sd[name]:.1f}" if line.sd else "")

    return name, text


def _of_measured(text: Callable[[Line], str]) -> Callable[[Line], str]:
    return lambda line: text(line) if line.mean else ""


COLUMNS: Columns = (
    ("real data", lambda line: per_cent(line.ratio)),
    ("row", lambda line: line.label),
    _figure_of("mAP"),
    ("published", lambda line: "" if line.published is None else f"{line.published:.1f}"),
    *map(_figure_of, FIGURES[1:]),
    ("gain in mAP", lambda line: _gain(line)),
    (
        "people",
        lambda line: "" if line.people_interval is None else _range(line.people_interval),
    ),
    ("images", _of_measured(lambda line: f"{line.images:,}")),
    ("synthetic", _of_measured(lambda line: f"{line.synthetic:,}")),
    ("steps", _of_measured(lambda line: f"{line.steps:,}")),
    ("seeds", lambda line: ", ".join(map(str, line.seeds))),
    ("generator saw", lambda line: line.generator_saw),
    ("start", lambda line: line.weights),
)


def _hours_of(name: str) -> tuple[str, Callable[[Line], str]]:
    return f"{name} h", lambda line: f"{line.hours[name]:.3g}" if line.hours else ""


def _reranked_of(name: str) -> tuple[str, Callable[[Line], str]]:
    return (
        f"re-ranked {name}",
        lambda line: f"{line.reranked[name]:.1f}" if line.reranked else "",
    )


COST: Columns = (
    *map(_hours_of, HOURS),
    (
        "different images",
        lambda line: "" if line.distinct_images is None else f"{line.distinct_images:,}",
    ),
    (
        "camera confirmed",
        lambda line: (
            "{generated:.0f} % (real {real:.0f} %)".format(**line.camera) if line.camera else ""
        ),
    ),
    (
        "recognised",
        lambda line: (
            "{added:.0f} % (D_tr {real:.0f} %)".format(**line.identity) if line.identity else ""
        ),
    ),
    *map(_reranked_of, FIGURES[:2]),
)
COST_NOTE = (
    "Hours (h), mean over seeds: training of the generator (not of the model that it began "
    "with), synthesis with selection, "
    "training of the row's own network (fine-tuned ones start from that of Standard). "
    "Camera confirmed: generated images for which a classifier that has not seen the person names "
    "the camera of the source, the label that they carry."
)
IDENTITY_NOTE = (
    " Recognised: added images (generated or withheld real ones, at most 3,000, of people whom "
    "D_tr shows by another camera too) whose nearest image of D_tr, those of the person by the "
    "same camera left out, shows the person, in the features of Standard; in brackets the images "
    "of D_tr itself, on which it was trained."
)
GROUPS_NOTE = "mAP of the queries of one camera or one orientation (number of queries)."


def _groups(lines: Sequence[Line], key: str) -> Columns:
    names = sorted({name for line in lines for name in getattr(line, key)})

    def column(name: str) -> tuple[str, Callable[[Line], str]]:
        def text(line: Line) -> str:
            found = getattr(line, key).get(name)
            return f"{found[1]:.1f} ({found[0]:,})" if found else ""

        return name, text

    return [column(name) for name in names]


def _gain(line: Line) -> str:
    if line.gain is None:
        return ""
    if line.interval is None:
        return f"{line.gain:+.1f}"
    text = f"{line.gain:+.1f} {_range(line.interval)}"
    return Strong(text) if line.interval[0] * line.interval[1] > 0 else text


def _range(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:+.1f}, {interval[1]:+.1f}]"


def markdown(lines: Sequence[Line]) -> str:
    """The tables for reading, one below the other."""
    return "\n".join(_markdown(grid) for grid in grids(lines))


def _markdown(grid: Grid) -> str:
    rows = [grid.header, tuple("---" for _ in grid.header), *grid.rows]
    table = "".join(f"| {' | '.join(map(_markdown_cell, row))} |\n" for row in rows)
    return f"{table}\n{grid.note}\n" if grid.note else table


def _markdown_cell(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return f"**{flat}**" if isinstance(text, Strong) else flat


def comma_separated(lines: Sequence[Line]) -> str:
    """The table for other programs: plain numbers, one column per figure."""
    out = io.StringIO()
    groups = [
        (key, name)
        for key in ("by_camera", "by_orientation")
        for name in sorted({name for line in lines for name in getattr(line, key)})
    ]
    rows = [_values(line, groups) for line in lines]
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _values(line: Line, groups: Sequence[tuple[str, str]]) -> dict[str, Any]:
    def rounded(value: float | None) -> float | str:
        return "" if value is None else round(value, 4)

    low, high = line.interval or ("", "")
    people_low, people_high = line.people_interval or ("", "")
    measured = bool(line.mean)
    values: dict[str, Any] = {
        "ratio": line.ratio,
        "row": line.name,
        **{name: rounded(line.mean.get(name)) for name in FIGURES},
        **{f"{name} sd": rounded(line.sd.get(name)) for name in FIGURES},
        "gain": rounded(line.gain),
        "gain low": low,
        "gain high": high,
        "people low": people_low,
        "people high": people_high,
        "images": line.images if measured else "",
        "synthetic": line.synthetic if measured else "",
        "steps": line.steps if measured else "",
        "seeds": " ".join(map(str, line.seeds)),
        "generator_saw": line.generator_saw,
        "weights": line.weights,
        "label": line.label,
        "published mAP": rounded(line.published),
        **{f"{name} hours": rounded(line.hours.get(name)) for name in HOURS},
        "distinct_images": "" if line.distinct_images is None else line.distinct_images,
        "camera confirmed": rounded(line.camera.get("generated")),
        "camera confirmed, real": rounded(line.camera.get("real")),
        "recognised": rounded(line.identity.get("added")),
        "recognised, D_tr": rounded(line.identity.get("real")),
        **{f"reranked {name}": rounded(line.reranked.get(name)) for name in FIGURES[:4]},
    }
    for key, name in groups:
        queries, precision = getattr(line, key).get(name, ("", None))
        values |= {f"{name} queries": queries, f"{name} mAP": rounded(precision)}
    return values
