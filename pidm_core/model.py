"""The network of PIDM: noise predictor H_N, texture encoder H_E, texture diffusion blocks.

Shapes: B images, C channels, H x W pixels; L layers of H_E; N = h * w positions of a feature map.
Tensor in, tensor out: it knows nothing of noise schedules, guidance or data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pidm_core.config import ModelConfig
from pidm_core.layers import GROUPS, Conv, GroupNorm

POSE_CHANNELS = 20
AnyConv = TypeVar("AnyConv", bound=nn.Conv2d)
Style = tuple[Tensor, ...]
"""What a layer of H_N needs of F_s: K and V (B, N, C) each, or a feature map, or nothing."""
LARGE = 2**19
"""Bytes of an image's feature map from which on one image after the other is faster on a CPU."""


class PIDM(nn.Module):
    """eps_theta(y_t, t, x_p, x_s) of the paper, Fig. 2.

    recompute: keep no activations inside the layers while training, but compute them again in
    the backward pass; the gradients are the same.
    """

    def __init__(self, config: ModelConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.time = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
        )
        encodes = config.texture != "input"
        self.encoder = TextureEncoder(config, recompute) if encodes else None  # H_E
        self.denoiser = NoisePredictor(config, recompute)  # H_N

    def freeze(self) -> None:
        """The weights are to stay: what is fastest for them may be kept beside them."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.frozen = True

    def encode(self, x_s: Tensor) -> list[Tensor]:
        """F_s, one feature map for every layer of H_E; x_s (B, 3, H, W) in [-1, 1].

        Without H_E (texture = "input") it is x_s itself.
        """
        x_s = self._padded(x_s)
        return [x_s] if self.encoder is None else self.encoder(x_s)

    def _padded(self, x: Tensor) -> Tensor:
        """Continue the edges until every level divides the sides."""
        unit = self.config.patch * 2 ** (len(self.config.channel_mults) - 1)
        down, across = (-side % unit for side in x.shape[2:])
        edges = (across // 2, across - across // 2, down // 2, down - down // 2)
        return F.pad(x, edges, mode="replicate") if any(edges) else x

    def forward(
        self,
        y_t: Tensor,  # (B, 3, H, W)
        t: Tensor,  # (B,) noise level, 0 ... T-1
        x_p: Tensor | None,  # (B, 20, H, W); None = no pose, the all-zeros map
        texture: list[Tensor] | None,  # encode(x_s); None = no style, encode(zeros)
    ) -> Tensor:  # (B, 6, H, W): noise (or image) and variance
        if x_p is None:
            x_p = y_t.new_zeros(len(y_t), POSE_CHANNELS, *y_t.shape[2:])
        if texture is None:
            texture = [
                f.expand(len(y_t), -1, -1, -1) for f in self.encode(y_t.new_zeros(y_t[:1].shape))
            ]
        return self.denoise(y_t, t, x_p, self.prepare(texture))

    def prepare(self, texture: list[Tensor]) -> list[Style]:
        """What does not change from step to step, for every layer of H_N."""
        return self.denoiser.prepare(texture)

    def denoise(
        self,
        y_t: Tensor,
        t: Tensor,
        x_p: Tensor,
        styles: list[Style],
        blocks: Sequence[int] | None = None,
    ) -> Tensor:
        """As `forward`, from prepared features.

        blocks: y_t, t and x_p come in blocks of equal size, and the k-th block of `styles` and of
        the output goes with block blocks[k] of them; what these share is computed once.
        """
        if blocks is not None and [*blocks] == [*range(len(blocks))]:
            blocks = None  # nothing is shared
        emb = self.time(time_embedding(t, self.config.channels).to(y_t.dtype))  # (B, 4C)
        height, width = y_t.shape[2:]
        x = self._padded(torch.cat([y_t, x_p], 1))
        out: Tensor = self.denoiser(x, emb, styles, blocks)
        top, left = (out.shape[2] - height) // 2, (out.shape[3] - width) // 2
        return out[:, :, top : top + height, left : left + width]


class TextureEncoder(nn.Module):
    """H_E: the way down of a U-Net without noise level; every layer's output is a feature."""

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        super().__init__()
        self.patch, self.recompute = config.patch, recompute
        self.layers = nn.ModuleList([first_conv(3, config)])
        for spec in way_down(config):
            self.layers.append(
                ResBlock(spec.before, spec.after, config, down=spec.down, time=False)
            )

    def forward(self, x_s: Tensor) -> list[Tensor]:
        h, features = F.pixel_unshuffle(x_s, self.patch), []
        for layer in self.layers:
            h = _run(layer, h, recompute=self.recompute)
            features.append(h)
        return features  # L maps (B, C_l, H_l, W_l)


