"""seen.json: which images a generator was trained on, by name and content, data set by data set.

A score on people that the generator has seen says nothing, and a folder's name proves nothing:
so every run writes down the images it uses, those of the model it started from before its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pidm_core.config import ASSETS, PIDMConfig, bundled_folder
from pidm_core.data import Record
from pidm_core.files import BAD_DATA, UserError, read_json, sha256, write_json
from pidm_core.options import from_dict

FILE = "seen.json"
DIGITS = 16
Kind = Literal["drawn", "real", "unknown"]


@dataclass(frozen=True)
class Seen:
    """The images of one data set that a generator was trained on."""

    data: str  # name of its folder
    kind: Kind  # drawn: all images are; unknown: a model that came without seen.json
    images: dict[str, str]  # file name -> content_key of the file


def content_key(path: Path) -> str:
    """What tells a file's content from another's: the first 16 hexadecimal digits of SHA-256."""
    return sha256(path)[:DIGITS]


def read_seen(model: str | Path) -> list[Seen] | None:
    """What a run folder, model folder or bundled model has seen; None if that is not known."""
    for folder in (bundled_folder(model), Path(model), Path(model).parent):
        if folder is None:
            continue
        if (folder / FILE).is_file():
            return _read(folder / FILE)
        if base := _base(folder / "config.json"):
            return read_seen(base)
    return None


def _base(config: Path) -> str:
    """The bundled model of which a bundled model holds differences; it has seen the same images."""
    if config.parent.parent != ASSETS or not config.is_file():
        return ""
    return str(read_json(config).get("base", {}).get("name", ""))


def write_seen(run: Path, config: PIDMConfig, records: Sequence[Record], *, begun: bool) -> None:
    """Write a run's seen.json, anew until it has begun, which is when something of it is saved.

    UserError (BAD_DATA) if it was begun with other images.
    """
    images = {record.name: content_key(record.path) for record in records}
    if begun and (run / FILE).is_file():  # of then, with the model of that time
        old = _read(run / FILE)[-1].images
        if changed := dict(old.items() ^ images.items()):
            raise UserError(
                f"{config.data}: {len(changed)} images, such as {min(changed)}, are not those that "
                f"{run} was begun with; restore them, or train anew in another folder",
                BAD_DATA,
            )
        return
    folders = {record.path.resolve().parent for record in records}
    kind: Kind = "drawn" if folders and all(map(_drew, folders)) else "real"
    seen = [Seen(Path(config.data).resolve().name, kind, images)]
    if start := config.train.init:
        seen = (read_seen(start) or [Seen(Path(start).name, "unknown", {})]) + seen
    write_json(run / FILE, [asdict(entry) for entry in seen])


def is_drawn(record: Record) -> bool:
    """Whether an image, or the one that it links to, lies in a folder that ToyMarket drew."""
    return _drew(record.path.resolve().parent)


def _drew(folder: Path) -> bool:
    return (folder.parent / "toy_market.json").is_file()


def _read(path: Path) -> list[Seen]:
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not a list of data sets", BAD_DATA)
    return [from_dict(Seen, entry, f"{path}: ") for entry in entries]
