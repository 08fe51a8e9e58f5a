"""The process against diffusers' schedulers and closed forms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm
from tiny import TINY
from torch import Tensor

from pidm_core.config import DiffusionConfig, Guidance, SampleConfig
from pidm_core.diffusion import (
    Diffusion,
    discretised_gaussian_log_likelihood,
    drop_conditions,
    gaussian_kl,
    guidance_terms,
    guided,
    sample_images,
)
from pidm_core.files import UserError
from pidm_core.model import PIDM

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2}


@pytest.fixture
def diffusion() -> Diffusion:
    return Diffusion(DiffusionConfig())


def fake_denoise(y: Tensor, t: Tensor) -> Tensor:
    """Some smooth function of y and t with six channels."""
    level = (t.float() / 1000)[:, None, None, None]
    return torch.cat([torch.tanh(y) * level + 0.1 * y, torch.sin(3 * y) * (1 - level)], 1)


def test_the_schedule_is_diffusers(diffusion: Diffusion) -> None:
    reference = DDPMScheduler(**SCHEDULE)
    np.testing.assert_allclose(diffusion.abar, reference.alphas_cumprod, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_equals_diffusers_step_by_step(diffusion: Diffusion, spacing: str, clip: bool) -> None:
    reference = DDIMScheduler(
        **SCHEDULE, clip_sample=clip, timestep_spacing=spacing, steps_offset=0
    )
    reference.set_timesteps(20)
    torch.manual_seed(0)
    y_T = torch.randn(2, 3, 8, 4)
    expected = y_T
    steps = diffusion.sample(fake_denoise, y_T, steps=20, spacing=spacing, clip=clip)  # type: ignore[arg-type]
    for step, t in zip(steps, reference.timesteps, strict=True):
        assert step.t == int(t)
        eps = fake_denoise(expected, t.expand(2))[:, :3]
        # We recompute eps from the clipped y_0, as guided-diffusion does; diffusers has a switch.
        expected = reference.step(eps, t, expected, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(step.y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize("count", [4, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True])
def test_dpm_equals_diffusers_step_by_step(
    diffusion: Diffusion, spacing: str, clip: bool, count: int
) -> None:
    reference = DPMSolverMultistepScheduler(
        **SCHEDULE, final_sigmas_type="zero", prediction_type="sample" if clip else "epsilon"
    )
    # Its own "leading" divides by one step more than its DDIM's and ours: it is given the levels.
    reference.set_timesteps(timesteps=diffusion.timesteps(count, spacing))  # type: ignore[arg-type]
    torch.manual_seed(0)
    y_T = torch.randn(2, 3, 8, 4)
    expected = y_T
    steps = diffusion.sample(
        fake_denoise, y_T, steps=count, sampler="dpm++", spacing=spacing, clip=clip,  # type: ignore[arg-type]
    )  # fmt: skip
    for step, t in zip(steps, reference.timesteps, strict=True):
        assert step.t == int(t)
        out = fake_denoise(expected, t.expand(2))[:, :3]
        if clip:  # diffusers' switch knows quantiles only; it takes a clipped image as it is
            abar = reference.alphas_cumprod[t]
            out = ((expected - (1 - abar).sqrt() * out) / abar.sqrt()).clamp(-1, 1)
        expected = reference.step(out, t, expected).prev_sample
        torch.testing.assert_close(step.y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [20, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm_equals_diffusers_learned_range(
    diffusion: Diffusion, monkeypatch: pytest.MonkeyPatch, spacing: str, clip: bool, count: int
) -> None:
    reference = DDPMScheduler(
        **SCHEDULE, variance_type="learned_range", clip_sample=clip, timestep_spacing=spacing
    )
    reference.set_timesteps(count)
    reference.alphas_cumprod = diffusion.abar  # in float32 its betas are wrong by 1e-3 near t = 0
    noises = torch.randn(count, 2, 3, 8, 4, generator=torch.Generator().manual_seed(5))
    # Our last step gives the mean, the finished image. So does diffusers' if it ends at t = 0;
    # elsewhere (trailing, 20 steps: t = 49) it would still add noise, and gets none here.
    rest = iter([*noises[:-1], torch.zeros_like(noises[-1])])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(rest))
    torch.manual_seed(0)
    y_T = torch.randn(2, 3, 8, 4)
    expected = y_T
    steps = diffusion.sample(
        fake_denoise, y_T, steps=count, sampler="ddpm", spacing=spacing, clip=clip,  # type: ignore[arg-type]
        noise=lambda number: noises[number],
    )  # fmt: skip
    for step, t in zip(steps, reference.timesteps, strict=True):
        assert step.t == int(t)
        out = fake_denoise(expected, t.expand(2))
        expected = reference.step(out, t, expected).prev_sample.float()
        torch.testing.assert_close(step.y, expected, rtol=5e-5, atol=5e-5)
    assert step.number == count - 1


def test_the_authors_four_steps_are_750_500_250_0(diffusion: Diffusion) -> None:
    assert diffusion.timesteps(4, "leading") == [750, 500, 250, 0]
    assert diffusion.timesteps(4, "trailing") == [999, 749, 499, 249]


@pytest.mark.parametrize(
    ("steps", "spacing", "words"),
    [
        (0, "trailing", "0 steps are not between 1 and the 1000 noise levels"),
        (1001, "trailing", "1001 steps are not between"),
        (600, "leading", "gives 500 steps, but never 600"),
    ],
)
def test_impossible_numbers_of_steps_are_refused(
    diffusion: Diffusion, steps: int, spacing: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        diffusion.timesteps(steps, spacing)  # type: ignore[arg-type]


def test_leading_steps_are_every_kth_level() -> None:
    diffusion = Diffusion(DiffusionConfig())
    assert diffusion.timesteps(30, "leading") == list(range(0, 1000, 34))[::-1]
    assert diffusion.timesteps(1000, "leading") == list(range(1000))[::-1]


def test_log_variance_interpolates_the_two_bounds(diffusion: Diffusion) -> None:
    t, k = torch.tensor([400]), 400
    beta = 1e-4 + (2e-2 - 1e-4) * k / 999
    small = beta * (1 - diffusion.abar[k - 1]) / (1 - diffusion.abar[k])
    for v, expected in ((1.0, math.log(beta)), (-1.0, math.log(small)),
                        (0.0, (math.log(beta) + math.log(small)) / 2)):  # fmt: skip
        got = diffusion.log_variance(torch.full((1, 3, 2, 2), v), t)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gaussian_kl_equals_torch_distributions() -> None:
    m1, m2, s1, s2 = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(m1, (s1 / 2).exp()),
        torch.distributions.Normal(m2, (s2 / 2).exp()),
    )
    torch.testing.assert_close(gaussian_kl(m1, s1, m2, s2), reference)


def test_the_discretised_likelihood_sums_to_one_over_the_256_values() -> None:
    x = torch.arange(256) / 127.5 - 1
    for mean, log_scale in ((0.1, -2.0), (-0.99, -4.0), (1.0, 0.5)):
        p = discretised_gaussian_log_likelihood(
            x, torch.tensor(mean), torch.tensor(log_scale)
        ).exp()
        assert p.sum() == pytest.approx(1, abs=1e-4)


def test_the_bound_is_zero_for_the_true_posterior(diffusion: Diffusion) -> None:
    torch.manual_seed(0)
    y_0, eps, t = torch.rand(2, 3, 8, 4) * 2 - 1, torch.randn(2, 3, 8, 4), torch.tensor([10, 800])
    y_t = diffusion.q_sample(y_0, t, eps)
    perfect = torch.cat([eps, torch.full_like(eps, -1)], 1)  # v = -1 is the posterior's variance
    assert diffusion.vlb(perfect, y_0, y_t, t).abs().max() < 1e-3
    wide = torch.cat([eps, torch.full_like(eps, 1.0)], 1)
    assert diffusion.vlb(wide, y_0, y_t, t)[0] > 1e-3  # at t = 800 the two bounds coincide


def test_the_mean_inside_the_bound_is_detached(diffusion: Diffusion) -> None:
    out = torch.randn(1, 6, 4, 4, requires_grad=True)
    y = torch.zeros(1, 3, 4, 4)
    diffusion.vlb(out, y, y, torch.tensor([500])).sum().backward()
    assert out.grad is not None
    assert out.grad[:, :3].abs().sum() == 0
    assert out.grad[:, 3:].abs().sum() > 0


def test_the_bound_weighs_a_thousandth_of_the_number_of_levels() -> None:
    """The mean over the levels is then a thousandth of the whole bound, whatever their number."""
    torch.manual_seed(0)
    y_0, eps = torch.rand(1, 3, 4, 4) * 2 - 1, torch.randn(1, 3, 4, 4)
    for T in (20, 200):
        diffusion = Diffusion(DiffusionConfig(T=T))
        whole, drawn = 0.0, []
        for level in range(T):
            t = torch.tensor([level])
            y_t = diffusion.q_sample(y_0, t, eps)
            out = torch.cat([0.9 * eps, torch.zeros_like(eps)], 1)
            whole += float(diffusion.vlb(out, y_0, y_t, t))
            drawn.append(float(diffusion.losses(out, y_0, y_t, t, eps).vlb))
        assert np.mean(drawn) == pytest.approx(whole / 1000, rel=1e-5)


def test_an_image_prediction_turns_into_the_noise_it_means() -> None:
    diffusion = Diffusion(DiffusionConfig(prediction="y_0"))
    torch.manual_seed(0)
    y_0, eps, t = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([3, 500, 999])
    y_t = diffusion.q_sample(y_0, t, eps)
    out = torch.cat([y_0, torch.zeros_like(y_0)], 1)
    torch.testing.assert_close(diffusion.to_eps(out, y_t, t)[:, :3], eps, atol=1e-4, rtol=1e-4)
    assert diffusion.losses(out, y_0, y_t, t, eps).mse.max() == 0
    # Half a unit beside the image: 0.25 times the SNR, cut to 1 ... 5.
    wrong = torch.cat([y_0 + 0.5, torch.zeros_like(y_0)], 1)
    snr = diffusion.abar[500] / (1 - diffusion.abar[500])
    assert 0.05 < snr < 1
    expected = [0.25 * 5, 0.25, 0.25]
    np.testing.assert_allclose(diffusion.losses(wrong, y_0, y_t, t, eps).mse, expected, rtol=1e-5)


def test_condition_dropout_has_the_stated_shares() -> None:
    torch.manual_seed(0)
    dropped = drop_conditions(100_000, 0.1)
    counts = Counter(zip(dropped.pose.tolist(), dropped.style.tolist(), strict=True))
    for kind, share in {(True, False): 0.1, (False, True): 0.1, (True, True): 0.1,
                        (False, False): 0.7}.items():  # fmt: skip
        assert counts[kind] / 100_000 == pytest.approx(share, abs=0.005)


# ---------------------------------------------------------------- guidance


class FakeNetwork:
    """eps of each branch is a known number: 1 neither, 3 pose, 7 style, 16 both; v likewise."""

    def encode(self, x_s: Tensor) -> list[Tensor]:
        return [x_s]

    def prepare(self, texture: list[Tensor]) -> list[tuple[Tensor, ...]]:
        return [(texture[0],), ()]

    def denoise(
        self, y_t: Tensor, t: Tensor, x_p: Tensor, styles: list[tuple[Tensor, ...]],
        blocks: Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        assert blocks is not None
        x_p = torch.cat([x_p.chunk(max(blocks) + 1)[k] for k in blocks])
        pose = (x_p.flatten(1).abs().sum(1) > 0).float()
        style = (styles[0][0].flatten(1).abs().sum(1) > 0).float()
        eps = 1 + 2 * pose + 6 * style + 7 * pose * style
        return eps[:, None, None, None].expand(-1, 6, *y_t.shape[2:])


@pytest.mark.parametrize(("interval", "branches"), [((0.0, 1.0), 3), ((0.25, 0.75), 2)])
def test_guidance_acts_in_its_interval_alone(
    interval: tuple[float, float], branches: float
) -> None:
    rows: list[int] = []

    class Counted(FakeNetwork):
        def denoise(self, *given: Any, **more: Any) -> Tensor:
            out = super().denoise(*given, **more)
            rows.append(len(out))
            return out

    settings = SampleConfig(steps=8, guidance="chain", clip=False, interval=interval)
    y = sample_images(
        Counted(), Diffusion(DiffusionConfig()), texture=[torch.ones(1, 3, 4, 4)],
        x_p=torch.ones(1, 20, 4, 4), y_T=torch.zeros(1, 3, 4, 4), settings=settings,
    )  # fmt: skip
    inside = range(round(8 * interval[0]), round(8 * interval[1]))
    assert rows == [3 if i in inside else 1 for i in range(8)]
    assert sum(rows) == branches * 8
    # by hand: DDIM with eps = chain inside and 16 (pose and style) outside
    diffusion, expected = Diffusion(DiffusionConfig()), 0.0
    levels = diffusion.timesteps(8, "trailing")
    for i, level in enumerate(levels):
        eps = 1 + 2.0 * (3 - 1) + 2.0 * (16 - 3) if i in inside else 16
        a = float(diffusion.abar[level])
        b = float(diffusion.abar[levels[i + 1]]) if i < 7 else 1.0
        y_0 = (expected - (1 - a) ** 0.5 * eps) / a**0.5
        expected = b**0.5 * y_0 + (1 - b) ** 0.5 * eps
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4)


def guided_value(guidance: Guidance, w_p: float, w_s: float) -> tuple[float, float]:
    x_p, x_s = torch.ones(2, 20, 4, 4), torch.ones(2, 3, 4, 4)
    denoise = guided(
        FakeNetwork(), Diffusion(DiffusionConfig()), x_p=x_p, texture=[x_s],
        guidance=guidance, w_p=w_p, w_s=w_s,
    )  # fmt: skip
    out = denoise(torch.zeros(2, 3, 4, 4), torch.tensor([5, 5]))
    return float(out[0, 0, 0, 0]), float(out[0, 3, 0, 0])


@pytest.mark.parametrize(
    ("guidance", "eps", "variance"),
    [
        ("dcf", 1 + 2.0 * (3 - 1) + 1.5 * (7 - 1), 7),
        ("chain", 1 + 2.0 * (3 - 1) + 1.5 * (16 - 3), 16),
        ("cf", 1 + 1.5 * (16 - 1), 16),
        ("style", 3 + 1.5 * (16 - 3), 16),
        ("none", 16, 16),
    ],
)
def test_guidance_by_hand(guidance: Guidance, eps: float, variance: float) -> None:
    assert guided_value(guidance, 2.0, 1.5) == pytest.approx((eps, variance))


@pytest.mark.parametrize("guidance", ["dcf", "chain", "cf", "style", "none"])
def test_guidance_equals_one_evaluation_after_the_other(guidance: Guidance) -> None:
    model, diffusion = PIDM(TINY).eval(), Diffusion(DiffusionConfig(prediction="y_0"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    y_t, x_s = torch.randn(2, 3, *TINY.size), torch.randn(2, 3, *TINY.size)
    x_p, t = torch.rand(2, 20, *TINY.size), torch.tensor([700, 700])
    with torch.no_grad():
        expected = torch.zeros(2, 3, *TINY.size)
        for branch, weight in guidance_terms(guidance, 2.0, 1.5):
            out = model(y_t, t, x_p if branch.pose else None,
                        model.encode(x_s) if branch.style else None)  # fmt: skip
            out = diffusion.to_eps(out, y_t, t)
            expected += weight * out[:, :3]
        denoise = guided(
            model, diffusion, x_p=x_p, texture=model.encode(x_s),
            guidance=guidance, w_p=2.0, w_s=1.5,
        )  # fmt: skip
        eps, variance = denoise(y_t, t).chunk(2, 1)
    torch.testing.assert_close(eps, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, out[:, 3:], rtol=1e-4, atol=1e-4)


def test_dcf_without_weights_is_unconditional_and_linear_in_each() -> None:
    assert guided_value("dcf", 0, 0)[0] == pytest.approx(1)
    for index in (0, 1):
        values = [guided_value("dcf", *[w if i == index else 1.0 for i in (0, 1)])[0]
                  for w in (0.0, 1.0, 2.0)]  # fmt: skip
        assert values[2] - values[1] == pytest.approx(values[1] - values[0])


def test_the_weights_of_every_guidance_add_up_to_one() -> None:
    for guidance in ("dcf", "chain", "cf", "style", "none"):
        assert sum(w for _, w in guidance_terms(guidance, 2.5, 1.5)) == pytest.approx(1)  # type: ignore[arg-type]


def test_sampling_visits_every_step_and_returns_the_last_image() -> None:
    x_p, x_s, y_T = torch.ones(2, 20, 4, 4), torch.ones(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for sampler in ("ddim", "ddpm", "dpm++"):
        y = sample_images(
            FakeNetwork(), Diffusion(DiffusionConfig()), texture=[x_s], x_p=x_p, y_T=y_T,
            settings=SampleConfig(steps=7, sampler=sampler), noise=lambda _: torch.zeros_like(y_T),  # type: ignore[arg-type]
        )  # fmt: skip
        assert y.shape == y_T.shape
        assert y.isfinite().all()
