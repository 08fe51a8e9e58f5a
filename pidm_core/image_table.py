"""Table 1 and Figs. 3 and 4 for any folders of generated images, the paper's numbers beside.

Each method's figures go to result.json; table.json, table.md and table.csv are made from those.
A method whose files and settings have not changed is not measured again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core.config import ImageTable, Published
from pidm_core.evaluation import (
    Judges,
    evaluate,
    find_judges,
    images_below,
    images_by_name,
    only,
    read_pictures,
)
from pidm_core.files import (
    BAD_DATA,
    UserError,
    encode_png,
    load_image,
    read_json,
    sha256,
    write_bytes,
    write_json,
)
from pidm_core.keypoints import read_keypoints
from pidm_core.pose import skeleton
from pidm_core.sheets import sheet

# SSIM, LPIPS, FID of Tables 1 and 2; the last two rows of Market-1501 as those papers give them
PUBLISHED: dict[Published, dict[str, tuple[float | None, float | None, float]]] = {
    "ablation": {  # Table 2, DeepFashion 256x176
        "Baseline": (None, None, 9.8510),
        "TDB": (0.7178, 0.1872, 7.5133),
        "TDB+DCF": (0.7312, 0.1678, 6.3671),
    },
    "deepfashion": {
        "Def-GAN": (0.6786, 0.2330, 18.457),
        "PATN": (0.671, 0.256, 20.751),
        "ADGAN": (0.6721, 0.2283, 14.458),
        "PISE": (0.6629, 0.2059, 13.610),
        "GFLA": (0.7074, 0.2341, 10.573),
        "DPTN": (0.7112, 0.1931, 11.387),
        "CASD": (0.7248, 0.1936, 11.373),
        "NTED": (0.7182, 0.1752, 8.6838),
        "PIDM": (0.7312, 0.1678, 6.3671),
    },
    "deepfashion512": {
        "CoCosNet2": (0.7236, 0.2265, 13.325),
        "NTED": (0.7376, 0.1980, 7.7821),
        "PIDM": (0.7419, 0.1768, 5.8365),
    },
    "market1501": {
        "Def-GAN": (0.2683, 0.2994, 25.364),
        "PTN": (0.2821, 0.3196, 22.657),
        "GFLA": (0.2883, 0.2817, 19.751),
        "DPTN": (0.2854, 0.2711, 18.995),
        "PIDM": (0.3054, 0.2415, 14.451),
        "PCDMs": (0.3169, 0.2238, 13.897),
        "IMAGPose": (0.3282, 0.2104, 12.659),
    },
}
_PUBLISHED_FIGURES = ("SSIM", "LPIPS", "FID")
_ORDER = ("SSIM", "SSIM_256", "LPIPS", "FID")
_GRID_HEIGHT_PX = 256

Result = dict[str, Any]


def outlook(table: ImageTable) -> list[str]:
    """What would be measured, one line for each method."""
    targets = table.targets or table.real
    lines = [f"{len(images_below(table.real)):,} real images in {table.real}"]
    for method, folder in table.methods.items():
        pictures = read_pictures(folder, targets)
        known = sum(picture.target is not None for picture in pictures)
        lines.append(f"{method}: {len(pictures):,} images, {known:,} with a target in {targets}")
    return lines


def measure(table: ImageTable) -> Iterator[tuple[Result, bool]]:
    """Yield each method's result.json, and whether it was measured now; writes it first."""
    targets = table.targets or table.real
    folders = {method: read_pictures(folder, targets) for method, folder in table.methods.items()}
    judges = find_judges(table)
    basis = _basis(table, judges)
    for method, pictures in folders.items():
        path = Path(table.results) / table.name / method / "result.json"
        key = _hash([basis, _files(p.path for p in pictures), _files(p.target for p in pictures)])
        if path.is_file():
            result = read_json(path)
            if result.get("key") == key:
                yield result, False
                continue
        result = {
            "method": method,
            "folder": table.methods[method],
            **asdict(evaluate(pictures, table, judges)),
            "preset": table.preset,
            "versions": {name: version(name) for name in ("numpy", "torch", "torchvision")},
            "key": key,
        }
        write_json(path, result)
        yield result, True


def _basis(table: ImageTable, judges: Judges) -> list[Any]:
    """All but the method that a result depends on."""
    found = [judge.weights if judge else None for judge in (judges.extractor, judges.lpips)]
    found += [judges.joints.weights] if judges.joints else []
    settings = [table.preset, table.features, list(table.reid_size), table.targets]
    return [*settings, *found, _files(images_below(table.real))]


def _files(paths: Iterable[Path | None]) -> list[list[str] | None]:
    return [[path.name, sha256(path)] if path else None for path in paths]


