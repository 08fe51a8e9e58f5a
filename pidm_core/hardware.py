"""What the machine is good at: device, precision and memory layout."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pidm_core.config import Precision
from pidm_core.files import ENVIRONMENT, UserError

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class Placement:
    """Where and how a network runs; always in the channels_last layout."""

    device: torch.device
    dtype: torch.dtype

    def module(self, module: Module) -> Module:
        """Move a module there, in this precision and layout."""
        module.to(self.device, self.dtype)
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Move (B, C, H, W) values there, in this precision and layout."""
        return values.to(self.device, self.dtype, memory_format=torch.channels_last)

    def images(self, images: np.ndarray) -> torch.Tensor:
        """The door in: uint8 (B, H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return self.tensor(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)

    def __str__(self) -> str:
        return f"{self.device.type}, {str(self.dtype).removeprefix('torch.')}, channels_last"


def to_uint8(y: torch.Tensor) -> np.ndarray:
    """The door out: (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    pixels = (y.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def place(precision: Precision = "auto", device: torch.device | None = None) -> Placement:
    """The device that is there, and bf16 where the hardware multiplies it.

    Measured on two AVX2 cores, 3x3 convolutions: bf16 is ten times slower than fp32 there, and
    channels_last 1.2 to 2 times faster than contiguous. With AMX, bf16 is the fast one.
    """
    device = device or _own_device()
    if device.type == "cpu":
        tune_allocator()
    bf16 = precision == "bf16" or (precision == "auto" and fast_bf16(device))
    return Placement(device, torch.bfloat16 if bf16 else torch.float32)


def _own_device() -> torch.device:
    """The GPU of this process among those that a launcher started; the CPU without any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


@contextmanager
def names_memory(advice: str) -> Iterator[None]:
    """UserError (ENVIRONMENT) with `advice` where the memory of device or host does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "tried to allocate" not in str(error):  # the CPU's has no type of its own
            raise
        raise UserError(f"out of memory; {advice}", ENVIRONMENT) from error


@cache
def tune_allocator() -> None:
    """Let the C allocator keep freed blocks instead of handing each back to the kernel.

    Measured once, on a busy machine, on a training step like the toy network's: 1.3 times.
    And where the kernel gives large pages to those that ask, ask for them: a training step of the
    paper's network took 4.1 s without and 3.6 with them (4 pairs, bf16, one Xeon core), and its
    first one 3 thousand page faults instead of 600 thousand.
    """
    if sys.platform != "linux":
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.is_file() or "[madvise]" not in mode.read_text():
        return
    # Room for what is to come, as addresses only: memory is taken page by page when written to.
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    libc.free(libc.malloc(ctypes.c_size_t(room)))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            size = ctypes.c_size_t(end - start)
            libc.madvise(ctypes.c_void_p(start), size, MADV_HUGEPAGE)
