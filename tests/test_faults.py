"""Quick slices of the fault measurements; `make test-faults` runs them at length."""

from __future__ import annotations

import pytest
from faults import (
    atomic_files,
    bad_inputs,
    hostile,
    mutants,
    synthesis,
    training,
    usual_tools,
)
from faults.cases import BAD_DATA, DONE, Case, reading
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


@pytest.mark.parametrize(
    ("measure", "number", "times"),
    [
        (synthesis.kills, 2, 2),
        (synthesis.full_disks, 2, 2),
        (synthesis.races, 1, 1),
        (synthesis.flipped_bits, 4, 20),
    ],
)
def test_synthesis_loses_nothing(measure: Measure, number: int, times: int) -> None:
    row = measure(number)
    assert row.times == times
    assert row.wrong == []


def test_the_table_names_what_went_wrong() -> None:
    row = Row("kills", "resumed")
    row.check(True, "never said")
    row.check(False, "case 2 was lost")
    assert table([row]).splitlines()[-1] == "| kills | 2 | resumed | 1: case 2 was lost |"


@pytest.mark.parametrize("measure", [*mutants.MEASURES, *hostile.MEASURES, *bad_inputs.MEASURES])
def test_strange_files_are_refused_or_read(measure: Measure) -> None:
    row = measure(1 if measure in mutants.MEASURES[:2] else 4)
    assert row.times > 0
    assert row.wrong == []


def test_a_broken_promise_is_seen() -> None:
    """The judge itself: another message, another exit code, a traceback."""
    files, command = {"a.jpg": b""}, reading("image", "a.jpg")
    assert bad_inputs.outcome(Case("", files, command, BAD_DATA, "the file is empty")) == ""
    assert "does not say" in bad_inputs.outcome(Case("", files, command, BAD_DATA, "is full"))
    assert "exit code 3, not 0" in bad_inputs.outcome(Case("", files, command, DONE, ""))
    assert "a traceback" in bad_inputs.outcome(Case("", {}, ("-c", "1 / 0"), 1, ""))


def test_every_named_input_has_a_name_of_its_own() -> None:
    names = [case.name for case in bad_inputs.CASES]
    assert len(names) == len(set(names)) >= 150
    assert len({*hostile.ATTACKS}) + len(hostile.LINKS) >= 40
    assert {*hostile.ATTACKS} <= {*names}
