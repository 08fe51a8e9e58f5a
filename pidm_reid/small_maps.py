"""ResNet50's convolutions of small maps as products of matrices, on CPUs.

oneDNN 3.10 (torch 2.11) is slow on maps of 8x4 and less, above all in the gradient of the weights
(with AMX 7 to 80 times slower than the product). And with AMX its bf16 convolutions of stride 2
read memory that nobody wrote where the output is one column wide, as in ResNet50's last stage at
64x32: losses differ between two runs or are nan.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

# Measured on one core, training steps of ResNet50, batch 64 at 64x32, 32 at 128x64, 8 at 256x128:
# with 32 pixels 2.6, 1.4 and 1.2 times faster on a Xeon with AMX in bf16, 1.5, 1.2 and 1.1 on an
# EPYC with AVX2 in fp32; with 8 less or the same, with 128 no more. With 32 on an EPYC with AVX-512
# in bf16 1.17, 1.03 and 1.05.
SMALL = 32  # pixels of the output


class _Seen(torch.autograd.Function):
    """What each of a kernel's weights sees, side by side; (B, H, W, C) -> (B, H', W', n C).

    Nine slices' own gradients would fill and add nine whole maps, a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: list[tuple[slice, slice]]) -> Tensor:
        ctx.shape, ctx.windows = x.shape, windows
        return torch.cat([x[:, i, j] for i, j in windows], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        dx = dy.new_zeros(ctx.shape)
        parts = torch.split(dy, ctx.shape[-1], -1)
        for (i, j), part in zip(ctx.windows, parts, strict=True):
            dx[:, i, j] += part
        return dx, None


class _Conv(torch.nn.Conv2d):
    """A product where the output is small or one column wide."""

    def forward(self, x: Tensor) -> Tensor:
        (down, across), (top, left) = self.stride, self._padding
        height, width = (
            (size + 2 * padding - kernel) // stride + 1
            for size, padding, kernel, stride in zip(
                x.shape[2:], self._padding, self.kernel_size, self.stride, strict=True
            )
        )
        if x.device.type != "cpu" or (height * width > SMALL and width > 1):
            return super().forward(x)
        x = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
        if self.kernel_size != (1, 1) or self.stride != (1, 1):
            rows = [slice(i, i + down * height, down) for i in range(self.kernel_size[0])]
            columns = [slice(j, j + across * width, across) for j in range(self.kernel_size[1])]
            x = _Seen.apply(x, [*product(rows, columns)])  # type: ignore[no-untyped-call]
        weights = self.weight.permute(0, 2, 3, 1).flatten(1)
        return torch.nn.functional.linear(x, weights, self.bias).permute(0, 3, 1, 2)

    @property
    def _padding(self) -> tuple[int, ...]:
        assert not isinstance(self.padding, str)
        return self.padding


def by_products(model: torch.nn.Module) -> None:
    """Compute the small maps of the network's plain convolutions so; weights and names stay."""
    for module in model.modules():
        if type(module) is torch.nn.Conv2d and module.groups == 1 and module.dilation == (1, 1):
            module.__class__ = _Conv
