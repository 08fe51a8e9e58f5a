"""3x3 convolutions on a CPU by a quarter of the multiplications: Winograd's F(4x4, 3x3).

Tiles of 4x4 outputs are sums over products of transformed inputs (6x6) and transformed filters
(Lavin & Gray 2016, Eq. 10). The points are 0, +-sqrt(1/2), +-sqrt(2) and infinity: a fifth of the
largest error that the usual 0, +-1, +-2 leave in float32, and that of the direct sum in a network.
Shapes: B images, C channels before and K after, H x W positions; h x w tiles; s rows of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 4  # of a tile
TILES = 128  # at a time: few enough for the cache, enough for a matrix product
SMALL, LARGE = math.sqrt(0.5), math.sqrt(2)  # the points beside 0 and infinity, with either sign


def pays(x: Tensor, after: int) -> bool:
    """Whether this is exact and faster than torch for x (B, C, H, W) and `after` channels.

    Measured on one Zen 4 core against torch: 1.2 times at 64 channels, 1.6 at 128, 2.1 at 256; 0.9
    at 48, and on maps of 16x8 at most batches.
    """
    _, before, height, width = x.shape
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_grad_enabled()
        and before * after >= 32 * (before + after)
        and height * width >= 512
        and height % SIDE == width % SIDE == 0
    )


def filters(weight: Tensor) -> Tensor:
    """What a convolution's weight (K, C, 3, 3) becomes for `convolved`, (36, C, K)."""
    points = [(-1 / 3, SMALL), (-1 / 3, -SMALL), (1 / 3, LARGE), (1 / 3, -LARGE)]
    rows = [[1, 0, 0], *([scale, scale * p, scale * p * p] for scale, p in points), [0, 0, 1]]
    G = torch.tensor(rows, dtype=torch.float64)
    u = torch.einsum("ia,jb,kcab->ijck", G, G, weight.double())
    return u.flatten(0, 1).to(weight.dtype).contiguous()


def convolved(x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution with padding 1 of x (B, C, H, W) in channels_last -> (B, K, H, W).

    u: `filters`. Image by image, so that none depends on its place in the batch.
    """
    B, C, H, W = x.shape
    K, h, w = u.shape[2], H // SIDE, W // SIDE
    s = max(k for k in range(1, h + 1) if h % k == 0 and (k == 1 or k * w <= TILES))
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (B, H + 2, W + 2, C)
    y = x.new_empty(B, h, SIDE, W, K)
    down, both = x.new_empty(6, s, W + 2, C), x.new_empty(6, 6, s, w, C)
    products, across = x.new_empty(6, 6, s, w, K), x.new_empty(6, s, w, SIDE, K)
    spare, spare_2 = x.new_empty(2, 6, s, w, K), x.new_empty(2, s, W, K)
    for image, out in zip(padded, y, strict=True):
        for first in range(0, h, s):
            rows = image[SIDE * first : SIDE * (first + s) + 2]
            _before([rows[k : k + SIDE * s - 3 : SIDE] for k in range(6)], down.unbind())
            _before([down[:, :, k : k + W - 3 : SIDE] for k in range(6)], both.unbind(1))
            torch.bmm(both.view(36, s * w, C), u, out=products.view(36, s * w, K))
            _after(products.unbind(1), across.unbind(3), spare)
            part = out[first : first + s]  # (s, 4, W, K)
            _after(across.view(6, s, W, K).unbind(), part.unbind(1), spare_2)
            if bias is not None:
                part += bias
    return y.view(B, H, W, K).permute(0, 3, 1, 2)


def _before(d: Sequence[Tensor], v: Sequence[Tensor]) -> None:
    """v = B^T d along one side of the tiles, six of each; v's ends hold what the others share."""
    for (near, point), (plus, minus) in zip(
        [(2, SMALL), (0.5, LARGE)], [(v[1], v[2]), (v[3], v[4])], strict=True
    ):
        even = torch.sub(d[4], d[2], alpha=near, out=v[0])
        odd = torch.sub(d[3], d[1], alpha=near, out=v[5])
        torch.add(even, odd, alpha=point, out=plus)
        torch.sub(even, odd, alpha=point, out=minus)
    torch.sub(d[4], d[2], alpha=2.5, out=v[0]).add_(d[0])
    torch.sub(d[5], d[3], alpha=2.5, out=v[5]).add_(d[1])


def _after(m: Sequence[Tensor], y: Sequence[Tensor], spare: Tensor) -> None:
    """y = A^T m along one side of the tiles, six to four."""
    p, q = spare
    torch.add(m[1], m[2], out=p)
    torch.add(m[3], m[4], out=q)
    torch.add(p, q, out=y[2])
    torch.add(m[0], p, alpha=2, out=y[0]).add_(q, alpha=0.5)
    torch.sub(m[1], m[2], out=p)
    torch.sub(m[3], m[4], out=q)
    torch.add(p, q, alpha=0.5, out=y[1]).mul_(LARGE)
    torch.add(m[5], q.add_(p, alpha=0.5), alpha=LARGE, out=y[3])
