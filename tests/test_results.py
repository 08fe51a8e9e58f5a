"""docs/results.md prints the tables that lie beside it, figure for figure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pidm_core import read_json
from pidm_reid.table import comma_separated, load_lines, markdown

DOCS = Path(__file__).parent.parent / "docs"
TABLES = sorted(DOCS.glob("results/*/table.json"))
PRINTED = re.compile(r"<!-- (results/\w+/table\.md) -->\n\n((?:\|.*\n)+)")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_the_files_of_a_table_hold_the_same_figures(path: Path) -> None:
    lines = load_lines(path)
    assert lines
    assert path.with_name("table.md").read_text() == markdown(lines)
    assert path.with_name("table.csv").read_text() == comma_separated(lines)
    assert len(read_json(path)) == len(lines)


def test_the_text_prints_every_published_table() -> None:
    text = (DOCS / "results.md").read_text()
    printed = dict(PRINTED.findall(text))
    assert set(printed) == {f"results/{path.parent.name}/table.md" for path in TABLES}
    for name, block in printed.items():
        figures = (DOCS / name).read_text().split("\n\n")[0] + "\n"
        assert block == figures, f"{name} has changed: copy its first table into results.md"
