"""The rows of a table: each is a generator and a kind of training list, so a further row is one
more entry of ROWS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pidm_core import UserError, from_dict, to_dict
from pidm_reid.config import ReidTable

STANDARD, SAME_STEPS = "Standard", "Standard-same-steps"
VARIED = "plan", "policy", "sample", "selection", "per_image", "run", "strict"  # not the student


@dataclass(frozen=True)
class Row:
    """What sets a row apart."""

    train: Literal["real", "repeated", "more real", "augmented"]
    source: Literal["", "paper", "strict", "oracle", "images"] = ""  # of what is generated
    selected: bool = False
    erasing: bool = False  # random erasing while it is fine-tuned
    fresh: bool = False  # on the fly: other images in every epoch
    images: str = ""  # folder of another generator's images
    change: str = ""  # one setting of the table that is another, such as policy.real_last=0.2


ROWS: Mapping[str, Row] = {
    STANDARD: Row("real"),
    SAME_STEPS: Row("repeated"),
    "Standard-same-steps-erasing": Row("repeated", erasing=True),
    "PIDM-paper": Row("augmented", "paper"),
    "PIDM-paper-selection": Row("augmented", "paper", selected=True),
    "PIDM-strict": Row("augmented", "strict"),
    "PIDM-strict-fly": Row("augmented", "strict", fresh=True),
    "PIDM-strict-selection": Row("augmented", "strict", selected=True),
    "PIDM-strict-selection-erasing": Row("augmented", "strict", selected=True, erasing=True),
    "real-instead": Row("more real"),
    "oracle": Row("augmented", "oracle"),
}


def rows(table: ReidTable) -> dict[str, Row]:
    """The rows of a table, those first that others build on; UserError for an unknown one."""
    for name in table.rows:
        if name not in ROWS:
            raise UserError(f"rows: '{name}' is none of {', '.join(ROWS)}")
    found = {name: row for name, row in ROWS.items() if name in table.rows}
    for text in table.row:
        name, sign, images = text.partition("=")
        if not (sign and name and images) or name in ROWS or not name.replace("-", "").isalnum():
            raise UserError(f"row '{text}' is not NAME=FOLDER, with a name of its own, such as PTN")
        if not Path(images).is_dir():
            raise UserError(f"row {name}: {images}: no such folder")
        found[name] = Row("augmented", "images", images=images)
    for name, change in table.variants.items():
        if name in found or name in ROWS or not name.replace("-", "").isalnum():
            raise UserError(f"variants: '{name}' is no name of its own, such as PIDM-strict-half")
        changed(table, change)
        of = {"run": "PIDM-paper", "selection": "PIDM-strict-selection"}
        section = change.partition("=")[0].partition(".")[0]
        found[name] = replace(ROWS[of.get(section, "PIDM-strict")], change=change)
    return found


def changed(table: ReidTable, change: str) -> ReidTable:
    """The table with one setting changed, `section.key=value`; UserError for an unknown one."""
    path, sign, value = change.partition("=")
    if path == "policy.start":
        raise UserError("variants: policy.start holds for all rows of a table; make another table")
    *sections, key = path.split(".")
    tree = to_dict(table)
    place: Any = tree
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    if not (sign and isinstance(place, dict) and key in place) or path.split(".")[0] not in VARIED:
        raise UserError(
            f"variants: '{change}' is not a setting and its value, such as policy.half_real=true"
        )
    place[key] = value
    return from_dict(type(table), tree)  # a tool may have made it of a class of its own


@dataclass(frozen=True)
class Cell:
    """One row at one ratio with one seed."""

    row: str
    ratio: float
    seed: int

    def path(self, table: ReidTable) -> Path:
        """Where its result goes."""
        name = f"{self.row}_{100 * self.ratio:g}_seed{self.seed}"
        return Path(table.results) / table.name / name / "result.json"
