"""What a training of ResNet50 was asked for and came to, in a JSON file beside its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core import BAD_DATA, UserError, read_json, sha256, write_json
from pidm_reid.folder import differences
from pidm_reid.plan import fingerprint
from pidm_reid.retrieval import Ranking


def contents(paths: Iterable[Path]) -> str:
    """How many files these are, and a short hash of their names and of what is in them."""
    files = {path.name: sha256(path) for path in paths}
    return f"{len(files):,} images, {fingerprint(files)[:8]}"


def read_outcome(out: Path, asked: Mapping[str, Any]) -> dict[str, Ranking]:
    """The results so far by stage, {} for a training that has not begun.

    asked: all that decides the training, as plain JSON values.
    Raises UserError if `out` is of another training, or of one that nobody noted.
    """
    note = out.with_suffix(".json")
    if not note.is_file():
        if out.is_file():
            raise UserError(
                f"{out}: is there already, and no {note.name} says what it was trained on; "
                "give another --out"
            )
        return {}
    there = read_json(note)
    if not isinstance(there, dict) or there.keys() != {"asked", "results"}:
        raise UserError(f"{note}: no note of a training; give another --out", BAD_DATA)
    if changes := differences(there["asked"], dict(asked)):
        raise UserError(
            f"{out}: is of a training with other settings or data ({'; '.join(changes[:8])}); "
            f"give another --out, or the old ones (to begin anew remove {note.name} and {out.name})"
        )
    try:
        return {stage: _ranking(figures) for stage, figures in there["results"].items()}
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{note}: no results in it ({error}); give another --out", BAD_DATA
        ) from error


def write_outcome(out: Path, asked: Mapping[str, Any], results: Mapping[str, Ranking]) -> None:
    """Note what `read_outcome` reads, without the precision of each query."""
    figures = {stage: _figures(ranking) for stage, ranking in results.items()}
    write_json(out.with_suffix(".json"), {"asked": dict(asked), "results": figures})


def _figures(ranking: Ranking) -> dict[str, Any]:
    values = asdict(replace(ranking, average_precision=np.empty(0)))
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _ranking(figures: Mapping[str, Any]) -> Ranking:
    values: dict[str, Any] = {
        k: np.array(v) if isinstance(v, list) else v for k, v in figures.items()
    }
    return Ranking(**values)
