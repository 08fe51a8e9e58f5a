"""The cells of a table, {row} x {ratio} x {seed}: each trains, tests and leaves a result.json.

A finished cell is skipped, an interrupted one begins anew (its images and the Standard network
are kept), a changed configuration is refused. A row is a generator and a kind of training list,
so a further row is one more entry of ROWS.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pidm_core import (
    UserError,
    find_keypoints,
    read_json,
    read_keypoints,
    sha256,
    to_dict,
    track,
    write_json,
)
from pidm_reid import folder, generators, plan, retrieval
from pidm_reid.config import ReidTable
from pidm_reid.synthesize import (
    Generator,
    Request,
    Work,
    folder_name,
    prepare,
    start,
    synthesize,
)

if TYPE_CHECKING:
    from pidm_reid.finetune import Result
    from pidm_reid.weights import State

SAME_STEPS = "Standard-same-steps"


@dataclass(frozen=True)
class Row:
    """What sets a row apart."""

    train: Literal["real", "repeated", "augmented"]
    generator: Callable[[ReidTable], Generator] | None = None


def _pidm(table: ReidTable) -> Generator:
    return generators.pidm(table.run, sampling=table.sample, data=Path(table.data))


def _oracle(table: ReidTable) -> Generator:
    return generators.oracle(Path(table.data))


ROWS: Mapping[str, Row] = {
    "Standard": Row("real"),
    SAME_STEPS: Row("repeated"),
    "PIDM": Row("augmented", _pidm),
    "oracle": Row("augmented", _oracle),
}


@dataclass(frozen=True)
class Cell:
    """One row at one ratio with one seed."""

    row: str
    ratio: float
    seed: int

    def path(self, table: ReidTable) -> Path:
        """Where its result goes."""
        name = f"{self.row}_{100 * self.ratio:g}_seed{self.seed}"
        return Path(table.results) / table.name / name / "result.json"


# ---------------------------------------------------------------- the table


def cells(table: ReidTable) -> list[Cell]:
    """All cells, those first that others build on; UserError for a row that is not known."""
    for name in table.rows:
        if name not in ROWS:
            raise UserError(f"rows: '{name}' is none of {', '.join(ROWS)}")
    for ratio in table.ratios:
        plan.check_ratio(ratio)
    order = [name for name in ROWS if name in table.rows]
    return [
        Cell(row, ratio, seed) for seed in table.seeds for ratio in table.ratios for row in order
    ]


def run_table(table: ReidTable) -> Iterator[tuple[Cell, dict[str, Any], bool]]:
    """Do all cells; yields each with the content of its result.json and whether it is new."""
    todo = cells(table)
    bench = Bench(table)
    for cell in todo:
        path, configuration = cell.path(table), bench.configuration(cell)
        if path.is_file():
            result = read_json(path)
            _refuse_changes(path, result["configuration"], configuration)
            yield cell, result, False
            continue
        result = bench.run(cell, configuration)
        write_json(path, result)
        yield cell, result, True


def draw_sheet(table: ReidTable) -> Path | None:
    """Write sheet.png for the first PIDM cell, with the oracle's images as the true ones."""
    from pidm_reid.sheet import write_sheet

    cell = next((cell for cell in cells(table) if cell.row == "PIDM"), None)
    if cell is None:
        return None
    bench = Bench(table)
    train = _folder(table, cell) / folder.BASE / folder.TRAIN
    truth = _folder(table, replace(cell, row="oracle")) / folder.BASE / folder.TRAIN
    path = Path(table.results) / table.name / "sheet.png"
    write_sheet(
        path,
        bench.work(cell).recipes,
        generated=train,
        keypoints=read_keypoints(bench.keypoints),
        truth=truth if "oracle" in table.rows else None,
    )
    return path


def outlook(table: ReidTable) -> list[str]:
    """What `run_table` would do, one line per cell, and what it would cost."""
    lines, passes = [], 0
    bench = Bench(table)
    student = table.student
    for cell in cells(table):
        work = bench.work(cell)
        stage = student.standard if ROWS[cell.row].train == "real" else student.finetune
        done = cell.path(table).is_file()
        passes += 0 if done else stage.steps * student.batch_size
        synthetic = len(work.recipes) if ROWS[cell.row].train == "augmented" else 0
        lines.append(
            f"{'done' if done else 'to do':5}  {cell.row:20} {cell.ratio:.0%}  seed {cell.seed}  "
            f"{len(work.real):,} real + {synthetic:,} synthetic images, {stage.steps:,} steps"
        )
    return [*lines, f"in all {passes:,} ResNet50 training image passes"]


def _refuse_changes(path: Path, old: Any, new: Any) -> None:
    if changes := folder.differences(old, new):
        raise UserError(
            f"{path}: was made with another configuration ({'; '.join(changes[:8])}); "
            "give the table another name or remove that folder"
        )


# ---------------------------------------------------------------- one cell


