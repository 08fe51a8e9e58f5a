"""result.json files -> table.json, table.md and table.csv: mean, spread, and the paired gain.

Cells of one row and ratio are the same experiment with different seeds. A row is compared with
Standard-same-steps seed by seed, with the 95 % interval of Student's t over seeds, and another
from a bootstrap over the people in the query. A gain is one whose interval over seeds excludes 0.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core import BAD_DATA, UserError, read_json, write_bytes, write_json

REFERENCE = "Standard-same-steps"
RESAMPLES = 2000
FIGURES = ("mAP", "rank-1", "rank-5", "rank-10", "mINP")


@dataclass(frozen=True)
class Line:
    """A row of the table at one ratio; figures in per cent."""

    name: str
    ratio: float
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


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All result.json below a table's folder; UserError (BAD_DATA) if there is none."""
    paths = sorted(folder.glob("*/result.json"))
    if not paths:
        raise UserError(f"{folder}: no result.json in its folders; run reproduce_table", BAD_DATA)
    return [read_json(path) for path in paths]


def summarise(results: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line per row and ratio: by ratio, first the rows Standard, then the others by mAP."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["ratio"], result["row"]].append(result)
    lines = [
        _line(ratio, row, cells, groups.get((ratio, REFERENCE), []))
        for (ratio, row), cells in groups.items()
    ]
    order = ("Standard", REFERENCE)
    return sorted(
        lines,
        key=lambda line: (
            line.ratio,
            order.index(line.name) if line.name in order else len(order),
            line.mean["mAP"],
        ),
    )


def _line(
    ratio: float,
    row: str,
    cells: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
) -> Line:
    cells = sorted(cells, key=lambda cell: cell["seed"])
    values = {name: [100 * _figure(cell, name) for cell in cells] for name in FIGURES}
    if row == REFERENCE:
        reference = []  # not compared with itself
    gain, interval = paired(cells, reference)
    first = cells[0]
    return Line(
        name=row,
        ratio=ratio,
        mean={name: statistics.fmean(v) for name, v in values.items()},
        sd={name: statistics.stdev(v) for name, v in values.items()} if len(cells) > 1 else {},
        images=first["images"]["entries"],
        synthetic=first["images"]["synthetic"],
        steps=first["steps"],
        seeds=tuple(cell["seed"] for cell in cells),
        generator_saw=first["generator_saw"],
        weights=first["weights"],
        gain=gain,
        interval=interval,
        people_interval=bootstrap(cells, reference),
    )


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


def write_table(folder: Path) -> list[Line]:
    """Read all results below `folder` and write table.json, table.md and table.csv into it."""
    lines = summarise(read_results(folder))
    write_json(folder / "table.json", [asdict(line) for line in lines])
    write_bytes(folder / "table.md", markdown(lines).encode())
    write_bytes(folder / "table.csv", comma_separated(lines).encode())
    return lines


HEADER = (
    "real data", "row", "mAP", "rank-1", "rank-5", "rank-10", "mINP", "gain in mAP", "people",
    "images", "synthetic", "steps", "seeds", "generator saw", "start",
)  # fmt: skip


def markdown(lines: Sequence[Line]) -> str:
    """The table for reading; a gain in bold has an interval over seeds that excludes 0."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(_cells(line) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(line: Line) -> tuple[str, ...]:
    figures = tuple(
        f"{line.mean[name]:.1f}" + (f" ± {line.sd[name]:.1f}" if line.sd else "")
        for name in FIGURES
    )
    return (
        f"{line.ratio:.0%}",
        line.name,
        *figures,
        _gain(line),
        "" if line.people_interval is None else _range(line.people_interval),
        f"{line.images:,}",
        f"{line.synthetic:,}",
        f"{line.steps:,}",
        ", ".join(map(str, line.seeds)),
        line.generator_saw,
        line.weights,
    )


def _gain(line: Line) -> str:
    if line.gain is None:
        return ""
    if line.interval is None:
        return f"{line.gain:+.1f}"
    text = f"{line.gain:+.1f} {_range(line.interval)}"
    return f"**{text}**" if line.interval[0] * line.interval[1] > 0 else text


def _range(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:+.1f}, {interval[1]:+.1f}]"


def comma_separated(lines: Sequence[Line]) -> str:
    """The table for other programs: plain numbers, one column per figure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spread = [f"{name} sd" for name in FIGURES]
    writer.writerow(
        ["ratio", "row", *FIGURES, *spread, "gain", "gain low", "gain high",
         "people low", "people high", "images",
         "synthetic", "steps", "seeds", "generator_saw", "weights"]
    )  # fmt: skip
    for line in lines:
        writer.writerow(
            [
                line.ratio,
                line.name,
                *(round(line.mean[name], 4) for name in FIGURES),
                *(round(line.sd[name], 4) if line.sd else "" for name in FIGURES),
                "" if line.gain is None else round(line.gain, 4),
                *(line.interval or ("", "")),
                *(line.people_interval or ("", "")),
                line.images,
                line.synthetic,
                line.steps,
                " ".join(map(str, line.seeds)),
                line.generator_saw,
                line.weights,
            ]
        )
    return out.getvalue()
