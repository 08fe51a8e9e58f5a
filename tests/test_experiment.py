"""The cells of a table, end to end on a made-up market with a tinting generator."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from people import TINT, draw_person, make_market
from tiny import TINY

from pidm_core import (
    PIDMConfig,
    UserError,
    encode_jpeg,
    load_config,
    read_seen,
    save_config,
    write_bytes,
)
from pidm_core.config import SampleConfig, TrainConfig
from pidm_core.train import train
from pidm_reid import experiment, finetune, folder, generators, lease, plan, scoring, unfinished
from pidm_reid.bench import Bench
from pidm_reid.config import FinetunePolicy, ReidTable, SelectionConfig, Stage, StudentConfig
from pidm_reid.experiment import cells, draw_sheet, outlook, run_table
from pidm_reid.rows import SAME_STEPS, Cell
from pidm_reid.scoring import read_choices
from pidm_reid.synthesize import Generator, describe
from pidm_reid.table import _reference, write_table

pytestmark = pytest.mark.usefixtures("small_network", "_tinted")

STUDENT = StudentConfig(
    height=32,
    width=16,
    batch_size=12,
    weights="none",
    precision="fp32",
    standard=Stage(steps=2, warmup_steps=1),
    finetune=Stage(steps=3, warmup_steps=1),
)


PAPER = "PIDM-paper"


def tinting(self: Bench, cell: Cell) -> Generator:
    """In the place of every generator."""
    return dataclasses.replace(TINT, saw="D_tr")


@pytest.fixture
def _tinted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "generator", tinting)


def small_table(market: Path, home: Path) -> ReidTable:
    """Three rows at one ratio with one seed."""
    return ReidTable(
        name="try",
        data=str(market),
        ratios=(0.5,),
        rows=(PAPER, "Standard", SAME_STEPS),
        student=STUDENT,
        results=str(home / "results"),
        folders=str(home / "data"),
        runs=str(home / "runs"),
    )


@pytest.fixture
def table(market: Path, tmp_path: Path) -> ReidTable:
    """A table of which nothing is done yet."""
    return small_table(market, tmp_path)


@pytest.fixture(scope="module")
def finished(
    market: Path, tmp_path_factory: pytest.TempPathFactory, small_network: None
) -> ReidTable:
    """The same, all done."""
    done = small_table(market, tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "generator", tinting)
        assert [new for *_, new in run_table(done)] == [True] * 3
    return done


def test_rows_train_as_the_rules_say(finished: ReidTable) -> None:
    done = {cell.row: result for cell, result, _ in run_table(finished)}
    assert list(done) == ["Standard", SAME_STEPS, PAPER]
    assert load_config(ReidTable, Path(finished.results) / "try/config.yaml") == finished
    standard, same_steps, pidm = done.values()
    assert standard["images"] == {"entries": 18, "real": 18, "synthetic": 0, "people": 6}
    assert same_steps["images"] == {"entries": 36, "real": 18, "synthetic": 0, "people": 6}
    assert pidm["images"] == {"entries": 36, "real": 18, "synthetic": 18, "people": 6}
    assert [result["steps"] for result in done.values()] == [2, 5, 5]
    assert [result["generator_saw"] for result in done.values()] == ["-", "-", "D_tr"]
    assert [set(result["camera"]) for result in done.values()] == [
        set(),
        set(),
        {"real", "generated"},
    ]
    assert [set(result["identity"]) for result in done.values()] == [
        set(), set(), {"real", "added"}
    ]  # fmt: skip
    assert {result["weights"] for result in done.values()} == {"from scratch"}
    assert pidm["counts"] == {
        "queries": 12, "unmatched": 0, "gallery": 15, "junk": 3, "distractors": 3
    }  # fmt: skip
    assert all(0 < result["mAP"] <= 1 for result in done.values())


@pytest.mark.parametrize(
    ("row", "change"),
    [(PAPER, {"renderer": "another"}), ("PIDM-strict-selection", {"plan": "another"})],
)
def test_a_folder_made_otherwise_stops_the_table_before_its_first_cell(
    table: ReidTable, row: str, change: dict[str, str]
) -> None:
    table = few(table, rows=("Standard", row))
    cell, bench = Cell(row, 0.5, 0), Bench(table)
    work = bench.work(cell, 2 if "selection" in row else 1)
    folder.start_folder(bench.folder(cell), {**describe(work, TINT), **change})
    with pytest.raises(UserError, match=r"another configuration .*another"):
        next(run_table(table))
    assert not Path(table.results).exists()


def test_what_another_process_does_comes_last(
    table: ReidTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = dataclasses.replace(table, rows=("Standard",), seeds=(0, 1))
    home = Path(table.results) / "try"
    with ExitStack() as other:
        other.enter_context(lease.hold(home / ".50_seed0"))
        monkeypatch.setattr(experiment.time, "sleep", lambda _: other.close())
        assert [cell.seed for cell, *_ in run_table(table)] == [1, 0]
    assert "another process does 50_seed0" in caplog.text
    assert sorted(path.name for path in home.iterdir()) == [
        "Standard_50_seed0", "Standard_50_seed1", "config.yaml", "standard"
    ]  # fmt: skip


def test_what_another_process_finished_is_taken_as_it_is(
    table: ReidTable, finished: ReidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, there = (Path(t.results) / "try" for t in (table, finished))

    def wait(_: float) -> None:
        shutil.copytree(there, home, dirs_exist_ok=True)

    monkeypatch.setattr(experiment.time, "sleep", wait)
    with lease.hold(home / ".50_seed0"):
        assert [new for *_, new in run_table(table)] == [False] * 3


def test_images_and_the_standard_network_are_kept(finished: ReidTable) -> None:
    (weights,) = (Path(finished.results) / "try/standard").iterdir()
    assert weights.suffix == ".safetensors"
    out = Path(finished.folders) / f"{Path(finished.data).name}_pidm50"
    assert len(folder.read_augmented(out).synthetic) == 18


def test_finished_cells_are_not_done_twice(
    finished: ReidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished cell was done again")

    monkeypatch.setattr(Bench, "run", forbidden)
    assert [new for *_, new in run_table(finished)] == [False] * 3


def test_interrupted_table_goes_on_to_the_same_results(
    table: ReidTable, finished: ReidTable
) -> None:
    expected = [result["mAP"] for _, result, _ in run_table(finished)]
    work = run_table(table)
    next(work)
    work.close()
    assert [(result["mAP"], new) for _, result, new in run_table(table)] == [
        (expected[0], False), (expected[1], True), (expected[2], True)
    ]  # fmt: skip


def test_an_interrupted_cell_goes_on_and_leaves_nothing_but_its_result(
    table: ReidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = finetune.embed_test

    def cut(engine: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unfinished, "EVERY_S", 0.0)
    monkeypatch.setattr(finetune, "embed_test", cut)
    with pytest.raises(KeyboardInterrupt):
        next(run_table(table))
    (kept,) = Path(table.results).glob("*/*/unfinished.safetensors")
    kept.with_name(".tmp-of-a-killed-saving").touch()
    monkeypatch.setattr(finetune, "embed_test", tests)
    monkeypatch.setattr(finetune.FastSoftmaxEngine, "forward_backward", None)  # it has ended
    next(run_table(table))
    assert [path.name for path in kept.parent.iterdir()] == ["result.json"]


def test_row_alone_trains_the_standard_network_that_it_starts_from(table: ReidTable) -> None:
    (only,) = run_table(dataclasses.replace(table, rows=(SAME_STEPS,)))
    assert only[1]["steps"] == 5
    assert Cell("Standard", 0.5, 0).path(table).is_file()


def test_changed_configuration_is_refused_and_concerns_only_its_rows(
    finished: ReidTable,
) -> None:
    longer = dataclasses.replace(STUDENT, finetune=Stage(steps=4, warmup_steps=1))
    changed = dataclasses.replace(finished, student=longer)
    with pytest.raises(UserError, match=r"finetune\.steps: 3 -> 4"):
        next(run_table(changed))  # before anything is done
    kept = Path(finished.results) / "try/config.yaml"
    assert load_config(ReidTable, kept) == finished
    ((*_, new),) = run_table(dataclasses.replace(changed, rows=("Standard",)))
    assert not new  # it does not depend on it


def test_dry_run_counts_and_creates_nothing(table: ReidTable) -> None:
    lines = outlook(table)
    assert len(lines) == 4
    assert "18 real + 18 synthetic images, 3 steps" in lines[2]
    assert lines[-1].startswith("in all 96 ResNet50 training image passes, about ")  # (2+3+3)*12
    assert "18 images to generate" in lines[-1]
    assert not Path(table.results).exists()
    assert not Path(table.folders).exists()


def test_a_standard_that_is_no_row_is_counted_where_it_is_not_there(
    table: ReidTable, finished: ReidTable
) -> None:
    alone = dataclasses.replace(table, rows=(PAPER,))
    assert outlook(alone)[-1].startswith("in all 60 ")  # (2+3)*12
    alone = dataclasses.replace(alone, seeds=(0, 1), name=finished.name, results=finished.results)
    assert outlook(alone)[-1].startswith("in all 60 ")  # of the second seed alone


def test_too_few_images_for_a_batch_stop_the_table_before_its_first_cell(table: ReidTable) -> None:
    table = dataclasses.replace(table, ratios=(0.5, 0.2))
    words = "7 training images of Standard, 20%, seed 0, are fewer than one batch of 12"
    for start in (lambda: next(run_table(table)), lambda: outlook(table)):
        with pytest.raises(UserError, match=words):
            start()
    scratch = FinetunePolicy(start="scratch")  # where no Standard is needed
    assert outlook(dataclasses.replace(table, rows=(SAME_STEPS, PAPER), policy=scratch))
    assert not Path(table.results).exists()


def test_images_that_are_all_alike_do_not_stop_a_cell(
    table: ReidTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grey = encode_jpeg(np.full((64, 32, 3), 128, np.uint8))
    for person, camera in itertools.product(range(2, 14, 2), range(1, 4)):
        write_bytes(tmp_path / f"grey/{person:04d}_c{camera}.jpg", grey)
    table = dataclasses.replace(table, rows=("Standard",), row=(f"GREY={tmp_path / 'grey'}",))
    assert done(table)["GREY"]["identity"] == {}
    assert "who the images show is not measured" in caplog.text


@pytest.mark.parametrize("name", ["PIDM-strict", "PIDM-paper"])
def test_candidates_that_are_there_are_not_counted_again(table: ReidTable, name: str) -> None:
    rows = (name, f"{name}-selection")
    assert "36 images to generate" in outlook(few(table, rows=rows))[-1]  # 18, and 18 more
    assert "36 images to generate" in outlook(few(table, rows=rows[1:]))[-1]


def test_cells_are_in_the_order_in_which_they_need_each_other(table: ReidTable) -> None:
    todo = cells(dataclasses.replace(table, ratios=(0.2, 0.4), seeds=(0, 1)))
    assert len(todo) == 12
    assert [cell.row for cell in todo[:3]] == ["Standard", SAME_STEPS, PAPER]


def test_unknown_rows_and_ratios_are_refused_before_any_work(table: ReidTable) -> None:
    with pytest.raises(UserError, match="'GAN' is none of Standard"):
        cells(dataclasses.replace(table, rows=("GAN",)))
    with pytest.raises(UserError, match=r"did you mean 0\.4\?"):
        cells(dataclasses.replace(table, ratios=(40,)))
    with pytest.raises(UserError, match="seeds: at least one"):
        dataclasses.replace(table, seeds=())


def test_table_of_the_cells_is_written(finished: ReidTable) -> None:
    home = Path(finished.results) / finished.name
    write_table(home)
    assert {line["name"] for line in json.loads((home / "table.json").read_text())} == {
        "Standard", SAME_STEPS, PAPER
    }  # fmt: skip


# ---------------------------------------------------------------- the other rows


def few(table: ReidTable, **changes: Any) -> ReidTable:
    """The table with batches that half of the people can fill, and a strict generator."""
    file = Path(table.results).parent / "strict.yaml"
    save_config(PIDMConfig(), file)
    changes = {"strict": str(file), **changes}
    student = dataclasses.replace(table.student, batch_size=4)
    network = SelectionConfig(network=Stage(steps=2, warmup_steps=1))
    return dataclasses.replace(table, student=student, selection=network, **changes)


def done(table: ReidTable) -> dict[str, dict[str, Any]]:
    return {cell.row: result for cell, result, _ in run_table(table)}


def test_random_erasing_and_withheld_real_images_have_rows_of_equal_length(
    table: ReidTable,
) -> None:
    rows = (SAME_STEPS, "Standard-same-steps-erasing", "real-instead")
    results = done(dataclasses.replace(table, rows=rows))
    assert [result["images"]["entries"] for result in results.values()] == [36, 36, 36]
    assert [result["images"]["real"] for result in results.values()] == [18, 18, 36]
    assert [r["configuration"]["finetune"]["erasing"] for r in results.values()] == [
        False, True, False
    ]  # fmt: skip
    plain, erased, more = (result["training"]["loss"] for result in results.values())
    assert plain != erased != more


def test_withheld_real_images_are_none_of_d_tr(table: ReidTable) -> None:
    bench, cell = Bench(table), Cell("real-instead", 0.5, 0)
    more = {path.name for path in bench.more_real(cell)}
    assert len(more) == 18
    assert not more & set(bench.work(cell).split["real"])
    many_images = Bench(dataclasses.replace(table, per_image=4))
    assert many_images._images(cell).left_out == [
        "18 withheld images of these people for the 72 planned"
    ]
    few_images = Bench(dataclasses.replace(table, per_image=1))
    assert len(few_images.more_real(Cell("real-instead", 0.25, 0))) == 9


def test_somebody_whose_kept_image_is_broken_gets_no_withheld_ones(
    table: ReidTable, tmp_path: Path
) -> None:
    """Or there would be a person more than in Standard's network."""
    market = make_market(tmp_path / "people", train=12)
    table = dataclasses.replace(table, data=str(market), ratios=(0.3,), rows=("real-instead",))
    kept = plan.sample_real(folder.read_people(market), ratio=0.3, seed=0)
    times = Counter(record.pid for record in kept)
    alone = next(record for record in kept if times[record.pid] == 1)
    alone.path.write_bytes(alone.path.read_bytes()[:40])
    bench, (cell,) = Bench(table), cells(table)
    people = {record.pid for record in bench.work(cell).real}
    assert alone.pid not in people
    assert {folder.person(path.name)[0] for path in bench.more_real(cell)} <= people
    assert done(table)["real-instead"]["images"]["people"] == 11


