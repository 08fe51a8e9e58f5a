"""The authors' checkpoint (ankanbhunia/PIDM, last.pt) to a run folder of ours.

The file is torch's zip archive: a pickle that describes everything, and the bytes of each tensor.
A pickle may name any function to be called, and the authors' `conf` is an object of their own, so
this reader builds tensors and dictionaries and puts an inert object in the place of all else.
"""

from __future__ import annotations

import errno
import functools
import io
import math
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pidm_core.checkpoint import save_model
from pidm_core.config import ModelConfig, PIDMConfig, SampleConfig
from pidm_core.files import BAD_DATA, UserError
from pidm_core.model import PIDM
from pidm_core.options import save_config
from pidm_core.weight_files import refuse_compressed, refuse_stand_ins

SIZE = (256, 256)
"""Height and width the authors train on; their checkpoint does not say."""
SAMPLE = SampleConfig(
    steps=100, sampler="ddim", spacing="leading", clip=False, guidance="style", w_s=2.0
)
"""How the authors sample. Their training drops the style alone: the branches without a pose that
dcf, chain and cf evaluate were never trained."""

_UNUSED = re.compile(
    r"(?:^|\.)(qkv|proj_out1|cond_emb_layers)\.|^(encoder)\.(?:.*\.)?(time_embed|emb_layers)\."
)
_PARTS = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "skip": "skip_connection",
    "phi_q": "to_q",
    "phi_kv": "to_kv",
    "W": "proj_out2",
}


@dataclass(frozen=True)
class Converted:
    """What was taken from a checkpoint, and what was not."""

    part: str  # "ema" or "model"
    other_parts: tuple[str, ...]
    unused: dict[str, int]  # kind of weight that the authors' network never uses -> values
    parameters: int


def convert(
    checkpoint: Path, run: Path, *, size: tuple[int, int] = SIZE, dry_run: bool = False
) -> Converted:
    """Write the run folder (config.yaml, model/) of the authors' checkpoint.

    size: height and width that it was trained on. A dry run reads and checks, and writes nothing.
    Raises UserError for a folder that holds a run or model, and (BAD_DATA) for any other file than
    the authors' checkpoint.
    """
    if there := [name for name in ("checkpoints", "model", "config.yaml") if (run / name).exists()]:
        raise UserError(f"{run}: holds a training run or model ({there[0]}); give another --out")
    part, state, other_parts = read_checkpoint(checkpoint)
    config = PIDMConfig(data="data/deepfashion", model=structure(state, size), sample=SAMPLE)
    model = from_state_dict(state, config.model, name=str(checkpoint))
    if not dry_run:
        save_model(run / "model", model.state_dict(), config, card=_card(part, size))
        save_config(config, run / "config.yaml")
    parameters = sum(p.numel() for p in model.parameters())
    return Converted(part, other_parts, unused(state), parameters)


# ---------------------------------------------------------------- names and shapes


def from_state_dict(
    state: Mapping[str, Tensor], config: ModelConfig, *, name: str = "state"
) -> PIDM:
    """Our network (fp32) with weights under the authors' names; `name` is for messages.

    Raises UserError (BAD_DATA) with the first five keys that do not fit.
    """
    weights = rename(state, config, name=name)
    if bad := [key for key, weight in weights.items() if not weight.isfinite().all()]:
        raise UserError(f"{name}: NaN or infinite values in {bad[0]}", BAD_DATA)
    with torch.device("meta"):  # no time and memory for random weights
        model = PIDM(config)
    own = {
        key: weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for key, weight in weights.items()
    }
    model.load_state_dict(own, assign=True)
    return model.eval()


def rename(
    state: Mapping[str, Tensor], config: ModelConfig, *, name: str = "state"
) -> dict[str, Tensor]:
    """The weights under our names and in our shapes, those never used left out."""
    with torch.device("meta"):
        model = PIDM(config)
    own, names = model.state_dict(), authors_names(model)
    known = set(names.values())
    weights = {k: _fitted(o, state[k], own[o].shape) for o, k in names.items() if k in state}
    wrong = [f"{k} is unknown" for k in state if k not in known and not _UNUSED.search(k)]
    wrong += [f"{k} is missing" for k in names.values() if k not in state]
    wrong += [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[o].shape)}"
        for o, k in names.items()
        if k in state and weights[k].shape != own[o].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{name}: not the authors' network: {'; '.join(wrong[:5])}{more}; "
            "give the last.pt of ankanbhunia/PIDM",
            BAD_DATA,
        )
    return {o: weights[k] for o, k in names.items()}