class NoisePredictor(nn.Module):
    """H_N: a U-Net over concat(y_t, x_p) with texture diffusion blocks."""

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        super().__init__()
        self.patch, self.recompute = config.patch, recompute
        self.beside = config.texture == "input"  # the source enters beside y_t and x_p
        channels = 3 + POSE_CHANNELS + (3 if self.beside else 0)
        self.down = nn.ModuleList([Layer(first_conv(channels, config))])
        skips = [config.channels]
        for spec in way_down(config):
            block = ResBlock(spec.before, spec.after, config, down=spec.down)
            texture = texture_block(spec.after, config) if spec.texture else None
            self.down.append(Layer(block, texture))
            skips.append(spec.after)
        width = skips[-1]
        self.middle = nn.ModuleList(
            [
                Layer(ResBlock(width, width, config), texture_block(width, config)),
                Layer(ResBlock(width, width, config)),
            ]
        )
        self.up = nn.ModuleList()
        for spec in way_up(config):
            block = ResBlock(spec.before + skips.pop(), spec.after, config)
            upsample = ResBlock(spec.after, spec.after, config, up=True) if spec.up else None
            texture = texture_block(spec.after, config) if spec.texture else None
            self.up.append(Layer(block, texture, upsample))
            width = spec.after
        self.out = nn.Sequential(
            GroupNorm(width),
            nn.SiLU(),
            zeroed(Conv(width, 6 * config.patch**2, 3, padding=1)),
        )

    def prepare(self, texture: list[Tensor]) -> list[Style]:
        """What each layer takes from F_s, in their order; layer k of the way down sees F_s[k]."""
        if self.beside:
            return [(texture[0],)]
        seen = [*texture, *[texture[-1]] * len(self.middle), *reversed(texture)]
        return [layer.prepare(f) for layer, f in zip(self._layers(), seen, strict=True)]

    def _layers(self) -> list[Layer]:
        layers: list[Any] = [*self.down, *self.middle, *self.up]
        return layers

    def forward(
        self, x: Tensor, emb: Tensor, styles: list[Style], blocks: Sequence[int] | None = None
    ) -> Tensor:
        run = partial(_run, recompute=self.recompute)

        rows = None  # of x, that each row of the output goes with
        if blocks is not None:
            size = len(x) // (max(blocks) + 1)
            rows = [block * size + k for block in blocks for k in range(size)]
        together = True  # until the first layer that sees a style
        shared = 0  # so many skips come undivided
        if self.beside:
            x, emb = taken(x, rows), taken(emb, rows)
            x, styles, together = torch.cat([x, *styles[0]], 1), [()] * len(self._layers()), False
        layers = zip(self._layers(), styles, strict=True)
        h, skips = F.pixel_unshuffle(x, self.patch), list[Tensor]()
        for layer, style in islice(layers, len(self.down)):
            h = run(layer.enter, h, emb)
            if style and together:
                h, emb = taken(h, rows), taken(emb, rows)
                together, shared = False, len(skips)
            h = run(layer.leave, h, emb, *style)
            skips.append(h)
        if together:  # only the middle sees a style
            h, emb = taken(h, rows), taken(emb, rows)
            shared = len(skips)
        for layer, style in islice(layers, len(self.middle)):
            h = run(layer, h, emb, *style)
        for layer, style in layers:
            skip = skips.pop()
            undivided = rows if len(skips) < shared else None
            if undivided is not None or not torch.is_grad_enabled():
                h = layer.beside(h, skip, emb, undivided, *style)
            else:
                if h.requires_grad:  # what cat hands back are strided halves, slow to upsample
                    h.register_hook(_channels_last)  # type: ignore[no-untyped-call]
                h = run(layer, torch.cat([h, skip], 1), emb, *style)
        out = torch.cat([self.out(h[k]) for k in rows_of(h)]) if large(h) else self.out(h)
        return F.pixel_shuffle(out, self.patch)