class Bench:
    """What the cells of one table share: plans, generators, the Standard networks."""

    def __init__(self, table: ReidTable) -> None:
        self.table = table
        self.keypoints = Path(table.keypoints or find_keypoints(table.data))
        self._works: dict[tuple[float, int], Work] = {}
        self.generator = functools.cache(self._generator)

    def work(self, cell: Cell) -> Work:
        """The plan of a ratio and a seed, the same for all rows."""
        key = cell.ratio, cell.seed
        if key not in self._works:
            self._works[key] = prepare(
                Request(
                    data=Path(self.table.data),
                    keypoints=self.keypoints,
                    ratio=cell.ratio,
                    seed=cell.seed,
                    per_image=self.table.per_image,
                )
            )
        return self._works[key]

    def configuration(self, cell: Cell) -> dict[str, Any]:
        """Everything that decides a cell's result; of two equal ones the second is not run."""
        from pidm_reid.weights import describe_weights

        student = to_dict(self.table.student)
        finetune = student.pop("finetune")
        del student["workers"]
        student["weights"] = describe_weights(self.table.student.weights)
        work = self.work(cell)
        values: dict[str, Any] = {
            "row": cell.row,
            "ratio": cell.ratio,
            "seed": cell.seed,
            "data": {key: work.split[key] for key in ("content", "full_images", "identities")},
            "student": student,
        }
        row = ROWS[cell.row]
        if row.train != "real":
            values["finetune"] = finetune
            values["entries"] = len(work.real) + len(work.recipes)
        if row.generator:
            generator = self.generator(cell.row)
            values["plan"] = work.split["plan"]
            values["renderer"] = generator.fingerprint
            values["settings"] = dict(generator.settings)
        return values

    def run(self, cell: Cell, configuration: dict[str, Any]) -> dict[str, Any]:
        """Generate, train and test; the content of result.json."""
        from pidm_reid import finetune, weights

        work, row, student = self.work(cell), ROWS[cell.row], self.table.student
        test = finetune.read_test(self.table.data)
        real = finetune.train_list(record.path for record in work.real)
        synthetic, seconds = self._synthetic(cell)
        label = f"{cell.row}, {cell.ratio:.0%}, seed {cell.seed}"
        if row.train == "real":
            state, result = finetune.train_and_test(
                real, test, config=student, stage=student.standard, seed=cell.seed, label=label
            )
            weights.save_state(self._standard_path(cell), state)
        else:
            items = finetune.train_list((r.path for r in work.real), synthetic)
            if row.train == "repeated":
                items = finetune.repeated(real, configuration["entries"], seed=cell.seed)
            _, result = finetune.train_and_test(
                items,
                test,
                config=student,
                stage=student.finetune,
                seed=cell.seed,
                start=self._standard(cell),
                label=label,
            )
        values = self._result(cell, result, synthetic=len(synthetic), seconds=seconds)
        pids = np.array([record.pid for record in test.query])
        return {
            **values,
            "weights": configuration["student"]["weights"],
            "left_out": work.broken,
            "by_person": retrieval.by_person(result.ranking, pids),
            "configuration": configuration,
        }

    def _generator(self, row: str) -> Generator:
        make = ROWS[row].generator
        assert make is not None
        return make(self.table)

    def _synthetic(self, cell: Cell) -> tuple[list[Path], float]:
        """Render the cell's images as far as they are not there; their paths, and the time."""
        if not ROWS[cell.row].generator:
            return [], 0.0
        table, work, generator = self.table, self.work(cell), self.generator(cell.row)
        out = _folder(table, cell)
        begin = time.perf_counter()
        todo = start(work, generator, out)
        batches = synthesize(work, generator, out)
        for _ in track(batches, total=len(todo), label=f"synthesize {out}", unit="images"):
            pass
        augmented = folder.read_augmented(out)
        paths = [augmented.train_folder / recipe.file_name for recipe in work.recipes]
        return paths, time.perf_counter() - begin

    def _standard(self, cell: Cell) -> State:
        """The weights that Standard left, or trained now if it is not among the rows."""
        from pidm_reid import weights

        path = self._standard_path(cell)
        if not path.is_file():
            standard = replace(cell, row="Standard")
            result = self.run(standard, self.configuration(standard))
            write_json(standard.path(self.table), result)
        return weights.load_state(path)

    def _standard_path(self, cell: Cell) -> Path:
        standard = self.configuration(replace(cell, row="Standard"))
        key = sha256(repr(sorted(standard.items())).encode())[:12]
        return cell.path(self.table).parents[1] / "standard" / f"{key}.safetensors"

    def _result(
        self,
        cell: Cell,
        result: Result,
        *,
        synthetic: int,
        seconds: float,
    ) -> dict[str, Any]:
        student, ranking = self.table.student, result.ranking
        before = 0 if ROWS[cell.row].train == "real" else student.standard.steps
        saw = self.generator(cell.row).saw if ROWS[cell.row].generator else "-"
        return {
            "row": cell.row,
            "ratio": cell.ratio,
            "seed": cell.seed,
            "mAP": ranking.mAP,
            "mINP": ranking.mINP,
            "cmc": {str(k): ranking.rank(k) for k in (1, 5, 10, 20)},
            "generator_saw": saw,
            "images": {
                "entries": result.images,
                "real": len(self.work(cell).real),
                "synthetic": synthetic,
                "people": result.people,
            },
            "steps": before + result.steps,
            "precision": result.precision,
            "training": {"loss": result.loss, "accuracy": result.accuracy},
            "counts": {
                key: getattr(ranking, key)
                for key in ("queries", "unmatched", "gallery", "junk", "distractors")
            },
            "cost": {
                "train_seconds": result.train_seconds,
                "test_seconds": result.test_seconds,
                "synthesis_seconds": seconds,
                "images_per_s": result.images_per_s,
            },
            "versions": versions(),
        }


def _folder(table: ReidTable, cell: Cell) -> Path:
    """The augmented folder of a cell."""
    name = folder_name(table.data, kind=cell.row.lower(), ratio=cell.ratio, seed=cell.seed)
    return Path(table.folders) / name


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result."""
    names = ("pidm-reid", "torch", "torchvision", "torchreid", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
