"""Tools in processes of their own that do not import torch again: forks of one that has done so.

What is forked is an interpreter that has only imported; the tool's file then runs in it from its
first line to its exit, as from a command line.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults.harness import HANGS_S, INJECT, ROOT, Finished

IMPORTS = ("torch._dynamo", "accelerate", "pidm_core.train", "pidm_core.pipeline")


class Warm:
    """Runs tools as `harness.run` does, one at a time, without the seconds of the imports."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._scratch.name) / name for name in ("out", "err"))
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.warm"],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout: float = HANGS_S,
        kill_after: float | None = None,
        once: Path | None = None,
        file_bytes: int | None = None,
    ) -> Finished:
        """Run a Python file; once: `kill_after` counts from when this file is there."""
        request = {
            "argv": [str(ROOT / c) if str(c).startswith("tools/") else str(c) for c in command],
            "cwd": str(cwd),
            "env": dict(env or {}),
            "files": [str(self._out), str(self._err)],
            "file_bytes": file_bytes,
        }
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        pid = int(self._answer())
        begin = time.monotonic()
        while once and not once.exists() and time.monotonic() - begin < timeout:
            time.sleep(0.002)
        hung = not _ended(pid, kill_after or timeout) and kill_after is None
        _kill(pid)
        code = int(self._answer())
        out, err = (p.read_text(errors="replace") for p in (self._out, self._err))
        return Finished(code, out, err, hung)

    def _answer(self) -> str:
        assert self._server.stdout
        return self._server.stdout.readline()

    def close(self) -> None:
        """Let it end."""
        self._server.communicate("")
        self._scratch.cleanup()


@functools.cache
def warm() -> Warm:
    """The one of this process."""
    one = Warm()
    atexit.register(one.close)
    return one


def _ended(pid: int, within: float) -> bool:
    """Wait for a process; whether it ended by itself in that many seconds."""
    deadline = time.monotonic() + within
    while not _gone(pid):
        if (left := deadline - time.monotonic()) <= 0:
            return False
        time.sleep(min(left, 0.005))
    return True


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def serve() -> None:
    """Import, then fork for every request: answers its pid, and its exit code when it ended."""
    for name in IMPORTS:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(request: dict[str, Any]) -> None:
    """Be the tool that is asked for."""
    os.setsid()
    for number, path in enumerate((os.devnull, *request["files"])):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if (limit := request["file_bytes"]) is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "PIDM_FAULT" in os.environ:
        runpy.run_path(str(INJECT / "sitecustomize.py"))
    sys.argv = request["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
