"""Convolutions of small maps as products: the same values, and no memory that nobody wrote."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from pidm_reid import small_maps

# kernel, stride, padding: those of ResNet50, and one that is not square
KINDS = [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 3), ((3, 1), (2, 1), (1, 0))]
MAPS = [(1, 1), (2, 1), (4, 2), (5, 3), (8, 4), (16, 8), (40, 2)]
Kind = tuple[int, int, int]


@pytest.mark.parametrize(("kind", "size"), list(product(KINDS, MAPS)))
def test_values_and_gradients_are_the_convolutions(kind: Kind, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    given = torch.randn(3, 6, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    plain = torch.nn.Conv2d(6, 5, *kind, dtype=torch.float64)
    ours = torch.nn.Conv2d(6, 5, *kind, dtype=torch.float64)
    ours.load_state_dict(plain.state_dict())
    small_maps.by_products(ours)
    results = []
    for layer in (plain, ours):
        x = given.clone().requires_grad_()
        y = layer(x)
        (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("size", "small"), [((16, 8), True), ((18, 8), False), ((80, 2), True), ((80, 3), False)]
)
def test_only_small_or_narrow_outputs_are_products(
    size: tuple[int, int], small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = torch.nn.Conv2d(4, 4, 3, 2, 1)
    small_maps.by_products(layer)
    products: list[torch.Tensor] = []
    linear = torch.nn.functional.linear

    def counted(*given: torch.Tensor) -> torch.Tensor:
        products.append(given[0])
        return linear(*given)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    assert layer(torch.zeros(1, 4, *size)).shape[2:] == (size[0] // 2, -(-size[1] // 2))
    assert bool(products) is small


def test_memory_that_nobody_wrote_is_not_read() -> None:
    torch.manual_seed(0)
    strided = torch.nn.Conv2d(64, 64, 3, 2, padding=1)
    small_maps.by_products(strided)
    x = torch.randn(4, 64, 6, 2).to(memory_format=torch.channels_last)
    expected = torch.nn.functional.conv2d(x, strided.weight, strided.bias, 2, 1)
    # what the fault would read, were it there
    dirt = [torch.full((count,), float("nan")) for count in (10**3, 10**4, 10**5)]
    del dirt
    with torch.autocast("cpu", torch.bfloat16):
        out = strided(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    out.float().sum().backward()
    assert strided.weight.grad is not None
    assert strided.weight.grad.isfinite().all()


def test_layers_of_another_kind_stay_as_they_are() -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.Conv2d(4, 4, 3, dilation=2), torch.nn.ReLU()
    )
    names = layers.state_dict().keys()
    small_maps.by_products(layers)
    assert [type(layer) for layer in layers] == [torch.nn.Conv2d, torch.nn.Conv2d, torch.nn.ReLU]
    assert layers.state_dict().keys() == names
