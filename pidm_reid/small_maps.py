"""ResNet50's convolutions of small maps as products of matrices, on CPUs with AMX.

oneDNN 3.10 (torch 2.11) wastes such a CPU's tiles on maps of 8x4 and less, above all in the
gradient of the weights (7 to 80 times slower than the product), and its bf16 convolutions of
stride 2 read memory that nobody wrote where the output is one column wide, as in ResNet50's last
stage at 64x32: losses differ between two runs or are nan.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Measured on one Xeon core, training steps of ResNet50 in bf16, batch 64 at 64x32, 32 at 128x64, 8
# at 256x128: 2.6, 1.4 and 1.2 times faster with 32 pixels; with 8 less, with 128 no more.
SMALL = 32  # pixels of the output


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
        seen = [  # by each of the kernel's weights
            x[:, i : i + down * height : down, j : j + across * width : across]
            for i in range(self.kernel_size[0])
            for j in range(self.kernel_size[1])
        ]
        weights = self.weight.permute(0, 2, 3, 1).flatten(1)
        y = torch.nn.functional.linear(torch.cat(seen, -1), weights, self.bias)
        return y.permute(0, 3, 1, 2)

    @property
    def _padding(self) -> tuple[int, ...]:
        assert not isinstance(self.padding, str)
        return self.padding


def by_products(model: torch.nn.Module) -> None:
    """Compute the small maps of the network's plain convolutions so; weights and names stay."""
    for module in model.modules():
        if type(module) is torch.nn.Conv2d and module.groups == 1 and module.dilation == (1, 1):
            module.__class__ = _Conv
