"""Networks that judge images, from weight files on the machine: Inception-v3, ResNet50, LPIPS.

Nothing is downloaded. B images, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pidm_core.checkpoint import load_weights
from pidm_core.files import ENVIRONMENT, UserError, sha256
from pidm_core.hardware import place
from pidm_core.weight_files import read_weights

Images = NDArray[np.float32]  # (B, H, W, 3) in [0, 1]

INCEPTION_FILES = ("inception_v3_google-0cc3c7bd.pth", "inception_v3_google-1a9a5a14.pth")
ALEXNET_FILES = ("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth")
_INCEPTION_SIDE = 299
_IMAGENET_MEAN, _IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Extractor:
    """Images to features, and what a number made of them must be printed with."""

    name: str
    weights: str  # SHA-256 of the file
    size: tuple[int, int] | None  # (H, W) px that the images are brought to; None = as they are
    titles: tuple[str, str]  # what the Fréchet and the kernel distance are called
    features: Callable[[Images], NDArray[np.float32]]  # -> (B, D)


@dataclass(frozen=True)
class Perceptual:
    """LPIPS with one network, of pairs of images."""

    name: str
    weights: str  # SHA-256 of the file
    distance: Callable[[Images, Images], NDArray[np.float32]]  # -> (B,)


# ---------------------------------------------------------------- networks


def inception(path: Path, size: tuple[int, int] | None) -> Extractor:
    """torchvision's Inception-v3 up to its pooled 2,048 features, as the papers use it.

    Images in [0, 1] are resized to 299x299 (bilinear) and transformed as if they had been
    normalised for ImageNet, which they were not: x * 0.229 / 0.5 + (0.485 - 0.5) / 0.5 for red.
    Published FIDs contain this. Raises UserError for a file of another network.
    """
    from torchvision.models import inception_v3

    state = read_weights(path)
    network = inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=True)
    network.fc = nn.Identity()
    _fit(network, state, path, unused=("fc.", "AuxLogits."))

    def resized(x: Tensor) -> Tensor:
        side = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        return nn.functional.interpolate(x, side, mode="bilinear", align_corners=False)

    name = f"Inception-v3 at {_INCEPTION_SIDE}x{_INCEPTION_SIDE}"
    return Extractor(name, sha256(path), size, ("FID", "KID"), _runner(network, resized))


def resnet50(path: Path, size: tuple[int, int]) -> Extractor:
    """A ResNet50 trained for re-ID (torchvision's or torchreid's names): pooled 2,048 features.

    size: (H, W) px of its input. Raises UserError for a file of another network.
    """
    from torchvision.models import resnet50 as build

    state = read_weights(path)
    network = build(weights=None)
    network.fc = nn.Identity()
    _fit(network, state, path, unused=("fc.", "classifier."))

    def normalised(x: Tensor) -> Tensor:
        mean, sd = (x.new_tensor(v).view(1, 3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_SD))
        return (x - mean) / sd

    titles = ("re-ID Fréchet distance (not FID)", "re-ID kernel distance (not KID)")
    return Extractor("re-ID ResNet50", sha256(path), size, titles, _runner(network, normalised))


def lpips(path: Path) -> Perceptual:
    """LPIPS (Zhang et al. 2018, version 0.1) on an AlexNet whose ImageNet weights lie in `path`.

    Raises UserError for a file of another network, and (ENVIRONMENT) without the package lpips.
    """
    try:
        import lpips as package
    except ImportError as error:
        raise UserError("the package lpips is missing: pip install lpips", ENVIRONMENT) from error

    state = read_weights(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its call of torchvision is of an older style
        network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    layers = {name: m for part in network.net.children() for name, m in part.named_children()}
    alexnet = nn.ModuleDict({"features": nn.ModuleDict(layers)})  # named as in torchvision's file
    _fit(alexnet, state, path, unused=("classifier.",))
    placement = place("fp32")
    placement.module(network.eval())

    @torch.inference_mode()
    def distance(a: Images, b: Images) -> NDArray[np.float32]:
        x, y = (placement.tensor(_nchw(images)) * 2 - 1 for images in (a, b))
        return np.asarray(network(x, y).flatten().cpu().numpy())

    return Perceptual("AlexNet", sha256(path), distance)


def _runner(
    network: nn.Module, prepare: Callable[[Tensor], Tensor]
) -> Callable[[Images], NDArray[np.float32]]:
    placement = place("fp32")
    placement.module(network.eval())

    @torch.inference_mode()
    def features(images: Images) -> NDArray[np.float32]:
        return np.asarray(network(prepare(placement.tensor(_nchw(images)))).cpu().numpy())

    return features


def _nchw(images: Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


# ---------------------------------------------------------------- weight files


def find_weights(names: tuple[str, ...], folder: Path | None) -> Path:
    """The first of the files `names` that lies in `folder` or torch's cache.

    UserError says what to put where, with the code ENVIRONMENT: a caller can go on without.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    folders = [folder, cache] if folder else [cache]
    for path in (home / name for home in folders for name in names):
        if path.is_file():
            return path
    where = " or ".join(map(str, folders))
    raise UserError(
        f"no weights; put torchvision's {names[0]} into {where}, or name its folder with --weights",
        ENVIRONMENT,
    )


def _fit(
    network: nn.Module, state: dict[str, Tensor], path: Path, *, unused: tuple[str, ...]
) -> None:
    """Load a file's tensors into a network, without those whose name begins with `unused`."""
    found = {k: v for k, v in state.items() if not k.startswith(unused)}
    for name in network.state_dict():
        if name.endswith("num_batches_tracked"):  # counts of training, absent from older files
            found.setdefault(name, torch.tensor(0))
    load_weights(network, found, path)
