"""The diffusion process: noise levels, hybrid loss, condition dropout, guidance, samplers.

Numbers only: the network is any object with `encode` and a call (`Network`).
Shapes: B images (B, 3, H, W) in [-1, 1]; t (B,) int64, 0 ... T-1, where 0 is the least noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pidm_core.config import DiffusionConfig, Guidance, SampleConfig, Sampler, Spacing
from pidm_core.files import UserError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(y_t (B, 3, H, W), t (B,)) -> (B, 6, H, W): eps (guided or not) and the variance channels v."""


class Diffusion:
    """Constants of q(y_t | y_0) (Eq. 1) in float64, and what is computed from them."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.beta = torch.linspace(
            config.beta_first, config.beta_last, config.T, dtype=torch.float64
        )
        self.abar = torch.cumprod(1 - self.beta, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.abar[:-1]])
        variance = self.beta * (1 - before) / (1 - self.abar)
        variance[0] = variance[1]  # it is 0 at the last step, where its logarithm is not used
        self._constants = {
            "signal": self.abar.sqrt(),
            "noise": (1 - self.abar).sqrt(),
            "snr": self.abar / (1 - self.abar),
            "mean_y_0": self.beta * before.sqrt() / (1 - self.abar),
            "mean_y_t": (1 - before) * (1 - self.beta).sqrt() / (1 - self.abar),
            "log_large": self.beta.log(),
            "log_small": variance.log(),
        }
        self._there: dict[tuple[str, torch.device], Tensor] = {}

    def _at(self, name: str, t: Tensor) -> Tensor:
        """A constant at the levels t, (B, 1, 1, 1); a copy to a GPU would wait for it each time."""
        key = name, t.device
        if key not in self._there:
            self._there[key] = self._constants[name].float().to(t.device)
        return self._there[key][t][:, None, None, None]

    def q_sample(self, y_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """y_t = sqrt(abar_t) y_0 + sqrt(1 - abar_t) eps."""
        return self._at("signal", t) * y_0 + self._at("noise", t) * eps

    def predict_y0(self, y_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The clean image that y_t and its noise imply."""
        return (y_t - self._at("noise", t) * eps) / self._at("signal", t)

    def to_eps(self, out: Tensor, y_t: Tensor, t: Tensor) -> Tensor:
        """The network's output with its first three channels turned into eps if they are y_0."""
        if self.config.prediction == "eps":
            return out
        y_0, variance = out.chunk(2, 1)
        return torch.cat([self.implied_eps(y_t, t, y_0), variance], 1)

    def implied_eps(self, y_t: Tensor, t: Tensor, y_0: Tensor) -> Tensor:
        """The noise that y_t and its clean image imply."""
        return (y_t - self._at("signal", t) * y_0) / self._at("noise", t)

    # ------------------------------------------------------------ training

    def losses(self, out: Tensor, y_0: Tensor, y_t: Tensor, t: Tensor, eps: Tensor) -> Losses:
        """Eq. 4 for a network output (B, 6, H, W)."""
        out = out.float()
        # Nichol & Dhariwal's weight: the bound sums T terms, of which this is one.
        bound = self.vlb(self.to_eps(out, y_t, t), y_0, y_t, t) * (self.config.T / 1000)
        if self.config.prediction == "eps":
            return Losses((out[:, :3] - eps).square().mean((1, 2, 3)), bound)
        # An error of the image is one of the noise times SNR: Eq. 3 and the bound would learn the
        # least noisy levels alone. So SNR counts as 1 ... 5, and the bound is cut as much.
        snr = self._at("snr", t).flatten()
        mse = snr.clamp(1, 5) * (out[:, :3] - y_0).square().mean((1, 2, 3))
        return Losses(mse, bound * (5 / snr).clamp_max(1))

    def vlb(self, out: Tensor, y_0: Tensor, y_t: Tensor, t: Tensor) -> Tensor:
        """One term of the variational bound in bits per dimension, (B,); the mean is detached.

        KL(q(y_{t-1} | y_t, y_0) || p(y_{t-1} | y_t)); at t = 0 the likelihood of the 8-bit image.
        """
        eps, variance = out.chunk(2, 1)
        true_mean = self.posterior_mean(y_0, y_t, t)
        true_log_var = self._at("log_small", t)
        mean = self.posterior_mean(self.predict_y0(y_t, t, eps.detach()), y_t, t)
        log_var = self.log_variance(variance, t)
        kl = gaussian_kl(true_mean, true_log_var, mean, log_var)
        nll = -discretised_gaussian_log_likelihood(y_0, mean, 0.5 * log_var)
        bits = torch.where((t == 0)[:, None, None, None], nll, kl) / math.log(2)
        return bits.mean((1, 2, 3))

    def posterior_mean(self, y_0: Tensor, y_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(y_{t-1} | y_t, y_0)."""
        return self._at("mean_y_0", t) * y_0 + self._at("mean_y_t", t) * y_t

    def log_variance(self, v: Tensor, t: Tensor) -> Tensor:
        """Learned log-variance between log beta~_t (v = -1) and log beta_t (v = 1)."""
        share = (v + 1) / 2
        return share * self._at("log_large", t) + (1 - share) * self._at("log_small", t)

    # ------------------------------------------------------------ sampling

    def timesteps(self, steps: int, spacing: Spacing) -> list[int]:
        """The noise levels visited, most noise first.

        'trailing' starts at T - 1 exactly; 'leading' takes every k-th level from 0 on, as the
        authors do. Raises UserError for more steps than levels, and for a number that no k gives.
        """
        T = self.config.T
        if not 1 <= steps <= T:
            raise UserError(f"{steps} steps are not between 1 and the {T} noise levels")
        if spacing == "trailing":
            return [round(T - i * T / steps) - 1 for i in range(steps)]
        levels = range(0, T, math.ceil(T / steps))
        if len(levels) != steps:
            raise UserError(
                f"{steps} steps: 'leading' takes every k-th of the {T} levels, which gives "
                f"{len(levels)} steps, but never {steps}; take 'trailing', or such a number"
            )
        return list(levels)[::-1]

    def sample(
        self,
        denoise: Denoise,
        y_T: Tensor,  # (B, 3, H, W) unit noise
        *,
        steps: int,
        sampler: Sampler = "ddim",
        spacing: Spacing = "trailing",
        clip: bool = True,
        noise: Callable[[int], Tensor] | None = None,  # step number -> (B, 3, H, W); ddpm only
        known: Callable[[Tensor, Tensor], Tensor] | None = None,  # y_t, t (B,) -> y_t
    ) -> Iterator[Step]:
        """Denoise y_T step by step (Eq. 2); the last step's y is the image.

        `known` puts what is known of the image, at its noise level, in y_t before each step.
        """
        levels = self.timesteps(steps, spacing)
        y, last = y_T, None
        for i, level in enumerate(levels):
            before = float(self.abar[levels[i + 1]]) if i + 1 < len(levels) else 1.0
            t = torch.full((len(y),), level, device=y.device)
            y = y if known is None else known(y, t)
            eps, v = denoise(y, t).float().chunk(2, 1)
            y_0 = self.predict_y0(y, t, eps)
            if clip:
                y_0 = y_0.clamp(-1, 1)
            abar = float(self.abar[level])
            if sampler == "ddim":
                y = ddim_step(y, y_0, abar=abar, abar_before=before)
            elif sampler == "dpm++":
                y_last, abar_last = last or (None, 1.0)
                last = (y_0, abar)
                y = dpm_step(y, y_0, y_last, abar=abar, abar_before=before, abar_last=abar_last)
            else:
                fresh = noise(i) if noise is not None and i + 1 < len(levels) else None
                y = ddpm_step(y, y_0, v, fresh, abar=abar, abar_before=before)
            yield Step(i, level, y, y_0)


@dataclass(frozen=True)
class Losses:
    """L_mse and L_vlb of each image, (B,) each."""

    mse: Tensor
    vlb: Tensor


@dataclass(frozen=True)
class Step:
    """One denoising step: its number, the noise level it left, the image and predicted y_0."""

    number: int
    t: int
    y: Tensor
    y_0: Tensor


def ddim_step(y_t: Tensor, y_0: Tensor, *, abar: float, abar_before: float) -> Tensor:
    """Song et al. 2021, Eq. 12 with eta = 0."""
    eps = (y_t - math.sqrt(abar) * y_0) / math.sqrt(1 - abar)
    return math.sqrt(abar_before) * y_0 + math.sqrt(1 - abar_before) * eps


def dpm_step(
    y_t: Tensor, y_0: Tensor, y_0_last: Tensor | None, *,
    abar: float, abar_before: float, abar_last: float,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M), Lu et al. 2022, Algorithm 2; the first and the last step are DDIM's.

    y_0_last was predicted at `abar_last`, one step earlier (more noise).
    """
    if y_0_last is None or abar_before >= 1:
        return ddim_step(y_t, y_0, abar=abar, abar_before=abar_before)
    h_last, h = (
        _half_log_snr(abar) - _half_log_snr(abar_last),
        (_half_log_snr(abar_before) - _half_log_snr(abar)),
    )
    ahead = y_0 + h / (2 * h_last) * (y_0 - y_0_last)  # y_0 half a step further
    return ddim_step(y_t, ahead, abar=abar, abar_before=abar_before)


def _half_log_snr(abar: float) -> float:
    return 0.5 * math.log(abar / (1 - abar))


def ddpm_step(
    y_t: Tensor, y_0: Tensor, v: Tensor, noise: Tensor | None, *, abar: float, abar_before: float
) -> Tensor:
    """Eq. 2 with the learned variance, respaced (Nichol & Dhariwal 2021); no noise at the end."""
    beta = 1 - abar / abar_before
    mean = (beta * math.sqrt(abar_before) * y_0 + (1 - abar_before) * math.sqrt(1 - beta) * y_t) / (
        1 - abar
    )
    if noise is None:
        return mean
    log_small = math.log(max(beta * (1 - abar_before) / (1 - abar), 1e-20))
    share = (v + 1) / 2
    return mean + (0.5 * (share * math.log(beta) + (1 - share) * log_small)).exp() * noise


def gaussian_kl(mean_1: Tensor, log_var_1: Tensor, mean_2: Tensor, log_var_2: Tensor) -> Tensor:
    """KL divergence of two diagonal Gaussians, element by element, in nats."""
    ratio = log_var_2 - log_var_1
    square = (mean_1 - mean_2).square() * (-log_var_2).exp()
    return 0.5 * (ratio - 1 + (-ratio).exp() + square)


def discretised_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit values x in [-1, 1] under a Gaussian, in nats (DDPM, Eq. 13)."""
    scale = (-log_scale).exp()
    upper = torch.special.ndtr(scale * (x - mean + 1 / 255))
    lower = torch.special.ndtr(scale * (x - mean - 1 / 255))
    inside = torch.where(x > 0.999, 1 - lower, upper - lower)
    return torch.where(x < -0.999, upper, inside).clamp_min(1e-12).log()


# ---------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Dropped:
    """Which samples of a batch lost their pose and which their style, (B,) bool each."""

    pose: Tensor
    style: Tensor


def drop_conditions(count: int, eta: float, *, device: torch.device | None = None) -> Dropped:
    """One draw per sample: pose only (eta), style only (eta), both (eta), neither (1 - 3 eta).

    The paper drops "eta %" without saying how; independent draws would train eps(0, 0), which
    Eq. 6 needs at every step, on eta^2 = 1 % of the samples only.
    """
    u = torch.rand(count, device=device)
    return Dropped(
        pose=(u < eta) | ((u >= 2 * eta) & (u < 3 * eta)), style=(u >= eta) & (u < 3 * eta)
    )


@dataclass(frozen=True)
class Branch:
    """One evaluation of the network, with or without each condition."""

    pose: bool
    style: bool


_NEITHER, _POSE, _STYLE, _BOTH = (
    Branch(False, False),
    Branch(True, False),
    Branch(False, True),
    Branch(True, True),
)


WEIGHTS: dict[Guidance, tuple[str, ...]] = {
    "dcf": ("w_p", "w_s"), "chain": ("w_p", "w_s"), "cf": ("w_s",), "style": ("w_s",), "none": (),
}  # fmt: skip
"""The weights that each guidance has."""


def guidance_terms(guidance: Guidance, w_p: float, w_s: float) -> list[tuple[Branch, float]]:
    """The branches evaluated and their coefficients in the guided eps; most conditioned last.

    dcf    Eq. 6 as printed: u + w_p (p - u) + w_s (s - u), which never evaluates both together
    chain  u + w_p (p - u) + w_s (ps - p)
    cf     vanilla classifier-free guidance: u + w_s (ps - u)
    style  the authors' code: p + w_s (ps - p)
    none   ps
    """
    match guidance:
        case "dcf":
            return [(_NEITHER, 1 - w_p - w_s), (_POSE, w_p), (_STYLE, w_s)]
        case "chain":
            return [(_NEITHER, 1 - w_p), (_POSE, w_p - w_s), (_BOTH, w_s)]
        case "cf":
            return [(_NEITHER, 1 - w_s), (_BOTH, w_s)]
        case "style":
            return [(_POSE, 1 - w_s), (_BOTH, w_s)]
        case "none":
            return [(_BOTH, 1.0)]


class Network(Protocol):
    """What guidance needs of a network (model.PIDM is one)."""

    def encode(self, x_s: Tensor) -> list[Tensor]: ...

    def prepare(self, texture: list[Tensor]) -> list[tuple[Tensor, ...]]: ...

    def denoise(
        self,
        y_t: Tensor,
        t: Tensor,
        x_p: Tensor,
        styles: list[tuple[Tensor, ...]],
        blocks: Sequence[int] | None = None,
    ) -> Tensor: ...


def unstyled(model: Network, like: Tensor) -> list[tuple[Tensor, ...]]:
    """What the branches without a style see, one image of it; sides and precision of `like`."""
    return model.prepare(model.encode(like.new_zeros((1, 3, *like.shape[2:]))))


def guided_steps(interval: tuple[float, float], steps: int) -> tuple[int, int]:
    """The first step with guidance, and the first after it without, of shares of all steps."""
    first, end = (round(share * steps) for share in interval)
    return first, end


def guided(
    model: Network,
    diffusion: Diffusion,
    *,
    x_p: Tensor,  # (B, 20, H, W)
    texture: list[Tensor],  # F_s of the B sources
    guidance: Guidance,
    w_p: float,
    w_s: float,
    absent: list[tuple[Tensor, ...]] | None = None,  # unstyled(); None = computed here
) -> Denoise:
    """A denoiser that evaluates the branches in one batch and combines their eps.

    Guidance acts on eps alone; the variance is that of the most conditioned branch. Branches of
    the same pose share what H_N computes before it sees a style.
    """
    terms = guidance_terms(guidance, w_p, w_s)
    count, B = len(terms), len(x_p)
    posed = sorted({branch.pose for branch, _ in terms})  # without pose, with pose
    blocks = [posed.index(branch.pose) for branch, _ in terms]
    poses = torch.cat([x_p if with_pose else torch.zeros_like(x_p) for with_pose in posed])
    styles = model.prepare(texture)
    if not all(branch.style for branch, _ in terms):
        nothing = unstyled(model, x_p) if absent is None else absent
        null = [tuple(f.expand(B, *f.shape[1:]) for f in style) for style in nothing]
        parts = [styles if branch.style else null for branch, _ in terms]
        styles = [  # of each layer (nB, ...)
            tuple(torch.cat(same) for same in zip(*layer, strict=True))
            for layer in zip(*parts, strict=True)
        ]
    weights = torch.tensor([weight for _, weight in terms], dtype=torch.float32, device=x_p.device)

    def denoise(y_t: Tensor, t: Tensor) -> Tensor:
        y = y_t.to(x_p.dtype).repeat(len(posed), 1, 1, 1)
        out = model.denoise(y, t.repeat(len(posed)), poses, styles, blocks).float()
        out = diffusion.to_eps(out, y_t.repeat(count, 1, 1, 1), t.repeat(count))
        outs = out.view(count, *y_t.shape[:1], 6, *y_t.shape[2:])
        eps = torch.einsum("n,nbchw->bchw", weights, outs[:, :, :3])
        return torch.cat([eps, outs[-1, :, 3:]], 1)

    return denoise


def turns(
    model: Network,
    diffusion: Diffusion,
    *,
    x_p: Tensor,
    texture: list[Tensor],
    settings: SampleConfig,
    absent: list[tuple[Tensor, ...]] | None = None,
) -> list[Denoise]:
    """What denoises at each of `settings.steps`: with guidance within the interval, else without.

    The other arguments are those of `guided`.
    """
    first, end = guided_steps(settings.interval, settings.steps)
    wanted: list[Guidance] = [
        settings.guidance if first <= step < end else "none" for step in range(settings.steps)
    ]
    made = {
        guidance: guided(
            model, diffusion, x_p=x_p, texture=texture, guidance=guidance,
            w_p=settings.w_p, w_s=settings.w_s, absent=absent,
        )
        for guidance in set(wanted)
    }  # fmt: skip
    return [made[guidance] for guidance in wanted]


@torch.inference_mode()
def sample_images(
    model: Network,
    diffusion: Diffusion,
    *,
    texture: list[Tensor],  # F_s of B sources
    x_p: Tensor,  # (B, 20, H, W) target poses
    y_T: Tensor,  # (B, 3, H, W) unit noise, float32
    settings: SampleConfig,
    noise: Callable[[int], Tensor] | None = None,
    known: Callable[[Tensor, Tensor], Tensor] | None = None,
    watch: Callable[[Step], object] | None = None,  # called after each step
    absent: list[tuple[Tensor, ...]] | None = None,
) -> Tensor:  # (B, 3, H, W)
    """The sources' people in the target poses, by all the steps that `settings` asks for.

    `noise` and `known` are those of Diffusion.sample, `absent` that of `guided`.
    """
    turn = iter(turns(model, diffusion, x_p=x_p, texture=texture, settings=settings, absent=absent))
    steps = diffusion.sample(
        lambda y_t, t: next(turn)(y_t, t),
        y_T,
        steps=settings.steps,
        sampler=settings.sampler,
        spacing=settings.spacing,
        clip=settings.clip,
        noise=noise,
        known=known,
    )
    for step in steps:
        if watch is not None:
            watch(step)
    return step.y
