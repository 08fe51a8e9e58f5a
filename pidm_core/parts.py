"""Single parts of ours beside what they replace, to be timed in turns on a CPU."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pidm_core import benchmark, official
from pidm_core.config import DiffusionConfig, ModelConfig, PIDMConfig
from pidm_core.diffusion import Denoise, Diffusion
from pidm_core.files import UserError, encode_jpeg, write_bytes
from pidm_core.hardware import Placement, fast_bf16, place
from pidm_core.layers import GROUPS, Conv, GroupNorm, by_onednn
from pidm_core.options import load_config

CPU = torch.device("cpu")
AUTHORS = "models/unet_autoenc.py"


@dataclass(frozen=True)
class Part:
    """The other way, then ours; tensors that calls give are equal but for rounding."""

    what: str
    other: str  # the name of that way
    acts: Sequence[Callable[[], Any]]
    count: float = 1  # things done by a call, over which its seconds are shared out
    ours: Sequence[str] = ("",)  # the names of our ways
    note: str = ""
    learns: bool = False  # else no gradients are asked for


@dataclass(frozen=True)
class Figure:
    """Seconds of the other way and of ours; `ratio` is how many times faster ours is."""

    what: str
    other: str
    other_seconds: float
    seconds: float
    ratio: float
    difference: float | None  # of what is sampled, relative to its largest value
    note: str


HEADING = f"{'':88} {'the other':>12} {'ours':>12} {'times faster':>12} {'difference':>10}"


def measure(part: Part) -> Iterator[Figure]:
    """One figure for each of our ways."""
    with torch.inference_mode(not part.learns):
        expected, *found = (act() for act in part.acts)
        differences = [None if part.learns else _difference(expected, one) for one in found]
        slow, *fast = benchmark.in_turns(part.acts, before=0, rounds=5)
    for name, seconds, difference in zip(part.ours, fast, differences, strict=True):
        what = part.what + f", {name}" * bool(name)
        both = slow / part.count, seconds / part.count
        yield Figure(what, part.other, *both, slow / seconds, difference, part.note)


def _difference(expected: Any, found: Any) -> float | None:
    if not (isinstance(expected, Tensor) and isinstance(found, Tensor)):
        return None
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def line(figure: Figure) -> str:
    """A figure for reading, under HEADING."""
    both = (f"{1000 * s:9.2f} ms" for s in (figure.other_seconds, figure.seconds))
    difference = "" if figure.difference is None else f"{figure.difference:.0e}"
    what = f"{figure.what}: {figure.other}"
    text = f"{what:88} {' '.join(both)} {figure.ratio:12.2f} {difference:>10}  {figure.note}"
    return text.rstrip()


# ---------------------------------------------------------------- layers


def norms(shape: tuple[int, int, int, int] = (32, 64, 64, 32)) -> Iterator[Part]:
    """GroupNorm forward and backward in channels_last."""

    def gradient(norm: nn.Module, x: Tensor, dy: Tensor) -> Tensor:
        x.grad = None
        norm(x).backward(dy)
        assert x.grad is not None
        return x.grad

    for dtype in precisions():
        x = random(shape, dtype).requires_grad_()
        dy = x.detach().roll(1, 1)  # of x itself nothing would come through
        both = nn.GroupNorm(GROUPS, shape[1]), GroupNorm(shape[1])
        acts = [partial(gradient, norm.to(dtype), x, dy) for norm in both]
        what = f"GroupNorm and its gradient, {_size(shape)}, {benchmark.name_of(dtype)}"
        yield Part(what, "torch", acts, learns=True)


def silus(shape: tuple[int, int, int, int] = (8, 128, 128, 64)) -> Iterator[Part]:
    """SiLU of a large map in bfloat16, a million values; both ways into a new map."""
    if torch.bfloat16 not in precisions():
        return
    h = random(shape, torch.bfloat16)
    acts = [partial(F.silu, h), partial(by_onednn, h, "swish")]
    what = f"SiLU, 10^6 values of {_size(shape)}, bfloat16"
    yield Part(what, "torch", acts, h.numel() / 1e6)


def convolutions(
    shapes: Sequence[tuple[int, int, int, int]] = (
        (8, 64, 128, 64), (8, 128, 128, 64), (8, 128, 64, 32), (8, 256, 64, 32), (8, 256, 32, 16),
    ),
) -> Iterator[Part]:  # fmt: skip
    """3x3 convolutions in fp32 by Winograd's F(4x4, 3x3)."""
    for shape in shapes:
        ours = Conv(shape[1], shape[1], 3, padding=1)
        theirs = nn.Conv2d(shape[1], shape[1], 3, padding=1)
        theirs.load_state_dict(ours.state_dict())
        ours.frozen = True
        placement, x = Placement(CPU, torch.float32), random(shape, torch.float32)
        acts = [partial(placement.module(conv), x) for conv in (theirs, ours)]
        yield Part(f"3x3 convolution, {_size(shape)}, float32", "torch", acts)


# ---------------------------------------------------------------- sampling


