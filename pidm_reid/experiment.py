"""The cells of a table, {row} x {ratio} x {seed}: each trains, tests and leaves a result.json.

A finished cell is skipped, an interrupted one goes on at the epoch that its network had come to,
a changed configuration is refused. Processes that do one table at once share it by ratio and seed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core import UserError, duration, read_json, read_keypoints, save_config
from pidm_reid import folder, lease, plan
from pidm_reid.bench import CANDIDATES, Bench, refuse_changes
from pidm_reid.config import ReidTable
from pidm_reid.plan import per_cent
from pidm_reid.rows import Cell, changed, rows
from pidm_reid.table import CONFIG

log = logging.getLogger(__name__)

LOOK_S = 10.0  # for what another process has finished
WEIGHTS_MIB = 94  # of a ResNet50
UNFINISHED_MIB = 2 * 385  # while it trains, and the last state is replaced


def cells(table: ReidTable) -> list[Cell]:
    """All cells, those first that others build on; UserError for a row that is not known.

    Of all real images nothing is generated, unless `per_image` says so: such rows are left out.
    """
    for ratio in table.ratios:
        plan.check_ratio(ratio)
    found = [
        Cell(name, ratio, seed)
        for seed in table.seeds
        for ratio in table.ratios
        for name, row in rows(table).items()
        if ratio < 1
        or row.train in ("real", "repeated")
        or (changed(table, row.change) if row.change else table).per_image
    ]
    if not found:
        raise UserError("no row is left: of all real images nothing is generated; see per_image")
    return found


def run_table(table: ReidTable) -> Iterator[tuple[Cell, dict[str, Any], bool]]:
    """Do all cells; yields each with the content of its result.json and whether it is new.

    What another process does of the same table comes last, and is waited for.
    """
    bench = Bench(table)
    todo = _configurations(bench, cells(table))
    save_config(table, Path(table.results) / table.name / CONFIG)
    left: dict[Path, list[Cell]] = {}  # by ratio and seed, whose rows build on one another
    for cell in todo:
        name = f".{100 * cell.ratio:g}_seed{cell.seed}"
        left.setdefault(cell.path(table).parent.with_name(name), []).append(cell)
    waiting: list[Path] = []
    while left:
        for claim in [*left]:
            with _held(claim, left[claim], table) as ours:
                for cell in left.pop(claim) if ours else ():
                    path = cell.path(table)
                    if new := not path.is_file():
                        bench.guard()
                        bench.of(cell).do(cell, todo[cell])
                    result = read_json(path)
                    refuse_changes(path, result["configuration"], todo[cell])
                    yield cell, result, new
        if left:
            if [*left] != waiting:
                names = ", ".join(claim.name[1:] for claim in left)
                log.warning("another process does %s; waiting for it", names)
            waiting = [*left]
            time.sleep(LOOK_S)


def _configurations(bench: Bench, asked: Iterable[Cell]) -> dict[Cell, dict[str, Any]]:
    """What decides each cell; UserError, before hours of the others, for what would stop one."""
    from pidm_reid import scoring

    table = bench.table
    todo = {cell: bench.of(cell).configuration(cell) for cell in asked}
    for cell, configuration in todo.items():
        if (path := cell.path(table)).is_file():
            refuse_changes(path, read_json(path)["configuration"], configuration)
    for cell in todo:
        if cell.path(table).is_file():
            continue
        _check_batch(bench.of(cell), cell)
        bench.of(cell).refuse_occupied(cell)
        if bench.rows[cell.row].selected:
            work = bench.of(cell).work(cell)
            scoring.check_judges(work.real, work.recipes, table.student, seed=cell.seed)
    return todo


@contextmanager
def _held(claim: Path, cells: list[Cell], table: ReidTable) -> Iterator[bool]:
    """Whether these cells are this process's to do; what is finished needs no lease."""
    with ExitStack() as stack:
        if not all(cell.path(table).is_file() for cell in cells):
            try:
                stack.enter_context(lease.hold(claim))
            except lease.Taken:
                yield False
                return
        yield True