def authors_names(model: PIDM) -> dict[str, str]:
    """Our name -> the authors' name of each weight."""
    places = {
        "time": "time_embed.time_embed",
        "denoiser.middle.0.block": "middle_block.0",
        "denoiser.middle.0.texture": "middle_block.1",
        "denoiser.middle.1.block": "middle_block.2",
        "denoiser.out": "out",
    }
    assert model.encoder is not None  # their network is the one with texture blocks
    for k in range(len(model.encoder.layers)):
        places[f"encoder.layers.{k}"] = f"encoder.input_blocks.{k}.0"
    denoiser = model.denoiser
    for ours, layers, theirs in (
        ("down", denoiser.down, "input_blocks"),
        ("up", denoiser.up, "output_blocks"),
    ):
        for k, layer in enumerate(layers):
            parts = [name for name, _ in layer.named_children()]  # block, texture, upsample
            for i, part in enumerate(parts):
                places[f"denoiser.{ours}.{k}.{part}"] = f"{theirs}.{k}.{i}"
    names = {}
    for place, theirs in places.items():
        for name in model.get_submodule(place).state_dict():
            part, dot, tail = name.partition(".")
            names[f"{place}.{name}"] = f"{theirs}.{_PARTS.get(part, part)}{dot}{tail}"
    return names


def _fitted(name: str, weight: Tensor, shape: torch.Size) -> Tensor:
    """The weight that we call `name` in our shape where that changes nothing, else as it is.

    Their 1x1 convolutions are (C, C, 1). Their embedding of the noise level may be narrower than
    ours: zeros beside it stay zeros through SiLU and add nothing to the products that follow.
    """
    if weight.ndim == 3:
        return weight[..., None]
    wider = (0, 1) if name == "time.2.weight" else (0,) if name.startswith("time.") else ()
    wider = (1,) if name.endswith(".emb.weight") else wider
    if weight.ndim != len(shape) or any(weight.shape[dim] > shape[dim] for dim in wider):
        return weight
    missing = [shape[dim] - weight.shape[dim] if dim in wider else 0 for dim in range(len(shape))]
    return F.pad(weight, [n for count in reversed(missing) for n in (0, count)])


