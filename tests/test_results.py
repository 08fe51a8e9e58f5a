"""docs/results.md prints the tables that lie beside it, figure for figure."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest

from pidm_core import read_json
from pidm_reid.table import (
    Line,
    bootstrap,
    comma_separated,
    markdown,
    paired,
    read_results,
    read_table,
)

DOCS = Path(__file__).parent.parent / "docs"
README = (DOCS.parent / "README.md").read_text()
TABLES = sorted(DOCS.glob("results/*/table.json"))
PRINTED = re.compile(r"<!-- (results/\w+/table\.md) -->\n\n((?:\|.*\n)+)")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_the_files_of_a_table_hold_the_figures_of_its_cells(path: Path) -> None:
    lines = read_table(path.parent)
    assert lines
    assert read_json(path) == json.loads(json.dumps([asdict(line) for line in lines]))
    assert path.with_name("table.md").read_text() == markdown(lines)
    assert path.with_name("table.csv").read_text() == comma_separated(lines)


def test_the_text_prints_every_published_table() -> None:
    text = (DOCS / "results.md").read_text()
    printed = dict(PRINTED.findall(text))
    assert set(printed) == {f"results/{path.parent.name}/table.md" for path in TABLES}
    for name, block in printed.items():
        figures = (DOCS / name).read_text().split("\n\n")[0] + "\n"
        assert block == figures, f"{name} has changed: copy its first table into results.md"


README_ROWS = {
    "the kept images, same steps": "Standard-same-steps",
    "the same with random erasing": "Standard-same-steps-erasing",
    "PIDM images": "PIDM-strict",
    "PIDM images, selected": "PIDM-strict-selection",
    "PIDM images, the generator trained four times as long": "PIDM-strict-long",
    "PIDM images, as in the paper": "PIDM-paper",
    "withheld real images instead": "real-instead",
}


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """The cells for 20 and 40 % of the first table of figures in a text, by its first column."""
    block = re.search(r"^\| trained on .*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert block is not None
    rows = [[cell.strip() for cell in line.split("|")] for line in block[1].splitlines()[1:]]
    return {name: tuple(cells) for _, name, _, *cells, _ in rows}


def _lines(name: str) -> dict[tuple[str, float], Line]:
    lines = read_table(DOCS / "results" / name)
    return {(line.name, line.ratio): line for line in lines if line.seeds}


def _shown(line: Line) -> str:
    if line.name.startswith("Standard"):
        return f"{line.mean['mAP']:.1f}"
    assert line.gain is not None
    assert line.interval is not None
    low, high = line.interval
    return f"{line.mean['mAP']:.1f}, **{line.gain:+.1f} [{low:+.1f}, {high:+.1f}]**"


def test_the_readme_prints_the_published_figures() -> None:
    lines, (drawn, *_) = _lines("reid_toy"), README.split("**real Market-1501**")
    assert _table(drawn) == {
        text: (_shown(lines[row, 0.2]), _shown(lines[row, 0.4]))
        for text, row in README_ROWS.items()
        if row not in ("PIDM-strict-long", "real-instead")
    }


def test_the_readme_prints_the_figures_of_real_people() -> None:
    at_20, at_40 = _lines("reid_market1501_half"), _lines("reid_market1501_half_40_paper")
    expected = {}
    for row in (
        "Standard-same-steps",
        "PIDM-strict",
        "PIDM-strict-long",
        "PIDM-paper",
        "real-instead",
    ):
        cell = at_20.get((row, 0.2))
        expected[row] = _shown(cell) if cell else "", _shown(at_40[row, 0.4])
    printed = _table(README.split("**real Market-1501**")[1])
    assert {README_ROWS[text]: cells for text, cells in printed.items()} == expected


def test_every_gain_told_in_words_is_that_of_two_rows_of_a_published_table() -> None:
    gains = set()
    for path in TABLES:
        rows = defaultdict(list)
        for cell in read_results(path.parent):
            rows[cell["ratio"], cell["row"]].append(cell)
        for (ratio, ours), (other_ratio, theirs) in itertools.permutations(rows, 2):
            mean, interval = paired(rows[ratio, ours], rows[other_ratio, theirs])
            if ratio == other_ratio and mean is not None and interval is not None:
                gains.add((f"{abs(mean):.1f}", f"{interval[0]:+.1f}, {interval[1]:+.1f}"))
    results = (DOCS / "results.md").read_text()
    _, _, demo = results.partition("## The demo's table")  # of one seed, over people
    demo, _, _ = demo.partition("## Table 3")
    text = README + results.replace(demo, "")
    words = "\n".join(line for line in text.splitlines() if not line.startswith("| "))
    told = re.findall(r"(\d+\.\d) \[([+-]\d+\.\d, [+-]\d+\.\d)\]", words)
    assert len(told) > 60
    assert set(told) <= gains


def test_a_gain_over_the_people_of_one_seed_is_that_of_two_rows_of_a_published_table() -> None:
    gains = set()
    for path in TABLES:
        cells = [cell for cell in read_results(path.parent) if cell["seed"] == 0]
        for ours, theirs in itertools.permutations(cells, 2):
            if ours["ratio"] == theirs["ratio"]:
                interval = bootstrap([ours], [theirs])
                assert interval is not None
                gain = abs(100 * (ours["mAP"] - theirs["mAP"]))
                gains.add((f"{gain:.1f}", f"{interval[0]:+.1f}, {interval[1]:+.1f}"))
    text = README + (DOCS / "results.md").read_text()
    told = re.findall(r"(\d+\.\d)[^.()]* \(seed 0, over the people \[([^]]+)\]\)", text)
    assert len(told) > 5
    assert set(told) <= gains


def test_the_text_prints_the_figures_of_sampling() -> None:
    rows = read_json(DOCS / "results/front/figures.json")["rows"]
    text = (DOCS / "results.md").read_text()
    block = text.split("<!-- results/front/figures.json -->")[1].split("![")[0]
    printed = dict(re.findall(r"^\| (\S+)(?: \(the default\))? \| (\d.*) \|$", block, re.MULTILINE))
    assert printed == {
        name.removeprefix("toy_market").lstrip(":") or "3": " | ".join(
            [
                str(row["evaluations"]), f"{row['frechet']:.4f}", f"{row['diversity']:.3f}",
                f"{row['top_1']:.1%}", f"{row['identity']:.3f}", f"{row['joints']:.2f}",
            ]
        )
        for name, row in rows.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", ["speed", "speed_avx512"])
def test_the_text_prints_the_figures_of_speed(name: str) -> None:
    reports = read_json(DOCS / f"results/{name}/figures.json")["reports"]
    text = (DOCS / "results.md").read_text()
    block = text.split(f"<!-- results/{name}/figures.json -->")[1].split("\n- ")[0]
    printed = re.findall(r"^\| ((?:small|paper), .*) \|$", block, re.MULTILINE)
    expected = []
    for report in reports:
        rows = {row["what"]: row for row in report["steps"]}
        network = report["name"].split()[0].rstrip(":")
        for what in (name for name in rows if name.endswith(": reference, fp32")):
            step = what.split(":")[0]
            ours = [rows[f"{step}: ours, {dtype}"] for dtype in ("float32", "bfloat16")]
            cells = [f"{network}, {step}", f"{1000 * rows[what]['seconds']:.1f}"]
            cells += [f"{row['ratio']:.2f}" for row in ours]
            cells += [f"{row['difference']:.0e}" for row in ours]
            cells += [f"{row['share']:.0%}" for row in ours]
            expected.append(" | ".join(cells))
    assert printed == expected


def test_the_text_prints_the_figures_of_parts() -> None:
    rows = read_json(DOCS / "results/speed_parts/figures.json")["parts"]
    text = (DOCS / "results.md").read_text()
    block = text.split("<!-- results/speed_parts/figures.json -->")[1].split("\n- ")[0]
    expected = [
        f"{row['what']} | {row['other']} | {1000 * row['other_seconds']:.2f} | "
        f"{1000 * row['seconds']:.2f} | {row['ratio']:.2f} | "
        + ("" if row["difference"] is None else f"{row['difference']:.0e}")
        for row in rows
    ]
    assert re.findall(r"^\| (.*, .*|writing.*) \|$", block, re.MULTILINE) == expected


def test_the_text_prints_the_figures_of_the_probe() -> None:
    figures = read_json(DOCS / "results/probe/figures.json")
    text = (DOCS / "results.md").read_text()
    _, rows, gains = text.split("<!-- results/probe/figures.json -->")
    forms = {
        "ssim": ".3f", "upper": ".1f", "lower": ".1f", "upper_place": ".1f", "lower_place": ".1f",
        "joints": ".2f", "identity": ".3f", "top_1": ".1%", "evaluations": ".0f",
    }  # fmt: skip
    for name, row in figures["rows"].items():
        cells = [format(row[key], form) if key in row else "" for key, form in forms.items()]
        assert f"| {name} | {' | '.join(cells)} |\n" in rows
    shown = {"ssim": ".3f", "upper_place": ".1f", "lower_place": ".1f", "joints": ".1f"}
    for model in ("chain p2 s1.5 3 steps", "chain p1.5 s1.2 2 steps"):
        for rival, scores in figures["gains"][model].items():
            cells = [
                f"{scores[key]['mean']:+{form}} ± {scores[key]['half']:{form}}"
                for key, form in shown.items()
            ]
            assert f"| {model} | {rival} | {' | '.join(cells)} |\n" in gains.split("\n- ")[0]


@pytest.mark.parametrize(
    "name", ["toy_pairs", "toy_ablation", "market1501_half_images", "market1501_128_images"]
)
def test_the_text_prints_the_figures_of_pairs(name: str) -> None:
    rows = read_json(DOCS / f"results/{name}/figures.json")
    text = (DOCS / "results.md").read_text()
    block = text.split(f"<!-- results/{name}/figures.json -->")[1].split("\n- ")[0]
    forms = {
        "SSIM": ".3f", "SSIM_256": ".3f", "re-ID Fréchet distance (not FID)": ".0f",
        "re-ID kernel distance (not KID)": ".2f", "precision": ".2f", "recall": ".2f",
    }  # fmt: skip
    if any("joints, px" in row["figures"] for row in rows):
        forms["joints, px"] = ".2f"
    for row in rows:
        figures = row["figures"]
        cells = [format(figures[n], form) if n in figures else "" for n, form in forms.items()]
        assert f"| {row['method']} | {row['images']:,} | {' | '.join(cells)} |\n" in block


@pytest.mark.parametrize("name", ["students", "recipes", "generators"])
def test_the_text_prints_the_figures_of_models_compared(name: str) -> None:
    rows = read_json(DOCS / f"results/{name}/figures.json")["rows"]
    text = (DOCS / "results.md").read_text()
    block = text.split(f"<!-- results/{name}/figures.json -->")[1].split("\n- ")[0]
    for model, row in rows.items():
        cells = [
            model, str(row["evaluations"]), f"{row['frechet']:.4f}", f"{row['frechet_spread']:.4f}",
            f"{row['diversity']:.3f}", f"{row['top_1']:.1%}", f"{row['identity']:.3f}",
            f"{row['joints']:.2f}",
        ]  # fmt: skip
        assert f"| {' | '.join(cells)} |\n" in block
