"""How fast PIDM is on this machine: ratios of one run to plain references of the same weights.

The reference sampler is the authors' way: fp32, contiguous layout, one evaluation of the network
after the other, and nothing but F_s kept between them. The reference training step is a plain
loop: fp32, contiguous, Adam and EMA parameter by parameter. What is compared takes turns, since
a machine's neighbours slow it for seconds or minutes.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pidm_core import toy_market
from pidm_core.config import (
    ASSETS,
    DiffusionConfig,
    Guidance,
    ModelConfig,
    PIDMConfig,
    SampleConfig,
    TrainConfig,
)
from pidm_core.data import Pairs
from pidm_core.datasets import read_people
from pidm_core.diffusion import Denoise, Diffusion, guidance_terms, guided, sample_images
from pidm_core.hardware import Placement, place
from pidm_core.model import PIDM, POSE_CHANNELS
from pidm_core.options import load_config
from pidm_core.progress import duration
from pidm_core.state import State
from pidm_core.train import HybridLoss

BUNDLED = ASSETS / "toy_market" / "config.yaml"
W_P = W_S = 2.0
GUIDANCES: tuple[Guidance, ...] = ("style", "dcf", "chain")
LEVEL = 500  # one noise level is as fast as another
SETTLED = 0.25  # seconds; shorter things are repeated
STEPS_BEFORE = 2  # of training: memory is new to the process until then, 16.4, 15.0, 12.5, 12.6 s
# What training steps reach of a large convolution's rate: 0.71 (the paper's network, measured)
# and 0.33 (the toy one).
SHARES = 3 / 4, 1 / 3


@dataclass(frozen=True)
class Row:
    """One thing measured; `ratio` is how many times faster than the reference it is."""

    what: str
    seconds: float  # per image: of one guided step, or of one training step
    ratio: float | None = None
    difference: float | None = None  # of eps from the reference's, relative to its largest value
    rate: float | None = None  # TFLOP/s of its convolutions, as direct sums, and products
    share: float | None = None  # of the rate of a large convolution in that precision


@dataclass(frozen=True)
class Conditions:
    """Random inputs, the same for all that is compared."""

    x_s: Tensor  # (B, 3, H, W)
    x_p: Tensor  # (B, 20, H, W)
    y_t: Tensor  # (B, 3, H, W)
    t: Tensor  # (B,)


def conditions(config: ModelConfig, count: int, device: torch.device) -> Conditions:
    """Noise as source and image, and a pose map of as many ones as zeros."""
    random = torch.Generator().manual_seed(0)
    shape = (count, 3, *config.size)
    x_s, y_t = (torch.randn(shape, generator=random, device="cpu") for _ in range(2))
    x_p = torch.rand(count, POSE_CHANNELS, *config.size, generator=random, device="cpu").round()
    t = torch.full((count,), LEVEL, device="cpu")
    return Conditions(*(values.to(device) for values in (x_s, x_p, y_t, t)))


def network(config: ModelConfig) -> PIDM:
    """Random weights, none of them zero: a new network would hide its conditions."""
    torch.manual_seed(0)
    model = PIDM(config).eval()
    fill_zeros(model)
    return model


def fill_zeros(model: nn.Module) -> None:
    """Random values for the parameters that are all zero."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def hardware(placement: Placement) -> str:
    """Machine, threads and precision in a line."""
    name = platform.processor() or platform.machine()
    if placement.device.type == "cuda":
        name = torch.cuda.get_device_name(placement.device)
    elif platform.system() == "Linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads, {placement}, torch {torch.__version__}"


# ---------------------------------------------------------------- sampling


def reference(model: PIDM, diffusion: Diffusion, given: Conditions, guidance: Guidance) -> Denoise:
    """Guided noise as the authors compute it, in the layout and precision of `model`."""
    texture = {True: model.encode(given.x_s), False: model.encode(torch.zeros_like(given.x_s))}

    def denoise(y_t: Tensor, t: Tensor) -> Tensor:
        eps = torch.zeros_like(y_t)
        for branch, weight in guidance_terms(guidance, W_P, W_S):
            x_p = given.x_p if branch.pose else torch.zeros_like(given.x_p)
            out = diffusion.to_eps(model(y_t, t, x_p, texture[branch.style]), y_t, t)
            eps += weight * out[:, :3]
        return torch.cat([eps, out[:, 3:]], 1)

    return denoise


