"""Winograd's convolutions against torch's in float64, alone and in the network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pidm_core import benchmark, winograd
from pidm_core.config import DiffusionConfig, ModelConfig
from pidm_core.diffusion import Diffusion
from pidm_core.hardware import Placement
from pidm_core.layers import Conv

WIDE = ModelConfig(
    size=(64, 32), channels=64, channel_mults=(1, 2), blocks_per_level=1, texture_factors=(2,)
)


def values(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "shape", [(2, 64, 64, 32), (1, 64, 20, 36), (1, 64, 8, 528)]
)  # several rows of tiles at a time, an odd number of them, one
@torch.no_grad()
def test_it_is_torchs_convolution(shape: tuple[int, ...]) -> None:
    x, conv = values(*shape), torch.nn.Conv2d(64, 96, 3, padding=1)
    assert winograd.pays(x, 96)
    y = winograd.convolved(x, winograd.filters(conv.weight), conv.bias)
    expected = conv.double()(x.double())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y - expected).abs().max() < 4e-6 * expected.abs().max()
    ones, one = torch.ones(96, 64, 3, 3), torch.ones(shape)  # exact: 64 times the places inside
    inside = F.conv2d(one[:, :1], torch.ones(1, 1, 3, 3), padding=1) * 64
    y = winograd.convolved(one, winograd.filters(ones), None)
    torch.testing.assert_close(y, inside.expand_as(y), rtol=2e-6, atol=0)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_place_in_the_batch() -> None:
    x, u = values(3, 64, 64, 32), winograd.filters(values(64, 64, 3, 3))
    y = winograd.convolved(x, u, None)
    turned = x.roll(1, 0).contiguous(memory_format=torch.channels_last)
    assert torch.equal(winograd.convolved(turned, u, None), y.roll(1, 0))


def test_the_networks_noise_is_that_of_torchs_convolutions() -> None:
    placement, diffusion = (
        Placement(torch.device("cpu"), torch.float32),
        Diffusion(DiffusionConfig()),
    )
    given = benchmark.conditions(WIDE, 2, placement.device)
    model, results = placement.module(benchmark.network(WIDE)), []
    with torch.inference_mode():
        for frozen in (True, False):
            denoise = benchmark.ours(model, diffusion, given, "style", placement)
            for conv in (m for m in model.modules() if isinstance(m, Conv)):
                conv.frozen = frozen
            results.append(denoise(given.y_t, given.t)[:, :3])
    assert sum(m._kept is not None for m in model.modules() if isinstance(m, Conv)) >= 8
    quick, plain = results
    assert not torch.equal(quick, plain)
    assert (quick - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("size", [(32, 16), (8, 4)], ids=["filters", "packed"])
@pytest.mark.parametrize("change", ["copy", "assign", "data", "adam", "average"])
def test_a_frozen_convolution_follows_its_weight(change: str, size: tuple[int, int]) -> None:
    x, conv, other = values(1, 64, *size), Conv(64, 64, 3, padding=1), Conv(64, 64, 3, padding=1)
    conv.frozen = True
    with torch.no_grad():
        before = conv(x)
    if change in ("copy", "assign"):
        conv.load_state_dict(other.state_dict(), assign=change == "assign")
    elif change == "data":
        conv.weight.data = other.weight.detach().clone()
    elif change == "adam":
        conv(x).square().mean().backward()  # with gradients, torch's own way
        torch.optim.Adam(conv.parameters(), lr=0.1, fused=True).step()
    else:
        torch._foreach_lerp_([conv.weight.detach()], [other.weight.detach()], 0.5)
    with torch.no_grad():
        after = conv(x)
        expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


def test_only_what_pays_is_taken_over() -> None:
    x = values(1, 64, 32, 16)
    assert not winograd.pays(x, 64)  # with gradients
    with torch.no_grad():
        assert winograd.pays(x, 64)
        assert not winograd.pays(x, 32)
        assert not winograd.pays(x.bfloat16(), 64)
        assert not winograd.pays(x.double(), 64)
        assert not winograd.pays(x.contiguous(), 64)
        assert not winograd.pays(x[:, :, :16], 64)
        assert not winograd.pays(values(1, 64, 34, 32), 64)
