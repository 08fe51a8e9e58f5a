"""Tables made from results: means, spreads and paired gains, worked by hand."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from pidm_core import UserError, write_json
from pidm_reid import table
from pidm_reid.config import NetworkConfig, ReidTable, Stage


def result(row: str, seed: int, precision: float, ratio: float = 0.4) -> dict[str, Any]:
    return {
        "row": row,
        "ratio": ratio,
        "seed": seed,
        "mAP": precision,
        "mINP": precision / 2,
        "cmc": {"1": precision, "5": 0.9, "10": 0.95, "20": 1.0},
        "generator_saw": "all train" if row == "PIDM" else "-",
        "images": {"entries": 1000, "real": 400, "synthetic": 600},
        "steps": 500,
        "weights": "from scratch",
        "by_person": {str(pid): [2, 2 * precision] for pid in range(1, 9)},
    }


THREE = [
    *(result("PIDM", seed, value) for seed, value in ((0, 0.60), (1, 0.62), (2, 0.67))),
    *(
        result("Standard-same-steps", seed, value)
        for seed, value in ((0, 0.58), (1, 0.59), (2, 0.60))
    ),
]


def test_mean_and_spread_over_seeds() -> None:
    pidm = next(line for line in table.summarise(THREE) if line.name == "PIDM")
    assert pidm.mean["mAP"] == pytest.approx((60 + 62 + 67) / 3)
    assert pidm.sd["mAP"] == pytest.approx(math.sqrt((3**2 + 1**2 + 4**2) / 2))
    assert pidm.seeds == (0, 1, 2)


def test_gain_is_the_mean_paired_difference_with_its_t_interval() -> None:
    pidm = next(line for line in table.summarise(THREE) if line.name == "PIDM")
    assert pidm.gain == pytest.approx((2 + 3 + 7) / 3)
    half = 4.302653 * math.sqrt((2**2 + 1**2 + 3**2) / 2) / math.sqrt(3)  # t(0.975, 2)
    assert pidm.interval == pytest.approx((4 - half, 4 + half), abs=1e-4)


def trained(
    row: str, seed: int, height: int = 64, data: dict[str, str] | None = None, **stage: object
) -> dict[str, Any]:
    configuration = {
        "student": {"height": height},
        "finetune": {"steps": 190, "lr": 1e-4, "erasing": False, **stage},
        "data": {"train": "a", "test": "b", **(data or {})},
    }
    return {**result(row, seed, 0.5), "configuration": configuration}


LIKE = "Standard-same-steps"


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([trained("PIDM", 1, steps=400)], r"made differently \(finetune.steps\)"),
        ([trained("PIDM", 1, height=128)], r"made differently \(student\)"),
        ([trained("PIDM", 1, erasing=True)], r"made differently \(finetune.erasing\)"),
        ([trained("PIDM", 1, data={"test": "c"})], r"made differently \(test images\)"),
        ([trained(LIKE, 0, height=128)], r"otherwise than .* compared with \(student\)"),
        ([trained(LIKE, 0, steps=400)], r"otherwise than .* with \(finetune.steps\)"),
        ([trained(LIKE, 0, lr=1e-2)], r"otherwise than .* with \(finetune.lr\)"),
        ([trained(LIKE, 0, start="scratch")], r"otherwise than .* with \(finetune.start\)"),
        ([trained(LIKE, 1, data={"test": "c"})], r"otherwise than .* with \(test images\)"),
    ],
)
def test_what_was_trained_differently_is_not_compared(
    others: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(UserError, match=f"PIDM, 40%.*{words}"):
        table.summarise([trained("PIDM", 0), *others])
    table.summarise([trained("PIDM", 0), trained("PIDM", 1), trained(LIKE, 0)])
    table.summarise([trained("PIDM", 0, half_real=True, erasing=True), trained(LIKE, 0)])


def generated(seed: int, **changed: Any) -> dict[str, Any]:
    """A cell of generated images; `changed` goes to where they come from."""
    cell = trained("PIDM", seed)
    training = {"seed": seed, "steps": changed.pop("steps", 600)}
    generator = {"train": training}
    cell["precision"] = changed.pop("precision", "fp32")
    cell["images"] = {"entries": 1000, "real": 400, "synthetic": changed.pop("synthetic", 600)}
    known = {"renderer": "pidm:1", "settings": {}, "generator": generator, "plan": str(seed)}
    cell["configuration"] |= {**known, **changed}
    return cell


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"renderer": "pidm:2"}, "renderer"),
        ({"settings": {"steps": 9}}, "settings"),
        ({"selection": {"rule": 2}}, "selection"),
        ({"steps": 700}, "generator"),
        ({"synthetic": 1200}, "generated for a real image"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_seeds_with_images_of_different_generators_are_no_row(
    changed: dict[str, Any], words: str
) -> None:
    table.summarise([generated(0), generated(1, synthetic=601)])
    with pytest.raises(UserError, match=rf"PIDM, 40%: .*made differently \({words}\)"):
        table.summarise([generated(0), generated(1, **changed)])


def test_a_row_that_began_with_another_standard_says_so() -> None:
    """Standard trained anew on another machine is another network, and the pairs are looser."""

    def label(*standards: str) -> str:
        rows = zip(("PIDM", LIKE), standards, strict=True)
        cells = [{**result(row, 0, 0.5), "standard": digest} for row, digest in rows]
        return next(line.label for line in table.summarise(cells) if line.name == "PIDM")

    assert label("aa", "aa") == "PIDM"
    assert label("aa", "bb") == "PIDM, from another Standard"


def test_gain_counts_common_seeds_only() -> None:
    gain, interval = table.paired(
        [result("PIDM", 0, 0.6), result("PIDM", 5, 0.9)], [result("x", 0, 0.5)]
    )
    assert gain == pytest.approx(10)
    assert interval is None
    assert table.paired([result("PIDM", 0, 0.6)], []) == (None, None)


def test_bold_gain_means_an_interval_without_zero() -> None:
    sure = [result("PIDM", seed, 0.7 + 0.001 * seed) for seed in range(3)]
    lines = table.markdown(table.summarise([*sure, *THREE[3:]]))
    assert "**+" in lines
    assert "**" not in table.markdown(table.summarise(THREE))


def test_bootstrap_draws_the_people_of_the_query_anew() -> None:
    alike = table.bootstrap([result("PIDM", 0, 0.6)], [result("x", 0, 0.5)])
    assert alike == pytest.approx((10, 10))  # every person gains the same
    rng = np.random.default_rng(1)
    counts, sums = rng.integers(1, 6, 300), rng.random((2, 300))
    ours, theirs = result("PIDM", 0, 0.6), result("x", 0, 0.5)
    for cell, total in ((ours, sums[0]), (theirs, sums[1])):
        cell["by_person"] = {f"{k:04d}": [int(counts[k]), total[k]] for k in range(300)}
    reference = scipy.stats.bootstrap(
        (counts, sums[0] - sums[1]),
        lambda n, gain, axis: 100 * gain.sum(axis) / n.sum(axis),
        paired=True,
        method="percentile",
        rng=0,
    ).confidence_interval
    assert table.bootstrap([ours], [theirs]) == pytest.approx(tuple(reference), abs=0.2)
    assert table.bootstrap([ours], []) is None


def test_ratios_stand_apart_and_the_best_row_last() -> None:
    lines = table.summarise([*THREE, result("Standard", 0, 0.3, ratio=0.2)])
    assert [(line.ratio, line.name) for line in lines] == [
        (0.2, "Standard"), (0.4, "Standard-same-steps"), (0.4, "PIDM")
    ]  # fmt: skip


def test_files_are_written_and_agree(tmp_path: Path) -> None:
    for k, cell in enumerate(THREE):
        write_json(tmp_path / f"cell{k}" / "result.json", cell)
    lines = table.write_table(tmp_path)
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored[1]["mean"]["mAP"] == pytest.approx(lines[1].mean["mAP"])
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["mAP"]) == pytest.approx(63)
    assert (rows[1]["generator_saw"], rows[1]["seeds"]) == ("all train", "0 1 2")
    assert "| 40% | PIDM | 63.0 ± 3.6 |" in (tmp_path / "table.md").read_text()


def test_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result\.json"):
        table.write_table(tmp_path)


def test_tables_need_no_torch() -> None:
    code = (
        "import sys, pidm_reid.table, pidm_reid.config, pidm_reid.plan, pidm_reid.experiment;"
        "print([name for name in ('torch', 'torchreid', 'scipy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_cost_is_in_hours_the_mean_over_seeds_with_selection_in_the_synthesis() -> None:
    cells = THREE[:2]
    costs = (
        {"train_seconds": 3600, "synthesis_seconds": 1800, "generator_seconds": 7200},
        {"train_seconds": 5400, "synthesis_seconds": 1800, "selection_seconds": 3600},
    )
    lines = table.summarise(
        [{**cell, "cost": cost} for cell, cost in zip(cells, costs, strict=True)]
    )
    assert lines[0].hours == {
        "generator": (2 + 0) / 2, "synthesis": (0.5 + 1.5) / 2, "training": (1 + 1.5) / 2
    }  # fmt: skip
    text = table.markdown(lines)
    assert "| real data | row | generator h | synthesis h | training h |" in text
    assert "| 40% | PIDM | 1 | 1 | 1.25 |" in text
    assert "generator h" not in table.markdown(table.summarise(THREE))


def test_published_figures_stand_beside_ours_or_alone_and_in_no_difference() -> None:
    measured = [*THREE, result("PTN", 0, 0.5), result("Standard", 0, 0.5, ratio=1.0)]
    plain, lines = table.summarise(measured), table.summarise(measured, published=True)
    figures = {(line.name, line.ratio): line.published for line in lines}
    assert figures["PTN", 0.4] == 57.3
    assert figures["Standard", 1.0] == 76.7
    assert figures["PIDM", 0.4] is None
    assert figures["PIDM-paper", 0.4] == 64.8
    alone = [line for line in lines if not line.mean]
    assert [line.name for line in alone] == [
        "Standard", "GFLA", "DPTN", "PIDM-paper", "PCDMs", "IMAGPose"
    ]  # fmt: skip
    assert all(line.ratio == 0.4 and line.gain is None and not line.seeds for line in alone)
    gains = {line.name: (line.gain, line.interval) for line in lines if line.mean}
    assert gains == {line.name: (line.gain, line.interval) for line in plain}
    text = table.markdown(lines)
    assert "| 40% | PTN | 50.0 | 57.3 |" in text
    assert "| 40% | GFLA (published) |  | 59.7 |" in text
    assert "published" not in table.markdown(plain)


@pytest.mark.parametrize(
    ("images", "drawn", "asked", "shown"),
    [
        (12_936, False, None, True),
        (1_450, False, None, False),
        (12_936, True, None, False),
        (1_450, False, True, True),
        (12_936, False, False, False),
    ],
)
def test_published_figures_are_of_market1501(
    tmp_path: Path, images: int, drawn: bool, asked: bool | None, shown: bool
) -> None:
    cell = {
        **result("PIDM", 0, 0.6),
        "drawn_people": drawn,
        "configuration": {"data": {"full_images": images}},
    }
    write_json(tmp_path / "cell/result.json", cell)
    lines = table.write_table(tmp_path, published=asked)
    assert (len(lines) > 1) is shown


def test_optional_keys_are_carried_by_all_three_files(tmp_path: Path) -> None:
    more = {
        "label": "PIDM | mine",
        "distinct_images": 950,
        "camera": {"real": 0.8, "generated": 0.4},
        "identity": {"real": 0.78, "added": 0.16},
        "reranked": {"mAP": 0.75, "cmc": {"1": 0.8, "5": 0.9, "10": 1.0}},
        "by_camera": {"c1": [7, 0.5], "c2": [0, None]},
        "by_orientation": {"front": [3, 0.25]},
    }
    write_json(tmp_path / "a/result.json", {**THREE[0], **more})
    write_json(
        tmp_path / "b/result.json",
        {**THREE[1], **more, "by_camera": {"c1": [7, 0.7]}, "distinct_images": 960, "camera": {}},
    )
    table.write_table(tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert (
        "| 40% | PIDM \\| mine | 955 | 40 % (real 80 %) | 16 % (D_tr 78 %) | 75.0 | 80.0 |" in text
    )
    assert "| 40% | PIDM \\| mine | 60.0 (7) | 25.0 (3) |" in text
    stored = json.loads((tmp_path / "table.json").read_text())[0]
    assert stored["by_camera"] == {"c1": [7, pytest.approx(60)]}
    with (tmp_path / "table.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (row["row"], row["label"]) == ("PIDM", "PIDM | mine")
    assert (row["camera confirmed"], row["camera confirmed, real"]) == ("40.0", "80.0")
    assert (row["recognised"], row["recognised, D_tr"]) == ("16.0", "78.0")
    assert (row["reranked mAP"], row["c1 mAP"], row["front queries"]) == ("75.0", "60.0", "3")


@pytest.mark.parametrize("change", [{"mAP": "high"}, {"cmc": {}}, {"images": None}])
def test_what_is_no_result_is_refused_with_its_name(tmp_path: Path, change: dict[str, Any]) -> None:
    write_json(tmp_path / "cell/result.json", {**THREE[0], **change})
    with pytest.raises(UserError, match=r"cell/result\.json: not the result of a cell"):
        table.write_table(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ReidTable(seeds=(0, -1)), "seeds: -1"),
        (lambda: NetworkConfig(batch_size=0), "batch_size: 0"),
        (lambda: Stage(lr=-1), "lr: -1"),
        (lambda: Stage(lr=float("nan")), "lr: nan"),
        (lambda: Stage(weight_decay=-1), "weight_decay: -1"),
        (lambda: Stage(warmup_steps=-1), "warmup_steps: -1"),
    ],
)
def test_numbers_that_train_nothing_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
