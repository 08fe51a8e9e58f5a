"""Feature networks with random weights in files of the real names, against torchvision's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lpips as lpips_package
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pidm_core import BAD_DATA, ENVIRONMENT, UserError, sha256
from pidm_core.feature_networks import (
    ALEXNET_FILES,
    INCEPTION_FILES,
    find_weights,
    inception,
    lpips,
    resnet50,
)


def pooled(network: nn.Module, x: Tensor) -> np.ndarray:
    """What torchvision's whole network has after its pooling."""
    found: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda *args: found.append(args[2]))
    with torch.no_grad():
        network.eval()(x)
    return found[0].flatten(1).numpy()


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random((*shape, 3), dtype=np.float32)


def saved(state: Mapping[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_inception_is_fed_as_in_published_figures(tmp_path: Path) -> None:
    whole = torchvision.models.inception_v3(weights=None, init_weights=False)
    state = {k: v for k, v in whole.state_dict().items() if "num_batches" not in k}
    extractor = inception(saved(state, tmp_path / INCEPTION_FILES[0]), (64, 32))
    x = images(1, 64, 32)
    features = extractor.features(x)
    large = nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), (299, 299), mode="bilinear", align_corners=False
    )
    sd, mean = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.229, 0.224, 0.225], [0.485, 0.456, 0.406])
    )
    expected = pooled(whole, large * (sd / 0.5) + (mean - 0.5) / 0.5)
    assert features.shape == (1, 2048)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3 * expected.std())
    assert expected.std() > 0
    assert extractor.weights == sha256(tmp_path / INCEPTION_FILES[0])


def test_a_reid_network_as_torchreid_saves_it(tmp_path: Path) -> None:
    whole = torchvision.models.resnet50(weights=None)
    renamed = {k.replace("fc.", "classifier."): v for k, v in whole.state_dict().items()}
    state = {"epoch": 60, "state_dict": {f"module.{k}": v for k, v in renamed.items()}}
    extractor = resnet50(saved(state, tmp_path / "weights.pth"), (64, 32))
    x = images(2, 64, 32)
    mean, sd = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=np.float32)
    expected = pooled(whole, torch.from_numpy((x - mean) / sd).permute(0, 3, 1, 2))
    np.testing.assert_allclose(extractor.features(x), expected, rtol=1e-3, atol=1e-4)
    assert "not FID" in extractor.titles[0]


def test_lpips_is_the_weighted_difference_of_alexnets_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    alexnet = torchvision.models.alexnet(weights=None)
    small = ("features", "classifier.6.bias")  # all of it would take 244 MB
    state = {k: v for k, v in alexnet.state_dict().items() if k.startswith(small)}
    judge = lpips(saved(state, tmp_path / ALEXNET_FILES[0]))
    a, b = images(2, 64, 64), images(2, 64, 64)[::-1]
    package = Path(lpips_package.__file__).parent
    linear = torch.load(package / "weights/v0.1/alex.pth", "cpu", weights_only=True)
    shift, scale = (
        torch.tensor(v).view(3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
    )
    expected = torch.zeros(2)
    x, y = (
        (torch.from_numpy(i.copy()).permute(0, 3, 1, 2) * 2 - 1 - shift) / scale for i in (a, b)
    )
    layer = 0
    with torch.no_grad():
        for module in alexnet.features:
            x, y = module(x), module(y)
            if isinstance(module, nn.ReLU):
                unit_x, unit_y = (v / v.norm(dim=1, keepdim=True) for v in (x.clone(), y.clone()))
                weight = linear[f"lin{layer}.model.1.weight"]
                expected += ((unit_x - unit_y) ** 2 * weight).sum(1).mean((1, 2))
                layer += 1
    assert layer == 5
    np.testing.assert_allclose(judge.distance(a, b), expected, rtol=1e-3)
    np.testing.assert_allclose(judge.distance(a, a), 0, atol=1e-7)


@pytest.mark.parametrize(
    ("load", "keys"),
    [
        (lambda path: inception(path, None), "Conv2d_1a_3x3.conv.weight is missing"),
        (lambda path: resnet50(path, (64, 32)), "conv1.weight is missing"),
        (lpips, "features.3.weight is missing"),
    ],
)
def test_weights_of_another_network_are_refused_with_five_keys(
    load: Callable[[Path], object], keys: str, tmp_path: Path
) -> None:
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    with pytest.raises(UserError, match="weights of another network") as caught:
        load(saved(state, tmp_path / "weights.pth"))
    assert caught.value.code == BAD_DATA
    assert keys in str(caught.value)
    assert str(caught.value).count(";") == 4


def test_missing_weights_are_named_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    words = r"inception_v3_google-0cc3c7bd\.pth into mine or"
    with pytest.raises(UserError, match=words) as caught:
        find_weights(INCEPTION_FILES, Path("mine"))
    assert caught.value.code == ENVIRONMENT
    assert str(tmp_path / "hub/checkpoints") in str(caught.value)
    older = tmp_path / "hub/checkpoints" / INCEPTION_FILES[1]
    older.parent.mkdir(parents=True)
    older.touch()
    assert find_weights(INCEPTION_FILES, None) == older
