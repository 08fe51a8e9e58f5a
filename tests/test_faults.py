"""Quick slices of the fault measurements; `make test-faults` runs them at length."""

from __future__ import annotations

import pytest
from faults import atomic_files, training, usual_tools
from faults.harness import Measure, Row, table


@pytest.mark.parametrize("measure", [*atomic_files.MEASURES, *training.MEASURES])
def test_promises_hold(measure: Measure) -> None:
    row = measure(2)
    assert row.times > 0
    assert row.wrong == []


def test_the_harness_sees_what_breaks() -> None:
    row = usual_tools.pillow_saves(2)  # it reports success and cuts the file off
    assert row.compared
    assert len(row.wrong) == row.times == 2


def test_the_table_names_what_went_wrong() -> None:
    row = Row("kills", "resumed")
    row.check(True, "never said")
    row.check(False, "case 2 was lost")
    assert table([row]).splitlines()[-1] == "| kills | 2 | resumed | 1: case 2 was lost |"
