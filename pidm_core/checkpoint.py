"""Run folders and model folders: safetensors and JSON only, atomic, checksummed.

runs/<name>/checkpoints/step_00001000/   training state
runs/<name>/model/                       config.json, model.safetensors, README.md: what samples
Both hold a manifest.json that lists their files, and are there whole or not at all.
"""

from __future__ import annotations

import logging
import os
import re
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
    bundled_folder,
)
from pidm_core.files import (
    BAD_DATA,
    UserError,
    read_json,
    sha256,
    write_bytes,
    write_json,
)
from pidm_core.folders import (
    LEFTOVER,
    faults,
    remove_folder,
    sync,
    whole_folder,
)
from pidm_core.low_rank import reduced, restored
from pidm_core.model import PIDM
from pidm_core.options import from_dict, load_config, to_dict
from pidm_core.weight_files import refuse_stand_ins

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
    """Write one checkpoint whole or not at all, then remove the oldest beyond `keep` good ones.

    tensors: file name without ending -> named tensors. Raises UserError (ENVIRONMENT) when the
    disk has no room for it.
    """
    final = run / "checkpoints" / f"step_{step:08d}"
    need = sum(value.nbytes for part in tensors.values() for value in part.values())
    before = [path.name for path in checkpoints(run) if path.name < final.name][:1]
    with whole_folder(final, need) as folder:
        for name, part in tensors.items():
            write_tensors(folder / f"{name}.safetensors", part)
        write_json(folder / "state.json", {"step": step, "before": before, **state})
    _prune(run, max(keep, 2))
    return final


def _prune(run: Path, keep: int) -> None:
    """Remove the checkpoints before the newest `keep` that verify."""
    good = 0
    for folder in checkpoints(run):
        if good >= keep:
            remove_folder(folder)
        good += not faults(folder)


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first."""
    return sorted((run / "checkpoints").glob("step_????????"), reverse=True)


def latest_checkpoint(run: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """State and tensors of the newest checkpoint that verifies; None if there never was one.

    A bad one is named and passed over; UserError (BAD_DATA) if there is none but bad ones.
    """
    folders = checkpoints(run)
    for folder in folders:
        try:
            return _read_checkpoint(folder)
        except UserError as error:
            log.warning("%s; the checkpoint is passed over", error)
    if folders:
        raise UserError(
            f"{run / 'checkpoints'}: none of {len(folders)} checkpoints is whole; restore one, or "
            "remove the folder to begin anew",
            BAD_DATA,
        )
    return None


def _read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    for path in folder.glob("*.safetensors"):
        refuse_stand_ins(path)
    if wrong := faults(folder):
        raise UserError(wrong[0], BAD_DATA)
    tensors = {path.stem: _read_tensors(path) for path in folder.glob("*.safetensors")}
    return read_json(folder / "state.json"), tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})", BAD_DATA) from error
    _refuse_nan(tensors, path)
    return tensors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors whole or not at all, never twice in memory: training may have filled it."""
    temporary = path.with_name(f"{LEFTOVER}{uuid.uuid4().hex[:8]}")
    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata
        )
        sync(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        if isinstance(error, SafetensorError) and number:  # its words for what the system said
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


# ---------------------------------------------------------------- model folders


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    config: PIDMConfig,
    *,
    card: str,
    dtype: torch.dtype = torch.float32,
    base: dict[str, str] | None = None,
) -> None:
    """Write a model folder: config.json, model.safetensors in `dtype`, README.md (the card).

    base: the bundled model, {"name", "weights_sha256"}, from which `state` holds differences.
    One that is there is replaced, whole or not at all.
    """
    weights = {name: value.detach().to(dtype) for name, value in state.items()}
    sections = {name: to_dict(getattr(config, name)) for name in ("model", "diffusion", "sample")}
    if base:
        sections["base"] = base
    with whole_folder(folder, sum(value.nbytes for value in weights.values())) as new:
        path = new / "model.safetensors"
        write_tensors(path, weights, {"format": "pt"})
        write_json(new / "config.json", {"weights_sha256": sha256(path), **sections})
        write_bytes(new / "README.md", card.encode())