@pytest.mark.parametrize(
    "rows",
    [
        ("PIDM-strict", "PIDM-strict-selection", "PIDM-strict-selection-erasing"),
        ("PIDM-paper", "PIDM-paper-selection"),
    ],
)
def test_selection_keeps_as_many_of_each_person_as_are_generated_without(
    table: ReidTable, rows: tuple[str, ...]
) -> None:
    table = few(table, rows=rows)
    results = done(table)
    assert {result["images"]["synthetic"] for result in results.values()} == {18}
    bench = Bench(table)
    plain, chosen = (bench.folder(Cell(row, 0.5, 0)) for row in rows[:2])
    choices = read_choices(chosen)
    assert len(choices) == 36
    people = [Counter(name[:4] for name in names) for names in (
        folder.read_augmented(plain).synthetic,
        [choice.file_name for choice in choices if choice.kept],
    )]  # fmt: skip
    assert people[0] == people[1]
    same = set(folder.read_augmented(plain).synthetic)
    drawn = set(folder.read_ledger(chosen / folder.MANIFEST))
    assert same < drawn  # twice as many, the same among them
    costs = [set(json.loads(line)) for line in (chosen / folder.COST).read_text().splitlines()]
    assert costs == [{"synthesis_seconds"}] * 2 + [{"selection_seconds"}]  # taken over, rendered
    assert len(folder.read_augmented(chosen).synthetic) == 18  # what was dropped is not trained on