class Layer(nn.Module):
    """A block, then a texture diffusion block and an upsampling block where there are any."""

    def __init__(
        self,
        block: nn.Module,
        texture: TextureDiffusionBlock | TextureConcatBlock | None = None,
        upsample: ResBlock | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self.texture = texture
        self.upsample = upsample

    def prepare(self, f: Tensor) -> Style:
        """What the texture block takes from a feature map of F_s."""
        return () if self.texture is None else self.texture.prepare(f)

    def enter(self, h: Tensor, emb: Tensor) -> Tensor:
        """The block, which sees no style."""
        entered: Tensor = self.block(h, emb) if isinstance(self.block, ResBlock) else self.block(h)
        return entered

    def beside(
        self, h: Tensor, x: Tensor, emb: Tensor, rows: Sequence[int] | None, *style: Tensor
    ) -> Tensor:
        """forward(cat([h, x[rows]], 1), emb, *style), sharing what the block can."""
        if isinstance(self.block, ResBlock) and self.block.divides(h.shape[1]):
            return self.leave(self.block.beside(h, x, emb, rows), emb, *style)
        shared: Tensor = self(torch.cat([h, taken(x, rows)], 1), emb, *style)
        return shared

    def leave(self, h: Tensor, emb: Tensor, *style: Tensor) -> Tensor:
        """What comes after the block."""
        if self.texture is not None:
            h = self.texture(h, *style)
        return h if self.upsample is None else self.upsample(h, emb)

    def forward(self, h: Tensor, emb: Tensor, *style: Tensor) -> Tensor:
        return self.leave(self.enter(h, emb), emb, *style)


class TextureDiffusionBlock(nn.Module):
    """Eq. 5: F_o = W softmax(Q K^T / sqrt(C)) V + F_h with Q from F_h, K and V from F_s."""

    def __init__(self, channels: int, *, positions: bool) -> None:
        super().__init__()
        self.positions = positions
        self.norm = GroupNorm(channels)
        self.phi_q = nn.Conv2d(channels, channels, 1)
        self.phi_kv = nn.Conv2d(channels, 2 * channels, 1)  # K and V in one product
        self.W = zeroed(Conv(channels, channels, 1))
        if positions:  # equal maps: a query is nearest to the key of its own place
            nn.init.orthogonal_(self.phi_q.weight, gain=1.3)
            with torch.no_grad():
                self.phi_kv.weight[:channels] = self.phi_q.weight

    def prepare(self, f_s: Tensor) -> Style:
        """K and V, (B, N, C) each."""
        if self.positions:
            f_s = f_s + position_code(f_s)
        k, v = tokens(self.phi_kv(f_s)).chunk(2, 2)
        return k, v

    def forward(self, f_h: Tensor, k: Tensor, v: Tensor) -> Tensor:
        h = self.norm(f_h)
        if self.positions:
            h = h + position_code(f_h)
        q = tokens(self.phi_q(h))  # (B, N, C)
        o = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.W.part(o.transpose(1, 2).reshape(f_h.shape), onto=f_h)


class TextureConcatBlock(nn.Module):
    """The Baseline of Table 2: F_o = W [F_h, F_s] + F_h, so every place sees its own of F_s."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.W = zeroed(Conv(2 * channels, channels, 3, padding=1))

    def prepare(self, f_s: Tensor) -> Style:
        """The feature map as it is."""
        return (f_s,)

    def forward(self, f_h: Tensor, f_s: Tensor) -> Tensor:
        y: Tensor = f_h + self.W(torch.cat([self.norm(f_h), f_s], 1))
        return y


def _run(act: Callable[..., Tensor], *inputs: Any, recompute: bool) -> Tensor:
    """act(*inputs), of which only the inputs are kept for the backward pass if asked for."""
    if recompute and torch.is_grad_enabled():
        again: Tensor = checkpoint(act, *inputs, use_reentrant=False)
        return again
    return act(*inputs)


def texture_block(
    channels: int, config: ModelConfig
) -> TextureDiffusionBlock | TextureConcatBlock | None:
    """What brings F_s into a layer of H_N."""
    match config.texture:
        case "attention":
            return TextureDiffusionBlock(channels, positions=config.positions)
        case "concat":
            return TextureConcatBlock(channels)
        case "input":
            return None


def large(x: Tensor, resize: float = 1.0) -> bool:
    """Whether an image alone fills a cache, so that one after the other is faster on a CPU."""
    numbers = x[0].numel() * max(1.0, resize**2)
    cpu = x.device.type == "cpu" and not torch.is_grad_enabled()
    return cpu and numbers * x.element_size() >= LARGE


def rows_of(x: Tensor) -> list[slice]:
    """One for each image."""
    return [slice(row, row + 1) for row in range(len(x))]


def taken(x: Tensor, rows: Sequence[int] | None) -> Tensor:
    """x[rows], in the layout of x; None: all of them."""
    return x if rows is None else torch.cat([x[row : row + 1] for row in rows])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


class ResBlock(nn.Module):
    """Norm, SiLU, (resize), conv; norm scaled and shifted by the noise level, SiLU, conv; skip."""

    def __init__(
        self, before: int, after: int, config: ModelConfig, *,
        down: bool = False, up: bool = False, time: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.resize = 0.5 if down else 2.0 if up else 1.0
        self.norm_1 = GroupNorm(before)
        self.conv_1 = Conv(before, after, 3, padding=1)
        self.emb = nn.Linear(4 * config.channels, 2 * after) if time else None
        self.norm_2 = GroupNorm(after)
        self.dropout = config.dropout
        self.conv_2 = zeroed(Conv(after, after, 3, padding=1))
        self.skip = Conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        y: Tensor = self.skip(self._resized(x))
        if y is x and not torch.is_grad_enabled():
            y = x.clone()  # to be added to
        coded = self._coded(emb)
        if not large(x, self.resize):
            return self._added(y, self._first(x), coded)
        for k in rows_of(x):
            self._added(y[k], self._first(x[k]), None if coded is None else coded[k])
        return y

    def divides(self, channels: int) -> bool:
        """Whether no group of the first norm lies on both sides of the first `channels`."""
        return channels * GROUPS % len(self.norm_1.weight) == 0

    def beside(self, h: Tensor, x: Tensor, emb: Tensor, rows: Sequence[int] | None) -> Tensor:
        """forward(cat([h, x[rows]], 1), emb) without that cat; what concerns x alone is shared."""
        width, coded = h.shape[1], self._coded(emb)
        assert isinstance(self.skip, Conv)
        if not large(h):
            y = self.skip.part(h, onto=taken(self.skip.part(x, width), rows))
            return self._added(y, self._first(h, onto=taken(self._first(x, width), rows)), coded)
        shape = len(h), self.conv_2.out_channels, *h.shape[2:]
        y = torch.empty(shape, dtype=h.dtype, memory_format=torch.channels_last)
        sources = range(len(h)) if rows is None else rows
        for row in rows_of(x):
            first, last = self._first(x[row], width), self.skip.part(x[row], width)
            for k in rows_of(h):
                if sources[k.start] == row.start:
                    both = self._first(h[k], onto=first.clone())
                    sum_k = self.skip.part(h[k], onto=y[k].copy_(last))
                    self._added(sum_k, both, None if coded is None else coded[k])
        return y

    def _first(self, x: Tensor, first: int = 0, onto: Tensor | None = None) -> Tensor:
        """The first half, or what the channels from `first` on bring to it, added to `onto`."""
        h = self._resized(self.norm_1.silu(x, first=first))
        return self.conv_1.part(h, first, onto)

    def _coded(self, emb: Tensor | None) -> Tensor | None:
        """Scale and shift of the noise level, (B, 2C)."""
        if self.emb is None or emb is None:
            return None
        coded: Tensor = self.emb(F.silu(emb))
        return coded

    def _added(self, y: Tensor, h: Tensor, coded: Tensor | None) -> Tensor:
        """y plus the second half; in place unless gradients are asked for."""
        coding = () if coded is None else coded.chunk(2, 1)
        h = self.norm_2.silu(h, *coding, dropout=self.dropout if self.training else 0.0)
        return self.conv_2.part(h, onto=y)

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == 0.5:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0) if self.resize == 2.0 else x


# ---------------------------------------------------------------- the plan of the levels


class Spec:
    """One block of the U-Net: channels before and after it and what stands behind it."""

    def __init__(
        self,
        before: int,
        after: int,
        *,
        texture: bool = False,
        down: bool = False,
        up: bool = False,
    ) -> None:
        self.before, self.after = before, after
        self.texture, self.down, self.up = texture, down, up


def way_down(config: ModelConfig) -> Iterator[Spec]:
    """Blocks on the way down; a level's last residual block carries its texture block."""
    width = config.channels
    for level, mult in enumerate(config.channel_mults):
        for block in range(config.blocks_per_level):
            last = block == config.blocks_per_level - 1
            yield Spec(width, mult * config.channels, texture=last and _textured(config, level))
            width = mult * config.channels
        if level < len(config.channel_mults) - 1:
            yield Spec(width, width, down=True)


def way_up(config: ModelConfig) -> Iterator[Spec]:
    """Blocks on the way up; the block before a level's last carries the texture block."""
    width = config.channel_mults[-1] * config.channels
    for level, mult in reversed(list(enumerate(config.channel_mults))):
        for block in range(config.blocks_per_level + 1):
            last = block == config.blocks_per_level
            texture = block == config.blocks_per_level - 1 and _textured(config, level)
            yield Spec(width, mult * config.channels, texture=texture, up=last and level > 0)
            width = mult * config.channels


def _textured(config: ModelConfig, level: int) -> bool:
    return config.patch * 2**level in config.texture_factors


# ---------------------------------------------------------------- parts


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoids of the noise level, (B,) -> (B, channels); cosines first, as the authors."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=t.device)
    )
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def position_code(f: Tensor) -> Tensor:
    """Sinusoids of row and column, (1, C, h, w), for feature maps (B, C, h, w).

    Frequencies of 0 ... 3 waves per height: codes of places a sixth of the height apart differ.
    """
    _, channels, height, width = f.shape
    waves = torch.linspace(0, 6 * math.pi, channels // 4, device=f.device)[:, None, None]
    grid = torch.arange(max(height, width), device=f.device) / height
    rows = (waves * grid[:height, None]).expand(-1, -1, width)
    columns = (waves * grid[None, :width]).expand(-1, height, -1)
    code = torch.cat([rows.cos(), rows.sin(), columns.cos(), columns.sin()])[None]
    return code.to(f.dtype)


def first_conv(channels: int, config: ModelConfig) -> nn.Conv2d:
    """The first convolution; folded pixel blocks already see their surroundings, so 1x1 there."""
    size = 3 if config.patch == 1 else 1
    folded = channels * config.patch**2
    return nn.Conv2d(folded, config.channels, size, padding=size // 2)


def zeroed(conv: AnyConv) -> AnyConv:
    """A convolution that starts as zero, so that its block starts as the identity."""
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
