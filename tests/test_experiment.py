"""The cells of a table, end to end on a made-up market with a tinting generator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from people import TINT

from pidm_core import PIDMConfig, UserError, save_config
from pidm_core.config import TrainConfig
from pidm_reid import experiment, folder
from pidm_reid.config import ReidTable, Stage, StudentConfig
from pidm_reid.experiment import ROWS, SAME_STEPS, Cell, Row, cells, outlook, run_table
from pidm_reid.generators import saw
from pidm_reid.table import write_table

pytestmark = pytest.mark.usefixtures("small_network")

STUDENT = StudentConfig(
    height=32,
    width=16,
    batch_size=12,
    weights="none",
    precision="fp32",
    standard=Stage(steps=2, warmup_steps=1),
    finetune=Stage(steps=3, warmup_steps=1),
)


TINTED = Row("augmented", lambda table: dataclasses.replace(TINT, saw="D_tr"))


@pytest.fixture(autouse=True)
def _tinting_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "ROWS", {**ROWS, "PIDM": TINTED})


def small_table(market: Path, home: Path) -> ReidTable:
    """Three rows at one ratio with one seed."""
    return ReidTable(
        name="try",
        data=str(market),
        ratios=(0.5,),
        rows=("PIDM", "Standard", SAME_STEPS),
        student=STUDENT,
        results=str(home / "results"),
        folders=str(home / "data"),
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
        patch.setattr(experiment, "ROWS", {**ROWS, "PIDM": TINTED})
        assert [new for *_, new in run_table(done)] == [True] * 3
    return done


def test_rows_train_as_the_rules_say(finished: ReidTable) -> None:
    done = {cell.row: result for cell, result, _ in run_table(finished)}
    assert list(done) == ["Standard", SAME_STEPS, "PIDM"]
    standard, same_steps, pidm = done.values()
    assert standard["images"] == {"entries": 18, "real": 18, "synthetic": 0, "people": 6}
    assert same_steps["images"] == {"entries": 36, "real": 18, "synthetic": 0, "people": 6}
    assert pidm["images"] == {"entries": 36, "real": 18, "synthetic": 18, "people": 6}
    assert [result["steps"] for result in done.values()] == [2, 5, 5]
    assert [result["generator_saw"] for result in done.values()] == ["-", "-", "D_tr"]
    assert {result["weights"] for result in done.values()} == {"from scratch"}
    assert pidm["counts"] == {
        "queries": 12, "unmatched": 0, "gallery": 15, "junk": 3, "distractors": 3
    }  # fmt: skip
    assert all(0 < result["mAP"] <= 1 for result in done.values())


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

    monkeypatch.setattr(experiment.Bench, "run", forbidden)
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


def test_row_alone_trains_the_standard_network_that_it_starts_from(table: ReidTable) -> None:
    (only,) = run_table(dataclasses.replace(table, rows=(SAME_STEPS,)))
    assert only[1]["steps"] == 5
    assert Cell("Standard", 0.5, 0).path(table).is_file()


def test_changed_configuration_is_refused_and_concerns_only_its_rows(
    finished: ReidTable,
) -> None:
    longer = dataclasses.replace(STUDENT, finetune=Stage(steps=4, warmup_steps=1))
    again = run_table(dataclasses.replace(finished, student=longer))
    assert next(again)[2] is False  # Standard does not depend on it
    with pytest.raises(UserError, match=r"finetune\.steps: 3 -> 4"):
        next(again)


def test_dry_run_counts_and_creates_nothing(table: ReidTable) -> None:
    lines = outlook(table)
    assert len(lines) == 4
    assert "18 real + 18 synthetic images, 3 steps" in lines[2]
    assert lines[-1] == "in all 96 ResNet50 training image passes"  # (2 + 3 + 3) * 12
    assert not Path(table.results).exists()
    assert not Path(table.folders).exists()


def test_cells_are_in_the_order_in_which_they_need_each_other(table: ReidTable) -> None:
    todo = cells(dataclasses.replace(table, ratios=(0.2, 0.4), seeds=(0, 1)))
    assert len(todo) == 12
    assert [cell.row for cell in todo[:3]] == ["Standard", SAME_STEPS, "PIDM"]


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
        "Standard", SAME_STEPS, "PIDM"
    }  # fmt: skip


def test_generator_saw_names_the_model_that_a_run_started_from(
    tmp_path: Path, market: Path
) -> None:
    for name, data, init in (
        ("plain", market, ""),
        ("started", market, "toy_market"),
        ("elsewhere", tmp_path, ""),
    ):
        config = PIDMConfig(data=str(data), train=TrainConfig(init=init))
        save_config(config, tmp_path / name / "config.yaml")
    found = [saw(str(tmp_path / n), market) for n in ("plain", "started", "elsewhere", "nowhere")]
    assert found == ["all train", "drawn people + all train", "unknown", "unknown"]
    assert saw("toy_market", market) == "drawn people"
