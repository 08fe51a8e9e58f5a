"""An augmented folder: a Market-1501 root with split.json, plan.jsonl and manifest.jsonl.

market1501/bounding_box_train        links to D_tr, and the synthetic images
market1501/query, bounding_box_test  links to the originals
market1501/Market-1501-v15.09.15     link to '.'; and Market-1501-v15.09.15 to market1501
split.json                           ratio, seed, names of D_tr, how the rest was made; checksum
plan.jsonl                           one recipe per line
manifest.jsonl                       append-only ledger, one checksummed line per finished image
manifest-03-of-16.jsonl              the same, of a part; all of them are read as one
selection.jsonl                      what a selection, if any, thinks of each image; checksummed
copies.json                          checksums of query and gallery, where these are copies
cost.jsonl                           seconds that were spent on it, a line each time
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pidm_core import (
    BAD_DATA,
    ENVIRONMENT,
    IMAGE_SUFFIXES,
    Record,
    UserError,
    find_keypoints,
    find_subset,
    parse_json,
    read_json,
    read_market1501,
    refuse_path,
    sha256,
    write_bytes,
    write_json,
)

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
BASE, ALIAS = "market1501", "Market-1501-v15.09.15"
SPLIT, PLAN, MANIFEST = "split.json", "plan.jsonl", "manifest.jsonl"
SELECTION, AMONG_REAL = "selection.jsonl", "selection_real.json"
SELECTED = "selection.json"  # beside images that a table chose among: by which rule
COPIES, COST = "copies.json", "cost.jsonl"
IMPORTING = ".importing"  # there while another generator's images are taken over
AGAIN = "again"  # in a ledger: how often the image had been made before
FORMAT = 1
CHECK = "check"  # of a line or a file: the checksum of the rest
SHA256 = re.compile(r"[0-9a-f]{64}")
PERSON = re.compile(r"([-\d]+)_c(\d+)")  # torchreid takes one digit of the camera


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Augmented:
    """What an augmented folder holds."""

    root: Path
    split: dict[str, Any]
    real: tuple[str, ...]  # names of D_tr, sorted
    synthetic: tuple[str, ...]  # names of the finished images that no selection drops, sorted

    missing: int  # planned images that are not generated yet

    @property
    def train_folder(self) -> Path:
        """Where real and synthetic training images lie."""
        return self.root / BASE / TRAIN


def read_augmented(root: str | Path, *, verify: bool = True) -> Augmented:
    """Read an augmented folder and, unless told not to, check every synthetic file's hash.

    Raises UserError (BAD_DATA) if it is none, if it was made for evaluation (its people are of
    the query and gallery), if a selection or an import was interrupted, or if a file of the
    ledger is missing or was changed.
    """
    root = Path(root)
    split = read_split(root)
    if unfinished := unfinished_command(root, split):
        raise UserError(f"{root}: not finished; run the same {unfinished} again", BAD_DATA)
    ledger = read_ledger(root / MANIFEST)
    if evaluation := [name for name, entry in ledger.items() if entry.get("role") != "train"]:
        raise UserError(
            f"{root}: made for evaluation ({evaluation[0]} shows a query or gallery person); "
            "nothing may be trained on it",
            BAD_DATA,
        )
    folder = root / BASE / TRAIN
    if verify and (bad := [name for name in ledger if not is_finished(folder, ledger[name])]):
        raise UserError(
            f"{folder / bad[0]}: missing or changed since it was generated "
            f"({len(bad)} such files); run the same synthesize command again",
            BAD_DATA,
        )
    choices = read_lines(root / SELECTION)
    if was_selected(root, split) and (unknown := ledger.keys() - choices.keys()):
        raise UserError(
            f"{root / SELECTION}: says nothing of {len(unknown)} images, such as {min(unknown)}; "
            "select anew",
            BAD_DATA,
        )
    dropped = {name for name, choice in choices.items() if not choice.get("kept")}
    synthetic = tuple(name for name in sorted(ledger) if name not in dropped)
    chosen = len(choices) - len(dropped)
    planned = chosen if "selection" in split else int(split.get("recipes", 0))
    missing = max(0, planned - len(ledger))
    return Augmented(root, split, tuple(sorted(split["real"])), synthetic, missing)


def unfinished_command(root: Path, split: Mapping[str, Any]) -> str:
    """The tool that was interrupted while it made a folder that does not say how much it lacks."""
    if (root / IMPORTING).exists():
        return "tools/synthesize.py --import-from"
    if "selection" in split and not (root / SELECTION).is_file():
        return "tools/select_images.py"
    return ""


def was_selected(root: Path, split: Mapping[str, Any]) -> bool:
    """Whether images were chosen in a folder, though what says which may be lost."""
    return "selection" in split or any((root / n).is_file() for n in (SELECTION, SELECTED))


def _check_split(split: Mapping[str, Any], where: str) -> None:
    kinds = {"real": list, "seed": int, "settings": dict, "policy": dict}
    kinds["recipes"] = int
    kinds |= dict.fromkeys(("poses", "renderer", "generator_saw", "plan"), str)
    needed = kinds.keys() - {"policy", "recipes"}
    for key, kind in kinds.items():
        if not isinstance(split.get(key, None if key in needed else kind()), kind):
            raise UserError(f"{where}: '{key}' is missing or no {kind.__name__}", BAD_DATA)
    for name in split["real"]:
        person(refuse_path(name, where))


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """JSON lines by their file_name, {} without the file; UserError (BAD_DATA) for others.

    A line that carries a checksum must agree with it.
    """
    entries: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            entry = parse_json(line, f"{path}:{number}")
            if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
                raise UserError(f"{path}:{number}: no file_name in this line; remove it", BAD_DATA)
            if entry.pop(CHECK, None) and parse_entry(line.encode()) is None:
                raise UserError(
                    f"{path}:{number}: altered since it was written; remove the file, and the same "
                    "command writes it anew",
                    BAD_DATA,
                )
            entries[refuse_path(entry["file_name"], f"{path}:{number}")] = entry
    return entries


def person(name: str) -> tuple[int, int]:
    """Identity and camera (from 1) in an image's name; UserError (BAD_DATA) if there are none."""
    match = PERSON.search(name)
    if not match or "-" in match[1][1:] or match[1] == "-":
        raise UserError(f"{name}: no person and camera (as in 0002_c1…) in its name", BAD_DATA)
    return int(match[1]), int(match[2])


