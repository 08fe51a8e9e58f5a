"""Run folders and model folders: is every file as it was written?"""

from __future__ import annotations

from pathlib import Path

from pidm_core.files import BAD_DATA, UserError, read_json, sha256
from pidm_core.folders import LEFTOVER, MANIFEST, faults
from pidm_core.seen import FILE as SEEN


def verify(folder: str | Path) -> list[str]:
    """What is wrong with a run folder or a model folder, one line each; [] = all is well.

    Checked are the files of checkpoints/ and model/, and seen.json. config.yaml, env.json,
    metrics.jsonl and samples/ are notes that a run may change at any time.
    A newest checkpoint that is gone altogether is not missed: the run is then at the one before.
    Raises UserError (BAD_DATA) for a folder that is neither.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return _model(folder)
    if (folder / "config.yaml").is_file() or (folder / "checkpoints").is_dir():
        return _run(folder)
    if (folder / MANIFEST).is_file():
        return faults(folder)  # a checkpoint, or a model that lost its config.json
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", BAD_DATA)
    raise UserError(
        f"{folder}: neither a run folder nor a model folder (an augmented one holds split.json)",
        BAD_DATA,
    )


def _run(run: Path) -> list[str]:
    home, model = run / "checkpoints", run / "model"
    inside = sorted(home.iterdir()) if home.is_dir() else []
    folders = [p for p in inside if not p.name.startswith(LEFTOVER)]  # of a write that broke off
    lines = [line for path in folders for line in _checkpoint(path)]
    state = _newest_state(folders)
    if state.get("seen") and not _is(run / SEEN, state["seen"]):
        lines.append(f"{run / SEEN}: missing or altered, its checksum differs")
    before = state.get("before")
    for name in before if isinstance(before, list) else []:
        if home / str(name) not in folders:
            lines.append(f"{home / str(name)}: missing")
    if model.is_dir() and not state.get("model"):  # of a run begun by an earlier version
        return lines + _model(model)
    return lines + (faults(model) if state.get("model") else [])


def _checkpoint(path: Path) -> list[str]:
    if path.is_dir() and not path.is_symlink() and path.name.startswith("step_"):
        return faults(path)
    return [f"{path}: not a checkpoint"]


def _newest_state(folders: list[Path]) -> dict[str, object]:
    """What the newest readable checkpoint says about the rest of its run."""
    for folder in reversed(folders):
        try:
            state = read_json(folder / "state.json")
        except UserError:
            continue
        if isinstance(state, dict):
            return state
    return {}


def _model(folder: Path) -> list[str]:
    if (folder / MANIFEST).is_file():
        return faults(folder)
    # made before models had a manifest: the weights alone are listed
    try:
        config = read_json(folder / "config.json")
    except UserError as error:
        return [str(error)]
    path = folder / "model.safetensors"
    listed = config.get("weights_sha256") if isinstance(config, dict) else None
    return [] if _is(path, listed) else [f"{path}: missing or altered, its checksum differs"]


def _is(path: Path, digest: object) -> bool:
    return path.is_file() and sha256(path) == digest
