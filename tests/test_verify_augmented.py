"""Every removed, altered, truncated or unlisted file of an augmented folder is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from people import planned, render_all

from pidm_core import UserError
from pidm_reid import folder, verify

TRAIN = Path(folder.BASE) / folder.TRAIN


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def first(out: Path, pattern: str) -> Path:
    return min((out / TRAIN).glob(pattern))


def test_a_whole_folder_has_no_faults(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    for k in (1, 2):
        render_all(work, tmp_path, shard=(k, 2))
    assert len(folder.ledgers(tmp_path / folder.MANIFEST)) == 2
    assert list(verify.faults(tmp_path)) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda out: first(out, "*_pidm*").unlink(), "_pidm0000.jpg: removed"),
        (lambda out: cut(first(out, "*_pidm*")), "_pidm0000.jpg: altered or truncated"),
        (lambda out: flip(first(out, "*_pidm*")), "_pidm0000.jpg: altered or truncated"),
        (lambda out: (out / TRAIN / "0002_c1_x.jpg").touch(), "0002_c1_x.jpg: in no list"),
        (lambda out: (out / TRAIN / ".tmp-1").touch(), ".tmp-1: in no list"),
        (lambda out: first(out, "*_00.jpg").unlink(), "_00.jpg: removed"),
        (lambda out: flip(first(out, "*_00.jpg")), "_00.jpg: altered since the plan"),
        (lambda out: flip(out / folder.MANIFEST), "manifest.jsonl:9: altered"),
        (lambda out: (out / folder.MANIFEST).unlink(), "18 planned images are not there"),
        (lambda out: (out / folder.PLAN).unlink(), "plan.jsonl: removed"),
    ],
)  # fmt: skip
def test_every_harm_is_named(
    market: Path, tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    render_all(planned(market), tmp_path, copy=True)
    harm(tmp_path)
    assert any(said in line for line in verify.faults(tmp_path)), list(verify.faults(tmp_path))


def test_links_to_nowhere_and_a_plan_of_others_are_named(market: Path, tmp_path: Path) -> None:
    render_all(planned(market), tmp_path / "out")
    lines = (tmp_path / "out/plan.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out/plan.jsonl").write_text("".join(lines[1:]))
    (market / "market1501/query").rename(tmp_path / "query")
    try:
        found = list(verify.faults(tmp_path / "out"))
    finally:
        (tmp_path / "query").rename(market / "market1501/query")
    assert [line.rpartition(": ")[2] for line in found] == [
        "altered since it was made",
        f"names {lines[0].split(chr(34))[3]}, which is not planned",
        "a link to nowhere",
    ]


def test_a_line_torn_by_a_crash_is_no_fault(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path)
    path = tmp_path / folder.MANIFEST
    path.write_bytes(path.read_bytes()[:-40])
    assert render_all(work, tmp_path) == 1
    assert list(verify.faults(tmp_path)) == []


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an augmented folder"):
        list(verify.faults(tmp_path))