def beside(path: str | Path, ending: str) -> Path:
    """The folder beside another that is called after it; '.' and '..' by their own names."""
    path = Path(path)
    return Path(f"{path if path.name not in ('', '..') else path.resolve()}_{ending}")


def spellings(pose: str) -> list[str]:
    """What the image of a pose may be called: an imported one names it without the ending."""
    return [pose, *(f"{pose}{end}" for end in IMAGE_SUFFIXES)]


def read_people(
    root: str | Path, subset: str = TRAIN, *, left_out: list[str] | None = None
) -> list[Record]:
    """Records of a subset without junk (identity -1); in the training set without 0 either.

    left_out: takes a line for every file that is called an image and is none.
    """
    lowest = 1 if subset == TRAIN else 0
    found = read_market1501(root, subset, left_out=left_out)
    records = [record for record in found if record.pid >= lowest]
    if not records:
        raise UserError(f"{root}: {subset} holds nothing but junk images", BAD_DATA)
    return records


# ---------------------------------------------------------------- ledger


def ledger_of(out: Path, shard: tuple[int, int] = (1, 1)) -> Path:
    """The ledger that the k-th of n writers appends to."""
    return out / (MANIFEST if shard[1] == 1 else f"manifest-{shard[0]:02d}-of-{shard[1]:02d}.jsonl")


def ledgers(path: Path) -> list[Path]:
    """A ledger and those of the parts beside it, as far as they are there."""
    parts = sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))
    return [file for file in (path, *parts) if file.is_file()]


def read_ledger(path: Path) -> dict[str, dict[str, Any]]:
    """File name -> the entry of an image; a torn or altered line is as if never written.

    Of two lines of an image that one counts which was written when it was made the last time.
    Raises UserError (BAD_DATA) for a name that leads out of the folder.
    """
    entries: dict[str, dict[str, Any]] = {}
    for entry in ledger_entries(path):
        before = entries.get(entry["file_name"], entry)
        if entry.get(AGAIN, 0) >= before.get(AGAIN, 0):
            entries[entry["file_name"]] = entry
    return entries


