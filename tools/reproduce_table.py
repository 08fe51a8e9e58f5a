"""Reproduce a table: `reid` trains and tests every cell, `images` scores folders of images."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pidm_core import DONE, SKIPPED, UserError, parse, run
from pidm_core.config import ImageTable
from pidm_reid.config import ReidTable

EXAMPLE = "python tools/reproduce_table.py reid --config configs/demo.yaml"
IMAGES_EXAMPLE = "python tools/reproduce_table.py images --config configs/market1501_images.yaml"


@dataclass(frozen=True)
class Options(ReidTable):
    """A table, and whether to make it."""

    dry_run: bool = False
    """Say which cells would be done and what they cost, and stop."""


@dataclass(frozen=True)
class ImagesOptions(ImageTable):
    """A table of methods, and whether to make it."""

    dry_run: bool = False
    """Say how many images each method has, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Make one kind of table."""
    argv = sys.argv[1:] if argv is None else argv
    kind, *rest = argv or [""]
    if kind.startswith("-"):
        kind, rest = "reid", argv
    if kind == "images":
        return images(rest)
    if kind == "reid":
        return reid(rest)
    raise UserError(f"'{kind}' is not a table; the tables are: reid, images (example: {EXAMPLE})")


def reid(argv: list[str]) -> int:
    """Do the unfinished cells, print each, and write the table."""
    options = parse(Options, argv, prog="reproduce_table", description=__doc__, example=EXAMPLE)

    from pidm_reid.experiment import draw_sheet, outlook, run_table
    from pidm_reid.table import markdown, write_table

    if options.dry_run:
        print("\n".join(outlook(options)))
        return DONE
    folder = Path(options.results) / options.name
    left_out: dict[str, None] = {}
    for cell, result, new in run_table(options):
        print(f"{cell.row}, {cell.ratio:.0%}, seed {cell.seed}" + ("" if new else " (done before)"))
        print(f"mAP: {result['mAP']:.1%}")
        for k in (1, 5, 10):
            print(f"Rank-{k:<3}: {result['cmc'][str(k)]:.1%}", flush=True)
        left_out.update(dict.fromkeys(result["left_out"]))
        write_table(folder)
    print(markdown(write_table(folder)), end="")
    sheet = draw_sheet(options)
    print(f"-> {folder}/table.md, table.csv, table.json" + (", sheet.png" if sheet else ""))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return SKIPPED if left_out else DONE


def images(argv: list[str]) -> int:
    """Measure the methods whose images are new, print each, and write the table."""
    options = parse(
        ImagesOptions,
        argv,
        prog="reproduce_table",
        description=__doc__,
        example=IMAGES_EXAMPLE,
    )
    options.check()

    from pidm_core.image_table import draw_grid, measure, outlook, write_table

    if options.dry_run:
        print("\n".join(outlook(options)))
        return DONE
    results, left_out = [], False
    for result, new in measure(options):
        print(result["method"] + ("" if new else " (done before)"))
        for figure in result["figures"]:
            print(f"{figure['name']}: {figure['value']:.4f}  ({figure['how']})", flush=True)
        for line in result["left_out"]:
            print(f"left out: {result['method']}: {line}", file=sys.stderr)
        left_out |= bool(result["left_out"])
        results.append(result)
    print(write_table(options, results), end="")
    folder = Path(options.results) / options.name
    if options.grid:
        draw_grid(options)
    print(f"-> {folder}/table.md, table.csv, table.json" + (", grid.png" if options.grid else ""))
    return SKIPPED if left_out else DONE


if __name__ == "__main__":
    run(main)
