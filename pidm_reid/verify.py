"""Whether an augmented folder is still what was made: every file of it, by its content.

Nothing is mended here: the same tools/synthesize.py command makes anew what is lost or changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pidm_core import UserError, sha256
from pidm_reid import folder, plan

Entries = Mapping[str, Mapping[str, Any]]


def faults(root: str | Path) -> Iterator[str]:
    """A line for each removed, altered, truncated or unlisted file; none: all is as it was made.

    Raises UserError (BAD_DATA) for a folder that is no augmented one, and for a split.json that
    was altered or a plan.jsonl that cannot be read.
    """
    root = Path(root)
    split = folder.read_split(root)
    recipes = folder.read_lines(root / folder.PLAN)
    ledger = folder.read_ledger(root / folder.MANIFEST)
    if unfinished := folder.unfinished_command(root, split):
        yield f"{root}: not finished; run the same {unfinished} again"
    yield from _lists(root, split, recipes, ledger)
    yield from _generated(root, ledger)
    yield from _real(root, split, recipes)
    yield from _unlisted(root / folder.BASE / folder.TRAIN, {*split["real"], *ledger})
    yield from _test_images(root)


def _lists(
    root: Path, split: Mapping[str, Any], recipes: Entries, ledger: Entries
) -> Iterator[str]:
    """What split, plan and ledger say of each other."""
    path = root / folder.PLAN
    if not path.is_file():
        yield f"{path}: removed"
    elif split.get("plan"):  # an import has none
        if "selection" in split:  # whose plan is a part of the one that was made
            for name in sorted(recipes.keys() & ledger.keys()):
                if any(ledger[name].get(key) != value for key, value in recipes[name].items()):
                    yield f"{path}: altered since it was made ({name})"
        elif sha256(path) != split["plan"]:
            yield f"{path}: altered since it was made"
        if waiting := [name for name in recipes if name not in ledger]:
            yield f"{root}: {len(waiting)} planned images are not there, such as {waiting[0]}"
        for name in sorted(ledger.keys() - recipes.keys()):
            yield f"{root / folder.MANIFEST}: names {name}, which is not planned"
    yield from _selection(root, split, ledger)
    for file in folder.ledgers(root / folder.MANIFEST):
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                torn = not line.rstrip().endswith(b'"}')  # by a crash; written anew later on
                if not torn and folder.parse_entry(line) is None:
                    yield f"{file}:{number}: altered since it was written"


def _selection(root: Path, split: Mapping[str, Any], ledger: Entries) -> Iterator[str]:
    """A selection is as it was written, and says something of every image."""
    path = root / folder.SELECTION
    lines = path.read_bytes().splitlines() if path.is_file() else []
    entries = [folder.parse_entry(line) for line in lines]
    if lines and not any(entries):  # of an earlier version, without checksums
        return
    altered = [number for number, entry in enumerate(entries, 1) if entry is None]
    for number in altered:
        yield f"{path}:{number}: altered since it was written"
    unknown = ledger.keys() - {entry["file_name"] for entry in entries if entry}
    if folder.was_selected(root, split) and unknown and not altered:
        yield f"{path}: says nothing of {len(unknown)} images, such as {min(unknown)}"


def _generated(root: Path, ledger: Entries) -> Iterator[str]:
    train = root / folder.BASE / folder.TRAIN
    for name, entry in sorted(ledger.items()):
        if not (train / name).is_file():
            yield f"{train / name}: removed"
        elif not folder.is_finished(train, entry):
            yield f"{train / name}: altered or truncated since it was generated"


def _real(root: Path, split: Mapping[str, Any], recipes: Entries) -> Iterator[str]:
    """D_tr's images are there and have the contents of which split.json holds the hash."""
    train = root / folder.BASE / folder.TRAIN
    lost = [name for name in split["real"] if not (train / str(name)).is_file()]
    for name in lost:
        link = os.path.islink(train / name)
        yield f"{train / name}: {'a link to nowhere' if link else 'removed'}"
    content = {name: sha256(train / name) for name in split["real"] if name not in lost}
    planned = {r.get("source"): r.get("source_sha256") for r in recipes.values()}
    altered = [name for name in content if content[name] != planned.get(name, content[name])]
    for name in altered:
        yield f"{train / name}: altered since the plan was made"
    if not (lost or altered) and plan.fingerprint(content) != split.get("content"):
        yield f"{train}: a real image was altered since the plan was made"


def _test_images(root: Path) -> Iterator[str]:
    """Query and gallery are links that lead to something, or the copies that were made."""
    try:
        copies = folder.read_copies(root)
    except UserError as error:
        yield str(error)
        return
    for subset in (folder.QUERY, folder.GALLERY):
        home, listed = root / folder.BASE / subset, copies.get(subset, {})
        for name, content in listed.items():
            if not (home / name).is_file():
                yield f"{home / name}: removed"
            elif sha256(home / name) != content:
                yield f"{home / name}: altered or truncated since it was copied"
        if home.is_symlink() and not home.is_dir():
            yield f"{home}: a link to nowhere"
        elif home.is_dir() and not home.is_symlink():
            if subset in copies:
                yield from _unlisted(home, {*listed})
            else:
                yield (
                    f"{root / folder.COPIES}: not there, or older than {home}; the same "
                    "tools/synthesize.py --copy writes it"
                )


def _unlisted(home: Path, listed: set[str]) -> Iterator[str]:
    names = sorted(os.listdir(home)) if home.is_dir() else []
    for name in names:
        if name not in listed:
            yield f"{home / name}: in no list"
