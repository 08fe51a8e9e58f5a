"""Reproduce a table: `reid` trains and tests every cell, `ablation` trains PIDM's variants and
scores them, `images` scores folders of images that are there."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pidm_core import DONE, SKIPPED, UserError, parse, run, stop_after
from pidm_core.config import AblationTable, ImageTable
from pidm_core.options import narrowed
from pidm_reid.config import ReidTable

EXAMPLE = "python tools/reproduce_table.py reid --config configs/demo.yaml"
IMAGES_EXAMPLE = "python tools/reproduce_table.py images --config configs/market1501_images.yaml"
ABLATION_EXAMPLE = "python tools/reproduce_table.py ablation --config configs/toy_ablation.yaml"


@dataclass(frozen=True)
class Options(ReidTable):
    """A table, and whether and how long to make it."""

    minutes: float = 0.0
    """Stop after so many minutes, as SIGTERM does; the same command goes on (0: no limit)."""
    dry_run: bool = False
    """Say which cells would be done and what they cost, and stop."""


@dataclass(frozen=True)
class ImagesOptions(ImageTable):
    """A table of methods, and whether to make it."""

    dry_run: bool = False
    """Say how many images each method has, and stop."""


@dataclass(frozen=True)
class AblationOptions(AblationTable):
    """The variants of PIDM, and whether to train them."""

    dry_run: bool = False
    """Say what would be trained and drawn, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Make one kind of table."""
    argv = sys.argv[1:] if argv is None else argv
    kind, *rest = argv or [""]
    if kind.startswith("-"):
        kind, rest = "reid", argv
    kinds = {"reid": reid, "ablation": ablation, "images": images}
    if kind not in kinds:
        known = ", ".join(kinds)
        raise UserError(f"'{kind}' is not a table; the tables are: {known} (example: {EXAMPLE})")
    return kinds[kind](rest)


def reid(argv: list[str]) -> int:
    """Do the unfinished cells, print each, and write the table."""
    tool = "reproduce_table reid"
    options = parse(Options, argv, prog=tool, description=__doc__, example=EXAMPLE)
    stop_after(options.minutes)

    from pidm_reid.experiment import cells, draw_sheet, outlook, run_table
    from pidm_reid.plan import per_cent
    from pidm_reid.report import write_table_report
    from pidm_reid.table import markdown, write_table

    table = narrowed(ReidTable, options)
    if options.dry_run:
        print("\n".join(outlook(table)))
        return DONE
    folder = Path(table.results) / table.name
    left_out: dict[str, None] = {}
    number, seconds, begin = len(cells(table)), [0.0], time.monotonic()
    for done, (cell, result, new) in enumerate(run_table(table), 1):
        print(
            f"{cell.row}, {per_cent(cell.ratio)}, seed {cell.seed}"
            + ("" if new else " (done already)")
        )
        print(f"mAP: {result['mAP']:.1%}")
        for k in (1, 5, 10):
            print(f"Rank-{k:<3}: {result['cmc'][str(k)]:.1%}", flush=True)
        if unmatched := result["counts"].get("unmatched", 0):
            queries = result["counts"]["queries"]
            print(f"{unmatched:,} of {queries:,} queries have no match and count in no figure")
        left_out.update(dict.fromkeys(result["left_out"]))
        write_table(folder, published=table.published)
        seconds += [time.monotonic() - begin] * new
        begin = time.monotonic()
        left = (number - done) * sum(seconds) / max(1, len(seconds) - 1)
        print(
            f"{done} of {number} cells, about {left / 60:.0f} minutes for one process", flush=True
        )
    print(markdown(write_table(folder, published=table.published)), end="")
    sheet, page = draw_sheet(table), write_table_report(folder, published=table.published)
    print(f"-> {page}, table.md, table.csv, table.json" + (", sheet.png" if sheet else ""))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return SKIPPED if left_out else DONE


def ablation(argv: list[str]) -> int:
    """Train the networks, draw the test pairs of every row, score them, write the table."""
    options = parse(
        AblationOptions,
        argv,
        prog="reproduce_table ablation",
        description=__doc__,
        example=ABLATION_EXAMPLE,
    )

    from pidm_core import ablation as variants
    from pidm_core import track
    from pidm_core.train import watch

    pairs = len(variants.test_pairs(options)[1])
    if options.dry_run:
        print(f"{len(variants.NETWORKS)} networks, {options.train.steps:,} steps each")
        print(f"{len(variants.ROWS)} rows of {pairs:,} images")
        return DONE
    table = variants.scored(options)  # before the trainings: what lacks is said at once
    for texture in variants.NETWORKS:
        steps = variants.train_variant(options, texture)
        for step in watch(steps, total=options.train.steps, label=texture):
            if step.stopping:
                print(f"stopped and saved at step {step.step}; the same command goes on")
                return step.stopping
    for row in variants.ROWS:
        sum(track(variants.draw_row(options, row), total=pairs, label=row, unit="images"))
    return _score(table)


def images(argv: list[str]) -> int:
    """Score folders of images, and draw them side by side."""
    options = parse(
        ImagesOptions,
        argv,
        prog="reproduce_table images",
        description=__doc__,
        example=IMAGES_EXAMPLE,
    )
    options.check()

    from pidm_core.image_table import outlook

    if options.dry_run:
        print("\n".join(outlook(options)))
        return DONE
    return _score(options)


def _score(table: ImageTable) -> int:
    """Measure the methods whose images are new, print each, and write the table and the grid."""
    from pidm_core.image_table import draw_grid, grid_rows, measure, write_table

    rows = grid_rows(table) if table.grid else []
    results, left_out = [], False
    for result, new in measure(table):
        print(result["method"] + ("" if new else " (done before)"))
        for figure in result["figures"]:
            print(f"{figure['name']}: {figure['value']:.4f}  ({figure['how']})", flush=True)
        for line in result["left_out"]:
            print(f"left out: {result['method']}: {line}", file=sys.stderr)
        left_out |= bool(result["left_out"])
        results.append(result)
    print(write_table(table, results), end="")
    folder = Path(table.results) / table.name
    if rows:
        draw_grid(table, rows)
    print(f"-> {folder}/table.md, table.csv, table.json" + (", grid.png" if rows else ""))
    return SKIPPED if left_out else DONE


if __name__ == "__main__":
    run(main)
