"""A table as one HTML page, with a plot and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pidm_core import BAD_DATA, UserError, read_json, write_bytes
from pidm_reid import page
from pidm_reid.page import Series, escape, paragraph
from pidm_reid.table import (
    CONFIG,
    TABLE_FILES,
    Line,
    grids,
    is_market1501,
    read_results,
    summarise,
    write_table,
)

AXES = {"x": "real images, %", "y": "mAP, %"}
GAIN_NOTE = (
    "± is the standard deviation over seeds. Gain: mAP over Standard-same-steps with the same "
    "seed (of rows with random erasing over its row with erasing), mean of the seeds [95 % "
    "interval of Student's t]; in bold if the interval excludes 0. People: 95 % interval when the "
    "people of the query are drawn anew (bootstrap). Generator saw: which images the generator "
    "was trained on."
)


def write_table_report(table: Path, *, published: bool | None = None) -> Path:
    """Write report.html beside the results of a table; returns its path.

    published: as in `table.write_table`. Raises UserError (BAD_DATA) without a result.json.
    """
    results = read_results(table)
    shown = is_market1501(results) if published is None else published
    lines = summarise(results, published=shown)
    figures, *others = grids(lines)
    body = [
        page.line_plot(_series(lines), **AXES, alt="mAP of every row by the share of real images"),
        page.table(figures),
        f'<p class="soft">{escape(GAIN_NOTE)}</p>\n',
        *(f"<h2>{escape(grid.title)}</h2>\n{page.table(grid)}" for grid in others),
        "<h2>How to make it again</h2>\n",
        f"<pre>{escape(_command(table, results, lines))}</pre>\n",
        paragraph(
            f"{CONFIG} holds the settings of the last call."
            if (table / CONFIG).is_file()
            else "with the settings below; the data set is not named in the results."
        ),
        page.details("Configuration of the first cell", results[0].get("configuration", {})),
        page.details("Versions", results[0].get("versions", {})),
    ]
    path = table / page.REPORT
    write_bytes(path, page.page(f"Table {table.resolve().name}", "".join(body)))
    return path


def publish(table: Path, home: Path, *, published: bool | None = None) -> Path:
    """Copy a table and its cells to home/NAME, with a plot if it has several ratios.

    That folder, which is returned, can itself be shown, and be copied back to be gone on with.
    Raises UserError (BAD_DATA) without a result.json, and for a folder there with further cells.
    """
    lines = write_table(table, published=published)
    out = home / table.resolve().name
    cells = [path.relative_to(out) for path in out.glob("*/result.json")]
    if further := [cell.parent for cell in cells if not (table / cell).is_file()]:
        raise UserError(
            f"{out}: has {len(further)} cells, such as {min(further)}, that are not in {table}; "
            "copy them there first, or remove them",
            BAD_DATA,
        )
    for name in TABLE_FILES:
        write_bytes(out / name, (table / name).read_bytes())
    for path in table.glob("*/result.json"):  # a line each: read by programs, seldom by people
        cell = json.dumps(read_json(path), separators=(",", ":"), ensure_ascii=False)
        write_bytes(out / path.relative_to(table), f"{cell}\n".encode())
    if len({line.ratio for line in lines}) > 1:
        write_bytes(out / "plot.png", page.plot_file(_series(lines), **AXES))
    return out


def _series(lines: Sequence[Line]) -> list[Series]:
    """A line for each row; where there are several ratios, of rows that were done at several."""
    ratios = {name: {x.ratio for x in lines if x.name == name} for name in {x.name for x in lines}}
    if any(len(own) > 1 for own in ratios.values()):
        lines = [line for line in lines if len(ratios[line.name]) > 1]
    styles: dict[str, int] = {}
    for line in lines:
        styles.setdefault(line.name, len(styles))
    series = []
    for name, style in styles.items():
        own = [line for line in lines if line.name == name and line.mean]
        known = [(x.ratio, x.published) for x in lines if x.name == name and x.published]
        if own:
            series.append(
                Series(
                    own[0].label,
                    [100 * line.ratio for line in own],
                    [line.mean["mAP"] for line in own],
                    [line.sd.get("mAP", 0.0) for line in own],
                    style=style,
                )
            )
        if known:
            x, y = [100 * ratio for ratio, _ in known], [figure for _, figure in known]
            series.append(Series(f"{name}, published", x, y, dashed=True, style=style))
    return series


def _command(table: Path, results: Sequence[Mapping[str, Any]], lines: Sequence[Line]) -> str:
    """The command that made the table, as far as its results tell."""
    foreign = {result["row"] for result in results if "images" in result.get("configuration", {})}
    variants = {result["row"]: result["change"] for result in results if "change" in result}
    rows = list(dict.fromkeys(line.name for line in lines if line.mean))
    seeds = sorted({seed for line in lines for seed in line.seeds})
    parts = ["python", "tools/reproduce_table.py", "reid"]
    if (table / CONFIG).is_file():
        parts += ["--config", str(table / CONFIG)]
    else:
        parts += ["--name", table.resolve().name]
    if own := [row for row in rows if row not in {*foreign, *variants}]:
        parts += ["--rows", ",".join(own)]
    parts += ["--ratios", ",".join(str(r) for r in sorted({line.ratio for line in lines}))]
    parts += ["--seeds", ",".join(map(str, seeds))]
    if variants:
        parts += ["--variants", ",".join(f"{row}={change}" for row, change in variants.items())]
    for row in rows:
        if row in foreign:
            parts += ["--row", f"{row}=DIR"]
    return shlex.join(parts)
