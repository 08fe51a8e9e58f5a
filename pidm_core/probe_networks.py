"""Two small networks that judge pictures of people: where the joints are, and who it is.

Both look at 64x32 px, are trained on the training people of a ToyMarket alone (five minutes on
one CPU core) and kept as safetensors files, so that a second run starts at once.

Legend: B batch, H W size of the pictures in px.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pidm_core.files import BAD_DATA, UserError, sha256, write_bytes
from pidm_core.hardware import Placement, place
from pidm_core.keypoints import mirror
from pidm_core.progress import track

INPUT = (64, 32)  # height and width that the networks see, px
GRID = (16, 8)  # of their first features
EMBEDDING = 128
_COSINE_SCALE = 16.0
_CHUNK = 256  # pictures judged together


class Posed(Protocol):
    """Pictures of people with their joints (joint_judge.Examples are such)."""

    @property
    def images(self) -> np.ndarray: ...  # uint8 (N, H, W, 3)

    @property
    def exact(self) -> np.ndarray: ...  # float (N, 18, 2) px, NaN = outside the picture


class People(Posed, Protocol):
    """The same, and who they are (probe.Crowd is one)."""

    @property
    def pids(self) -> np.ndarray: ...  # int (N,)


@dataclass(frozen=True)
class Training:
    """How the two networks are trained, and what changes the pictures meanwhile."""

    joint_steps: int = 1600
    identity_steps: int = 1200
    batch_size: int = 48
    lr: float = 3e-3
    weight_decay: float = 1e-2
    max_zoom: float = 0.1
    max_shift: float = 0.06  # share of the frame
    max_tint: float = 0.2  # change of each channel's gain, and of the brightness
    seed: int = 0


# ---------------------------------------------------------------- the networks


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _Body(nn.Module):
    """Features at 16x8 and 8x4; nothing runs at a finer grid, where a CPU would lose its time."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 64, 8, 4, 2, bias=False)
        self.fine = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(), _layer(64, 64))
        self.coarse = nn.Sequential(_layer(64, 128, 2), _layer(128, 128))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images)  # (B, 64, 16, 8)
        return fine, self.coarse(fine)  # (B, 128, 8, 4)


class JointNetwork(nn.Module):
    """Joints as the centres of mass of 18 maps: (B, 3, 64, 32) -> (B, 18, 2), shares of the frame.

    Left and right need a look at the whole person, hence the level of 4x2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = _Body()
        self.whole = nn.Sequential(_layer(128, 128, 2), _layer(128, 128))
        self.narrow = nn.Conv2d(128, 64, 1)
        self.last = _layer(64, 64)
        self.maps = nn.Conv2d(64, 18, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine, coarse = self.body(images)
        coarse = coarse + _double(self.whole(coarse))
        maps = self.maps(self.last(fine + _double(self.narrow(coarse))))  # (B, 18, 16, 8)
        mass = maps.flatten(2).softmax(2).view(maps.shape)
        y, x = (torch.arange(0.5, n, device=maps.device) / n for n in GRID)
        return torch.stack([mass.sum(2) @ x, mass.sum(3) @ y], 2)


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0)


class IdentityNetwork(nn.Module):
    """Who it is: (B, 3, 64, 32) -> unit vectors (B, 128), close together for one person."""

    def __init__(self, people: int) -> None:
        super().__init__()
        self.body = _Body()
        self.embed = nn.Linear(128 * 8, EMBEDDING, bias=False)
        self.norm = nn.BatchNorm1d(EMBEDDING)
        self.people = nn.Parameter(torch.randn(people, EMBEDDING))

    def forward(self, images: Tensor) -> Tensor:
        _, coarse = self.body(images)
        rows = coarse.mean(3).flatten(1)  # heights stay apart: a shirt is no pair of trousers
        return F.normalize(self.norm(self.embed(rows)), dim=1)

    def logits(self, images: Tensor) -> Tensor:
        """Cosines to the training people, scaled for the cross entropy: (B, people)."""
        cosines: Tensor = self(images) @ F.normalize(self.people, dim=1).T
        return _COSINE_SCALE * cosines


# ---------------------------------------------------------------- judging


class Judges:
    """The two trained networks, for pictures of any size."""

    def __init__(
        self, joints: JointNetwork, identity: IdentityNetwork, *, placement: Placement | None = None
    ) -> None:
        self._placement = placement or place("fp32")
        self._joints = self._placement.module(joints).eval()
        self._identity = self._placement.module(identity).eval()

    def joints(self, images: np.ndarray) -> np.ndarray:
        """Where the 18 joints seem to be: uint8 (N, H, W, 3) -> float32 (N, 18, 2) px."""
        return _find_joints(self._joints, self._placement, images)

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the person looks like: uint8 (N, H, W, 3) -> float32 unit vectors (N, 128)."""
        return _run(self._identity, self._placement, images)


