"""Python imports this at its start when the folder is on PYTHONPATH: a fault at a write point.

PIDM_FAULT       kill:K, enospc:K, eio:K or eacces:K: what happens at write point K (from 1);
                 none:0 only counts
PIDM_FAULT_ROOT  write points are those on files below this folder
PIDM_FAULT_LOG   file to which every write point is appended, one line each

A write point is the moment before a file is opened for writing, renamed, removed, linked, or a
folder is made or removed. The product knows nothing of this.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link"}


def install() -> None:
    """Watch all that this process does to files."""
    action, _, number = os.environ["PIDM_FAULT"].partition(":")
    root, at, seen = os.path.realpath(os.environ["PIDM_FAULT_ROOT"]), int(number), 0
    log = os.open(os.environ["PIDM_FAULT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = bool((args[2] or 0) & WRITING) if event == "open" else event in CHANGES
        if not writes or isinstance(args[0], int):
            return
        path = os.path.abspath(os.fsdecode(args[-2] if event == "os.link" else args[0]))
        if not path.startswith(root + os.sep):
            return
        seen += 1
        os.write(log, f"{event} {os.path.relpath(path, root)}\n".encode())
        if seen == at and action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif seen == at:
            code = getattr(errno, action.upper())
            raise OSError(code, os.strerror(code), path)

    sys.addaudithook(watch)


if "PIDM_FAULT" in os.environ:
    install()
