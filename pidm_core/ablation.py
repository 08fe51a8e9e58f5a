"""Table 2: the variants of PIDM trained alike, each with its guidance, on the same test pairs.

Three networks make five rows. Rerunning goes on: runs resume, images that are there stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pidm_core.config import AblationTable, Guidance, ImageTable, PIDMConfig, Texture
from pidm_core.datasets import People, read_people
from pidm_core.options import narrowed
from pidm_core.pair_images import choose_pairs, draw_pairs, write_images, write_truth
from pidm_core.pipeline import PIDMPipeline
from pidm_core.train import Progress, train

ROWS: dict[str, tuple[Texture, Guidance]] = {
    "Baseline-dagger": ("input", "none"),
    "Baseline": ("concat", "none"),
    "TDB": ("attention", "none"),
    "TDB+CF": ("attention", "cf"),
    "TDB+DCF": ("attention", "dcf"),
}
NETWORKS: tuple[Texture, ...] = ("input", "concat", "attention")


def run_folder(table: AblationTable, texture: Texture) -> Path:
    """Where a variant's training lies."""
    return _home(table) / "runs" / texture


def train_variant(table: AblationTable, texture: Texture) -> Iterator[Progress]:
    """Train one of the networks; everything but the way of the source is the table's own."""
    model = dataclasses.replace(table.model, texture=texture)
    config = dataclasses.replace(narrowed(PIDMConfig, table), model=model)
    return train(config, run_folder(table, texture))


def test_pairs(table: AblationTable) -> tuple[People, np.ndarray]:
    """The test images, and the (N, 2) source and target of each pair that is drawn."""
    people = read_people(table.data, split="test")
    return people, choose_pairs(people, table.test_pairs)


def draw_row(table: AblationTable, row: str) -> Iterator[int]:
    """Draw the test pairs of a row, batch by batch, and yield how many each batch had."""
    texture, guidance = ROWS[row]
    pipe = PIDMPipeline.from_pretrained(run_folder(table, texture)).with_settings(guidance=guidance)
    return draw_pairs(pipe, *test_pairs(table), _home(table) / "images" / row)


def scored(table: AblationTable) -> ImageTable:
    """The table of the rows' images, to be measured like any other methods'; writes the truth."""
    home, truth = _home(table), _home(table) / "truth"
    write_truth(*test_pairs(table), truth)
    result = ImageTable(
        name=table.name,
        methods={row: str(home / "images" / row) for row in ROWS},
        published="ablation",
        real=str(_real_images(table)),
        targets=str(truth / "targets"),
        features=table.features,
        weights=table.weights,
        reid_size=table.reid_size,
        grid=True,
        sources=str(truth / "sources"),
        keypoints=str(truth / "keypoints.csv"),
        results=table.results,
    )
    result.check()
    return result


def _real_images(table: AblationTable) -> Path:
    """A folder of the real training images, as the data set's view shows them."""
    people = read_people(table.data, keypoints=table.keypoints, pairs=table.pairs)
    homes = {record.path.parent for record in people.records}
    if len(homes) == 1 and people.view is None:
        return homes.pop()
    write_images(people, range(len(people.records)), _home(table) / "truth" / "real")
    return _home(table) / "truth" / "real"


def _home(table: AblationTable) -> Path:
    return Path(table.results) / table.name
