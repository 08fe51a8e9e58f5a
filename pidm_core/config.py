"""Settings: dataclasses that hold every default, and refuse what cannot be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pidm_core.files import UserError

ASSETS = Path(__file__).parent / "assets"  # bundled models
Precision = Literal["auto", "fp32", "bf16"]
Guidance = Literal["dcf", "chain", "cf", "style", "none"]
Sampler = Literal["ddim", "ddpm", "dpm++"]
Texture = Literal["attention", "concat", "input"]
Spacing = Literal["leading", "trailing"]
Prediction = Literal["eps", "y_0"]
PresetName = Literal["pidm", "gfla"]
Published = Literal["", "ablation", "deepfashion", "deepfashion512", "market1501"]


def bundled_folder(name: str | Path) -> Path | None:
    """Where the bundled model of that name would be; None for a path, which means another one."""
    return ASSETS / name if Path(name).name == str(name) else None


def _within(name: str, values: Iterable[float], low: float, high: float) -> None:
    if bad := [value for value in values if not low <= value <= high]:
        raise UserError(f"{name}: {bad[0]} is outside {low:g} ... {high:g}")


@dataclass(frozen=True)
class ModelConfig:
    """The network: noise predictor H_N and texture encoder H_E."""

    size: tuple[int, int] = (128, 64)
    """Height and width of the images in pixels."""
    patch: int = 1
    """Side of the pixel blocks folded into channels at the input (1 = the paper)."""
    channels: int = 128
    """Channels of the first convolution."""
    channel_mults: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    """Channels of each level, as multiples of `channels`."""
    blocks_per_level: int = 2
    """Residual blocks in each level on the way down (one more on the way up)."""
    texture: Texture = "attention"
    """How the source gets in: texture diffusion blocks; its features concatenated at the same
    places (the paper's Baseline); or the image beside the input, without H_E (Baseline-dagger)."""
    texture_factors: tuple[int, ...] = (8, 16, 32)
    """Downsampling factors of the levels that have a texture diffusion block."""
    dropout: float = 0.1
    """Dropout rate inside the residual blocks."""
    positions: bool = False
    """Let texture attention start at the same place of the source (the paper: anywhere)."""

    def __post_init__(self) -> None:
        # A model folder may come from anybody: nothing so large that building it takes all memory.
        _within("model.size", self.size, 8, 2048)
        _within("model.patch", [self.patch], 1, 64)
        _within("model.channels", [self.channels], 32, 4096)
        _within("model.channel_mults", [len(self.channel_mults), *self.channel_mults], 1, 16)
        _within("model.blocks_per_level", [self.blocks_per_level], 1, 16)
        _within("model.dropout", [self.dropout], 0, 0.99)
        factors = [self.patch * 2**level for level in range(len(self.channel_mults))]
        if unknown := [f for f in self.texture_factors if f not in factors]:
            raise UserError(
                f"model.texture_factors: {unknown} are no factors of this network {factors}"
            )
        if self.channels % 32:
            raise UserError(f"model.channels: {self.channels} is not a multiple of 32 (GroupNorm)")


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process (Eq. 1)."""

    T: int = 1000
    """Number of noise levels."""
    beta_first: float = 1e-4
    """Variance of the first noise level."""
    beta_last: float = 2e-2
    """Variance of the last noise level."""
    prediction: Prediction = "eps"
    """What the network predicts: the noise (the paper), or the image (learns sooner)."""

    def __post_init__(self) -> None:
        _within("diffusion.T", [self.T], 2, 100_000)
        _within(
            "diffusion.beta_first and beta_last", [self.beta_first, self.beta_last], 1e-9, 0.999
        )
        rise = (self.beta_last - self.beta_first) / (self.T - 1)
        left = math.prod(1 - self.beta_first - rise * level for level in range(self.T))
        if left < 1e-12:  # an fp32 y_0 from its noise is then rounding alone
            raise UserError(
                f"diffusion: at the last of {self.T} noise levels {left:.0e} of the image is left, "
                "less than 1e-12; take fewer levels or a smaller beta_last"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 2_000_000
    """Optimizer steps in all."""
    batch_size: int = 8
    """Pairs per step and process; a run that goes on with more or fewer processes keeps the pairs
    of a step, all processes together."""
    lr: float = 2e-5
    """Adam's learning rate, after the warm-up."""
    warmup_steps: int = 5000
    """Steps of linear warm-up."""
    cosine: bool = False
    """Let the learning rate fall to zero along a cosine (the paper keeps it constant)."""
    clip_norm: float = 1.0
    """Limit of the gradient's norm."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights."""
    eta: float = 0.1
    """Share of samples that lose their pose, their style, or both (each this share)."""
    max_scale: float = 0.05
    """Random enlargement (with crop) of source and target, drawn separately."""
    seed: int = 0
    """Seed of everything: order, flips, noise levels, noise, initial weights."""
    precision: Precision = "auto"
    """bf16 where the hardware has it, or fp32."""
    recompute: bool = False
    """Compute the layers once more in the backward pass instead of keeping what is inside them:
    the same weights, more time, less memory."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    sample_every: int = 5000
    """Steps between sample grids (0 = none)."""
    save_every: int = 5000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept, counting only good ones; fewer than 2 are refused."""
    bad_steps: int = 10
    """Steps in a row with a NaN or infinite loss or gradient (each is skipped) after which the
    training stops, back at its last checkpoint."""
    init: str = ""
    """Run folder or bundled model whose weights the training starts from."""
    withhold: float = 0.0
    """Share of the identities not trained on: the model kept is the one that denoises them best."""
    patience: int = 0
    """Savings without a better one after which the training ends (0 = it never ends early)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every", "bad_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}: must be at least 1")
        _within("train.seed", [self.seed], 0, 2**63 - 1)
        if self.keep < 2:
            raise UserError("train.keep: must be at least 2, or a crash could leave none")
        if not 0 <= self.eta <= 1 / 3:
            raise UserError(f"train.eta: {self.eta} is outside 0 ... 1/3")
        if not 0 <= self.withhold < 1:
            raise UserError(f"train.withhold: {self.withhold} is outside 0 ... 1")
        if not 0 <= self.lr < math.inf:
            raise UserError(f"train.lr: {self.lr:g} is not at least 0")
        if not self.clip_norm > 0:
            raise UserError(f"train.clip_norm: {self.clip_norm:g} is not above 0")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay: {self.ema_decay} is outside 0 ... 1")
        for name in ("warmup_steps", "max_scale", "sample_every", "patience"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name}: {getattr(self, name)} is negative")
        if self.patience and not self.withhold:
            raise UserError("train.patience: needs train.withhold, the share of people to judge by")


@dataclass(frozen=True)
class SampleConfig:
    """How images are sampled unless a call says otherwise."""

    steps: int = 20
    """Denoising steps."""
    sampler: Sampler = "ddim"
    """Deterministic DDIM, ancestral DDPM, or DPM-Solver++(2M)."""
    spacing: Spacing = "trailing"
    """Placement of the steps: 'leading' (the authors') or 'trailing' (better when few)."""
    clip: bool = True
    """Keep every predicted y_0 within [-1, 1]."""
    guidance: Guidance = "dcf"
    """dcf = Eq. 6; chain, cf, style (the authors' code) or none."""
    w_p: float = 2.0
    """Guidance weight of the pose."""
    w_s: float = 2.0
    """Guidance weight of the style."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Share of the steps after which guidance begins and ends; elsewhere one evaluation a step."""
    batch_size: int = 16
    """Images denoised together; short batches are padded, so it is part of the determinism."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError("sample.steps and sample.batch_size must be at least 1")
        _within("sample.batch_size", [self.batch_size], 1, 4096)
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise UserError(f"sample.interval: {self.interval} are no two rising shares, 0 ... 1")


@dataclass(frozen=True)
class Sampling:
    """Changes to a trained model's own SampleConfig; what is not given stays."""

    sampler: Sampler | None = None
    """ddim, ddpm or dpm++ (default: the model's own)."""
    steps: int | None = None
    """Denoising steps (default: the model's own)."""
    spacing: Spacing | None = None
    """leading or trailing (default: the model's own)."""
    clip: bool | None = None
    """Keep every predicted y_0 within [-1, 1] (default: the model's own)."""
    guidance: Guidance | None = None
    """dcf, chain, cf, style or none (default: the model's own)."""
    w_p: float | None = None
    """Guidance weight of the pose (default: the model's own)."""
    w_s: float | None = None
    """Guidance weight of the style (default: the model's own)."""
    interval: tuple[float, float] | None = None
    """Shares of the steps between which guidance acts (default: the model's own)."""
    batch_size: int | None = None
    """Images denoised together; what memory allows (default: the model's own)."""

    def changes(self) -> dict[str, Any]:
        """What was given, by the names of SampleConfig."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(Sampling)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class PIDMConfig:
    """One training run of PIDM."""

    data: str = "data/market1501"
    """Folder of people: Market-1501 or DeepFashion layout, or any with keypoints and pairs."""
    keypoints: str = ""
    """Keypoint file of the training images (default: the one beside them)."""
    pairs: str = ""
    """Pair list of the training images (default: DeepFashion's own, else PATN's rule)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


@dataclass(frozen=True)
class DistillConfig:
    """One training of a few-step student."""

    data: str = "data/toy_pretrain"
    """Folder of people: best those that the teacher was trained on."""
    keypoints: str = ""
    """Keypoint file of the training images (default: the one beside them)."""
    pairs: str = ""
    """Pair list of the training images (default: DeepFashion's own, else PATN's rule)."""
    teacher: str = "toy_market"
    """Run folder or bundled model; a student can be the teacher of another of fewer steps."""
    steps: int = 4
    """Steps of the student, which are its evaluations for an image."""
    teacher_steps: int = 1
    """Steps of the teacher that one of the student replaces."""
    guidance: Guidance | None = None
    """Guidance to fold in (default: the teacher's own)."""
    w_p: float | None = None
    """Its weight of the pose (default: the teacher's own)."""
    w_s: float | None = None
    """Its weight of the style (default: the teacher's own)."""
    interval: tuple[float, float] | None = None
    """Shares of the teacher's steps between which it acts (default: the teacher's own)."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.teacher_steps < 1:
            raise UserError("steps and teacher_steps must be at least 1")
        if self.train.init or self.train.withhold:
            raise UserError(
                "train.init, train.withhold: a student starts from its teacher and is compared "
                "with it alone (tools/compare_models.py); leave them out"
            )
        if self.train.eta != TrainConfig.eta:
            raise UserError("train.eta: a student keeps both conditions; leave it out")


@dataclass(frozen=True)
class AblationTable(PIDMConfig):
    """Table 2: one training for all variants, and the pairs they are compared on."""

    name: str = "ablation"
    """Name of the table; its results lie in results/NAME."""
    test_pairs: int = 200
    """Pairs of the test images that are drawn and scored (0 = all)."""
    features: Literal["inception", "reid"] = "inception"
    """inception for FID and KID; reid for the same distances in a re-ID network."""
    weights: str = ""
    """Folder of Inception's and AlexNet's weights beside torch's cache; for reid its file."""
    reid_size: tuple[int, int] = (256, 128)
    """Height and width of the re-ID network's input in pixels."""
    results: str = "results"
    """Folder of the results of all tables."""

    def __post_init__(self) -> None:
        if self.test_pairs < 0:
            raise UserError("test_pairs: must be at least 1, or 0 for all")


@dataclass(frozen=True)
class ImageSettings:
    """What generated images are compared with, and by which protocol."""

    real: str = ""
    """Folder of real images for FID and KID (the papers': the whole training set)."""
    targets: str = ""
    """Folder of the true images, or a CSV `generated,target` (default: the folder of real ones)."""
    preset: PresetName = "pidm"
    """Protocol: pidm (256x176 before LPIPS and FID) or gfla (sizes as they are; DPTN, CFLD)."""
    features: Literal["inception", "reid"] = "inception"
    """inception for FID and KID; reid for the same distances in a re-ID network."""
    weights: str = ""
    """Folder of Inception's and AlexNet's weights beside torch's cache; for reid its file."""
    reid_size: tuple[int, int] = (256, 128)
    """Height and width of the re-ID network's input in pixels."""
    keypoints: str = ""
    """Keypoint file of the targets: to measure how far joints lie from them, for a grid's poses."""
    real_keypoints: str = ""
    """Keypoint file of the real images: a small network learns from them to find joints, and how
    far those of generated images lie from the targets' is measured."""
    cache: str = "results/features"
    """Folder where the features of the real images, and that network, are kept."""

    def check(self) -> None:
        """Raise UserError for what lacks: not in the making, since flags may complete a file."""
        if not self.real:
            raise UserError("real: a folder of real images is needed (--real DIR)")
        if self.features == "reid" and not self.weights:
            raise UserError("weights: features=reid needs the network's file (--weights FILE)")
        if min(self.reid_size) < 1:
            raise UserError(f"reid_size: {self.reid_size} is not a height and a width in pixels")
        if self.real_keypoints and not self.keypoints:
            raise UserError("keypoints: the joints' error needs those of the targets")


@dataclass(frozen=True)
class ImageTable(ImageSettings):
    """A table of methods, each a folder of generated images."""

    name: str = "images"
    """Name of the table; its results lie in results/NAME."""
    methods: dict[str, str] = field(default_factory=dict)
    """Folders by method, such as PIDM=results/pidm,NTED=results/nted."""
    published: Published = ""
    """Part of the paper's Table 1 shown beside: deepfashion, deepfashion512 or market1501."""
    grid: bool = False
    """Draw grid.png: source, pose, truth and the image of each method."""
    grid_rows: int = 8
    """Rows of the grid."""
    sources: str = ""
    """Folder of the source images of the grid (default: that of the targets)."""
    results: str = "results"
    """Folder of the results of all tables."""

    def check(self) -> None:
        """The same for a table."""
        super().check()
        if not self.methods:
            raise UserError("methods: at least one is needed (methods: {PIDM: FOLDER})")
        if bad := [name for name in self.methods if name in (".", "..") or "/" in name or not name]:
            raise UserError(f"methods: '{bad[0]}' does not serve as the name of a folder")
        if self.grid and self.targets.lower().endswith(".csv"):
            raise UserError("grid: a CSV of targets names no sources; give a folder of targets")
        if self.grid and not self.keypoints:
            raise UserError("keypoints: the grid needs the joints of the targets")
        if self.grid_rows < 1:
            raise UserError(f"grid_rows: {self.grid_rows} is no number of rows; give 1 or more")
