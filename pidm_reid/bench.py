"""What the cells of one table share, and the doing of one: generate, train, test."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import logging
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pidm_core import (
    NOBODY,
    PIDMConfig,
    Record,
    UserError,
    __version__,
    find_keypoints,
    is_drawn,
    read_json,
    read_keypoints,
    sha256,
    to_dict,
    write_json,
)
from pidm_reid import cameras, compat, coverage, folder, generators, leaks, lease, plan, retrieval
from pidm_reid.config import SELECTION_RULE, ReidTable, decisive
from pidm_reid.imported import import_images
from pidm_reid.pool import open_pool
from pidm_reid.rows import ROWS, STANDARD, Cell, changed, rows
from pidm_reid.synthesize import (
    MADE_BY,
    Generator,
    Request,
    Work,
    describe,
    folder_name,
    prepare,
    render_rest,
    start,
    take_over,
)

if TYPE_CHECKING:
    from pidm_reid.finetune import Result
    from pidm_reid.plan import Recipe
    from pidm_reid.weights import State

log = logging.getLogger(__name__)
STRICT = ("D_tr", "drawn people + D_tr")  # what a strict generator may have seen
UNFINISHED = "unfinished.safetensors"  # beside a result.json that is not there yet
CANDIDATES = 2  # generated for each image that a selection keeps


class Bench:
    """What the cells of one table share: plans, generators, the Standard networks."""

    def __init__(self, table: ReidTable) -> None:
        self.table, self.rows = table, {**ROWS, **rows(table)}
        self.keypoints = Path(table.keypoints or find_keypoints(table.data))
        self.work = functools.cache(self._work)
        self.paper = functools.cache(self._paper)
        self.init = functools.cache(self._init)
        self.changed = functools.cache(self._changed)
        self.is_trained = functools.cache(generators.is_trained)

    def of(self, cell: Cell) -> Bench:
        """The bench of a cell: this one, or that of the changed setting of its row."""
        change = self.rows[cell.row].change
        return self.changed(change) if change else self

    def _changed(self, change: str) -> Bench:
        other = Bench(changed(self.table, change))
        other.contents = self.contents  # the data set is the same for all rows
        return other

    @functools.cached_property
    def contents(self) -> leaks.Contents:
        """The data set's images, hashed."""
        return leaks.read_contents(self.table.data)

    def guard(self) -> None:
        """Refuse a data set whose test images are among its training images."""
        leaks.refuse_overlap(self.contents, self.table.data)

    @functools.cached_property
    def drawn(self) -> bool:
        """Whether the data set is ToyMarket, of which no paper has published figures."""
        return is_drawn(folder.read_people(self.table.data)[0])

    @functools.cached_property
    def paper_run(self) -> str:
        """The generator of PIDM-paper, the same for all cells."""
        return self.table.run or generators.newest_run()

    @functools.cached_property
    def query_views(self) -> list[str] | None:
        """Which side the people of the query show; None without a keypoint file of theirs."""
        records = folder.read_people(self.table.data, folder.QUERY)
        try:
            joints = read_keypoints(find_keypoints(self.table.data, folder.QUERY))
        except UserError:
            return None
        if not any(record.name in joints for record in records):  # of a development split
            joints = read_keypoints(self.keypoints)
        return coverage.facing(np.stack([joints.get(r.name, NOBODY) for r in records]))

    def _work(self, cell: Cell, times: int = 1) -> Work:
        """The plan of a ratio and a seed, the same for all rows."""
        if cell.row:
            return self.work(replace(cell, row=""), times)
        table = self.table
        return prepare(
            Request(
                data=Path(table.data),
                keypoints=self.keypoints,
                ratio=cell.ratio,
                seed=cell.seed,
                per_image=table.per_image,
                times=times,
                policy=table.plan,
            )
        )

    def more_real(self, cell: Cell) -> list[Path]:
        """Withheld real images of the same people, as many as the plan generates."""
        work = self.work(cell)
        ratio = min(1.0, (len(work.real) + len(work.recipes)) / work.split["full_images"])
        request = Request(Path(self.table.data), self.keypoints, ratio, cell.seed, per_image=1)
        known, people = {r.name for r in work.real}, {r.pid for r in work.real}
        more = [r for r in prepare(request).real if r.name not in known]
        return [r.path for r in more if r.pid in people]  # one image of a person may be broken

    # ------------------------------------------------------------ what decides a result

    def configuration(self, cell: Cell) -> dict[str, Any]:
        """Everything that decides a cell's result; of two equal ones the second is not run."""
        from pidm_reid.weights import describe_weights

        student = decisive(self.table.student)
        finetune = student.pop("finetune")
        student["weights"] = describe_weights(self.table.student.weights)
        work, row = self.work(cell), self.rows[cell.row]
        values: dict[str, Any] = {
            "row": cell.row,
            "ratio": cell.ratio,
            "seed": cell.seed,
            "data": {
                **{key: work.split[key] for key in ("content", "full_images", "identities")},
                "train": plan.fingerprint(self.contents.train),
                "test": plan.fingerprint(self.contents.test),
            },
            "student": student,
        }
        if self.table.rerank:
            values["rerank"] = True
        if row.train != "real":
            values["finetune"] = {**finetune, "erasing": row.erasing}
            if self.table.policy.start == "scratch":
                values["finetune"]["start"] = "scratch"
            values["entries"] = len(work.real) + len(work.recipes)
        if row.train == "augmented":
            policy = to_dict(self.table.policy)
            values["finetune"] |= {key: policy[key] for key in ("half_real", "real_last")}
            values |= {"plan": work.split["plan"], **self._generator_configuration(cell)}
        return values

    def _generator_configuration(self, cell: Cell) -> dict[str, Any]:
        row, table = self.rows[cell.row], self.table
        if row.source == "images":
            images = {p.name: sha256(p) for p in sorted(Path(row.images).iterdir()) if p.is_file()}
            return {"images": plan.fingerprint(images)}
        if row.source == "strict":  # it need not be there yet, and follows from these
            config = self.strict_config(cell)
            generator = to_dict(config)
            for harmless in ("log_every", "sample_every", "keep", "recompute"):
                del generator["train"][harmless]
            values: dict[str, Any] = {
                "generator": generator,
                "init": self.init(config.train.init),
                "settings": table.sample.changes(),
            }
        else:
            made = self.generator(cell)
            values = {"renderer": made.fingerprint, "settings": dict(made.settings)}
        if row.selected:
            values["selection"] = {**to_dict(table.selection), "rule": SELECTION_RULE}
        return values

    # ------------------------------------------------------------ doing it

    def do(self, cell: Cell, configuration: dict[str, Any]) -> dict[str, Any]:
        """Do a cell; its result.json, whose content is returned, is the last that is written."""
        path = cell.path(self.table)
        write_json(path, self.run(cell, configuration))
        for left in (path.parent / UNFINISHED, *path.parent.glob(".tmp-*")):  # of killed savings
            left.unlink(missing_ok=True)
        return dict(read_json(path))

    def run(self, cell: Cell, configuration: dict[str, Any]) -> dict[str, Any]:
        """Generate, train and test; the content of result.json."""
        from pidm_reid import finetune, weights

        table, row, work = self.table, self.rows[cell.row], self.work(cell)
        student, anew = table.student, table.policy.start == "scratch"
        test = finetune.read_test(table.data)
        made = self._images(cell)
        items = finetune.train_list([*(r.path for r in work.real), *made.real], made.synthetic)
        if row.train == "repeated":
            items = finetune.repeated(items, configuration["entries"], seed=cell.seed)
        first = row.train == "real"
        augmented = row.train == "augmented"
        state, result = finetune.train_and_test(
            items,
            test,
            config=student,
            stage=student.standard if first else student.finetune,
            seed=cell.seed,
            start=None if first or anew else self._standard(cell),
            how=finetune.How(
                erasing=row.erasing,
                fresh=row.fresh,
                half_real=augmented and table.policy.half_real,
                real_last=table.policy.real_last if augmented else 0.0,
            ),
            rerank=table.rerank,
            keep=cell.path(table).parent / UNFINISHED,
            label=f"{cell.row}, {plan.per_cent(cell.ratio)}, seed {cell.seed}",
        )
        if first:
            weights.save_state(self.standard_path(cell), state)
        begun = {} if anew else {"standard": sha256(self.standard_path(cell))[:8]}
        return {
            **self._result(cell, result, test.query, made=made, before=0 if first or anew else 1),
            **begun,
            "weights": configuration["student"]["weights"],
            "left_out": work.broken + made.left_out,
            "configuration": configuration,
        }

    def generator(self, cell: Cell) -> Generator:
        """What generates the images of a row; a strict one is trained as far as it is not."""
        source, table, work = self.rows[cell.row].source, self.table, self.work(cell)
        if source == "oracle":
            return generators.oracle(Path(table.data))
        if source == "paper":
            return replace(self.paper(self.paper_run), saw=self._saw(self.paper_run, work))
        from pidm_reid.strict import train_strict

        run, config = str(self.strict_run(cell)), self.strict_config(cell)
        if config.train.init:  # before days are spent on it
            self._refuse_unless_strict(config.train.init, work, f"{table.strict}: train.init")
        train_strict(work, self.keypoints, config, Path(run))
        saw = self._refuse_unless_strict(run, work, run)
        return generators.pidm(run, sampling=table.sample, saw=saw)

    def is_decided(self, cell: Cell) -> bool:
        """Whether the generator that decides a cell is there; PIDM-paper's may be trained later."""
        paper = self.rows[cell.row].source == "paper"
        return not paper or self.is_trained(self.of(cell).paper_run)

    def _refuse_unless_strict(self, model: str, work: Work, what: str) -> str:
        saw = self._saw(model, work)
        if saw not in ("drawn people", *STRICT):
            raise UserError(f"{what}: saw {saw}; a strict generator may see D_tr and drawn people")
        return saw

    def strict_config(self, cell: Cell) -> PIDMConfig:
        """The training of the strict generator of a D_tr."""
        from pidm_reid.strict import strict_config

        return strict_config(self.table.strict, seed=cell.seed)

    def strict_run(self, cell: Cell) -> Path:
        """Its run folder; deeper than other runs, so that no tool takes it for the newest."""
        own = f"_{cell.row}" if self.rows[cell.row].change.startswith("strict=") else ""
        name = f"{self.table.name}{own}{100 * cell.ratio:g}_seed{cell.seed}"
        return Path(self.table.runs) / "strict" / name

    def _init(self, model: str) -> str:
        """The hash of the model that a training begins with, '' for none."""
        return generators.pidm(model, sampling=self.table.sample).fingerprint if model else ""

    def _paper(self, run: str) -> Generator:
        return generators.pidm(run, sampling=self.table.sample)

    def _saw(self, run: str, work: Work) -> str:
        return leaks.generator_saw(run, self.contents, real=work.split["real"])

    def folder(self, cell: Cell) -> Path:
        """The augmented folder of a cell."""
        row, table = self.rows[cell.row], self.table
        kind = {
            "paper": "pidm",  # as tools/synthesize.py calls it
            "strict": f"{table.name}_strict",
            "images": f"row_{cell.row}",
        }.get(row.source, row.source) + "_candidates" * row.selected
        if row.selected and row.source == "paper":  # chosen by this table's own network
            kind = f"{table.name}_{kind}"
        if row.change and not row.change.startswith("policy."):  # by which nothing else is drawn
            kind = f"{table.name}_{cell.row}"
        return Path(table.folders) / folder_name(
            table.data, kind=kind, ratio=cell.ratio, seed=cell.seed
        )

    def unselected(self, cell: Cell) -> Path:
        """The folder of the row without selection, whose images are taken over."""
        return self.folder(replace(cell, row=f"PIDM-{self.rows[cell.row].source}"))

    def refuse_occupied(self, cell: Cell) -> None:
        """UserError if the folder of a cell's images was made otherwise, as far as is known yet."""
        row = self.rows[cell.row]
        if row.train != "augmented" or row.source == "images":
            return
        work = self._planned_work(cell)
        strict = row.source == "strict"  # whose generator is trained when its cell comes
        split = work.split if strict else describe(work, self.generator(cell))
        folder.refuse_occupied(self.folder(cell), split, later=MADE_BY if strict else ())

    def _planned_work(self, cell: Cell) -> Work:
        return self.work(cell, CANDIDATES if self.rows[cell.row].selected else 1)

    def _images(self, cell: Cell) -> Made:
        """What a cell trains on besides D_tr, made as far as it is not there."""
        row = self.rows[cell.row]
        if row.train == "more real":
            more, planned = self.more_real(cell), len(self.work(cell).recipes)
            short = f"{len(more)} withheld images of these people for the {planned} planned"
            return Made(real=more, left_out=[short] * (len(more) < planned))
        if row.train != "augmented":
            return Made()
        if row.source == "images":
            return self._imported(cell)
        work, out, generator = self._planned_work(cell), self.folder(cell), self.generator(cell)
        with lease.hold(out):
            todo: Sequence[Recipe] = start(work, generator, out)
            if row.selected:
                todo = self._taken_over(cell, todo, generator)
            render_rest(todo, work, generator, out, label=f"synthesize {out}")
            if row.selected:
                self._select(cell, work, out)
        made = folder.read_augmented(out)
        images = made.train_folder
        if row.fresh:
            images = Path(open_pool(out, generator, keypoints=str(self.keypoints)))
        return Made(
            synthetic=[images / name for name in made.synthetic],
            saw=generator.saw,
            seconds={**folder.spent(out), "generator_seconds": self._generator_seconds(cell)},
        )

    def _taken_over(self, cell: Cell, todo: Sequence[Recipe], generator: Generator) -> list[Recipe]:
        """Half of the candidates are those of the row without selection, and cost as much."""
        other = self.unselected(cell)
        left = take_over(todo, generator, self.folder(cell), other)
        if taken := len(todo) - len(left):
            share = taken / len(folder.read_ledger(other / folder.MANIFEST))
            seconds = share * folder.spent(other).get("synthesis_seconds", 0.0)
            folder.note_cost(self.folder(cell), "synthesis_seconds", seconds)
        return left

    def _cameras(self, cell: Cell, made: Made) -> dict[str, float]:
        generated = [Record(path, path.name, *folder.person(path.name)) for path in made.synthetic]
        shares = cameras.confirmed(self.work(cell).real, generated)
        return dict(zip(("real", "generated"), shares, strict=True)) if shares else {}

    def _identity(self, cell: Cell, made: Made) -> dict[str, float]:
        """What the network of Standard says of the images that were added, if it is there."""
        from pidm_reid import identity, weights

        paths, there = [*made.synthetic, *made.real], self.standard_path(cell)
        if not paths or not there.is_file():  # all rows began with the first weights
            return {}
        try:
            shares = identity.recognised(
                self.work(cell).real,
                [Record(path, path.name, *folder.person(path.name)) for path in paths],
                network=weights.load_state(there),
                config=self.table.student,
            )
        except UserError as error:  # such as all of them alike; the cell itself is done
            log.warning(
                "%s: who the images show is not measured (%s)", cell.path(self.table), error
            )
            return {}
        return dict(zip(("real", "added"), shares, strict=True)) if shares else {}

    def _generator_seconds(self, cell: Cell) -> float:
        from pidm_reid.strict import training_seconds

        source = self.rows[cell.row].source
        if source == "oracle":
            return 0.0
        return training_seconds(
            self.strict_run(cell) if source == "strict" else Path(self.paper_run)
        )

    def _select(self, cell: Cell, work: Work, out: Path) -> None:
        """Choose among the candidates in a folder, once for all rows."""
        from pidm_reid import scoring

        table, note = self.table, out / folder.SELECTED
        asked = {**scoring.asked_of(table.student, table.selection), "plan": work.split["plan"]}
        there = note.is_file() and (out / folder.SELECTION).is_file()
        if there and read_json(note) == asked:
            return
        note.unlink(missing_ok=True)  # of another choice, which would pass as this one
        with folder.spending(out, "selection_seconds"):
            choices, among_real = scoring.choose(
                work.real,
                work.recipes,
                out / folder.BASE / folder.TRAIN,
                joints=work.poses.keypoints,
                keep=self._planned(cell),
                student=table.student,
                config=table.selection,
                seed=cell.seed,
            )
        scoring.write_choices(out, choices, among_real)
        write_json(note, asked)

    def _planned(self, cell: Cell) -> Counter[int]:
        """How many images of each person the plan has."""
        work = self.work(cell)
        pids = {record.name: record.pid for record in work.real}
        return Counter(pids[recipe.source] for recipe in work.recipes)

    def _imported(self, cell: Cell) -> Made:
        """Another generator's images, of each person at most as many as the plan has."""
        work, out = self.work(cell), self.folder(cell)
        images = Path(self.rows[cell.row].images)
        taken_over = import_images(work, images, out, real=self.contents.named())
        left_out = [line for line in taken_over if line]
        found, planned = folder.read_augmented(out), self._planned(cell)
        chosen, taken = [], Counter[int]()
        for name in plan.shuffled(found.synthetic, seed=cell.seed, key=str):
            pid = folder.person(name)[0]
            if taken[pid] < planned[pid]:
                taken[pid] += 1
                chosen.append(found.train_folder / name)
        if not chosen:
            raise UserError(f"{images}: none of its images can be used; {left_out[:1]}")
        if len(chosen) < len(work.recipes):
            left_out.append(f"{images}: {len(chosen)} images for the {len(work.recipes)} planned")
        return Made(synthetic=chosen, saw="unknown", left_out=left_out)

    def _standard(self, cell: Cell) -> State:
        """The weights that Standard left, or trained now if they are not on this machine."""
        from pidm_reid import weights

        path = self.standard_path(cell)
        if not path.is_file():
            standard = replace(cell, row=STANDARD)
            configuration, there = self.configuration(standard), standard.path(self.table)
            if there.is_file():
                old = read_json(there)
                refuse_changes(there, old["configuration"], configuration)
                told_by = "standard" if "standard" in old else "mAP"  # as results had no digest
                if self.run(standard, configuration)[told_by] != old[told_by]:
                    log.warning(
                        "%s: its weights were not on this machine, and trained anew it is another "
                        "network; rows made from now on begin with that one, which the table says",
                        there.parent,
                    )
            else:
                self.do(standard, configuration)
        return weights.load_state(path)

    def standard_path(self, cell: Cell) -> Path:
        """Where the weights that Standard leaves for the other rows lie."""
        standard = self.configuration(replace(cell, row=STANDARD))
        key = sha256(repr(sorted(standard.items())).encode())[:12]
        return cell.path(self.table).parents[1] / "standard" / f"{key}.safetensors"

    def _result(
        self, cell: Cell, result: Result, query: Sequence[Record], *, made: Made, before: int
    ) -> dict[str, Any]:
        student, ranking, views = self.table.student, result.ranking, self.query_views
        real = len(self.work(cell).real) + len(made.real)
        return {
            "row": cell.row,
            "label": cell.row.replace("strict", "strict+toy")
            if made.saw == STRICT[1]
            else cell.row,
            "ratio": cell.ratio,
            "seed": cell.seed,
            **({"change": change} if (change := self.rows[cell.row].change) else {}),
            **_figures(ranking),
            "generator_saw": made.saw,
            "images": {
                "entries": result.images,
                "real": real,
                "synthetic": len(made.synthetic),
                "people": result.people,
            },
            "distinct_images": real + (result.fresh_images or len(made.synthetic)),
            "steps": before * student.standard.steps + result.steps,
            "precision": result.precision,
            "training": {"loss": result.loss, "accuracy": result.accuracy},
            "counts": {
                key: getattr(ranking, key)
                for key in ("queries", "unmatched", "gallery", "junk", "distractors")
            },
            "cost": {
                **made.seconds,
                "synthesis_seconds": made.seconds.get("synthesis_seconds", 0.0)
                + result.fresh_seconds,
                "train_seconds": result.train_seconds - result.fresh_seconds,
                "test_seconds": result.test_seconds,
                "images_per_s": result.images_per_s,
            },
            "camera": self._cameras(cell, made),
            "identity": self._identity(cell, made),
            "by_person": retrieval.by_person(ranking, [record.pid for record in query]),
            "by_camera": retrieval.by_group(ranking, [f"c{record.camid}" for record in query]),
            "by_orientation": retrieval.by_group(ranking, views) if views else {},
            "reranked": _figures(result.reranked) if result.reranked else {},
            "drawn_people": self.drawn,
            "versions": versions(),
        }


@dataclass(frozen=True)
class Made:
    """What a cell trains on besides D_tr, and what it took to make."""

    synthetic: Sequence[Path] = ()
    real: Sequence[Path] = ()
    saw: str = "-"
    left_out: list[str] = dataclasses.field(default_factory=list)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _figures(ranking: retrieval.Ranking) -> dict[str, Any]:
    cmc = {str(k): ranking.rank(k) for k in (1, 5, 10, 20)}
    return {"mAP": ranking.mAP, "mINP": ranking.mINP, "cmc": cmc}


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result."""
    names = ("torch", "torchvision", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in names}
    # upstream's torchreid may lie on the path instead of being installed
    found["torchreid"] = compat.torchreid().__version__
    return {"python": platform.python_version(), "pidm-reid": __version__, **found}


def refuse_changes(path: Path, old: Any, new: Any) -> None:
    """UserError if a cell's result was made with another configuration."""
    if changes := folder.differences(old, new):
        raise UserError(
            f"{path}: was made with another configuration ({'; '.join(changes[:8])}); "
            "give the table another name or remove that folder"
        )
