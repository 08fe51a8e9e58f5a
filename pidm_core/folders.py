"""Folders of ours: there whole or not at all, every file listed with its checksum, one writer.

manifest.json lists the size and the SHA-256 of all other files of a folder, and is written last.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pidm_core.files import ENVIRONMENT, UserError, read_json, sha256, write_bytes

MANIFEST = "manifest.json"
LOCK = ".lock"
LEFTOVER = ".tmp-"  # how the names of unfinished files and folders begin


@contextmanager
def whole_folder(final: Path, need: int) -> Iterator[Path]:
    """A new folder to be filled, which gets its name when all is on the disk and listed.

    A folder of that name is replaced. need: bytes that will be written; raises UserError
    (ENVIRONMENT) at once if there is no room for them.
    """
    home = final.parent
    home.mkdir(parents=True, exist_ok=True)
    _find_room(home, need)
    folder = home / f"{LEFTOVER}{final.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
        write_manifest(folder)
        sync(folder)
        _take_the_place(folder, final)
        sync(home)
        sync(home.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_room(home: Path, need: int) -> None:
    free = shutil.disk_usage(home).free
    if free < 1.1 * need + (1 << 16):
        raise UserError(
            f"{home}: {need / 2**20:.1f} MiB are to be written and {free / 2**20:.1f} MiB are free;"
            " free some space and run the same command again",
            ENVIRONMENT,
        )


def _take_the_place(folder: Path, final: Path) -> None:
    """Give a folder its name; one that has the name now becomes the leftover."""
    if not final.exists():
        folder.rename(final)
    elif not _exchange(folder, final):  # no kill can come between, or else only in between
        old = folder.with_name(f"{folder.name}-old")
        final.rename(old)
        folder.rename(final)
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step, where the system can."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and swap(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def remove_folder(folder: Path) -> None:
    """Remove a folder so that nothing of it is left under its name, even if a kill interrupts."""
    leftover = folder.with_name(f"{LEFTOVER}{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(leftover)
    shutil.rmtree(leftover)


def clear_leftovers(folder: Path) -> None:
    """Remove what dead writers left unfinished; only for who is `only_writer` of it.

    A folder whose successor was not there yet gets its name back.
    """
    for path in folder.glob(f"{LEFTOVER}*"):
        final = folder / path.name.removeprefix(LEFTOVER).rsplit("-", 3)[0]
        if path.name.endswith("-old") and not final.exists():
            path.rename(final)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Let no second process in that writes there; UserError for the second.

    The lock is the kernel's and dies with its process. Where a file system has none, nobody is
    kept out.
    """
    with _locked(folder / LOCK, folder):
        yield


@contextmanager
def only_writer_of(file: Path) -> Iterator[None]:
    """The same for one file that is written bit by bit; its lock lies hidden beside it."""
    with _locked(file.with_name(f".{file.name}{LOCK}"), file):
        yield


@contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    import fcntl

    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"{what}: another process is writing there; wait for it, or give another --out"
        ) from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Wait until a file's content or a folder's names are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


# ---------------------------------------------------------------- what is in it


def write_manifest(folder: Path) -> None:
    """List the files of a folder."""
    write_bytes(folder / MANIFEST, _text({"files": _contents(folder)}))


def _text(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode(errors="replace")


def faults(folder: Path) -> list[str]:
    """What differs from the folder's manifest, a line each: [] if it is as it was written.

    Only names that are there are opened, never one that a manifest gives.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except UserError as error:
        return [str(error)]
    as_written = isinstance(manifest, dict) and path.read_bytes() == _text(manifest)
    listed = manifest.pop("files", None) if as_written else None
    if not isinstance(listed, dict) or manifest not in ({}, _former(folder)):
        return [f"{path}: altered, not a manifest of this folder"]
    found = _contents(folder)
    differing = sorted(n for n in {*listed, *found} if listed.get(n) != found.get(n))
    return [
        f"{folder}{os.sep}{name if name.isprintable() else ascii(name)}: "
        f"{_why(listed.get(name), found.get(name))}"
        for name in differing
    ]


def _former(folder: Path) -> dict[str, Any]:
    """What else the manifests of earlier versions held."""
    number = folder.name.removeprefix("step_")
    return {"step": int(number)} if number.isdecimal() else {}


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of all files by name; other things have neither."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if path.is_file() and not path.is_symlink()
        else {}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }


def _why(listed: Any, found: dict[str, Any] | None) -> str:
    if found is None:
        return "missing"
    if not found:
        return "not a plain file"
    if not isinstance(listed, dict):
        return "not listed in the manifest"
    if listed.get("bytes") != found["bytes"]:
        return f"{found['bytes']} bytes instead of {listed.get('bytes')}, its checksum differs"
    return "altered, its checksum differs"