def ours(
    model: PIDM, diffusion: Diffusion, given: Conditions, guidance: Guidance, placement: Placement
) -> Denoise:
    """Guided noise as the pipeline computes it; `model` must be on `placement`."""
    texture = model.encode(placement.tensor(given.x_s))
    return guided(
        model, diffusion, x_p=placement.tensor(given.x_p), texture=texture, guidance=guidance,
        w_p=W_P, w_s=W_S,
    )  # fmt: skip


@torch.inference_mode()
def sampling(
    config: ModelConfig,
    *,
    guidance: Guidance,
    batches: Sequence[int],
    rates: Mapping[torch.dtype, float],
) -> Iterator[Row]:
    """A guided step of the reference and ours, at each batch size, in the precisions of `rates`."""
    diffusion, device = Diffusion(DiffusionConfig()), place().device
    plain, one = network(config).to(device), conditions(config, 1, device)
    counted = [  # the direct sums, which freezing may shorten
        reference(plain, diffusion, one, guidance),
        ours(plain, diffusion, one, guidance, Placement(device, torch.float32)),
    ]
    work_plain, work = (_work(step, one) for step in counted)  # of an image
    for count in batches:
        given, name = conditions(config, count, device), f"{guidance}, batch {count}"
        steps = [reference(plain, diffusion, given, guidance)]
        for dtype in rates:
            placement = Placement(device, dtype)
            model = placement.module(network(config))
            steps.append(ours(model, diffusion, given, guidance, placement))
            model.freeze()
        acts = [partial(step, given.y_t, given.t) for step in steps]
        expected, *found = (act()[:, :3] for act in acts)
        slow, *fast = in_turns(acts, before=0)  # each was called just now
        rate = _rate(count * work_plain, slow)
        share = rate / rates[torch.float32]
        yield Row(f"{name}: reference, fp32", slow / count, rate=rate, share=share)
        for (dtype, possible), seconds, eps in zip(rates.items(), fast, found, strict=True):
            difference = float((eps - expected).abs().max() / expected.abs().max())
            rate, name_ours = _rate(count * work, seconds), f"{name}: ours, {name_of(dtype)}"
            times = slow / seconds
            yield Row(name_ours, seconds / count, times, difference, rate, rate / possible)


def convolution_rate(dtype: torch.dtype) -> float:
    """TFLOP/s of a 3x3 convolution of 128 channels at 128x64, a batch of 8, channels_last."""
    batch = 8
    placement = Placement(place().device, dtype)
    conv = placement.module(nn.Conv2d(128, 128, 3, padding=1))
    x = placement.tensor(torch.randn(batch, 128, 128, 64))
    with torch.inference_mode():
        (seconds,) = in_turns([lambda: conv(x)])
    return _rate(2 * 9 * 128 * 128 * 128 * 64 * batch, seconds)


@torch.inference_mode()
def generation(config: ModelConfig, settings: SampleConfig) -> float:
    """Seconds to generate one image, its source's features included."""
    placement, count = place(), settings.batch_size
    given, model = conditions(config, count, placement.device), placement.module(network(config))
    model.freeze()
    diffusion = Diffusion(DiffusionConfig())

    def act() -> Tensor:
        texture = model.encode(placement.tensor(given.x_s))
        return sample_images(
            model, diffusion, texture=texture, x_p=placement.tensor(given.x_p), y_T=given.y_t,
            settings=settings,
        )  # fmt: skip

    (seconds,) = in_turns([act])
    return seconds / count


def generators(*, quick: bool) -> Iterator[tuple[str, float]]:
    """What generates while another network trains, and its seconds for an image.

    The bundled model and its student; unless `quick`, larger and smaller networks of the same
    cost, and one step of the paper's.
    """
    bundled = load_config(PIDMConfig, BUNDLED)
    steps = bundled.sample.steps * len(guidance_terms(bundled.sample.guidance, W_P, W_S))
    yield f"bundled model, {steps} evaluations", generation(bundled.model, bundled.sample)
    student = SampleConfig(steps=1, guidance="none")
    yield "its student of 1 evaluation", generation(bundled.model, student)
    if quick:
        return
    for channels, evaluations in ((64, 1), (32, 4)):
        config = ModelConfig(
            size=(64, 32), channels=channels, channel_mults=(1, 2, 3, 4), texture_factors=(4, 8)
        )
        settings = SampleConfig(steps=evaluations, guidance="none")
        millions = sum(p.numel() for p in network(config).parameters()) / 1e6
        name = f"{millions:.0f} M parameters at 64x32, evaluations: {evaluations}"
        yield name, generation(config, settings)
    settings = SampleConfig(steps=1, guidance="style", batch_size=4)
    yield "paper network, a step (2 evaluations)", generation(ModelConfig(), settings)


