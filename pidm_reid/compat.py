"""One import of torchreid that works for the PyPI package and for the upstream repository.

The PyPI package 0.2.5 hides its rooms in `torchreid.reid`, so `import torchreid.data` fails there;
after `torchreid()` it works in both. Everything of ours reaches torchreid through this room.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from pidm_core import ENVIRONMENT, UserError

log = logging.getLogger(__name__)
_numbers = itertools.count()


@functools.cache
def torchreid() -> Any:
    """The torchreid package, quiet, with `torchreid.X` importable in both of its forms.

    Raises UserError (ENVIRONMENT) naming the missing package if it cannot be imported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Cython evaluation, invalid escapes
        try:
            import torchreid
        except ImportError as error:
            raise UserError(
                f"torchreid cannot be imported ({error}); install torchreid, gdown, "
                "opencv-python-headless, scipy and tensorboard",
                ENVIRONMENT,
            ) from error
    for name, module in list(sys.modules.items()):
        if name.startswith("torchreid.reid."):
            sys.modules.setdefault(name.replace(".reid.", ".", 1), module)
    _allow_its_checkpoints()
    return torchreid


def _allow_its_checkpoints() -> None:
    """torchreid stores rank-1 as a numpy number, which torch >= 2.6 refuses to load."""
    import numpy as np
    import torch
    from numpy._core import multiarray

    kinds: list[Any] = [np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]
    torch.serialization.add_safe_globals([multiarray.scalar, *kinds])


def data_sets() -> dict[str, Any]:
    """torchreid's own registry of image data sets, name -> class (changes to it count)."""
    rooms: ModuleType = torchreid().data.datasets
    registry: dict[str, Any] = getattr(rooms, "__image_datasets")
    return registry


def base_class(name: str) -> type[Any]:
    """The class of a data set that torchreid knows; UserError names the known ones."""
    if "duke" in name.lower():
        raise UserError(f"{name}: DukeMTMC was withdrawn in 2019 and is not supported")
    known = data_sets()
    if not isinstance(known.get(name), type):
        raise UserError(
            f"torchreid knows no data set '{name}'; it knows {', '.join(sorted(known))}"
        )
    cls: type[Any] = known[name]
    return cls


@contextlib.contextmanager
def registered(cls: type[Any]) -> Iterator[str]:
    """Register a data set under a name of its own for the length of a `with` block."""
    name = f"pidm_reid_{next(_numbers)}"
    data_sets()[name] = cls
    try:
        yield name
    finally:
        del data_sets()[name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what torchreid prints to the log (level debug), and drop its warnings."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for line in said.getvalue().splitlines():
        log.debug("torchreid: %s", line)
