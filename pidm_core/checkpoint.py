"""Run folders and model folders: safetensors and JSON only, atomic, checksummed.

runs/<name>/checkpoints/step_00001000/   training state; manifest.json is written last
runs/<name>/model/                       config.json, model.safetensors, README.md: what samples
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from pidm_core.config import (
    ASSETS,
    DiffusionConfig,
    ModelConfig,
    PIDMConfig,
    SampleConfig,
    from_dict,
    load_config,
    to_dict,
)
from pidm_core.files import (
    BAD_DATA,
    ENVIRONMENT,
    UserError,
    read_json,
    sha256,
    write_bytes,
    write_json,
)
from pidm_core.model import PIDM
from pidm_core.weight_files import HEAD_BYTES, refuse_stand_ins

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- training state


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, dict[str, Tensor]],
    state: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write one checkpoint whole or not at all, then remove the oldest beyond `keep`.

    tensors: file name without ending -> named tensors. Raises UserError (ENVIRONMENT) when the
    disk has no room for it.
    """
    home = run / "checkpoints"
    home.mkdir(parents=True, exist_ok=True)
    need = sum(value.nbytes for part in tensors.values() for value in part.values())
    free = shutil.disk_usage(home).free
    if free < 1.1 * need:
        raise UserError(
            f"{home}: a checkpoint needs {need >> 20} MiB and only {free >> 20} MiB are free; "
            "free some space and run the same command again",
            ENVIRONMENT,
        )
    folder, final = home / f".tmp-{uuid.uuid4().hex[:8]}", home / f"step_{step:08d}"
    try:
        for name, part in tensors.items():
            write_tensors(folder / f"{name}.safetensors", part)
        write_json(folder / "state.json", {"step": step, **state})
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(folder.iterdir())
        }
        write_json(folder / "manifest.json", {"step": step, "files": manifest})
        _sync(folder)
        if final.exists():  # an unverified one of the same step, else we would not be here
            shutil.rmtree(final)
        folder.rename(final)
        _sync(home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for old in _checkpoints(run)[keep:]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(run: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """State and tensors of the newest checkpoint that verifies; a bad one is named, passed over."""
    for folder in _checkpoints(run):
        try:
            return _read_checkpoint(folder)
        except UserError as error:
            log.warning("%s; using the one before", error)
    return None


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_????????"), reverse=True)


def _read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, entry in read_json(folder / "manifest.json")["files"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != entry["sha256"]:
            raise UserError(f"{path}: missing or altered, its checksum differs", BAD_DATA)
        if path.suffix == ".safetensors":
            tensors[path.stem] = load_file(path)
    return read_json(folder / "state.json"), tensors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors whole or not at all, never twice in memory: training may have filled it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}")
    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata
        )
        _sync(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


# ---------------------------------------------------------------- model folders


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    config: PIDMConfig,
    *,
    card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model folder: config.json, model.safetensors in `dtype`, README.md (the card)."""
    path = folder / "model.safetensors"
    weights = {name: value.detach().to(dtype) for name, value in state.items()}
    write_tensors(path, weights, {"format": "pt"})
    sections = {name: to_dict(getattr(config, name)) for name in ("model", "diffusion", "sample")}
    write_json(folder / "config.json", {"weights_sha256": sha256(path), **sections})
    write_bytes(folder / "README.md", card.encode())


def bundle(run: Path, name: str) -> Path:
    """Put a run's model among the bundled ones: weights in bfloat16, its settings and its log."""
    config = load_config(PIDMConfig, run / "config.yaml")
    model, *_ = load_model(run / "model")
    card = (run / "model" / "README.md").read_text()
    save_model(ASSETS / name, model.state_dict(), config, card=card, dtype=torch.bfloat16)
    for file in ("config.yaml", "env.json", "metrics.jsonl", "seen.json", "student.json"):
        if (run / file).is_file():  # only students have a student.json
            write_bytes(ASSETS / name / file, (run / file).read_bytes())
    return ASSETS / name


def find_model(name: str | Path) -> Path:
    """The model folder meant by a bundled name, a run folder or a model folder."""
    for folder in (ASSETS / str(name), Path(name) / "model", Path(name)):
        if (folder / "config.json").is_file():
            return folder
    bundled = ", ".join(sorted(p.name for p in ASSETS.glob("*/"))) or "none"
    raise UserError(
        f"{name}: no trained model there (a run folder has model/config.json; bundled: {bundled}); "
        "train one with tools/train_pidm.py",
        BAD_DATA,
    )


def load_model(folder: Path) -> tuple[PIDM, DiffusionConfig, SampleConfig, str]:
    """Read a model folder: the network (fp32), its process, its sampling defaults, its hash.

    Raises UserError (BAD_DATA) for altered files and for weights of another architecture.
    """
    config = read_json(folder / "config.json")
    path = folder / "model.safetensors"
    data = path.read_bytes() if path.is_file() else b""
    refuse_stand_ins(path, data[:HEAD_BYTES])
    digest = sha256(data)
    if config.get("weights_sha256") != digest:
        raise UserError(f"{path}: missing or altered, its checksum differs", BAD_DATA)
    where = f"{folder / 'config.json'}: "
    model = PIDM(from_dict(ModelConfig, config["model"], where))
    try:
        load_weights(model, load_tensors(data), path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})", BAD_DATA) from error
    diffusion = from_dict(DiffusionConfig, config["diffusion"], where)
    return model.eval(), diffusion, from_dict(SampleConfig, config["sample"], where), digest


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into a network; the first five that do not fit are named (BAD_DATA)."""
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in weights]
    wrong += [f"{k} is unknown" for k in weights if k not in own]
    wrong += [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if wrong:
        raise UserError(f"{path}: weights of another network: {'; '.join(wrong[:5])}", BAD_DATA)
    if bad := [k for k in own if not weights[k].isfinite().all()]:
        raise UserError(f"{path}: NaN or infinite values in {bad[0]}", BAD_DATA)
    model.load_state_dict(dict(weights))
