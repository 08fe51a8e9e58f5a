"""Run tools in processes of their own, break them, and say what came of it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pidm_core import sha256

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
HANGS_S = 20.0
"""A tool that says nothing for so long on a small input hangs."""


@dataclass(frozen=True)
class Finished:
    """What a process did."""

    code: int  # exit code; negative: killed by that signal
    out: str
    err: str
    hung: bool

    @property
    def traceback(self) -> bool:
        """Whether the user saw Python's insides."""
        return "Traceback (most recent call last)" in self.out + self.err


@dataclass
class Row:
    """One line of the table: what was done to the tools, how often, and what went wrong."""

    what: str
    promised: str
    times: int = 0
    wrong: list[str] = field(default_factory=list)
    compared: bool = False  # another tool beside ours: what it breaks is shown and no failure

    def check(self, good: bool, otherwise: str) -> None:
        """Count one case."""
        self.times += 1
        if not good:
            self.wrong.append(otherwise)


Measure = Callable[[int], Row]
"""Do so many cases (or all, of a fixed list) of one kind."""


def start(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    file_bytes: int | None = None,
) -> subprocess.Popen[str]:
    """Start `python command…`; tools are named by their file, such as tools/verify.py.

    file_bytes: no file may grow beyond (RLIMIT_FSIZE), as on a full disk.
    """

    def limit() -> None:
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    program = [str(ROOT / c) if str(c).startswith("tools/") else str(c) for c in command]
    return subprocess.Popen(
        [sys.executable, *program],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        preexec_fn=limit,  # the parent has no threads of its own
        start_new_session=True,
    )


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = HANGS_S,
    kill_after: float | None = None,
    file_bytes: int | None = None,
) -> Finished:
    """Run a command as `start` does, to its end.

    timeout: seconds after which it counts as hung. kill_after: seconds after which it gets
    SIGKILL.
    """
    process = start(command, cwd=cwd, env=env, file_bytes=file_bytes)
    hung = False
    try:
        out, err = process.communicate(timeout=min(timeout, kill_after or timeout))
    except subprocess.TimeoutExpired:
        hung = kill_after is None or kill_after > timeout
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return Finished(process.returncode, out, err, hung)


def fault(action: str, at: int, *, root: Path, log: Path) -> dict[str, str]:
    """The environment in which a fault comes at write point `at`; see inject/sitecustomize.py."""
    return {
        "PYTHONPATH": f"{INJECT}{os.pathsep}{ROOT}",
        "PIDM_FAULT": f"{action}:{at}",
        "PIDM_FAULT_ROOT": str(root),
        "PIDM_FAULT_LOG": str(log),
    }


def tree(folder: Path, *, without: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder, links by their target; `without`: names left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name in without:
            continue
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = sha256(path)
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| what was done | times | promised | broken promises |", "|---|---|---|---|"]
    for row in rows:
        wrong = f"{len(row.wrong)}: {'; '.join(row.wrong[:3])}" if row.wrong else "0"
        lines.append(f"| {row.what} | {row.times:,} | {row.promised} | {wrong} |")
    return "\n".join(lines)
