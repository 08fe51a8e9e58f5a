"""Weight files from outside -> tensors by name; nothing in a file is run."""

from __future__ import annotations

import errno
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidm_core.files import BAD_DATA, ENVIRONMENT, UserError

_HEAD_BYTES = 512
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-z]", re.IGNORECASE)
# torchreid's checkpoints hold numbers of numpy beside tensors (rank-1); numpy 1 and 2 name them so.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64")),
]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, a torch file or a torchreid checkpoint, by name.

    Raises UserError: ENVIRONMENT if there is no such file, BAD_DATA for anything but weights.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weight file", ENVIRONMENT)
    refuse_stand_ins(path)
    found = _load(path)
    if isinstance(found, Mapping):
        found = found.get("state_dict", found)
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: not a plain state dict but a {type(found).__name__}", BAD_DATA)
    for name, value in found.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise UserError(
                f"{path}: {str(name)[:80]!r} is no named tensor of numbers; give a state dict",
                BAD_DATA,
            )
    return {name.removeprefix("module."): value for name, value in found.items()}


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def refuse_stand_ins(path: Path) -> None:
    """UserError (BAD_DATA) if a file begins as what Git or a web server gives instead."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git-LFS pointer, not the weights; run git lfs pull", BAD_DATA)
    if _PAGE.match(head) and b"\0" not in head:  # safetensors begins with a number of 8 bytes
        raise UserError(f"{path}: a web page, not the weights; download the file itself", BAD_DATA)


def refuse_compressed(archive: zipfile.ZipFile) -> None:
    """ValueError for an archive that could unpack without end; torch stores, it never packs."""
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("it is compressed, which torch never does")


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                refuse_compressed(archive)
        allowed = torch.serialization.get_safe_globals()  # at its end the block would forbid these
        with torch.serialization.safe_globals([kind for kind in _NUMBERS if kind not in allowed]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:  # torch's own words advise to run what is in the file
        raise UserError(
            f"{path}: not a plain state dict; nothing in it was run; save one with "
            "torch.save(model.state_dict(), …)",
            BAD_DATA,
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen kinds on broken bytes
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one: a wrong place
            raise
        raise UserError(
            f"{path}: not a whole weight file, perhaps cut off; download it again", BAD_DATA
        ) from error