def ledger_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entry of every whole line, those of the parts included, one at a time."""
    for file in ledgers(path):
        with file.open("rb") as lines:
            for line in lines:
                if entry := parse_entry(line):
                    refuse_path(entry.get("file_name"), str(file))
                    yield entry


def parse_entry(line: bytes) -> dict[str, Any] | None:
    """The entry of a ledger's line; None for a line that `append_ledger` did not write."""
    text, mark, check = line.rpartition(b', "check": "')
    text += b"}"
    if not mark or check.rstrip() != f'{_check(text)}"}}'.encode():
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def append_ledger(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Append one line per entry in a single write, flushed to the disk."""
    data = b"".join(map(checked_line, entries))
    with open_own(path, "ab") as file:
        if file.tell() and _last_byte(path) != b"\n":  # a line torn by a crash
            data = b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file of ours for writing; never through a link, which may lead anywhere (OSError)."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o644))


def is_finished(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the image of a ledger entry is there with the bytes that were written."""
    path = folder / entry["file_name"]
    return path.is_file() and bool(sha256(path.read_bytes()) == entry.get("sha256"))


def checked_line(entry: Mapping[str, Any]) -> bytes:
    """A line of JSON with the checksum of the rest, as `parse_entry` reads it."""
    text = json.dumps(entry, ensure_ascii=False).encode()
    return text[:-1] + f', "check": "{_check(text)}"}}\n'.encode()


def _check(text: bytes) -> str:
    return str(sha256(text))[:16]


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


# ---------------------------------------------------------------- cost


@contextmanager
def spending(out: Path, what: str) -> Iterator[None]:
    """Note the seconds of a block in a folder, interrupted or not."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        note_cost(out, what, time.perf_counter() - begin)


def note_cost(out: Path, what: str, seconds: float) -> None:
    """Add seconds to those spent on a folder; shards may do so at once."""
    with open_own(out / COST, "a") as file:
        torn = file.tell() and _last_byte(out / COST) != b"\n"
        file.write("\n" * bool(torn) + json.dumps({what: round(seconds, 3)}) + "\n")


def spent(out: Path) -> dict[str, float]:
    """All seconds noted in a folder, by what they were spent on."""
    seconds: Counter[str] = Counter()
    lines = (out / COST).read_text().splitlines() if (out / COST).is_file() else []
    for line in lines:
        with suppress(ValueError):  # a line torn by a crash
            seconds.update(json.loads(line))
    return dict(seconds)


# ---------------------------------------------------------------- writing


def start_folder(out: Path, split: Mapping[str, Any]) -> None:
    """Write split.json, or check that the one there says the same.

    Raises UserError listing the differences if the folder was made with another configuration,
    or if it holds something else.
    """
    refuse_occupied(out, split)
    if not (out / SPLIT).is_file():
        write_json(out / SPLIT, {**split, CHECK: _check_of(split)})


def refuse_occupied(out: Path, split: Mapping[str, Any], *, later: Collection[str] = ()) -> None:
    """Raise what `start_folder` would raise, and make nothing.

    later: entries of split.json that are not known yet.
    """
    for path in (out / BASE, out / BASE / TRAIN):
        if path.is_symlink():
            raise UserError(f"{path}: is a link, and images would be written wherever it leads")
    if not (out / SPLIT).is_file():
        if not out.exists() or all(path.name.startswith(".") for path in out.iterdir()):
            return
        if not (out / SPLIT).is_file():  # which another shard may have written just now
            raise UserError(f"{out}: is not empty and not an augmented folder; give another --out")
    there = _read_checked(out / SPLIT)
    if isinstance(there, dict):
        there = {key: value for key, value in there.items() if key not in later}
    if changes := differences(there, dict(split)):
        raise UserError(
            f"{out}: was made with another configuration ({'; '.join(changes[:8])}); "
            "make another folder, or remove this one"
        )


def read_split(root: Path) -> dict[str, Any]:
    """The split.json of an augmented folder; UserError (BAD_DATA) if there is no good one."""
    if not (root / SPLIT).is_file():
        raise UserError(
            f"{root}: not an augmented folder (no {SPLIT}); make one with tools/synthesize.py",
            BAD_DATA,
        )
    split = _read_checked(root / SPLIT)
    if not isinstance(split, dict) or split.get("format") != FORMAT:
        raise UserError(f"{root / SPLIT}: not a split of format {FORMAT}", BAD_DATA)
    _check_split(split, str(root / SPLIT))
    return split


def read_copies(root: Path) -> dict[str, dict[str, str]]:
    """SHA-256 by name of what query and gallery held when they were copied; {} without copies.

    Raises UserError (BAD_DATA) if that was altered.
    """
    copies: dict[str, dict[str, str]] = {}
    if (root / COPIES).is_file():
        copies = _read_checked(root / COPIES)
        if not isinstance(copies, dict) or not all(isinstance(v, dict) for v in copies.values()):
            raise UserError(f"{root / COPIES}: no checksums by folder; remove it", BAD_DATA)
        for name in (name for subset in (QUERY, GALLERY) for name in copies.get(subset, {})):
            refuse_path(name, str(root / COPIES))
    return copies


def _read_checked(path: Path) -> Any:
    """A JSON file without its checksum, if it has one, with which it must agree."""
    value = read_json(path)
    check = value.pop(CHECK, None) if isinstance(value, dict) else None
    if check is not None and check != _check_of(value):
        raise UserError(
            f"{path}: altered since it was written; put its values back and remove its '{CHECK}', "
            "or make the folder anew",
            BAD_DATA,
        )
    return value


def _check_of(value: Any) -> str:
    return _check(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two trees of JSON values, as 'key: old -> new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        parts = [differences(old.get(k), new.get(k), f"{where}.{k}".strip(".")) for k in keys]
        return [line for part in parts for line in part]
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list):
        return [f"{where}: {len(old)} -> {len(new)} entries"]
    if where == "plan" and old and new:  # hashes of plan.jsonl; of imported images there is none
        return ["plan: other images (seed, ratio, per-image, fill-to, poses or keypoints differ)"]
    return [f"{where}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> Any:
    """The first digits of a SHA-256; any other value as it is."""
    return f"{value[:8]}…" if isinstance(value, str) and SHA256.fullmatch(value) else value


def lay_out(out: Path, real: Sequence[Record], *, copy: bool) -> None:
    """Link (or copy) D_tr, query and gallery into `out`; what is there already stays."""
    home, beside = out / BASE, real[0].path.parent.parent
    for record in real:
        place(record.path, home / TRAIN / record.name, copy=copy)
    originals = {}
    for subset in (QUERY, GALLERY):
        with suppress(UserError):  # a set need have none
            originals[subset] = find_subset(beside, subset)
    for subset, original in originals.items():
        place(original, home / subset, copy=copy)
    if not copy:
        _link_spellings(out)
        return
    if not (out / COPIES).is_file():
        copies = {
            subset: {p.name: sha256(p) for p in sorted(original.iterdir()) if p.is_file()}
            for subset, original in originals.items()
        }
        write_json(out / COPIES, {**copies, CHECK: _check_of(copies)})
    for link in (out / BASE / ALIAS, out / ALIAS):  # of a call without copy
        if link.is_symlink():
            link.unlink(missing_ok=True)


def write_market1501(
    out: Path,
    *,
    train: Sequence[Record],
    query: Sequence[Record],
    gallery: Sequence[Record],
    copy: bool = False,
) -> None:
    """Write a Market-1501 root from records, with their keypoints and the files beside them.

    It is there whole or not at all; UserError if it is there already.
    """
    home, growing = out / BASE, out / f".tmp-{BASE}"
    if home.exists():
        raise UserError(f"{home}: exists already; give another --out or remove it")
    shutil.rmtree(growing, ignore_errors=True)
    for subset, records in ((TRAIN, train), (QUERY, query), (GALLERY, gallery)):
        for record in records:
            place(record.path, growing / subset / record.name, copy=copy)
    source = train[0].path.parent.parent
    for file in sorted(file for file in source.iterdir() if file.is_file()):
        place(file, growing / file.name, copy=copy)
    for subset in (TRAIN, QUERY):
        with suppress(UserError):  # a set need have none
            keypoints = find_keypoints(source, subset)  # or one or two folders above
            place(keypoints, growing / keypoints.name, copy=copy)
    os.replace(growing, home)
    if not copy:
        _link_spellings(out)


def _link_spellings(out: Path) -> None:
    """One folder, three spellings of its name."""
    _link(Path("."), out / BASE / ALIAS)
    _link(Path(BASE), out / ALIAS)


def place(original: Path, target: Path, *, copy: bool) -> None:
    """Link or copy a file or folder to `target`, unless it is there; a copy replaces a link."""
    if target.is_symlink() and not target.exists():  # the data set was moved
        target.unlink(missing_ok=True)
    if copy and target.is_symlink():
        if original.is_dir():
            with suppress(IsADirectoryError, PermissionError):  # another shard was faster
                target.unlink(missing_ok=True)
    elif os.path.lexists(target) and not (copy and original.is_dir()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        real_parent = target.parent.resolve()
        _link(Path(os.path.relpath(original.resolve(), real_parent)), target)
    elif original.is_dir():
        for item in sorted(original.iterdir()):
            if item.is_file():
                place(item, target / item.name, copy=True)
    else:
        write_bytes(target, original.read_bytes())


def _link(to: Path, link: Path) -> None:
    if os.path.lexists(link):
        return
    try:
        link.symlink_to(to)
    except FileExistsError:  # another shard was faster
        pass
    except OSError as error:
        raise UserError(f"{link}: cannot make a link ({error}); use --copy", ENVIRONMENT) from error
