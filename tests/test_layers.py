"""Convolutions with packed weights and the normalisation, against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pidm_core import layers, model
from pidm_core.config import ModelConfig
from pidm_core.layers import Conv, GroupNorm
from pidm_core.model import ResBlock

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the largest value
DTYPES = [*TOLERANCE]


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def frozen(before: int, after: int, size: int, dtype: torch.dtype) -> Conv:
    torch.manual_seed(0)
    conv = Conv(before, after, size, padding=size // 2).to(dtype)
    conv = conv.to(memory_format=torch.channels_last)
    conv.frozen = True
    return conv


def near(mine: Tensor, reference: Tensor) -> bool:
    """Within what the precision of `mine` leaves of a float64 reference."""
    error = (mine.double() - reference).abs().max() / reference.abs().max()
    return bool(error < TOLERANCE[mine.dtype])


def convolved(x: Tensor, conv: Conv) -> Tensor:
    assert conv.bias is not None
    weight, bias = conv.weight.double(), conv.bias.double()
    return F.conv2d(x.double(), weight, bias, padding=conv.padding)


def exact_gradients(x: Tensor, conv: Conv, g: Tensor) -> list[Tensor]:
    """Those of x and of the convolution's parameters by torch in float64."""
    exact, *parameters = (v.detach().double().requires_grad_() for v in (x, *conv.parameters()))
    F.conv2d(exact, *parameters, padding=conv.padding).backward(g.double())
    gradients = [v.grad for v in (exact, *parameters) if v.grad is not None]
    assert len(gradients) == 1 + len(parameters)
    return gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "after", "size"),
    [((3, 40, 6, 10), 24, 3), ((2, 40, 5, 3), 24, 1), ((5, 512, 4, 2), 512, 3)],
    ids=["packed", "1x1", "side by side"],
)
@torch.no_grad()
def test_a_frozen_convolution_is_torchs(
    shape: tuple[int, ...], after: int, size: int, dtype: torch.dtype
) -> None:
    x, conv = values(*shape, dtype=dtype), frozen(shape[1], after, size, dtype)
    expected = convolved(x, conv)
    assert near(conv(x), expected)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)
    onto = values(shape[0], after, *shape[2:], dtype=dtype)
    before = onto.double()
    sum_ = conv.part(x, onto=onto)
    assert sum_.data_ptr() == onto.data_ptr()
    assert near(sum_, expected + before)
    half = shape[1] // 2
    parts = conv.part(x[:, half:].contiguous(memory_format=torch.channels_last), half)
    parts = conv.part(x[:, :half].contiguous(memory_format=torch.channels_last), onto=parts)
    assert near(parts, expected)
    assert near(conv(x), expected)  # the whole weight, kept beside its parts


@torch.no_grad()
def test_each_convolution_goes_the_way_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    def ways(x: Tensor, conv: Conv) -> set[str]:
        conv(x)
        return set() if conv._kept is None else {form for form, *_ in conv._kept[2]}

    def sides(x: Tensor, conv: Conv) -> bool:
        seen: list[int] = []
        monkeypatch.setattr(layers, "_side_by_side", lambda x: seen.append(1) or x)
        monkeypatch.setattr(layers, "_apart", lambda x, count: x)
        conv(x)
        return bool(seen)

    assert ways(values(2, 64, 32, 16), frozen(64, 64, 3, torch.float32)) == {"filters"}
    assert ways(values(2, 64, 8, 4), frozen(64, 64, 3, torch.float32)) == {"packed"}
    assert not ways(values(2, 64, 8, 4).double(), frozen(64, 64, 3, torch.float64))
    assert not ways(values(2, 64, 8, 4).contiguous(), frozen(64, 64, 3, torch.float32))
    assert not ways(values(2, 64, 8, 4), Conv(64, 64, 3, padding=1))
    assert sides(values(2, 512, 4, 2), frozen(512, 512, 3, torch.float32))
    assert not sides(values(1, 512, 4, 2), frozen(512, 512, 3, torch.float32))
    assert not sides(values(2, 512, 4, 2), frozen(512, 512, 1, torch.float32))
    assert not sides(values(2, 512, 4, 5), frozen(512, 512, 3, torch.float32))
    assert not sides(values(2, 256, 4, 2), frozen(256, 512, 3, torch.float32))