def test_on_the_fly_every_epoch_has_other_images(table: ReidTable) -> None:
    (result,) = done(few(table, rows=("PIDM-strict-fly",))).values()
    assert result["images"] == {"entries": 36, "real": 18, "synthetic": 18, "people": 6}
    assert result["distinct_images"] == 36  # three iterations of four: within one epoch
    stage = Stage(steps=20, warmup_steps=1)  # of nine batches each: two epochs and a bit
    table = few(table, rows=("PIDM-strict-fly",), name="long")
    student = dataclasses.replace(table.student, finetune=stage)
    (result,) = done(dataclasses.replace(table, student=student)).values()
    assert result["distinct_images"] == 18 + 3 * 18


def test_selection_is_done_once_for_all_rows(
    table: ReidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = few(table, rows=("PIDM-strict-selection",))
    done(table)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the selection was done again")

    monkeypatch.setattr(scoring, "choose", forbidden)
    done(dataclasses.replace(table, rows=("PIDM-strict-selection-erasing",)))


def test_a_choice_is_one_tables_own(table: ReidTable) -> None:
    """Another table's network chooses otherwise, and its hours are not this one's."""
    rows = ("PIDM-paper-selection",)
    folders = {Bench(few(table, rows=rows, name=name)).folder(Cell(*rows, 0.5, 0)) for name in "ab"}
    assert len(folders) == 2


def test_images_of_another_generator_are_a_row(table: ReidTable, tmp_path: Path) -> None:
    bench = Bench(table)
    work = bench.work(Cell("Standard", 0.5, 0))
    foreign = tmp_path / "foreign"
    for number, record in enumerate(work.real[:5]):
        image = draw_person(record.pid + 100, number)
        write_bytes(foreign / f"{record.name[:-4]}_2_{work.real[-1].name[:-4]}_vis.jpg",
                    encode_jpeg(image))  # fmt: skip
    write_bytes(foreign / "0001_c1s1_000000_00_2_x_vis.jpg", encode_jpeg(image))  # not in D_tr
    results = done(dataclasses.replace(table, rows=("Standard",), row=(f"PTN={foreign}",)))
    assert list(results) == ["Standard", "PTN"]
    assert results["PTN"]["images"]["synthetic"] == 5
    assert results["PTN"]["generator_saw"] == "unknown"
    assert len(results["PTN"]["left_out"]) == 2
    assert results["PTN"]["left_out"][1].endswith("5 images for the 18 planned")


@pytest.mark.parametrize("row", ["PTN", "=x", "Standard=.", "a/b=.", "PTN=nowhere"])
def test_wrong_further_rows_are_refused(table: ReidTable, row: str) -> None:
    with pytest.raises(UserError, match="row"):
        cells(dataclasses.replace(table, row=(row,)))


def test_policies_reach_the_fine_tuning(table: ReidTable, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    original = finetune.train_and_test

    def watched(items: Any, test: Any, **options: Any) -> Any:
        calls.append(options)
        return original(items, test, **options)

    monkeypatch.setattr(finetune, "train_and_test", watched)
    policy = FinetunePolicy(start="scratch", half_real=True, real_last=0.4)
    results = done(few(table, policy=policy))
    assert [result["steps"] for result in results.values()] == [2, 3, 3]  # nothing before them
    assert [call["start"] for call in calls] == [None, None, None]
    same_steps, augmented = (call["how"] for call in calls[1:])
    assert same_steps == finetune.How()
    assert augmented == finetune.How(half_real=True, real_last=0.4)
    assert results[PAPER]["configuration"]["finetune"]["real_last"] == 0.4


def test_a_variant_is_the_strict_row_with_one_setting_changed(table: ReidTable) -> None:
    table = few(
        table,
        rows=(SAME_STEPS, "PIDM-strict"),
        variants={"PIDM-strict-last": "policy.real_last=0.4", "PIDM-strict-few": "per_image=1"},
    )
    table = dataclasses.replace(table, ratios=(0.25,))
    results = done(table)
    assert list(results) == [SAME_STEPS, "PIDM-strict", "PIDM-strict-last", "PIDM-strict-few"]
    base, last, less = list(results.values())[1:]
    assert [r["configuration"]["finetune"]["real_last"] for r in (base, last, less)] == [0, 0.4, 0]
    assert [r["images"]["synthetic"] for r in (base, last, less)] == [27, 27, 9]
    bench = Bench(table)
    images = [bench.of(c).folder(c).name for c in cells(table)[1:]]
    assert images[0] == images[1] != images[2]  # the same images, unless others are planned
    assert len({bench.of(c).strict_run(c) for c in cells(table)[1:]}) == 1
    other = Bench(dataclasses.replace(table, variants={"PIDM-student": "run=runs/student"}))
    student = Cell("PIDM-student", 0.25, 0)
    assert other.of(student).paper_run == "runs/student"
    assert other.rows["PIDM-student"].source == "paper"
    loose = Bench(dataclasses.replace(table, variants={"loose": "selection.confused=0.5"}))
    assert loose.rows["loose"].selected
    assert "27 synthetic" in outlook(dataclasses.replace(table, name="new"))[2]
    assert "9 synthetic" in outlook(dataclasses.replace(table, name="new"))[3]


def test_the_true_images_of_a_sheet_are_those_of_its_own_plan(
    table: ReidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr("pidm_reid.sheet.write_sheet", lambda *_, truth, **__: shown.append(truth))
    for variants in ({}, {"other": "plan.pose_policy=balanced"}):
        rows = ("Standard", "oracle", *(() if variants else ("PIDM-strict",)))
        made = few(table, rows=rows, variants=variants)
        done(made)
        draw_sheet(made)
    assert [truth is not None for truth in shown] == [True, False]


def test_a_table_of_a_tools_own_class_has_variants_too(table: ReidTable) -> None:
    @dataclasses.dataclass(frozen=True)
    class Options(ReidTable):
        dry_run: bool = False

    options = Options(**vars(few(table, variants={"half": "policy.half_real=true"})))
    assert Bench(options).of(Cell("half", 0.5, 0)).table.policy.half_real


@pytest.mark.parametrize(
    ("name", "change"),
    [("PIDM-strict", "per_image=1"), ("a b", "per_image=1"), ("a", "per_imag=1"), ("a", "seeds"),
     ("a", "policy.real_last=2"), ("a", "plan.policy.x=2"), ("a", "plan="),
     ("a", "policy.start=scratch"),
     ("a", "student.standard.steps=3"), ("a", "rerank=true"), ("a", "seeds=[7]")],
)  # fmt: skip
def test_wrong_variants_are_refused(table: ReidTable, name: str, change: str) -> None:
    with pytest.raises(UserError):
        cells(dataclasses.replace(table, variants={name: change}))


def test_figures_by_camera_orientation_and_re_ranking_are_there(table: ReidTable) -> None:
    home = Path(table.data) / "market1501"
    (result,) = done(dataclasses.replace(table, rows=("Standard",), rerank=True)).values()
    assert sum(count for count, _ in result["by_camera"].values()) == 12
    assert set(result["by_camera"]) == {"c1", "c2", "c3"}
    assert not (home / "market-annotation-test.csv").exists()
    assert result["by_orientation"] == {}
    assert 0 < result["reranked"]["mAP"] <= 1


def test_of_all_real_images_nothing_is_generated(table: ReidTable) -> None:
    rows = (*table.rows, "PIDM-strict-selection", "real-instead")
    whole = dataclasses.replace(table, ratios=(1.0,), rows=rows)
    assert [cell.row for cell in cells(whole)] == ["Standard", SAME_STEPS]
    assert list(done(whole)) == ["Standard", SAME_STEPS]
    assert draw_sheet(whole) is None
    full = few(table, ratios=(0.99,), rows=("PIDM-strict",))  # nobody withheld: nothing planned
    (Bench(full).folder(Cell("PIDM-strict", 0.99, 0)) / folder.BASE / folder.TRAIN).mkdir(
        parents=True
    )
    assert draw_sheet(full) is None
    with pytest.raises(UserError, match="no row is left"):
        cells(dataclasses.replace(whole, rows=("PIDM-paper",)))
    more = dataclasses.replace(whole, variants={"PIDM-strict-x1": "per_image=1"})
    assert [cell.row for cell in cells(more)] == ["Standard", SAME_STEPS, "PIDM-strict-x1"]


def test_what_stops_a_cell_is_said_before_hours_of_the_others(table: ReidTable) -> None:
    """And by a dry run, which else would say that all is well."""
    odd = dataclasses.replace(STUDENT, batch_size=9)
    policy = FinetunePolicy(half_real=True)
    halves = dataclasses.replace(few(table, name="odd"), policy=policy, student=odd)
    done(dataclasses.replace(table, rows=("Standard",)))
    longer = dataclasses.replace(STUDENT, standard=Stage(steps=9, warmup_steps=1))
    changed = dataclasses.replace(table, rows=("Standard",), student=longer)
    for wrong, words in ((halves, "batch_size 9 is odd"), (changed, "steps: 2 -> 9")):
        for start in (lambda t: next(run_table(t)), outlook):
            with pytest.raises(UserError, match=words):
                start(wrong)


def test_a_table_of_another_test_set_is_refused(table: ReidTable, tmp_path: Path) -> None:
    table = dataclasses.replace(
        table, data=str(make_market(tmp_path / "people")), rows=("Standard",)
    )
    done(table)
    (tmp_path / "people/market1501/query/0001_c1s1_000000_00.jpg").unlink()
    with pytest.raises(UserError, match=r"data\.test: "):
        done(table)


def test_standard_is_not_replaced_by_one_that_is_trained_anew(
    table: ReidTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights may lie on another machine; the rows there began with those."""
    first = done(dataclasses.replace(table, rows=("Standard", SAME_STEPS)))
    assert first["Standard"]["standard"] == first[SAME_STEPS]["standard"]
    (weights,) = Path(table.results).rglob("standard/*.safetensors")
    before = weights.read_bytes()

    weights.unlink()
    again = done(table)
    assert (again["Standard"], weights.read_bytes()) == (first["Standard"], before)
    assert again[PAPER]["standard"] == first["Standard"]["standard"]
    assert not caplog.records

    weights.unlink()
    Cell(PAPER, 0.5, 0).path(table).unlink()
    really = finetune.train_and_test

    def elsewhere(*args: Any, **settings: Any) -> Any:  # another machine rounds otherwise
        return really(*args, **{**settings, "seed": settings["seed"] + 1})

    monkeypatch.setattr(finetune, "train_and_test", elsewhere)
    other = done(table)
    assert other["Standard"] == first["Standard"]
    assert other[PAPER]["standard"] != first["Standard"]["standard"]
    assert "trained anew it is another network" in caplog.text
    paper = next(line for line in write_table(Path(table.results) / "try") if line.name == PAPER)
    assert paper.label == "PIDM-paper, from another Standard"


def test_a_gain_of_an_erasing_row_is_over_the_row_with_erasing() -> None:
    def reference(row: str, **finetune: bool) -> str:
        return _reference({"row": row, "configuration": {"finetune": finetune}})

    assert reference("PIDM-strict-selection-erasing", erasing=True) == f"{SAME_STEPS}-erasing"
    assert reference("Standard-same-steps-erasing", erasing=True) == SAME_STEPS
    assert reference("GAN-without-erasing", erasing=False) == SAME_STEPS  # by what it did
    assert _reference({"row": "Standard", "configuration": {}}) == SAME_STEPS


# ---------------------------------------------------------------- strict generators


@pytest.fixture
def strict(table: ReidTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReidTable:
    """A table whose strict generator is really trained, two steps long."""
    monkeypatch.undo()  # the tinting generator; the small network stays for the module
    train = TrainConfig(steps=2, batch_size=4, warmup_steps=1, sample_every=0, precision="fp32")
    config = PIDMConfig(model=TINY, train=train, sample=SampleConfig(steps=1, batch_size=6))
    save_config(config, tmp_path / "strict.yaml")
    return dataclasses.replace(
        table, rows=("PIDM-strict",), strict=str(tmp_path / "strict.yaml"), ratios=(0.75,)
    )


def test_a_strict_generator_sees_d_tr_alone(strict: ReidTable) -> None:
    (result,) = done(strict).values()
    assert result["generator_saw"] == "D_tr"
    assert result["cost"]["generator_seconds"] > 0
    bench = Bench(strict)
    cell = Cell("PIDM-strict", 0.75, 0)
    run = bench.strict_run(cell)
    (seen,) = read_seen(run) or []
    assert set(seen.images) <= set(bench.work(cell).split["real"])
    assert load_config(PIDMConfig, run / "config.yaml").train.withhold == 0.05
    assert (run / "withheld.json").is_file()
    assert done(strict)["PIDM-strict"] == result


def test_a_strict_generator_that_began_with_another_says_so(
    strict: ReidTable, market: Path, tmp_path: Path
) -> None:
    config = load_config(PIDMConfig, strict.strict)
    for _ in train(dataclasses.replace(config, data=str(market)), tmp_path / "first"):
        pass
    begun = dataclasses.replace(config.train, init=str(tmp_path / "first"))
    save_config(dataclasses.replace(config, train=begun), strict.strict)
    with pytest.raises(UserError, match=r"train.init: saw all train; a strict generator may"):
        done(strict)


def test_changed_settings_of_a_strict_generator_are_refused_and_its_log_is_not_one(
    strict: ReidTable,
) -> None:
    (first,) = done(strict).values()
    config = load_config(PIDMConfig, strict.strict)
    logged = dataclasses.replace(config.train, log_every=7)
    save_config(dataclasses.replace(config, train=logged), strict.strict)
    assert list(done(strict).values()) == [first]
    longer = dataclasses.replace(config.train, steps=3)
    save_config(dataclasses.replace(config, train=longer), strict.strict)
    with pytest.raises(UserError, match=r"generator\.train\.steps: 2 -> 3"):
        done(strict)
    Cell("PIDM-strict", 0.75, 0).path(strict).unlink()
    with pytest.raises(
        UserError, match="was trained for 2 steps, not 3"
    ):  # the run itself is the old
        done(strict)


def test_a_strict_generator_is_never_the_newest_run(
    strict: ReidTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(strict)
    monkeypatch.chdir(tmp_path)
    assert generators.newest_run() == "toy_market"


def test_strict_rows_need_a_configuration(table: ReidTable, monkeypatch: Any) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match="strict: give the configuration file"):
        done(dataclasses.replace(table, rows=("PIDM-strict",)))