def _hash(value: Any) -> str:
    return sha256(json.dumps(value).encode())


# ---------------------------------------------------------------- the table


def write_table(table: ImageTable, results: Sequence[Result]) -> str:
    """Write table.json, table.md and table.csv of the results; the text of table.md."""
    folder = Path(table.results) / table.name
    published = PUBLISHED.get(table.published, {})
    lines = [
        {
            "method": result["method"],
            "images": result["images"],
            "figures": {figure["name"]: figure["value"] for figure in result["figures"]},
            "published": dict(
                zip(_PUBLISHED_FIGURES, published.get(result["method"], ()), strict=False)
            ),
            "how": {figure["name"]: figure["how"] for figure in result["figures"]},
        }
        for result in results
    ]
    text = _markdown(lines)
    write_json(folder / "table.json", lines)
    write_bytes(folder / "table.md", text.encode())
    write_bytes(folder / "table.csv", _comma_separated(lines).encode())
    return text


def _columns(lines: Sequence[Result]) -> list[tuple[str, str]]:
    """(kind, figure) of each column: what was measured and, beside it, what was published."""
    shown = {name for line in lines for name in (*line["figures"], *line["published"])}
    others = [name for line in lines for name in line["figures"] if name not in _ORDER]
    columns = []
    for name in [*(name for name in _ORDER if name in shown), *dict.fromkeys(others)]:
        columns.append(("figures", name))
        if any(name in line["published"] for line in lines):
            columns.append(("published", name))
    return columns


def _markdown(lines: Sequence[Result]) -> str:
    columns = _columns(lines)
    titles = ["paper" if kind == "published" else name for kind, name in columns]
    rows = [["method", "images", *titles], ["---"] * (2 + len(columns))]
    for line in lines:
        values = [line[kind].get(name) for kind, name in columns]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        rows.append([line["method"], f"{line['images']:,}", *cells])
    notes = [
        f"- {line['method']}, {name}: {how}\n"
        for line in lines
        for name, how in line["how"].items()
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n" + "".join(notes)


def _comma_separated(lines: Sequence[Result]) -> str:
    columns = _columns(lines)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = [f"{name} paper" if kind == "published" else name for kind, name in columns]
    writer.writerow(["method", "images", *titles])
    for line in lines:
        values = [line[kind].get(name, "") for kind, name in columns]
        writer.writerow([line["method"], line["images"], *values])
    return out.getvalue()


# ---------------------------------------------------------------- the grid


@dataclass(frozen=True)
class GridRow:
    """A pair that every method has an image of."""

    source: Path
    pose: np.ndarray
    """Joints of the target."""
    truth: Path
    made: tuple[Path, ...]
    """Each method's image."""


def grid_rows(table: ImageTable) -> list[GridRow]:
    """Evenly chosen pairs for the grid.

    Raises UserError where the keypoints or a source lack or no pair is in every method's folder.
    """
    targets = table.targets or table.real
    sources = images_by_name(table.sources or targets)
    poses = {Path(name).stem: pose for name, pose in read_keypoints(table.keypoints).items()}
    images: list[dict[tuple[str, Path], Path]] = []
    for folder in table.methods.values():
        pictures = reversed(read_pictures(folder, targets))  # so that the first of a pair stays
        images.append({(p.source, p.target): p.path for p in pictures if p.target})
    common = sorted(
        (source, target)
        for source, target in set.intersection(*map(set, images))
        if source in sources and target.stem in poses
    )
    if not common:
        raise UserError(
            f"grid: no pair has an image of every method, a source in "
            f"{table.sources or targets} and a pose in {table.keypoints}",
            BAD_DATA,
        )
    rows = []
    for k in np.unique(np.linspace(0, len(common) - 1, table.grid_rows).astype(int)):
        source, target = common[k]
        made = tuple(found[common[k]] for found in images)
        rows.append(GridRow(only(sources[source]), poses[target.stem], target, made))
    return rows


def draw_grid(table: ImageTable, chosen: Sequence[GridRow]) -> Path:
    """Write grid.png: source, pose, truth and every method's image, of each chosen pair."""
    height, width = load_image(chosen[0].truth).shape[:2]
    size = _GRID_HEIGHT_PX, round(_GRID_HEIGHT_PX * width / height)
    rows = []
    for row in chosen:
        truth = load_image(row.truth)
        pose = skeleton(row.pose, truth.shape[:2])
        rows.append([load_image(row.source), pose, truth, *map(load_image, row.made)])
    path = Path(table.results) / table.name / "grid.png"
    titles = ("source", "pose", "truth", *table.methods)
    write_bytes(path, encode_png(sheet(titles, rows, size)))
    return path
