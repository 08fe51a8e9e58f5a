"""Another device than the CPU, where none is: torch's "meta" knows devices, but no values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from tiny import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pidm_core import PIDMConfig
from pidm_core.config import DiffusionConfig, Guidance, SampleConfig, Sampler, Texture
from pidm_core.diffusion import Diffusion, sample_images, unstyled
from pidm_core.hardware import Placement
from pidm_core.model import PIDM
from pidm_core.pose import pose_map
from pidm_core.train import HybridLoss

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
META = torch.device("meta")
MIXED_IN_SILENCE = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.native_group_norm.default,
}
"""What takes inputs of several devices and precisions on "meta" and would not on a GPU."""


class AsOnGPU(TorchDispatchMode):
    """Refuses what a GPU would refuse, and counts what a GPU would have to be waited for."""

    waits = 0  # copies to the device; from it is an error here

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in MIXED_IN_SILENCE:
            tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            kinds = {(x.device.type, x.dtype) for x in tensors}
            assert kinds == {(META.type, tensors[0].dtype)}, f"{func}: {kinds}"
        result = func(*args, **(kwargs or {}))
        if func in COPIES:
            self.waits += args[0].device != META and result.device == META
        return result


def images(placement: Placement, channels: int) -> torch.Tensor:
    return placement.tensor(torch.empty(4, channels, *TINY.size, device=META))


def poses(placement: Placement) -> torch.Tensor:
    return placement.tensor(pose_map(torch.empty(4, 18, 2, device=META), TINY.size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_stays_on_the_device_and_waits_for_nothing(
    dtype: torch.dtype, recompute: bool
) -> None:
    placement = Placement(META, dtype)
    model = placement.module(PIDM(replace(TINY, positions=True), recompute=recompute))
    diffusion = Diffusion(DiffusionConfig(prediction="y_0"))
    loss = HybridLoss(model, diffusion, PIDMConfig(model=TINY))

    for _ in range(2):
        batch = images(placement, 3), poses(placement), images(placement, 3)
        with AsOnGPU() as mode:
            mse, vlb = loss(*batch)
            (mse + vlb).backward()

    assert mode.waits == 0
    assert mse.device == vlb.device == META
    assert mse.dtype == torch.float32
    assert all(p.grad is not None and p.grad.device == META for p in model.parameters())


@pytest.mark.parametrize(
    ("guidance", "sampler", "texture"),
    [
        *((guidance, "ddim", "attention") for guidance in get_args(Guidance)),
        *(("chain", sampler, "attention") for sampler in ("ddpm", "dpm++")),
        *(("chain", "ddim", texture) for texture in ("concat", "input")),
    ],
)
def test_sampling_stays_on_the_device_and_waits_for_nothing(
    guidance: Guidance, sampler: Sampler, texture: Texture
) -> None:
    placement = Placement(META, torch.bfloat16)
    model = placement.module(PIDM(replace(TINY, texture=texture))).eval()
    settings = SampleConfig(steps=4, sampler=sampler, guidance=guidance, interval=(0, 0.5))
    waits = []

    with AsOnGPU() as mode, torch.inference_mode():
        y = sample_images(
            model,
            Diffusion(DiffusionConfig(prediction="y_0")),
            texture=model.encode(images(placement, 3)),
            x_p=poses(placement),
            y_T=torch.empty(4, 3, *TINY.size, device=META),
            settings=settings,
            noise=lambda _: torch.empty(4, 3, *TINY.size, device=META),
            absent=unstyled(model, images(placement, 3)),
            watch=lambda _: waits.append(mode.waits),
        )

    assert waits == waits[:1] * 4  # none after the first step
    assert (y.device, y.dtype, *y.shape) == (META, torch.float32, 4, 3, *TINY.size)


def test_a_constant_left_on_the_host_is_noticed() -> None:
    placement = Placement(META, torch.float32)
    conv = placement.module(torch.nn.Conv2d(3, 32, 3))
    conv.bias = torch.nn.Parameter(torch.zeros(32))

    with AsOnGPU(), pytest.raises(AssertionError, match="cpu"):
        conv(images(placement, 3))