def compiled(config: ModelConfig | None = None, batch: int = 16) -> Iterator[Part]:
    """A guided step of the bundled model's network by torch.compile, its first call noted."""
    if shutil.which("g++") is None:
        return  # torch.compile needs it
    config = config or load_config(PIDMConfig, benchmark.BUNDLED).model
    from torch._inductor.config import patch
    from torch._inductor.utils import fresh_cache

    placement, diffusion = place(device=CPU), Diffusion(DiffusionConfig())
    given = benchmark.conditions(config, batch, CPU)
    other, ours = (placement.module(benchmark.network(config)) for _ in range(2))
    other.denoiser.compile()
    ours.freeze()
    with torch.inference_mode(), fresh_cache(), patch(freezing=True):
        acts = [
            partial(_eps, benchmark.ours(model, diffusion, given, "style", placement), given)
            for model in (other, ours)
        ]
        begin = time.perf_counter()
        acts[0]()
        note = f"its first call took {time.perf_counter() - begin:.0f} s"
    what = f"guided step of style, batch {batch}, per image, bundled model's network"
    yield Part(what, "torch.compile", acts, batch, note=note)


def check_clone(folder: str | Path) -> None:
    """UserError for a folder that is no clone of ankanbhunia/PIDM."""
    if not (Path(folder) / AUTHORS).is_file():
        raise UserError(f"{folder}: no clone of ankanbhunia/PIDM ({AUTHORS} is not there)")


def authors(clone: str | Path, size: tuple[int, int] = (128, 64)) -> Iterator[Part]:
    """A guided step of `style` by the authors' network, and by ours with its weights.

    clone: of ankanbhunia/PIDM (`check_clone`); its code is imported.
    """
    sys.path.insert(0, str(clone))
    try:
        from models.unet_autoenc import BeatGANsAutoencConfig  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(clone))
    torch.manual_seed(0)
    # Their config/diffconfig.py, which imports packages that sampling does not need.
    network = BeatGANsAutoencConfig(
        image_size=256, in_channels=23, model_channels=128, out_channels=6, num_res_blocks=2,
        embed_channels=512, attention_resolutions=(32, 16, 8), dropout=0.1,
        channel_mult=(1, 1, 2, 2, 4, 4), resblock_updown=True, resnet_two_cond=True,
        enc_channel_mult=(1, 1, 2, 2, 4, 4, 4), enc_pool="adaptivenonzero",
    ).make_model().eval()  # fmt: skip
    benchmark.fill_zeros(network)
    state, diffusion = network.state_dict(), Diffusion(DiffusionConfig())
    config = official.structure(state, size)
    plain = official.from_state_dict(state, config)
    for batch in (1, 8):
        given = benchmark.conditions(config, batch, CPU)
        with torch.inference_mode():
            texture = [network.encode(x)["cond"] for x in (given.x_s, torch.zeros_like(given.x_s))]
            ways = [benchmark.reference(plain, diffusion, given, "style")]
            for dtype in precisions():
                placement = Placement(CPU, dtype)
                model = placement.module(official.from_state_dict(state, config))
                ways.append(benchmark.ours(model, diffusion, given, "style", placement))
                model.freeze()
        theirs = partial(_authors_step, network, given, texture)
        ours = ["our reference", *map(benchmark.name_of, precisions())]
        what = f"guided step of style, batch {batch}, per image, paper's network"
        acts = [theirs, *(partial(_eps, way, given) for way in ways)]
        yield Part(what, "the authors' code", acts, batch, ours)


def _authors_step(network: Any, given: benchmark.Conditions, texture: list[Any]) -> Tensor:
    x = torch.cat([given.y_t, given.x_p], 1)
    eps: Tensor = network.forward_with_cond_scale(x, given.t, texture, benchmark.W_S)[0][:, :3]
    return eps


def _eps(denoise: Denoise, given: benchmark.Conditions) -> Tensor:
    return denoise(given.y_t, given.t)[:, :3]


# ---------------------------------------------------------------- files


def files(count: int = 160) -> Iterator[Part]:
    """Images of noise, 128x64, each on the disk before the next; ours whole or not at all."""
    data = encode_jpeg(np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8))

    def plain(path: Path) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def write(one: Callable[[Path], None], home: str) -> bytes:
        for k in range(count):
            one(Path(home) / f"{k}.jpg")
        return (Path(home) / "0.jpg").read_bytes()

    with TemporaryDirectory(dir=".") as theirs, TemporaryDirectory(dir=".") as ours:
        acts = [
            partial(write, plain, theirs),
            partial(write, lambda path: write_bytes(path, data), ours),
        ]
        what = f"writing a file of {len(data) / 1000:.1f} KB"
        yield Part(what, "written in place and synced", acts, count)


# ---------------------------------------------------------------- inputs and names


def precisions() -> list[torch.dtype]:
    """fp32, and bfloat16 where this CPU multiplies it."""
    return [torch.float32, *[torch.bfloat16] * fast_bf16(CPU)]


def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Noise in channels_last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