def bundle(run: Path, folder: Path, *, base: str = "", limit: int = 0) -> Path:
    """Write a run's model to be carried: weights in bfloat16, its settings and its log.

    The folder, which is returned, is there whole or not at all and does where a run folder does.
    base: the bundled model that it began with, on the same images: only differences from it are
    written, in at most `limit` bytes, and not what it has seen.
    """
    config = load_config(PIDMConfig, run / "config.yaml")
    model, *_ = load_model(run / "model")
    card = (run / "model" / "README.md").read_text()
    state, named = model.state_dict(), None
    files = ["config.yaml", "env.json", "metrics.jsonl", "seen.json", "student.json"]
    if base:
        begun, *_, digest = load_model(ASSETS / base)
        state = reduced(state, begun.state_dict(), limit)
        named = {"name": base, "weights_sha256": digest}
        card += f"Kept as differences of low rank from the bundled model `{base}`.\n"
        files.remove("seen.json")
    with whole_folder(folder, 0) as new:
        save_model(new, state, config, card=card, dtype=torch.bfloat16, base=named)
        for file in files:
            if (run / file).is_file():  # only students have a student.json
                write_bytes(new / file, (run / file).read_bytes())
    return folder


def find_model(name: str | Path) -> Path:
    """The model folder meant by a bundled name, a run folder or a model folder."""
    own = Path(name)
    for folder in (bundled_folder(name), own / "model", own):
        if folder and (folder / "config.json").is_file():
            return folder
    if stopped := checkpoints(own):
        step = int(stopped[0].name.removeprefix("step_"))
        raise UserError(
            f"{name}: no model yet, its training stopped at step {step:,}; the same train_pidm "
            "command finishes it",
            BAD_DATA,
        )
    bundled = ", ".join(sorted(p.parent.name for p in ASSETS.glob("*/config.json"))) or "none"
    raise UserError(
        f"{name}: no trained model there (a run folder has model/config.json; bundled: {bundled}); "
        "train one with tools/train_pidm.py",
        BAD_DATA,
    )


def load_model(folder: Path) -> tuple[PIDM, DiffusionConfig, SampleConfig, str]:
    """Read a model folder: the network (fp32), its process, its sampling defaults, its hash.

    Raises UserError (BAD_DATA) for altered weights and for those of another architecture; an
    altered config.json is found by `verify` alone.
    """
    config = read_json(folder / "config.json")
    where = f"{folder / 'config.json'}: "
    if not isinstance(config, dict) or not {"model", "diffusion", "sample"} <= config.keys():
        raise UserError(f"{where}not the settings of a model", BAD_DATA)
    path = folder / "model.safetensors"
    data = path.read_bytes() if path.is_file() else b""
    if data:
        refuse_stand_ins(path)
    digest = sha256(data)
    if config.get("weights_sha256") != digest:
        if read_json(folder / "config.json") != config:  # its training has just saved another
            return load_model(folder)
        raise UserError(f"{path}: missing or altered, its checksum differs", BAD_DATA)
    settings = from_dict(ModelConfig, config["model"], where)
    try:
        weights = load_tensors(data)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})", BAD_DATA) from error
    if "base" in config:
        try:
            weights = restored(weights, _base(config["base"], where))
        except ValueError as error:
            raise UserError(f"{path}: {error}", BAD_DATA) from error
    with torch.device("meta"):  # no memory for weights that the file does not have
        model = PIDM(settings)
    check_weights(model.state_dict(), weights, path)
    model.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    diffusion = from_dict(DiffusionConfig, config["diffusion"], where)
    return model.eval(), diffusion, from_dict(SampleConfig, config["sample"], where), digest


def _base(named: Any, where: str) -> dict[str, Tensor]:
    """The weights of the bundled model that a model folder holds differences from."""
    name = named.get("name") if isinstance(named, dict) else None
    bundled = {path.parent.name for path in ASSETS.glob("*/config.json")}
    if (
        not isinstance(name, str)
        or name not in bundled
        or "base" in read_json(ASSETS / name / "config.json")
    ):
        raise UserError(
            f"{where}base: {name} is no bundled model with weights of its own", BAD_DATA
        )
    model, *_, digest = load_model(ASSETS / name)
    if digest != named.get("weights_sha256"):
        raise UserError(
            f"{where}base: {name} is not the model that the differences are from", BAD_DATA
        )
    return model.state_dict()


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into a network; the first five that do not fit are named (BAD_DATA)."""
    check_weights(model.state_dict(), weights, path)
    model.load_state_dict(dict(weights))


def check_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights of other names or shapes than `own`, and such as are no numbers (BAD_DATA)."""
    wrong = [f"{k} is missing" for k in own if k not in weights]
    wrong += [f"{k} is unknown" for k in weights if k not in own]
    wrong += [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if wrong:
        raise UserError(f"{path}: weights of another network: {'; '.join(wrong[:5])}", BAD_DATA)
    _refuse_nan(weights, path)


def _refuse_nan(weights: Mapping[str, Tensor], path: Path) -> None:
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f"{path}: NaN or infinite values in {bad[0]}", BAD_DATA)