def _find_joints(network: nn.Module, placement: Placement, images: np.ndarray) -> np.ndarray:
    frame = np.array(images.shape[2:0:-1], dtype=np.float32)
    return _run(network, placement, images) * frame - np.float32(0.5)


@torch.inference_mode()
def _run(network: nn.Module, placement: Placement, images: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), _CHUNK)
    parts = [network(_shrunk(images[i : i + _CHUNK], placement)) for i in starts]
    return torch.cat(parts).cpu().numpy()


def _shrunk(images: np.ndarray, placement: Placement) -> Tensor:
    """(B, 3, 64, 32) in [-1, 1]."""
    pixels = placement.images(images)
    small = F.interpolate(pixels, INPUT, mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- training


def train_judges(
    people: People,
    folder: Path,
    *,
    name: str,
    training: Training | None = None,
) -> Judges:
    """Train both networks on `people`, or load them from `folder` if that was done before.

    `name` says which people they are: under another name, or with another training, the networks
    are trained anew. Raises UserError (BAD_DATA) for a file that is not what was written.
    """
    training, placement = training or Training(), place("fp32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        joints, identity = JointNetwork(), IdentityNetwork(len(np.unique(people.pids)))
    classes = np.unique(people.pids, return_inverse=True)[1]
    examples = functools.cache(lambda: _Examples(people, placement, training, classes))
    for kind, network, loss, steps in (
        ("joints", joints, _joint_loss, training.joint_steps),
        ("identity", identity, _identity_loss, training.identity_steps),
    ):
        _learned(network, kind, loss, examples, folder, f"{name} {asdict(training)}", steps=steps)
    return Judges(joints, identity, placement=placement)


Find = Callable[[np.ndarray], np.ndarray]
"""Where the 18 joints seem to be: uint8 (N, H, W, 3) -> float32 (N, 18, 2) px."""


def train_joints(people: Callable[[], Posed], folder: Path, *, name: str) -> Find:
    """Train the network of the joints alone, or load it, as `train_judges` does.

    people: reads the pictures, which a network that is there needs no more.
    """
    training, placement = Training(), place("fp32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = JointNetwork()

    def examples() -> _Examples:
        found = people()
        return _Examples(found, placement, training, np.zeros(len(found.images), dtype=int))

    named, steps = f"{name} {asdict(training)}", training.joint_steps
    _learned(network, "joints", _joint_loss, examples, folder, named, steps=steps)
    return functools.partial(_find_joints, placement.module(network).eval(), placement)


def _learned(
    network: nn.Module,
    kind: str,
    loss: Callable[[nn.Module, _Batch], Tensor],
    examples: Callable[[], _Examples],
    folder: Path,
    name: str,
    *,
    steps: int,
) -> None:
    """Train a network, or load it if it was trained under that name before."""
    path = folder / f"{kind}-{sha256(f'{kind} {name}'.encode())[:12]}.safetensors"
    if path.is_file():
        _load(network, path)
        return
    label = f"learn {kind} -> {path}"
    _fit(place("fp32").module(network), loss, examples(), steps=steps, label=label)
    state = {k: v.cpu().contiguous() for k, v in network.state_dict().items()}
    write_bytes(path, save_tensors(state))


def _load(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(load_tensors(path.read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: not the network it was; remove the file", BAD_DATA) from error


@dataclass(frozen=True)
class _Batch:
    images: Tensor  # (B, 3, 64, 32)
    joints: Tensor  # (B, 18, 2) shares of the frame, NaN = missing
    classes: Tensor  # (B,) number of the person


class _Examples:
    """Training pictures, each time flipped, moved, enlarged and tinted at random."""

    def __init__(
        self, people: Posed, placement: Placement, training: Training, classes: np.ndarray
    ) -> None:
        self.training, self.device = training, placement.device
        self._images = _shrunk(people.images, placement)
        self._width = people.images.shape[2]
        self._frame = np.array(people.images.shape[2:0:-1])
        self._exact = people.exact
        self._classes = classes

    def draw(self, rng: np.random.Generator) -> _Batch:
        t = self.training
        rows = rng.integers(len(self._images), size=t.batch_size)
        flip = rng.random(t.batch_size) < 0.5
        size = rng.uniform(1 - t.max_zoom, 1 + t.max_zoom, (t.batch_size, 1, 1))
        move = rng.uniform(-t.max_shift, t.max_shift, (t.batch_size, 1, 2))
        gain = rng.uniform(1 - t.max_tint, 1 + t.max_tint, (t.batch_size, 3, 1, 1))
        light = rng.uniform(-t.max_tint, t.max_tint, (t.batch_size, 1, 1, 1))
        images, exact = self._images[rows], self._exact[rows].copy()
        images[flip] = images[flip].flip(3)
        exact[flip] = mirror(exact[flip], self._width)
        shares = (((exact + 0.5) / self._frame - 0.5) * size + 0.5) + move
        shares[((shares < 0) | (shares > 1)).any(2)] = np.nan
        images = _moved(images, self._on(size), self._on(move))
        images = images * self._on(gain) + self._on(light)
        return _Batch(
            images, self._on(shares), torch.from_numpy(self._classes[rows]).to(self.device)
        )

    def _on(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float().to(self.device)


def _moved(images: Tensor, size: Tensor, move: Tensor) -> Tensor:
    """Enlarge about the centre by `size` (B, 1, 1), then move by shares of the frame (B, 1, 2)."""
    matrix = torch.zeros(len(images), 2, 3, device=images.device)  # from new places to old ones
    matrix[:, :, :2] = torch.eye(2, device=images.device) / size
    matrix[:, :, 2] = -2 * move[:, 0] / size[:, 0]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _joint_loss(network: nn.Module, batch: _Batch) -> Tensor:
    pixels = torch.tensor(INPUT[::-1], device=batch.images.device)
    error = (network(batch.images) - batch.joints) * pixels
    there = ~error.isnan().any(2, keepdim=True)
    error = torch.where(there, error, 0.0)
    total = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum")
    return torch.div(total, there.sum())


def _identity_loss(network: nn.Module, batch: _Batch) -> Tensor:
    assert isinstance(network, IdentityNetwork)
    return F.cross_entropy(network.logits(batch.images), batch.classes)


def _fit(
    network: nn.Module,
    loss: Callable[[nn.Module, _Batch], Tensor],
    examples: _Examples,
    *,
    steps: int,
    label: str,
) -> None:
    training = examples.training
    rng = np.random.default_rng(training.seed)
    adam = torch.optim.AdamW(
        network.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, training.lr, total_steps=steps)
    network.train()
    for _ in track(range(steps), total=steps, label=label, unit="steps", each=1):
        value = loss(network, examples.draw(rng))
        adam.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
        rate.step()
