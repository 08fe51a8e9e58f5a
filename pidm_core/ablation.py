"""Table 2: the variants of PIDM trained alike, each with its guidance, on the same test pairs.

Three networks make five rows. Rerunning goes on: runs resume, images that are there stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pidm_core.config import AblationTable, Guidance, ImageTable, PIDMConfig, Texture
from pidm_core.data import make_pairs
from pidm_core.datasets import People, read_people
from pidm_core.files import encode_png, load_image, write_bytes
from pidm_core.keypoints import rescale
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
    return Path(table.results) / table.name / "runs" / texture


def train_variant(table: AblationTable, texture: Texture) -> Iterator[Progress]:
    """Train one of the networks; everything but the way of the source is the table's own."""
    values = {field.name: getattr(table, field.name) for field in dataclasses.fields(PIDMConfig)}
    model = dataclasses.replace(table.model, texture=texture)
    return train(PIDMConfig(**{**values, "model": model}), run_folder(table, texture))


def render_row(table: AblationTable, row: str) -> Iterator[int]:
    """Draw the test pairs of a row, batch by batch, and yield how many each batch had.

    Images are written at the size of the targets: bicubic, if the model's own is another.
    """
    texture, guidance = ROWS[row]
    pipe = PIDMPipeline.from_pretrained(run_folder(table, texture))
    pipe = pipe.with_settings(guidance=guidance)
    people, pairs = test_pairs(table)
    paths = [_path(table, row, people, pair) for pair in pairs]
    todo = [number for number, path in enumerate(paths) if not path.is_file()]
    size = pipe.settings.batch_size
    for start in range(0, len(todo), size):
        numbers = todo[start : start + size]
        opened = [_open(people, int(index)) for index in pairs[numbers].flat]
        sources, targets = [image for image, _ in opened[::2]], opened[1::2]
        poses = np.stack([rescale(joints, image.shape[:2], pipe.size) for image, joints in targets])
        drawn = pipe(sources, poses, seeds=numbers).images
        for image, number, (target, _) in zip(drawn, numbers, targets, strict=True):
            shown = Image.fromarray(image)
            if target.shape[:2] != pipe.size:
                shown = shown.resize(target.shape[1::-1], Image.Resampling.BICUBIC)
            write_bytes(paths[number], encode_png(np.asarray(shown)))
        yield len(numbers)


def test_pairs(table: AblationTable) -> tuple[People, np.ndarray]:
    """The test images, and the (N, 2) source and target of each that is drawn."""
    people = read_people(table.data, split="test")
    pairs = people.pairs
    if pairs is None:
        pairs = make_pairs(people.records, people.keypoints)
    chosen = np.random.default_rng(0).permutation(len(pairs))[: table.test_pairs]
    return people, pairs[np.sort(chosen)]


def _open(people: People, index: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (H, W, 3), and its joints (18, 2) in its px."""
    record = people.records[index]
    image, joints = load_image(record.path), people.keypoints[record.name]
    return people.view(image, joints) if people.view else (image, joints)


def _path(table: AblationTable, row: str, people: People, pair: np.ndarray) -> Path:
    source, target = (people.records[int(index)].path.stem for index in pair)
    return Path(table.results) / table.name / "images" / row / f"{source}_2_{target}_vis.png"


def scored(table: AblationTable) -> ImageTable:
    """The table of the rows' images, to be measured like any other methods'."""
    home = Path(table.results) / table.name
    people = read_people(table.data, split="test")
    train_images = read_people(table.data, keypoints=table.keypoints).records[0].path.parent
    return ImageTable(
        name=table.name,
        methods={row: str(home / "images" / row) for row in ROWS},
        published="ablation",
        real=str(train_images),
        targets=str(people.records[0].path.parent),
        weights=table.weights,
        results=table.results,
    )
