"""Every removed, altered, truncated or unlisted file of an augmented folder is found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from people import TINT, planned, render_all

from pidm_core import UserError
from pidm_reid import folder, synthesize, verify
from pidm_reid.scoring import read_choices, write_choices
from pidm_reid.selection import Choice

TRAIN, QUERY = (Path(folder.BASE) / name for name in (folder.TRAIN, folder.QUERY))


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
        (lambda out: min((out / QUERY).iterdir()).unlink(), ".jpg: removed"),
        (lambda out: flip(min((out / QUERY).iterdir())), "altered or truncated since it was cop"),
        (lambda out: (out / QUERY / "0002_c1_x.jpg").touch(), "query/0002_c1_x.jpg: in no list"),
        (lambda out: (out / folder.COPIES).unlink(), "copies.json: not there, or older"),
        (lambda out: flip(out / folder.COPIES), "copies.json"),
        (lambda out: (out / folder.COPIES).write_text("[]"), "copies.json: no checksums"),
        (lambda out: shutil.rmtree(out / QUERY), "/query/"),
    ],
)  # fmt: skip
def test_every_harm_is_named(
    market: Path, tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    render_all(planned(market), tmp_path, copy=True)
    assert list(verify.faults(tmp_path)) == []
    harm(tmp_path)
    assert any(said in line for line in verify.faults(tmp_path)), list(verify.faults(tmp_path))


@pytest.mark.parametrize(
    ("old", "new"),
    [('"generator_saw": "unknown"', '"generator_saw": "D_tr"'), ('"seed": 0', '"seed": 1')],
)
def test_an_altered_split_is_read_by_nothing(
    market: Path, tmp_path: Path, old: str, new: str
) -> None:
    work, path = planned(market), tmp_path / folder.SPLIT
    render_all(work, tmp_path)
    text = path.read_text()
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    for read in (verify.faults, folder.read_augmented):
        with pytest.raises(UserError, match=r"split\.json: altered since it was written"):
            list(read(tmp_path))  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"split\.json: altered since it was written"):
        render_all(work, tmp_path)
    path.write_text(text)
    assert list(verify.faults(tmp_path)) == []


def test_a_split_of_an_earlier_version_has_no_checksum(market: Path, tmp_path: Path) -> None:
    work, path = planned(market), tmp_path / folder.SPLIT
    render_all(work, tmp_path)
    split = json.loads(path.read_text())
    assert split.pop("check")
    path.write_text(json.dumps(split))
    assert render_all(work, tmp_path) == 0
    assert list(verify.faults(tmp_path)) == []


def test_an_altered_choice_is_named_and_read_by_nothing(market: Path, tmp_path: Path) -> None:
    render_all(planned(market), tmp_path)
    names = sorted(folder.read_ledger(tmp_path / folder.MANIFEST))
    choices = [
        Choice(name, n > 0, "", own=None, other=0.25, source=0.5, nearest="", score=0.25)
        for n, name in enumerate(names)
    ]
    write_choices(tmp_path, choices, {})
    assert list(verify.faults(tmp_path)) == []
    assert folder.read_augmented(tmp_path).synthetic == tuple(names[1:])
    assert read_choices(tmp_path) == choices
    path = tmp_path / folder.SELECTION
    whole = path.read_text()
    (tmp_path / folder.SELECTED).write_text("{}")  # as a table leaves it
    for less in (whole.splitlines(keepends=True)[1:], [], None):
        path.write_text("".join(less or []))
        if less is None:
            path.unlink()
        unknown = len(names) if not less else 1
        assert f"says nothing of {unknown} images" in "".join(verify.faults(tmp_path))
        with pytest.raises(UserError, match=f"says nothing of {unknown} images"):
            folder.read_augmented(tmp_path)
    path.write_text(whole)
    assert list(verify.faults(tmp_path)) == []
    path.write_text(whole.replace('"kept": false', '"kept": true'))
    assert [line.rpartition("/")[2] for line in verify.faults(tmp_path)] == [
        "selection.jsonl:1: altered since it was written"
    ]
    with pytest.raises(UserError, match=r"selection\.jsonl:1: altered since it was written"):
        folder.read_augmented(tmp_path)


def test_an_image_lost_from_a_selection_is_named(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    split = {**synthesize.describe(work, TINT), "selection": {}}
    folder.start_folder(tmp_path, split)
    render_all(dataclasses.replace(work, split={**work.split, "selection": {}}), tmp_path)
    ledger = tmp_path / folder.MANIFEST
    lost = json.loads(ledger.read_text().splitlines()[0])["file_name"]
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[1:]))
    (tmp_path / TRAIN / lost).unlink()
    assert f"1 planned images are not there, such as {lost}" in "".join(verify.faults(tmp_path))
    plan = tmp_path / folder.PLAN
    plan.write_text(plan.read_text().replace('"replica": 0', '"replica": 1'))
    assert "plan.jsonl: altered since it was made (" in "".join(verify.faults(tmp_path))


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