@torch.no_grad()
def test_images_side_by_side_do_not_touch() -> None:
    x = values(3, 512, 4, 2)
    x[1] = 1e4  # whatever leaked out of it would show
    conv = frozen(512, 512, 3, torch.float32)
    alone = convolved(x[[0, 2]], conv)
    assert near(conv(x)[[0, 2]], alone)


def test_gradients_of_images_side_by_side_are_torchs() -> None:
    x, conv, g = values(3, 512, 4, 2), Conv(512, 512, 3, padding=1), values(3, 512, 4, 2)
    conv = conv.to(memory_format=torch.channels_last)
    expected = exact_gradients(x, conv, g)
    x.requires_grad_()
    conv(x).backward(g)
    for mine, reference in zip([x, *conv.parameters()], expected, strict=True):
        assert mine.grad is not None
        assert near(mine.grad, reference)


@pytest.mark.parametrize(
    ("shape", "after", "product"),
    [
        ((3, 40, 8, 4), 24, True),
        ((2, 24, 5, 3), 40, True),
        ((4, 512, 4, 2), 512, True),
        ((9, 40, 16, 8), 24, False),
    ],
    ids=["8x4", "odd", "side by side", "large"],
)
def test_gradients_of_small_maps_as_products_are_torchs(
    shape: tuple[int, ...], after: int, product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    B, C, H, W = shape
    x, g = values(*shape, dtype=torch.bfloat16), values(B, after, H, W, dtype=torch.bfloat16)
    conv = frozen(C, after, 3, torch.bfloat16)
    expected = exact_gradients(x, conv, g)
    x.requires_grad_()
    y = conv(x)
    assert ("_SmallMapConv" in _names(y.grad_fn)) == product
    y.backward(g)
    for mine, reference in zip([x, *conv.parameters()], expected, strict=True):
        assert mine.grad is not None
        assert near(mine.grad, reference)
        assert mine.grad.stride() == mine.stride()


def _names(node: Any) -> str:
    """Names of the functions that a gradient goes through."""
    if node is None:
        return ""
    return node.name() + "".join(_names(before) for before, _ in node.next_functions)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [(8, 4), (64, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_scale_and_shift_are_part_of_the_norm(
    dtype: torch.dtype, size: tuple[int, int], rows: int
) -> None:
    x, norm = values(rows, 64, *size, dtype=dtype) * 3 + 1, GroupNorm(64).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    scale, shift = values(rows, 64, 1, 1, dtype=dtype), values(rows, 64, 1, 2, dtype=dtype)
    coded = scale[:, :, 0, 0], shift[:, :, 0, 0]
    plain = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double())
    expected = plain * (1 + scale.double()) + shift[..., :1].double()
    assert near(norm(x, *coded), expected)
    with torch.enable_grad():
        assert near(norm(x, *coded), expected)


@pytest.mark.parametrize(
    "block",
    [
        ResBlock(64, 64, ModelConfig()),
        ResBlock(64, 96, ModelConfig()),
        ResBlock(64, 64, ModelConfig(), down=True),
        ResBlock(64, 64, ModelConfig(), up=True),
        ResBlock(64, 64, ModelConfig(), time=False),
    ],
    ids=["plain", "wider", "down", "up", "without noise level"],
)
@torch.no_grad()
def test_one_image_after_the_other_gives_the_same(
    block: ResBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = block.eval().to(memory_format=torch.channels_last)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, emb = values(3, 64, 16, 8), torch.randn(3, 4 * ModelConfig().channels)
    before = x.clone()
    together = block(x, emb)
    monkeypatch.setattr(model, "LARGE", 1)
    torch.testing.assert_close(block(x, emb), together, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)
    with torch.enable_grad():
        torch.testing.assert_close(block(x, emb), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [None, [0, 1, 0, 1, 0, 1]])
@torch.no_grad()
def test_a_block_beside_a_skip_is_the_block_of_both(
    rows: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = ResBlock(128, 64, ModelConfig()).eval().to(memory_format=torch.channels_last)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    h, emb = values(6, 64, 16, 8), torch.randn(6, 4 * ModelConfig().channels)
    x = values(6 if rows is None else 2, 64, 16, 8)
    whole = block(torch.cat([h, model.taken(x, rows)], 1), emb)
    for limit in (model.LARGE, 1):
        monkeypatch.setattr(model, "LARGE", limit)
        torch.testing.assert_close(block.beside(h, x, emb, rows), whole, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_torchs_where_onednn_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x = values(1, 64, 8, 4, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not layers._onednn(x)
    assert layers._onednn(x.float())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    norm = GroupNorm(64).to(dtype)
    torch.nn.init.normal_(norm.bias)
    x = values(3, 64, 131, 17, dtype=dtype).requires_grad_()  # no whole pieces
    whole = norm.silu(x)
    torch.manual_seed(0)
    y = norm.silu(x, dropout=p)
    lost = y == 0
    torch.testing.assert_close(y[~lost], (whole / (1 - p))[~lost], rtol=1e-2, atol=0)
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(lost.double().mean() - p) < 4 * deviation
    lanes = lost.permute(0, 2, 3, 1).flatten().view(-1, 4).double()
    assert (lanes.mean(0) - p).abs().max() < 8 * deviation  # each of four is as likely
    assert (torch.corrcoef(lanes.T) - torch.eye(4)).abs().max() < 0.03
    assert not torch.equal(norm.silu(x, dropout=p), y)
    torch.manual_seed(0)
    assert torch.equal(norm.silu(x, dropout=p), y)


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("size", [(8, 4), (64, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_of_the_norm_and_its_gradients_are_torchs(
    dtype: torch.dtype, size: tuple[int, int], coded: bool, p: float
) -> None:
    x, norm = values(3, 64, *size, dtype=dtype) * 3 + 1, GroupNorm(64).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    leaves = [x.requires_grad_(), *norm.parameters()]
    if coded:
        leaves += [torch.randn(3, 64).to(dtype).requires_grad_() for _ in range(2)]
    g = values(3, 64, *size, dtype=dtype).flip(0)
    y = norm.silu(x, *leaves[3:], dropout=p)
    y.backward(g)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    h = F.group_norm(exact[0], 32, *exact[1:3])
    if coded:
        h = h * (1 + exact[3][:, :, None, None]) + exact[4][:, :, None, None]
    expected = F.silu(h) * (y.detach() != 0) / (1 - p)
    expected.backward(g.double())
    assert near(y.detach(), expected.detach())
    for leaf, reference in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert reference.grad is not None
        error = (leaf.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error < TOLERANCE[dtype]


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here"
)
@pytest.mark.parametrize(("name", "function"), [("swish", F.silu), ("sigmoid", torch.sigmoid)])
def test_a_function_of_a_large_map_is_torchs_to_the_bit(
    name: str, function: Callable[[Tensor], Tensor]
) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    x = every[every.isfinite()].view(1, -1, 1, 64).permute(0, 3, 1, 2)  # 1,020 positions
    assert layers._large(x)
    torch.testing.assert_close(layers.by_onednn(x, name), function(x), rtol=0, atol=1e-35)


def test_only_training_loses_values() -> None:
    block = ResBlock(64, 64, ModelConfig(dropout=0.5)).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(block.conv_2.weight)
    x, emb = values(2, 64, 8, 4), torch.randn(2, 4 * ModelConfig().channels)
    assert not torch.equal(block(x, emb), block(x, emb))
    block.eval()
    assert torch.equal(block(x, emb), block(x, emb))
