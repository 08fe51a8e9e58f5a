"""Table 2 on toy people: three networks, five rows, one table."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from pidm_core import UserError, ablation, load_image
from pidm_core.config import AblationTable, SampleConfig, TrainConfig
from pidm_core.options import save_config
from tools.reproduce_table import main


@pytest.fixture
def table(drawn_people: Path, tmp_path: Path) -> AblationTable:
    return AblationTable(
        data=str(drawn_people),
        name="variants",
        test_pairs=5,
        results=str(tmp_path / "results"),
        model=TINY,
        train=TrainConfig(
            steps=4, batch_size=4, lr=1e-2, warmup_steps=1, ema_decay=0, sample_every=0
        ),
        sample=SampleConfig(steps=2, batch_size=4),
    )


def test_three_networks_make_the_five_rows_of_the_table(
    table: AblationTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "variants.yaml"
    save_config(table, config)
    arguments = ["ablation", "--config", str(config)]
    assert main([*arguments, "--dry-run"]) == 0
    assert "5 rows of 5 images" in capsys.readouterr().out
    main(arguments)
    home = Path(table.results) / "variants"
    lines = (home / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:7]] == list(ablation.ROWS)
    images = {row: sorted((home / "images" / row).glob("*.png")) for row in ablation.ROWS}
    assert {len(files) for files in images.values()} == {5}
    assert len({tuple(file.name for file in files) for files in images.values()}) == 1
    people, pairs = ablation.test_pairs(table)
    assert load_image(images["TDB"][0]).shape == load_image(people.records[0].path).shape
    for source, target in pairs:
        assert people.records[source].pid == people.records[target].pid != 0
    assert load_image(home / "grid.png").shape[0] > 256
    made = [file for files in images.values() for file in files]
    made += (home / "runs").glob("*/model/model.safetensors")
    assert len(made) == 5 * 5 + 3
    before = {file: file.stat().st_mtime_ns for file in made}
    main(arguments)  # nothing is trained, drawn or measured again
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert "TDB+DCF (done before)" in capsys.readouterr().out


def test_rows_of_one_network_differ_by_guidance_alone(table: AblationTable) -> None:
    for _ in ablation.train_variant(table, "attention"):
        pass
    for row in ("TDB", "TDB+CF", "TDB+DCF"):
        assert sum(ablation.draw_row(table, row)) == 5
    images = [
        np.stack([load_image(file) for file in sorted(Path(folder).glob("*.png"))])
        for row, folder in ablation.scored(table).methods.items()
        if row.startswith("TDB")
    ]
    assert not any(np.array_equal(a, b) for a, b in pairwise(images))


def test_images_of_a_shorter_training_are_not_taken_for_those_of_a_longer_one(
    table: AblationTable,
) -> None:
    for _ in ablation.train_variant(table, "concat"):
        pass
    assert sum(ablation.draw_row(table, "Baseline")) == 5
    assert list(ablation.draw_row(table, "Baseline")) == [5]  # all were there
    longer = dataclasses.replace(table, train=dataclasses.replace(table.train, steps=5))
    for _ in ablation.train_variant(longer, "concat"):
        pass
    with pytest.raises(UserError, match="Baseline: its images were made with other weights;"):
        sum(ablation.draw_row(longer, "Baseline"))
    fewer = dataclasses.replace(table, test_pairs=3)
    with pytest.raises(UserError, match="made with other weights and pairs;"):
        sum(ablation.draw_row(fewer, "Baseline"))


def test_what_the_table_lacks_is_said_before_any_training(table: AblationTable) -> None:
    lacking = dataclasses.replace(table, features="reid")
    with pytest.raises(UserError, match="features=reid needs the network's file"):
        ablation.scored(lacking)
