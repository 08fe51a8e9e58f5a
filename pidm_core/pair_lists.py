"""Pair lists (source, target): reading, making by PATN's rule, writing; and who is on an image.

PATN's CSV, GFLA's and PIDM's text, PCDMs' JSON; DeepFashion's names in all their spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pidm_core.data import Record, make_pairs
from pidm_core.files import BAD_DATA, UserError, parse_json, read_text, write_bytes
from pidm_core.keypoints import passes_patn

PairName = tuple[str, str, int]  # source, target, line of the file
# Person and view; the last MEN, for a folder above may be called EXPERIMENTS.
_FASHION = re.compile(r"((?:WO)?MEN(?:(?!MEN)[A-Za-z])+id\d{10})(\d[a-z]+)$")


# ---------------------------------------------------------------- names


def fashion_key(name: str) -> str:
    """One key for every spelling of a DeepFashion image name; '' for any other name.

    `img/WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg`, the flat name of PATN
    `fashionWOMENTees_Tanksid0000783805_7additional.jpg` and the one of pose-gan
    `fasionWOMENTeesTanksid0000783805_7additional.jpg` are the same image.
    """
    match = _FASHION.search(_squeezed(name))
    return match[1] + match[2] if match else ""


def _squeezed(name: str) -> str:
    return re.sub(r"\.\w+$|[^A-Za-z0-9]", "", name)


def name_records(names: Sequence[str]) -> list[Record]:
    """Records of image names alone, in this order; identities are numbered as they appear.

    An identity is a DeepFashion name up to the view, else what stands before the first '_';
    0000 and -1 are Market-1501's distractors and junk.
    """
    numbers: dict[str, int] = {"0000": 0, "-1": -1}
    pids = [numbers.setdefault(_identity(name), len(numbers) - 1) for name in names]
    return [Record(Path(name), name, pid, 0) for name, pid in zip(names, pids, strict=True)]


def _identity(name: str) -> str:
    match = _FASHION.search(_squeezed(name))
    return match[1] if match else name.split("_")[0]


# ---------------------------------------------------------------- lists


def read_pairs(path: str | Path) -> list[PairName]:
    """Read a pair list: (source, target, line) each, one for every source of a line.

    PATN's CSV has the header `from,to`; GFLA's and PIDM's text has the target first, then one or
    more sources (as their code reads it, not as their README says); PCDMs' JSON is a list of
    {source_image, target_image}. Raises UserError (BAD_DATA) with file and line.
    """
    path = Path(path)
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        return _json_pairs(parse_json(text, str(path)), path)
    rows = [
        (n, [part.strip() for part in line.split(",")])
        for n, line in enumerate(text.splitlines(), 1)
        if line.replace(",", "").strip()
    ]
    target_first = path.suffix == ".txt" and rows and rows[0][1][:2] != ["from", "to"]
    if not target_first:
        if not rows or rows[0][1][:2] != ["from", "to"]:
            raise UserError(f"{path}:1: the header is not 'from,to'", BAD_DATA)
        rows = rows[1:]
    pairs = []
    for number, row in rows:
        first, *others = [name for name in row if name]
        if not others or not (target_first or len(others) == 1):
            form = "target,source[,source…]" if target_first else "source,target"
            raise UserError(f"{path}:{number}: expected '{form}'", BAD_DATA)
        pairs += [(o, first, number) if target_first else (first, o, number) for o in others]
    if not pairs:
        raise UserError(f"{path}: holds no pairs", BAD_DATA)
    return pairs


def _json_pairs(value: object, path: Path) -> list[PairName]:
    pairs = []
    for number, pair in enumerate(value if isinstance(value, list) else [], 1):
        match pair:
            case {"source_image": str(source), "target_image": str(target)}:
                pairs.append((source, target, number))
            case _:
                raise UserError(
                    f"{path}: entry {number} has no source_image and target_image", BAD_DATA
                )
    if not pairs:
        raise UserError(f"{path}: holds no pairs", BAD_DATA)
    return pairs


def patn_pairs(
    keypoints: Mapping[str, np.ndarray], *, sample: int = 0, seed: int = 0
) -> list[tuple[str, str]]:
    """PATN's pairs (source, target) of a keypoint file, in its order; `sample` of them (0 = all).

    With its market-annotation-test.csv, sample=12000 and seed=0 these are its market-pairs-test.csv
    line by line: numpy's old generator draws as pandas' `sample` does.
    Raises UserError for a negative sample or seed, and for a seed of over 32 bits.
    """
    if sample < 0 or not 0 <= seed < 1 << 32:
        raise UserError(f"sample {sample}, seed {seed}: both must be at least 0, the seed 32 bits")
    usable = [name for name in keypoints if passes_patn(keypoints[name])]
    records = name_records(usable)  # persons in the order of their first usable image
    pairs = make_pairs(records, keypoints)
    if sample:
        draw = np.random.RandomState(seed)
        pairs = pairs[draw.choice(len(pairs), min(sample, len(pairs)), replace=False)]
    return [(records[source].name, records[target].name) for source, target in pairs]


def write_pairs(path: str | Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Write a pair list as PATN's CSV, atomic; UserError (BAD_DATA) for a name with a comma."""
    lines = ["from,to"]
    for source, target in pairs:
        if "," in source + target:
            name = source if "," in source else target
            raise UserError(
                f"{path}: no pair list can hold the comma of '{name}'; rename it", BAD_DATA
            )
        lines.append(f"{source},{target}")
    write_bytes(path, ("\n".join(lines) + "\n").encode())
