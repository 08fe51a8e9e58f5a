"""Quick slices of the fault measurements; `make test-faults` runs them at length."""

from __future__ import annotations

import pytest
from faults import atomic_files, synthesis
from faults.harness import Measure, Row, table


@pytest.mark.parametrize("measure", [*atomic_files.MEASURES])
def test_promises_hold(measure: Measure) -> None:
    row = measure(2)
    assert row.times > 0
    assert row.wrong == []


@pytest.mark.parametrize(
    ("measure", "number"),
    [
        (synthesis.kills, 2),
        (synthesis.full_disks, 2),
        (synthesis.races, 1),
        (synthesis.flipped_bits, 20),
    ],
)
def test_synthesis_loses_nothing(measure: Measure, number: int) -> None:
    row = measure(number)
    assert row.times == number
    assert row.wrong == []


def test_the_table_names_what_went_wrong() -> None:
    row = Row("kills", "resumed")
    row.check(True, "never said")
    row.check(False, "case 2 was lost")
    assert table([row]).splitlines()[-1] == "| kills | 2 | resumed | 1: case 2 was lost |"
