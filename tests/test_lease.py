"""Two writers of one part are told apart; a dead one's lease is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pidm_core import ENVIRONMENT, UserError
from pidm_reid import folder, lease


def test_a_part_has_one_writer_and_nothing_is_left_of_its_lease(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with lease.hold(out, (3, 16)):
        refused = pytest.raises(UserError, match="writes part 3/16 of it now")
        with refused as error, lease.hold(out, (3, 16)):
            pass
        assert error.value.code == ENVIRONMENT
        with lease.hold(out, (4, 16)):
            assert len(list(out.iterdir())) == 2
        with pytest.raises(UserError, match="writes part 3/16"), lease.hold(out, (1, 2)):
            pass
        (out / folder.SPLIT).touch()
    assert [path.name for path in out.iterdir()] == [folder.SPLIT]


def test_a_folder_that_another_removes_as_empty_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, take = tmp_path / "out", lease._take

    def late(*args: Any) -> None:
        monkeypatch.setattr(lease, "_take", take)
        out.rmdir()
        take(*args)

    monkeypatch.setattr(lease, "_take", late)
    with lease.hold(out):
        assert [path.name for path in out.iterdir()] == [".lease-01-of-01"]


def test_a_dead_writers_lease_and_files_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / folder.SPLIT).touch()
    (tmp_path / ".tmp-half").write_bytes(b"half")
    code = "import sys, os; from pathlib import Path; from pidm_reid import lease\n"
    code += "with lease.hold(Path(sys.argv[1]), (2, 4)): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lease-02-of-04").is_file()
    with lease.hold(tmp_path):
        assert [path.name for path in tmp_path.glob(".lease-*")] == [".lease-01-of-01"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.SPLIT]


@pytest.mark.parametrize(("age_s", "refused"), [(10, True), (lease.EXPIRY_S + 60, False)])
def test_a_lease_of_another_machine_runs_out(tmp_path: Path, age_s: float, refused: bool) -> None:
    other = tmp_path / ".lease-01-of-01"
    other.write_text(json.dumps({"host": "elsewhere", "boot": "x", "pid": 1, "started": "5"}))
    now = other.stat().st_mtime
    os.utime(other, (now - age_s, now - age_s))
    if refused:
        with pytest.raises(UserError, match="process 1 on elsewhere"), lease.hold(tmp_path):
            pass
    else:
        with lease.hold(tmp_path):
            assert "elsewhere" not in other.read_text()


def test_a_pid_that_came_again_is_not_the_writer(tmp_path: Path) -> None:
    (tmp_path / folder.SPLIT).touch()
    with lease.hold(tmp_path):
        mine = json.loads((tmp_path / ".lease-01-of-01").read_text())
    stale = {**mine, "started": "1"}  # this process, begun at another time
    (tmp_path / ".lease-01-of-01").write_text(json.dumps(stale))
    with lease.hold(tmp_path):
        pass


@pytest.mark.parametrize("torn", ["", "{", "[]"])
def test_a_lease_torn_by_a_crash_is_none(tmp_path: Path, torn: str) -> None:
    (tmp_path / ".lease-01-of-01").write_text(torn)
    with lease.hold(tmp_path):
        pass