# ---------------------------------------------------------------- training


def training(
    config: ModelConfig, *, batch: int, rates: Mapping[torch.dtype, float]
) -> Iterator[Row]:
    """A training step of a plain loop and of ours, at the precision that `place` chooses.

    And of ours what its loader alone takes: `ratio` is then to ours.
    """
    options = PIDMConfig(model=config, train=TrainConfig(batch_size=batch))
    placement, diffusion = place(), Diffusion(options.diffusion)
    given = conditions(config, batch, placement.device)
    plain = network(config).to(placement.device).train()
    loss_of = HybridLoss(plain, diffusion, options)
    adam = torch.optim.Adam(plain.parameters(), lr=options.train.lr, foreach=False)
    averages = [parameter.detach().clone() for parameter in plain.parameters()]

    def plainly() -> None:
        adam.zero_grad()
        mse, vlb = loss_of(given.x_s, given.x_p, given.y_t)
        (mse + vlb).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), options.train.clip_norm, foreach=False)
        adam.step()
        with torch.no_grad():
            for average, parameter in zip(averages, plain.parameters(), strict=True):
                average.lerp_(parameter, 1 - options.train.ema_decay)
        (mse + vlb).item()

    work = batch * pair_work(config)

    def row(who: str, seconds: float, dtype: torch.dtype, ratio: float | None = None) -> Row:
        rate = _rate(work, seconds)
        what = f"batch {batch}: {who}, {name_of(dtype)}"
        return Row(what, seconds / batch, ratio, rate=rate, share=rate / rates[dtype])

    state = State(options, placement)
    for value, parameter in zip(state.master.values(), plain.parameters(), strict=True):
        value.copy_(parameter.detach())  # a new network's gradients are denormal, which is slow
    fast = HybridLoss(state.model, diffusion, options)
    moved = [placement.tensor(x) for x in (given.x_s, given.x_p, given.y_t)]

    def step() -> None:
        mse, vlb = fast(*moved)
        (mse + vlb).backward()
        state.clip()
        state.update(options.train.warmup_steps)
        (mse + vlb).item()

    seconds, took = in_turns([plainly, step], before=STEPS_BEFORE, rounds=5)
    yield row("plain loop", seconds, torch.float32)
    yield row("ours", took, placement.dtype, seconds / took)
    alone = loading(config, batch=batch)
    yield Row(f"batch {batch}: its loader alone", alone / batch, took / alone)


def training_hours(config: PIDMConfig) -> str:
    """A guess, in words, of how long a training takes one process here; nothing of it is run."""
    work = pair_work(config.model, recompute=config.train.recompute)
    rate = convolution_rate(place(config.train.precision).dtype)
    seconds = work * config.train.steps * config.train.batch_size / (rate * 1e12)
    guess = duration(*(seconds / share for share in SHARES))
    return (
        f"{guess} here by one process: {work / 1e9:,.1f} GFLOP a pair, at "
        f"three quarters to a third of the {rate:.2f} TFLOP/s of a large convolution"
    )


def pair_work(config: ModelConfig, *, recompute: bool = False) -> float:
    """FLOP of a training step for each of its pairs, counted on the meta device."""
    with torch.device("meta"):
        model = PIDM(config, recompute=recompute).train()
        given = conditions(config, 1, torch.device("meta"))

    def step() -> None:
        model(given.y_t, given.t, given.x_p, model.encode(given.x_s)).sum().backward()

    return _flops(step)


def loading(config: ModelConfig, *, batch: int) -> float:
    """Seconds to choose, augment and stack a batch of drawn people's pairs, held in memory."""
    with tempfile.TemporaryDirectory() as home:
        toy_market.make(home, preset="tiny", workers=1)
        people = read_people(home)
        pairs = Pairs(people.records, people.keypoints, size=config.size)
    random = np.random.default_rng(0)
    indices = random.integers(0, len(pairs), batch)
    (seconds,) = in_turns([lambda: pairs.batch(indices, random, max_scale=TrainConfig().max_scale)])
    return seconds