def _check_batch(bench: Bench, cell: Cell) -> None:
    """UserError for a cell that fills no batch, or whose Standard fills none."""
    from pidm_reid import finetune

    work, table, row = bench.work(cell), bench.table, bench.rows[cell.row]
    if row.train == "augmented" and row.source != "images" and table.policy.half_real:
        finetune.check_halves(len(work.real), len(work.recipes), table.student.batch_size)
    whole = table.policy.start == "scratch" and row.train != "real"
    what = f"training images of {cell.row}, {per_cent(cell.ratio)}, seed {cell.seed},"
    finetune.check_batch(len(work.real) + len(work.recipes) * whole, table.student, what)


def draw_sheet(table: ReidTable) -> Path | None:
    """Write sheet.png for the first cell of PIDM, with the oracle's images as the true ones.

    None where no row has PIDM's images, or they are not on this machine.
    """
    from pidm_reid.sheet import write_sheet

    bench = Bench(table)
    pidm = (cell for cell in cells(table) if bench.rows[cell.row].source in ("paper", "strict"))
    cell = next(pidm, None)
    if cell is None:
        return None
    bench = bench.of(cell)
    generated = bench.folder(cell) / folder.BASE / folder.TRAIN
    if not generated.is_dir():  # of a table that was copied here
        return None
    truth = bench.folder(replace(cell, row="oracle")) / folder.BASE / folder.TRAIN
    same = (bench.table.plan, bench.table.per_image) == (table.plan, table.per_image)
    if not bench.work(cell).recipes:  # one image per person, say: there is no other pose
        return None
    path = Path(table.results) / table.name / "sheet.png"
    write_sheet(
        path,
        bench.work(cell).recipes,
        generated=generated,
        keypoints=read_keypoints(bench.keypoints),
        truth=truth if same and "oracle" in table.rows and truth.is_dir() else None,
    )
    return path


def outlook(table: ReidTable) -> list[str]:
    """What `run_table` would do, one line per cell, and what it would cost."""
    from pidm_reid import finetune

    benches = Bench(table)
    _configurations(benches, filter(benches.is_decided, cells(table)))
    lines, passes, images, mebibytes = [], 0, 0, 0.0
    shared: set[Path] = set()  # what several cells use is made once
    begun: set[Path] = set()  # Standard's weights that are counted
    for cell in cells(table):
        bench = benches.of(cell)
        student = bench.table.student
        work, row = bench.work(cell), bench.rows[cell.row]
        stage = student.standard if row.train == "real" else student.finetune
        done = cell.path(table).is_file()
        synthetic = len(work.recipes) if row.train == "augmented" else 0
        if not done:
            _check_batch(bench, cell)
            passes += stage.steps * student.batch_size
            first = bench.standard_path(cell)
            if row.train == "real":
                mebibytes += WEIGHTS_MIB
            elif not (table.policy.start == "scratch" or first in begun or first.is_file()):
                passes += student.standard.steps * student.batch_size  # not among the rows
                mebibytes += WEIGHTS_MIB
            begun.add(first)
        if not done and synthetic and row.source != "images" and bench.folder(cell) not in shared:
            shared.add(bench.folder(cell))
            passes += 2 * bench.table.selection.network.steps * student.batch_size * row.selected
            size = np.mean([record.path.stat().st_size for record in work.real])
            drawn = synthetic
            if row.selected:
                without = bench.unselected(cell)
                there = len(folder.read_ledger(without / folder.MANIFEST))
                known = synthetic if without in shared else min(synthetic, there)
                drawn = CANDIDATES * synthetic - known
            images += drawn
            mebibytes += drawn * float(size) / 2**20
        lines.append(
            f"{'done' if done else 'to do':5}  {cell.row:29} {per_cent(cell.ratio)}  "
            f"seed {cell.seed}  {len(work.real):,} real + {synthetic:,} synthetic images, "
            f"{stage.steps:,} steps"
        )
    hours = duration(passes / finetune.measure_speed(table.student) if passes else 0.0)
    return [
        *lines,
        f"in all {passes:,} ResNet50 training image passes, about {hours} here, besides "
        f"{images:,} images to generate and the strict generators; "
        f"{mebibytes + UNFINISHED_MIB * bool(passes):,.0f} MiB",
    ]
