"""One import of torchreid that works for the PyPI package and for the upstream repository.

The PyPI package 0.2.5 hides its rooms in `torchreid.reid`, so `import torchreid.data` fails there;
after `torchreid()` it works in both. Everything of ours reaches torchreid through this room.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from pidm_core import BAD_DATA, ENVIRONMENT, UserError

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
    samplers = sys.modules["torchreid.data.sampler"]
    _explain(samplers.RandomDomainSampler, column=2, what="camera")
    _explain(samplers.RandomDatasetSampler, column=3, what="data set")
    return torchreid


def _explain(sampler: type[Any], *, column: int, what: str) -> None:
    """Say what lacks where torchreid ends in a bare assertion or ValueError.

    sampler: takes equally many images of several groups, which a column of the training tuples
    numbers from 0.
    """
    original = sampler.__init__
    parameters = inspect.signature(original)

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        given = parameters.bind(self, *args, **named).arguments.values()
        _, data_source, batch_size, number = given  # the last is n_domain or n_dataset
        counts = Counter(item[column] for item in data_source)
        groups = number if number and number > 0 else len(counts)
        each, over = divmod(batch_size, groups)
        fewest = min(counts, key=lambda group: (counts[group], group))
        if groups > len(counts):
            why = f"a batch of {groups} {what}s is asked for, the training set has {len(counts)}"
        elif over or not each:
            why = f"a batch of {batch_size} is not shared evenly by {groups}; take a multiple of it"
        elif counts[fewest] < each:
            why = (
                f"{what} {fewest + 1} has {counts[fewest]} training images and a batch takes "
                f"{each} of each; take a smaller batch, or another sampler"
            )
        else:
            original(self, *args, **named)
            return
        raise UserError(f"{sampler.__name__}: {why}", BAD_DATA)

    sampler.__init__ = __init__


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