def kept_bytes(config: ModelConfig, *, recompute: bool) -> int:
    """Activations of one image that a training step keeps for its backward pass, in fp32.

    Counted on the meta device, which computes nothing.
    """
    with torch.device("meta"):
        model = PIDM(config, recompute=recompute).train()
        given = conditions(config, 1, torch.device("meta"))
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = model(given.y_t, given.t, given.x_p, model.encode(given.x_s))
    del out
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


# ---------------------------------------------------------------- clocks


def _work(denoise: Denoise, given: Conditions) -> float:
    return _flops(lambda: denoise(given.y_t, given.t))


def in_turns(
    acts: Sequence[Callable[[], object]], *, before: int = 1, rounds: int = 3
) -> list[float]:
    """Seconds of one call of each: the medians of `rounds`, or of more where they are short.

    before: calls of each that do not count, since the first ones are slower.
    """
    for act in acts:
        for _ in range(before):
            act()
    times: list[list[float]] = [[] for _ in acts]
    while len(times[0]) < rounds or (min(map(sum, times)) < SETTLED and len(times[0]) < 100):
        for act, taken in zip(acts, times, strict=True):
            begin = time.perf_counter()
            act()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def _flops(act: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        act()
    return float(counter.get_total_flops())


def _rate(work: float, seconds: float) -> float:
    return work / seconds / 1e12


def name_of(dtype: torch.dtype) -> str:
    """Such as bfloat16."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Report:
    """All that was measured of one network."""

    name: str
    steps: list[Row]  # of sampling
    training: list[Row]
    kept: tuple[int, int]  # kept_bytes, without and with train.recompute


@dataclass(frozen=True)
class Measured:
    """A network that is measured, and the batches in which."""

    what: str
    config: ModelConfig
    batches: tuple[int, ...]
    trained: int

    def __str__(self) -> str:
        size = "x".join(map(str, self.config.size))
        factors = ", ".join(map(str, self.config.texture_factors))
        return f"{self.what}: {size}, texture blocks at factors {factors}"


def networks(*, quick: bool) -> list[Measured]:
    """The bundled model's and, unless `quick`, the paper's."""
    bundled = load_config(PIDMConfig, BUNDLED).model
    small = Measured("small (the bundled model's)", bundled, (1, 16), 16)
    return [small] if quick else [small, Measured("paper", ModelConfig(), (1, 4, 8), 4)]


def measure(
    network: Measured, rates: Mapping[torch.dtype, float], say: Callable[[str], object]
) -> Report:
    """Sampling with every guidance at every batch size, and training.

    say: takes each line for reading once it is measured; all of the paper's network takes minutes.
    """
    config = network.config
    say(f"\n{network}\n{heading('step, per image')}")
    steps = [
        row
        for guidance in GUIDANCES
        for row in _told(
            sampling(config, guidance=guidance, batches=network.batches, rates=rates), say
        )
    ]
    say(heading("training image"))
    trained = [*_told(training(config, batch=network.trained, rates=rates), say)]
    plain, again = (kept_bytes(config, recompute=recompute) for recompute in (False, True))
    say(
        f"activations kept for an image in training: {plain / 1e6:,.1f} MB, "
        f"with train.recompute {again / 1e6:,.1f} MB"
    )
    return Report(str(network), steps, trained, (plain, again))


def _told(rows: Iterable[Row], say: Callable[[str], object]) -> Iterator[Row]:
    for row in rows:
        say(line(row))
        yield row


def convolution_rates(*, bf16: bool) -> dict[torch.dtype, float]:
    """TFLOP/s by precision."""
    dtypes = (torch.float32, torch.bfloat16)[: 1 + bf16]
    return {dtype: convolution_rate(dtype) for dtype in dtypes}


def heading(unit: str) -> str:
    """Of the columns of `line`; `unit` says what a second is of."""
    return f"{'':34} {unit:>16} {'times faster':>13} {'difference':>11} {'TFLOP/s':>8} {'share':>6}"


def line(row: Row) -> str:
    """A row for reading."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    difference = "" if row.difference is None else f"{row.difference:.0e}"
    rate = "" if row.rate is None else f"{row.rate:.3f}"
    share = "" if row.share is None else f"{row.share:.0%}"
    return (
        f"{row.what:34} {1000 * row.seconds:13.1f} ms {ratio:>13} {difference:>11} {rate:>8} "
        f"{share:>6}"
    )