def structure(state: Mapping[str, Tensor], size: tuple[int, int] = SIZE) -> ModelConfig:
    """The configuration that weights under the authors' names belong to, read off their shapes.

    Weights that make no sense get the authors' published one, so that a comparison names the keys.
    """
    try:
        channels = len(state["input_blocks.0.0.bias"])
        layers = len({key.split(".")[1] for key in state if key.startswith("input_blocks.")})
        upsampled = re.compile(r"output_blocks\.\d+\.[12]\.in_layers\.0\.bias")
        levels = 1 + sum(bool(upsampled.fullmatch(key)) for key in state)
        stride = layers // levels  # the residual blocks of a level and its downsampling
        widths = [
            len(state[f"input_blocks.{level * stride + 1}.0.out_layers.3.bias"])
            for level in range(levels)
        ]
        return ModelConfig(
            size=size,
            channels=channels,
            channel_mults=tuple(width // channels for width in widths),
            blocks_per_level=stride - 1,
            texture_factors=tuple(
                2**level
                for level in range(levels)
                if f"input_blocks.{(level + 1) * stride - 1}.1.to_q.weight" in state
            ),
        )
    except (KeyError, TypeError, ZeroDivisionError, UserError):
        return ModelConfig(size=size, texture_factors=(8, 16, 32))


def unused(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Kinds of weights that the authors declare and never use, and how many values each has."""
    counts: Counter[str] = Counter()
    for key, weight in state.items():
        if found := _UNUSED.search(key):
            counts[".".join(filter(None, found.groups()))] += weight.numel()
    return dict(sorted(counts.items()))


# ---------------------------------------------------------------- the file


def read_checkpoint(path: Path) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """The averaged weights (else the plain ones) in torch's file, without running any of it.

    Returns the part taken ("ema" or "model"), its tensors, and the names of the other parts.
    Raises UserError (BAD_DATA) for anything else than such a file.
    """
    _check_kind(path)
    try:
        with zipfile.ZipFile(path) as archive:
            home, tree = _read_tree(archive)
            parts = _named(tree, "its content")
            part = next((name for name in ("ema", "model") if name in parts), None)
            if part is None:
                found = ", ".join(list(parts)[:5])
                raise ValueError(f"neither 'ema' nor 'model' among its parts ({found})")
            weights = _named(parts[part], f"its part '{part}'")
            read = functools.cache(lambda key: bytearray(archive.read(f"{home}data/{key}")))
            state = {name: _tensor(value, read) for name, value in weights.items()}
            return part, state, tuple(name for name in parts if name != part)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # broken archives and pickles raise a dozen kinds
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one: a wrong place
            raise
        why = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a whole checkpoint of the authors ({why}); nothing in it was run; "
            "download it again",
            BAD_DATA,
        ) from error


def _check_kind(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the authors' last.pt", BAD_DATA)
    refuse_stand_ins(path)
    if not _is_archive(path):
        size = path.stat().st_size
        why = "the file is empty" if not size else "not a zip archive of torch >= 1.6, or cut off"
        raise UserError(f"{path}: {why}; nothing in it was run; download it again", BAD_DATA)


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # part of one
        return False


class _Inert:
    """In the place of whatever a pickle names besides tensors; takes anything and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> _Inert:
        return self

    __setstate__ = __setitem__ = append = extend = add = __init__


class _Names(dict[str, Any]):
    """An OrderedDict of a pickle, without the attributes that torch hangs on it."""

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class _Stored:
    """A tensor as a pickle describes it."""

    storage: tuple[Any, ...]  # "storage", dtype, name in the archive, device, count
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_BUILT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Names,
    ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _Stored(*args[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
}
_HOSTILE = {"os", "posix", "nt", "sys", "subprocess", "commands"}  # the last is Python 2's name


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(io.BytesIO(data))
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        # These would be inert as well, but whoever sent them is not to be trusted.
        if module in _HOSTILE or name in ("eval", "exec"):
            call = repr(f"{module}.{name}")
            raise UserError(
                f"{self.name}: would call {call} when loaded, which no weights need; "
                "nothing in it was run; delete it",
                BAD_DATA,
            )
        return _BUILT.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _read_tree(archive: zipfile.ZipFile) -> tuple[str, Any]:
    """The archive's inner folder, and what its pickle describes."""
    refuse_compressed(archive)
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    try:
        tree = _Unpickler(archive.read(pickled), str(archive.filename)).load()
    except MemoryError as error:  # it names a length, and the memory is asked for at once
        raise ValueError("it asks for more memory than there is") from error
    return pickled.removesuffix("data.pkl"), tree


def _named(value: object, what: str) -> dict[str, Any]:
    """The value, if it is a dictionary whose keys are names that can be shown in a message."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a dictionary")
    if not all(isinstance(key, str) and key.isprintable() for key in value):
        raise ValueError(f"{what} has keys that are no names")
    return value


def _tensor(value: object, read: Callable[[str], bytearray]) -> Tensor:
    """The tensor that a pickle describes; several may share what `read` gives for a storage."""
    if not isinstance(value, _Stored):
        raise ValueError("something else than a tensor among its weights")
    _, dtype, key, *_ = value.storage
    if not isinstance(dtype, torch.dtype):
        raise ValueError("weights of a type that the authors do not use")
    data = torch.frombuffer(read(str(key)), dtype=dtype)
    if math.prod(value.size) > len(data):
        raise ValueError("a tensor larger than its values")
    return data.as_strided(value.size, value.stride, value.offset)


def _card(part: str, size: tuple[int, int]) -> str:
    weights = "the exponential moving average" if part == "ema" else "as trained, not averaged"
    return f"""---
library_name: pidm-reid
tags: [person-image-synthesis, diffusion]
---
# PIDM, {size[0]}x{size[1]}, the authors' weights

Draws a person from a source image in a target pose (Bhunia et al., CVPR 2023).
Converted from a checkpoint of ankanbhunia/PIDM, which its authors trained on DeepFashion.
Weights: {weights}. Settings: config.json, those of the authors' sampler.

Intended use: research.
Not intended for identifying or tracking people.
The terms of the authors and of DeepFashion hold for this model as well.
"""
