"""Settings of the re-ID side: dataclasses hold every default (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from pidm_core import Sampling, UserError, to_dict

IMAGENET_FILE = "resnet50-19c8e357.pth"  # torchvision's


@dataclass(frozen=True)
class Stage:
    """One training of the network."""

    steps: int = 24_000
    """Iterations."""
    lr: float = 3e-4
    """Largest learning rate of Adam (amsgrad)."""
    warmup_steps: int = 200
    """Iterations over which the learning rate rises."""
    weight_decay: float = 5e-4
    """Adam's weight decay."""
    label_smooth: bool = True
    """Smooth the labels by 0.1, as torchreid does."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps: {self.steps} is not at least 1")
        if not 0 <= self.lr < math.inf:
            raise UserError(f"lr: {self.lr:g} is not at least 0")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight_decay: {self.weight_decay:g} is not at least 0")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps: {self.warmup_steps} is negative")


@dataclass(frozen=True)
class NetworkConfig:
    """A ResNet50 and its input."""

    height: int = 256
    """Height of the input in pixels."""
    width: int = 128
    """Width of the input in pixels."""
    batch_size: int = 32
    """Images per iteration."""
    weights: str = "auto"
    """First weights: a file, 'auto' (ImageNet's if they lie in torch's cache) or 'none'."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 where the hardware has it ('auto'), bf16 or fp32."""
    workers: int = -1
    """Loader processes (-1: none on a CPU, 8 for a GPU)."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not at least 1")


@dataclass(frozen=True)
class StudentConfig(NetworkConfig):
    """The network that is to recognise people again."""

    standard: Stage = field(default_factory=Stage)
    """The training on D_tr."""
    finetune: Stage = field(default_factory=lambda: Stage(lr=1e-4))
    """The fine-tuning on D_aug."""


def decisive(student: NetworkConfig) -> dict[str, Any]:
    """The settings that decide what is trained: workers too, once there are others than ever.

    torchreid cuts and flips in them, so another number of them trains another network.
    """
    values = to_dict(student)
    if student.workers < 0:
        del values["workers"]
    return values


@dataclass(frozen=True)
class FinetunePolicy:
    """How the rows with generated images are fine-tuned; same steps in every case."""

    start: Literal["standard", "scratch"] = "standard"
    """From the Standard network, or anew; holds for Standard-same-steps as well."""
    half_real: bool = False
    """Fill every batch half with real and half with generated images."""
    real_last: float = 0.0
    """Share of the iterations, at the end, on the real images alone (0-1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.real_last < 1:
            raise UserError(f"real_last: {self.real_last:g} is not a share below 1")


SELECTION_RULE = 3  # goes up when the same settings choose other images


@dataclass(frozen=True)
class SelectionConfig:
    """Which of the generated images are kept."""

    confused: float = 0.05
    """Share of the real images that lie below the threshold of confusion with another (0-1)."""
    copy: float = 0.99
    """Share of the real images that lie below the threshold of a copy (0-1)."""
    likeness_weight: float = 0.0
    """What likeness counts among the images against which nothing speaks; the plan's order decides
    between equal ones (0 for both: it alone, which was best on development people)."""
    pose_weight: float = 0.0
    """What a new pose counts there."""
    network: Stage = field(default_factory=lambda: Stage(steps=12_000))
    """The training of each of the two networks that judge, one by the people of the other."""

    def __post_init__(self) -> None:
        for name in ("confused", "copy"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"selection.{name}: {getattr(self, name):g} is not between 0 and 1")


@dataclass(frozen=True)
class PlanPolicy:
    """How sources and poses are chosen; the defaults are the paper's."""

    pose_policy: Literal["uniform", "balanced"] = "uniform"
    """Poses: any alike, or first the views and postures that a person's real images lack."""
    same_scale: float = 0.0
    """Only poses whose torso is at most this factor longer or shorter than the source's, such as
    1.2 (0: of any size)."""
    source_policy: Literal["uniform", "cameras"] = "uniform"
    """Sources: every real image as often, or every camera of a person as often."""

    def __post_init__(self) -> None:
        if self.same_scale and not 1 <= self.same_scale < math.inf:
            raise UserError(
                f"same-scale {self.same_scale:g} is not a factor of 1 or more, such as 1.2 "
                "(0: poses of any size)"
            )

    @property
    def compares_poses(self) -> bool:
        """Whether the poses are compared with those of D_tr."""
        return self.pose_policy == "balanced" or self.same_scale > 0


@dataclass(frozen=True)
class ReidTable:
    """A table: every row at every ratio with every seed."""

    name: str = "reid"
    """Name of the table; its results lie in results/NAME."""
    data: str = "data/market1501"
    """Folder of people: Market-1501 layout."""
    keypoints: str = ""
    """Keypoint file of the training images (default: the one beside them)."""
    run: str = ""
    """Run folder or bundled model of the row PIDM-paper (default: the newest run)."""
    strict: str = ""
    """Configuration file by which PIDM-strict trains a generator on each D_tr alone."""
    row: tuple[str, ...] = ()
    """Further rows, NAME=FOLDER: images that another generator made."""
    variants: dict[str, str] = field(default_factory=dict)
    """Further rows, each PIDM-strict with one setting of this table changed, as
    NAME=policy.half_real=true; with another `run` each is PIDM-paper, with another `selection`
    setting PIDM-strict-selection."""
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Shares of the real training images kept."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each fixes split, plan, initial weights and order."""
    rows: tuple[str, ...] = ("Standard", "Standard-same-steps", "PIDM-paper")
    """Rows: Standard, Standard-same-steps, Standard-same-steps-erasing, PIDM-paper,
    PIDM-paper-selection, PIDM-strict, PIDM-strict-fly, PIDM-strict-selection,
    PIDM-strict-selection-erasing, real-instead, oracle."""
    per_image: int = 0
    """Generated images per real one (0: fill up to the size of the full training set)."""
    plan: PlanPolicy = field(default_factory=PlanPolicy)
    """Which sources and poses are chosen."""
    sample: Sampling = field(default_factory=Sampling)
    """How PIDM generates."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """How the rows with selection choose."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """The network that is trained."""
    policy: FinetunePolicy = field(default_factory=FinetunePolicy)
    """How it is fine-tuned."""
    rerank: bool = False
    """Report k-reciprocal re-ranking as well."""
    published: bool | None = None
    """Show the papers' figures beside ours (default: on Market-1501)."""
    results: str = "results"
    """Folder of the results of all tables."""
    folders: str = "data"
    """Where the augmented folders are made."""
    runs: str = "runs"
    """Where the strict generators are trained."""

    def __post_init__(self) -> None:
        for key in ("ratios", "seeds", "rows"):
            if not getattr(self, key):
                raise UserError(f"{key}: at least one is needed")
        if min(self.seeds) < 0:
            raise UserError(f"seeds: {min(self.seeds)} is not at least 0")
        if max(self.seeds) >= 2**32:
            raise UserError(f"seeds: {max(self.seeds)} is not below 2^32")
