"""Folders that are there whole or not at all, and what their manifest finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pidm_core import UserError, folders
from pidm_core.files import ENVIRONMENT
from pidm_core.folders import (
    clear_leftovers,
    faults,
    only_writer,
    remove_folder,
    whole_folder,
)


def fill(final: Path, **files: str) -> Path:
    with whole_folder(final, 10) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
    return final


def test_a_folder_gets_its_name_when_all_is_listed(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "home" / "final", 10) as folder:
        (folder / "a").write_text("abc")
        assert not (tmp_path / "home" / "final").exists()
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["final"]
    manifest = json.loads((tmp_path / "home" / "final" / "manifest.json").read_text())
    sha_of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert manifest == {"files": {"a": {"bytes": 3, "sha256": sha_of_abc}}}


@pytest.mark.parametrize("system", ["swaps", "cannot swap"])
def test_a_folder_of_the_same_name_is_replaced(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "cannot swap":
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    fill(tmp_path / "x", a="old", b="old")
    fill(tmp_path / "x", a="new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "manifest.json", "x"]
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert faults(tmp_path / "x") == []


def test_what_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "x", a="old")
    with pytest.raises(FileNotFoundError):
        fill(tmp_path / "x", **{"a": "new", "no/folder": ""})
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "a").read_text() == "old"


def test_nothing_is_begun_without_room_for_it(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"MiB are to be written and .* are free") as error,
        whole_folder(tmp_path / "x", 1 << 60),
    ):
        pytest.fail("there was room")
    assert error.value.code == ENVIRONMENT
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_fault_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", gone="1", same="1", longer="1", other="1", link="1", late="1")
    (folder / "gone").unlink()
    (folder / "longer").write_text("12")
    (folder / "other").write_text("2")
    (folder / "link").rename(tmp_path / "elsewhere")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "new").write_text("1")
    (folder / "late").unlink()
    os.mkfifo(folder / "late")  # to open it would wait for ever
    lines = {Path(line.split(": ")[0]).name: line.split(": ")[1] for line in faults(folder)}
    assert lines == {
        "gone": "missing",
        "longer": "2 bytes instead of 1, its checksum differs",
        "other": "altered, its checksum differs",
        "link": "not a plain file",
        "new": "not listed in the manifest",
        "late": "not a plain file",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {}, "step": 1}',
        '{"files": {"a": 1}, "b": 2}',
    ],
)
def test_a_manifest_that_is_none_is_a_fault(tmp_path: Path, text: str) -> None:
    folder = fill(tmp_path / "x", a="1")
    (folder / "manifest.json").write_text(text and json.dumps(json.loads(text), indent=2) + "\n")
    (line,) = faults(folder)
    assert "manifest.json: " in line


def test_a_manifest_names_no_file_outside(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", a="1")
    outside = tmp_path / "outside"
    os.mkfifo(outside)  # if it were opened, the test would hang
    entry = {"bytes": 1, "sha256": "0" * 64}
    names = ["../outside", str(outside), "\x1b[31m\n"]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].update(dict.fromkeys(names, entry))
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text)
    lines = faults(folder)
    assert len(lines) == 3
    assert all(line.endswith(": missing") and line.isprintable() for line in lines)


def test_a_folder_goes_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "x", a="1")
    monkeypatch.setattr(folders.shutil, "rmtree", lambda path: None)  # killed at this point
    remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_killed_while_its_successor_took_its_place_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "model", a="1")
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)  # a system that cannot swap
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if target.name == "model":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "model", a="2")
    assert not (tmp_path / "model").exists()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/a").read_text() == "1"


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pidm_core.folders import only_writer\n"
        "with only_writer(__import__('pathlib').Path(sys.argv[1])):\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    with first:
        assert first.stdout
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match="another process is writing there"):
            only_writer(tmp_path).__enter__()
        first.kill()
    with only_writer(tmp_path):
        pass
