"""Weight files, model folders, run folders and the authors' checkpoint."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from faults.cases import BAD_DATA, DONE, ENVIRONMENT, Case, reading
from faults.cases.images import HTML, LFS
from pidm_core import read_json, sha256, write_bytes, write_json
from pidm_core.checkpoint import save_checkpoint, save_model
from pidm_core.config import ModelConfig, PIDMConfig
from pidm_core.model import PIDM
from pidm_core.options import to_dict

TINY = ModelConfig(
    size=(32, 16), patch=2, channels=32, channel_mults=(1, 2), blocks_per_level=1,
    texture_factors=(2, 4),
)  # fmt: skip
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


def saved(value: Any, **options: Any) -> bytes:
    """A file of torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


class Calls:
    """A pickle of it runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch canary",)


def packed(data: bytes) -> bytes:
    """The same zip archive, compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def tensors_file(
    header: bytes | dict[str, Any], data: bytes = b"", size: int | None = None
) -> bytes:
    """A safetensors file with any header, which may claim any size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(first: int, last: int, *, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> Any:
    """A tensor as a header of safetensors describes it."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


OVERLAPPING = tensors_file({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12)
MANY = tensors_file({f"t{k}": tensor(4 * k, 4 * k + 4, shape=(1,)) for k in range(100_000)},
                    b"\0" * 400_000)  # fmt: skip
WHOLE = safetensors.torch.save(STATE)
NOT_WHOLE = "not a whole weight file"
FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("w.pth", b"", NOT_WHOLE),
    "empty safetensors": ("w.safetensors", b"", NOT_WHOLE),
    "Git-LFS pointer": ("w.safetensors", LFS, "a Git-LFS pointer"),
    "web page": ("w.pth", HTML, "a web page"),
    "cut off": ("w.pth", saved(STATE)[:-400], NOT_WHOLE),
    "safetensors cut off": ("w.safetensors", WHOLE[:-3], NOT_WHOLE),
    "safetensors whose header is no JSON": ("w.safetensors", tensors_file(b"x" * 20), NOT_WHOLE),
    "safetensors with a header of 1 GB": (
        "w.safetensors", tensors_file(b"{}", size=1 << 30), NOT_WHOLE,
    ),
    "safetensors of an unknown type": (
        "w.safetensors", tensors_file({"a": tensor(0, 8, dtype="F7")}, b"\0" * 8), NOT_WHOLE,
    ),
    "safetensors whose tensors overlap": ("w.safetensors", OVERLAPPING, NOT_WHOLE),
    "safetensors beyond the end": (
        "w.safetensors", tensors_file({"a": tensor(0, 8)}, b"\0" * 4), NOT_WHOLE,
    ),
    "a pickle that calls": ("w.pth", saved(Calls()), "nothing in it was run"),
    "an old pickle that calls": (
        "w.pth", saved(Calls(), _use_new_zipfile_serialization=False), "nothing in it was run",
    ),
    "a bare pickle that calls": ("w.pth", pickle.dumps(Calls()), "nothing in it was run"),
    "a compressed archive": ("w.pth", packed(saved(STATE)), NOT_WHOLE),
    "a list of tensors": ("w.pth", saved([torch.zeros(2)]), "not a plain state dict"),
    "numbers for tensors": ("w.pth", saved({"a": 1}), "no named tensor"),
    "a sparse tensor": ("w.pth", saved({"a": torch.eye(3).to_sparse()}), "no named tensor"),
    "complex numbers": ("w.pth", saved({"a": torch.zeros(2, dtype=torch.cfloat)}), "no named"),
    "numpy objects": ("w.pth", saved({"a": np.array([{}], dtype=object)}), "nothing in it was run"),
}  # fmt: skip


def _weights() -> list[Case]:
    cases = [
        Case(f"weights: {name}", {file: data}, reading("weights", file), BAD_DATA, why)
        for name, (file, data, why) in FILES.items()
    ]
    parallel = saved({"state_dict": {f"module.{k}": v for k, v in STATE.items()}, "epoch": 3})
    return [
        *cases,
        Case("weights: no such file", {}, reading("weights", "w.pth"), ENVIRONMENT, "no such"),
        Case("weights: of DistributedDataParallel", {"w.pth": parallel},
             reading("weights", "w.pth"), DONE, "2 tensors"),
        Case("weights: 100,000 tensors", {"w.safetensors": MANY},
             reading("weights", "w.safetensors"), DONE, "100000 tensors"),
    ]  # fmt: skip


