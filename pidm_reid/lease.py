"""Who writes in a folder, or does cells of a table: a lease for each part, against two at once.

A lease is a hidden file that names its process. It is removed at the end; one that a dead process
left is taken over. Should two write the same part all the same (a machine asleep for minutes, a
file system without locks), they write the same images and weights: work is done twice, nothing
is lost.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pidm_core import ENVIRONMENT, UserError
from pidm_reid import folder

BEAT_S, EXPIRY_S = 20.0, 180.0
_TRIES = 50  # of a writer that comes just when others go
Shard = tuple[int, int]


class Taken(UserError):
    """Another process writes there."""


@contextmanager
def hold(out: Path, shard: Shard = (1, 1)) -> Iterator[None]:
    """Be the only writer of part (k, n) of a folder; what dead writers left is removed after it.

    Raises Taken (ENVIRONMENT) if another process writes this part, or parts of another n.
    """
    mine, path = _me(), out / f".lease-{shard[0]:02d}-of-{shard[1]:02d}"
    for left in reversed(range(_TRIES)):
        try:
            out.mkdir(parents=True, exist_ok=True)
            _take(path, shard, mine)
            break
        except (FileNotFoundError, FileExistsError):  # another that wrote nothing removes it
            if not left:
                raise
    stop = Event()
    Thread(target=_beat, args=(path, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        if _read(path) == mine:
            path.unlink()
        _sweep(out)


def _take(path: Path, shard: Shard, mine: dict[str, Any]) -> None:
    with _alone(path.parent):
        for other in sorted(path.parent.glob(".lease-*")):
            if not _is_alive(other):
                other.unlink(missing_ok=True)
            elif other == path or not other.name.endswith(f"-of-{shard[1]:02d}"):
                raise _taken(path.parent, other)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as file:
            json.dump(mine, file)


def _taken(out: Path, lease: Path) -> Taken:
    owner, part = _read(lease), re.sub(r"\D+0*", "/", lease.name)[1:]
    return Taken(
        f"{out}: process {owner.get('pid')} on {owner.get('host')} writes part {part} of it now; "
        f"wait for it (if it is gone: within {EXPIRY_S / 60:.0f} minutes the lease runs out)",
        ENVIRONMENT,
    )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One process of this machine at a time; on file systems without locks, hope."""
    handle = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _me() -> dict[str, Any]:
    """What tells a process from all others: pids come again, and so do names of containers."""
    pid, boot = os.getpid(), ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "pid": pid, "started": _started(pid)}


def _started(pid: int) -> str:
    """When a process of this machine began; '' if there is none, or no /proc."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _read(lease: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        owner = json.loads(lease.read_text())
        return owner if isinstance(owner, dict) else {}
    return {}


def _is_alive(lease: Path) -> bool:
    """Whether its process lives: here, or elsewhere and has shown it of late."""
    owner, me = _read(lease), _me()
    if me["started"] and all(owner.get(key) == me[key] for key in ("host", "boot")):
        pid = owner.get("pid")
        return isinstance(pid, int) and _started(pid) == owner.get("started")
    with suppress(OSError):
        return bool(owner) and _now(lease.parent) - lease.stat().st_mtime < EXPIRY_S
    return False


def _now(out: Path) -> float:
    """The time of the folder's file server, whose clock may be another."""
    handle = out / f".now-{os.getpid()}"
    try:
        handle.touch()
        return handle.stat().st_mtime
    finally:
        handle.unlink(missing_ok=True)


def _beat(lease: Path, stop: Event) -> None:
    while not stop.wait(BEAT_S):
        with suppress(OSError):
            os.utime(lease)


def _sweep(out: Path) -> None:
    """Remove what killed writers left, if nobody writes now.

    A writer takes its lease before its first file. So if no lease is seen after the files were
    listed, none of them is anybody's.
    """
    if (out / folder.SPLIT).is_file():
        places = (out, out / folder.BASE, out / folder.BASE / folder.TRAIN)
        left = [path for place in places for path in place.glob(".tmp-*")]
        if left and not any(_is_alive(lease) for lease in out.glob(".lease-*")):
            for path in left:
                path.unlink(missing_ok=True)
    with suppress(OSError):
        out.rmdir()  # nothing was written