# ---------------------------------------------------------------- model folders


def write_model(folder: Path) -> None:
    """Write a small model folder."""
    torch.manual_seed(0)
    save_model(folder, PIDM(TINY).state_dict(), PIDMConfig(model=TINY), card="test")


def _changed(**sections: Any) -> Callable[[Path], None]:
    """Writes a model folder whose config.json is changed; None removes a section."""

    def make(folder: Path) -> None:
        write_model(folder / "m")
        config = read_json(folder / "m/config.json") | sections
        kept = {key: value for key, value in config.items() if value is not None}
        write_json(folder / "m/config.json", kept)

    return make


def _replaced(change: Callable[[bytes], bytes], *, signed: bool = True) -> Callable[[Path], None]:
    """Writes a model folder with other weights, and their hash in config.json if `signed`."""

    def make(folder: Path) -> None:
        write_model(folder / "m")
        path = folder / "m/model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        if signed:
            config = read_json(folder / "m/config.json")
            write_json(folder / "m/config.json", config | {"weights_sha256": sha256(path)})

    return make


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        state = safetensors.torch.load(data)
        change(state)
        return safetensors.torch.save(state)

    return changed


def _text(content: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_model(folder / "m")
        write_bytes(folder / "m/config.json", content.encode())

    return make


def _without_weights(folder: Path) -> None:
    write_model(folder / "m")
    (folder / "m/model.safetensors").unlink()


def _flipped(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


MODEL = to_dict(TINY)
FIRST = "time.0.bias"
MODELS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "none": (lambda folder: None, BAD_DATA, "no trained model there"),
    "config.json cut off": (_text('{"model": '), BAD_DATA, "not valid JSON"),
    "config.json nested 200,000 deep": (_text("[" * 200_000), BAD_DATA, "not valid JSON"),
    "config.json is a list": (_text("[]"), BAD_DATA, "not the settings of a model"),
    "config.json without a section": (_changed(sample=None), BAD_DATA, "not the settings"),
    "a section that is a number": (_changed(model=7), 2, "expected names with values"),
    "an unknown key": (_changed(model={**MODEL, "heads": 8}), 2, "unknown key 'heads'"),
    "text for channels": (_changed(model={**MODEL, "channels": "many"}), 2, "expected int"),
    "a billion channels": (_changed(model={**MODEL, "channels": 32 * 10**8}), 2, "is outside"),
    "4,096 channels that the file has not": (
        _changed(model={**MODEL, "channels": 4096, "channel_mults": [16, 16]}), BAD_DATA,
        "weights of another network",
    ),
    "no weights": (_without_weights, BAD_DATA, "missing or altered"),
    "one flipped bit": (_replaced(_flipped, signed=False), BAD_DATA, "its checksum differs"),
    "weights cut off, hash made to fit": (
        _replaced(lambda data: data[:-9]), BAD_DATA, "not a safetensors file",
    ),
    "Git-LFS pointer for weights": (_replaced(lambda _: LFS), BAD_DATA, "a Git-LFS pointer"),
    "web page for weights": (_replaced(lambda _: HTML), BAD_DATA, "a web page"),
    "a weight missing": (
        _replaced(_tensors(lambda state: state.pop(FIRST))), BAD_DATA, f"{FIRST} is missing",
    ),
    "a weight too many": (
        _replaced(_tensors(lambda state: state.update(x=torch.zeros(1)))), BAD_DATA, "x is unknown",
    ),
    "a weight of another shape": (
        _replaced(_tensors(lambda state: state.update({FIRST: torch.zeros(3)}))), BAD_DATA,
        f"{FIRST} is (3,), not (128,)",
    ),
    "NaN among the weights": (
        _replaced(_tensors(lambda state: state[FIRST].fill_(float("nan")))), BAD_DATA,
        "NaN or infinite values",
    ),
    "weights in half precision": (
        _replaced(_tensors(lambda state: state.update({k: v.half() for k, v in state.items()}))),
        DONE, " values",
    ),
}  # fmt: skip


# ---------------------------------------------------------------- checkpoints


def write_run(folder: Path) -> None:
    """Write a run with checkpoints of steps 9 and 10."""
    for step in (9, 10):
        save_checkpoint(folder, step, {"ema": STATE, "weights": STATE}, {"world": 1}, keep=2)


def _broken(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_run(folder)
        change(folder / "checkpoints/step_00000010")

    return make


def _flip(path: Path) -> None:
    path.write_bytes(_flipped(path.read_bytes()))


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def make(step: Path) -> None:
        manifest = read_json(step / "manifest.json")
        write_json(step / "manifest.json", change(manifest))

    return make


def _linked(step: Path) -> None:
    (step / "ema.safetensors").unlink()
    (step / "ema.safetensors").symlink_to("/dev/zero")


def _outside(manifest: dict[str, Any]) -> dict[str, Any]:
    files = manifest["files"]
    return {**manifest, "files": {**files, "../../../ema.safetensors": files["ema.safetensors"]}}


BEFORE = "step 9, ['ema', 'weights']"
BROKEN_RUNS: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "manifest cut off": lambda step: (step / "manifest.json").write_text('{"files": {'),
    "manifest is a list": _manifest(lambda _: []),
    "manifest without files": _manifest(lambda _: {"step": 10}),
    "manifest that says nothing": _manifest(lambda m: {**m, "files": {"state.json": 7}}),
    "manifest name leads out": _manifest(_outside),
    "a file missing": lambda step: (step / "ema.safetensors").unlink(),
    "a file half copied": lambda step: (step / "ema.safetensors").write_bytes(b"x"),
    "a file that is a link to a device": _linked,
    "one flipped bit in the weights": lambda step: _flip(step / "ema.safetensors"),
    "one flipped bit in the state": lambda step: (step / "state.json").write_text("{}"),
    "an empty folder": lambda step: shutil.rmtree(step) or step.mkdir(),
}


# ---------------------------------------------------------------- the authors' checkpoint


def archive(files: dict[str, bytes]) -> bytes:
    """A zip archive as torch writes it, uncompressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, data in files.items():
            out.writestr(name, data)
    return buffer.getvalue()


def ended(end: bytes, size: bytes = b"") -> bytes:
    """An archive with something before its end record, or another size of its directory there."""
    whole = archive({"a/data.pkl": b"x"})
    body, record = whole[:-22], whole[-22:]
    return body + end + (record[:12] + size + record[16:] if size else record)


OFFICIAL: dict[str, tuple[bytes, str]] = {
    "first of several disks": (
        ended(struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2)), "nothing in it was run",
    ),
    "directory before the file's start": (ended(b"", b"\xff\xff\xff\x7f"), "nothing in it was run"),
    "empty": (b"", "the file is empty"),
    "web page": (HTML, "a web page"),
    "cut off": (saved({"ema": STATE})[:-300], "nothing in it was run"),
    "archive of something else": (archive({"a.txt": b"x"}), "nothing in it was run"),
    "two pickles": (archive({"a/data.pkl": b"", "b/data.pkl": b""}), "nothing in it was run"),
    "compressed": (packed(saved({"ema": STATE})), "it is compressed"),
    "neither ema nor model": (saved({"other": STATE}), "neither 'ema' nor 'model'"),
    "weights that are numbers": (saved({"ema": {"a": 1}}), "something else than a tensor"),
    "a pickle that calls": (saved({"ema": Calls()}), "would call"),
    "a pickle without end": (archive({"a/data.pkl": b"("}), "nothing in it was run"),
    "a pickle of a huge number": (
        archive({"a/data.pkl": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40)}), "nothing in it was",
    ),
}  # fmt: skip

CASES = (
    *_weights(),
    *(Case(f"model: {name}", make, reading("model", "m"), code, why)
      for name, (make, code, why) in MODELS.items()),
    Case("run: good", write_run, reading("checkpoint", "."), DONE, "step 10"),
    Case("run: none", {}, reading("checkpoint", "."), DONE, "none"),
    *(Case(f"run: {name}", _broken(change), reading("checkpoint", "."), DONE, BEFORE)
      for name, change in BROKEN_RUNS.items()),
    *(Case(f"authors' checkpoint: {name}", {"last.pt": data}, reading("official", "last.pt"),
           BAD_DATA, why) for name, (data, why) in OFFICIAL.items()),
)  # fmt: skip
