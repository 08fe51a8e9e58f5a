"""The network against the paper's description and itself under simple changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from pidm_core import UserError
from pidm_core.config import ModelConfig, Texture
from pidm_core.model import (
    PIDM,
    GroupNorm,
    TextureDiffusionBlock,
    position_code,
    time_embedding,
    tokens,
)

SMALL = ModelConfig(
    size=(32, 16), channels=32, channel_mults=(1, 2), blocks_per_level=1, texture_factors=(2,)
)


def randomised(config: ModelConfig) -> PIDM:
    """A network without its zero-initialised layers, which would hide wiring errors."""
    torch.manual_seed(0)
    model = PIDM(config).eval()
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def inputs(config: ModelConfig, count: int = 3) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    shape = (count, 3, *config.size)
    x_p = torch.rand(count, 20, *config.size)
    return torch.randn(shape), torch.randint(1000, (count,)), x_p, torch.randn(shape)


def test_the_first_level_may_have_more_channels_than_the_first_convolution() -> None:
    config = dataclasses.replace(SMALL, channel_mults=(2, 2))
    y_t, t, x_p, x_s = inputs(config)
    model = randomised(config)
    assert model(y_t, t, x_p, model.encode(x_s)).shape == (3, 6, 32, 16)


def test_the_paper_network_has_the_official_live_parameters() -> None:
    with torch.device("meta"):
        model = PIDM(ModelConfig(texture_factors=(8, 16, 32)))
    live = sum(p.numel() for p in model.parameters())
    assert live == pytest.approx(162.37e6, rel=1e-4)  # 180.36 M declared - 17.98 M never used


def test_texture_blocks_sit_at_the_configured_factors() -> None:
    with torch.device("meta"):
        model = PIDM(ModelConfig(texture_factors=(8, 16, 32)))
    denoiser = model.denoiser
    # One on the way down and one on the way up for each of the three levels, one in the middle.
    assert [k for k, layer in enumerate(denoiser.down) if layer.texture] == [11, 14, 17]
    assert [k for k, layer in enumerate(denoiser.up) if layer.texture] == [1, 4, 7]
    assert [k for k, layer in enumerate(denoiser.middle) if layer.texture] == [0]


def test_a_factor_that_no_level_has_is_refused() -> None:
    with pytest.raises(UserError, match="texture_factors"):
        ModelConfig(texture_factors=(3,))


@pytest.mark.parametrize("patch", [1, 2])
def test_the_output_has_six_channels_of_the_input_size(patch: int) -> None:
    config = ModelConfig(
        size=(32, 16), patch=patch, channels=32, channel_mults=(1, 2), texture_factors=(2 * patch,)
    )
    y_t, t, x_p, x_s = inputs(config)
    model = PIDM(config)
    assert model(y_t, t, x_p, model.encode(x_s)).shape == (3, 6, 32, 16)


def test_pose_and_style_each_change_the_output() -> None:
    model, (y_t, t, x_p, x_s) = randomised(SMALL), inputs(SMALL)
    with torch.no_grad():
        out = model(y_t, t, x_p, model.encode(x_s))
        other_pose = model(y_t, t, x_p.flip(3), model.encode(x_s))
        other_style = model(y_t, t, x_p, model.encode(-x_s))
    assert (out - other_pose).abs().max() > 1e-3
    assert (out - other_style).abs().max() > 1e-3


VARIANTS: tuple[Texture, ...] = ("attention", "concat", "input")


@pytest.mark.parametrize("texture", VARIANTS)
def test_every_variant_sees_pose_and_style_and_learns_everywhere(texture: Texture) -> None:
    config = dataclasses.replace(SMALL, texture=texture)
    model, (y_t, t, x_p, x_s) = randomised(config), inputs(config)
    f_s = model.encode(x_s)
    out = model(y_t, t, x_p, f_s)
    assert out.shape == (3, 6, 32, 16)
    with torch.no_grad():
        assert (out - model(y_t, t, x_p.flip(3), f_s)).abs().max() > 1e-3
        assert (out - model(y_t, t, x_p, model.encode(-x_s))).abs().max() > 1e-3
    out.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_baselines_lack_what_the_paper_takes_away() -> None:
    names = {
        texture: [
            n for n, _ in PIDM(dataclasses.replace(SMALL, texture=texture)).named_parameters()
        ]
        for texture in VARIANTS
    }
    assert any("phi_q" in name for name in names["attention"])
    assert not any("phi_" in name for name in names["concat"])
    assert any(name.startswith("encoder.") for name in names["concat"])
    assert not any(name.startswith("encoder.") or "texture" in name for name in names["input"])
    dagger = PIDM(dataclasses.replace(SMALL, texture="input"))
    assert torch.equal(dagger.encode(x := torch.randn(1, 3, 32, 16))[0], x)


@pytest.mark.parametrize("texture", VARIANTS)
def test_sides_that_do_not_divide_are_padded_inside_and_cropped_outside(texture: Texture) -> None:
    config = dataclasses.replace(SMALL, texture=texture, size=(31, 13), channel_mults=(1, 2, 2))
    model, (y_t, t, x_p, x_s) = randomised(config), inputs(config)
    whole = [F.pad(x, (1, 2, 0, 1), mode="replicate") for x in (y_t, x_p, x_s)]  # 32 x 16
    with torch.no_grad():
        out = model(y_t, t, x_p, model.encode(x_s))
        padded = model(whole[0], t, whole[1], model.encode(whole[2]))
    assert out.shape == (3, 6, 31, 13)
    torch.testing.assert_close(out, padded[:, :, :31, 1:14])


@pytest.mark.parametrize("channels", [32, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [(128, 64), (256, 176), (512, 352)])
def test_the_paper_network_runs_at_the_papers_sizes(size: tuple[int, int], channels: int) -> None:
    model = PIDM(ModelConfig(size=size, channels=channels)).eval()
    y_t, t, x_p, x_s = inputs(model.config, 1)
    with torch.inference_mode():
        assert model(y_t, t, x_p, model.encode(x_s)).shape == (1, 6, *size)


@pytest.mark.parametrize("factors", [(2,), ()])  # (): the middle alone sees a style
@pytest.mark.parametrize("texture", VARIANTS)
def test_blocks_of_one_pose_share_what_no_style_enters(
    texture: Texture, factors: tuple[int, ...]
) -> None:
    config = dataclasses.replace(SMALL, texture=texture, texture_factors=factors)
    model, (y_t, t, x_p, x_s) = randomised(config), inputs(config)
    rows: list[int] = []
    model.denoiser.down[0].block.register_forward_hook(lambda _, given, out: rows.append(len(out)))
    skips: list[int] = []  # rows of the last skip as it meets the way up
    block = model.denoiser.up[-1].block
    beside = block.beside
    block.beside = lambda h, x, *others: skips.append(len(x)) or beside(h, x, *others)
    no_pose, sources = torch.zeros_like(x_p), [x_s, torch.zeros_like(x_s), -x_s, x_s]
    with torch.no_grad():
        alone = [
            model(y_t, t, pose, model.encode(source))
            for pose, source in zip([no_pose, x_p, x_p, x_p], sources, strict=True)
        ]
        rows.clear()
        skips.clear()
        styles = model.prepare(model.encode(torch.cat(sources)))
        both = [torch.cat([y_t, y_t]), torch.cat([t, t]), torch.cat([no_pose, x_p])]
        together = model.denoise(*both, styles, [0, 1, 1, 1])
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert rows == [4 * 3 if texture == "input" else 2 * 3]
    assert skips == rows


@pytest.mark.parametrize("texture", VARIANTS)
def test_recomputed_activations_give_the_same_gradients(texture: Texture) -> None:
    config = dataclasses.replace(SMALL, texture=texture, dropout=0.3)
    y_t, t, x_p, x_s = inputs(config)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = PIDM(config, recompute=recompute).train()
        model.load_state_dict(randomised(config).state_dict())
        torch.manual_seed(2)  # of dropout
        model(y_t, t, x_p, model.encode(x_s)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.equal(plain, again)


def test_none_means_the_all_zeros_condition() -> None:
    model, (y_t, t, x_p, x_s) = randomised(SMALL), inputs(SMALL)
    with torch.no_grad():
        zeros = model.encode(torch.zeros_like(x_s))
        assert torch.equal(model(y_t, t, None, zeros), model(y_t, t, torch.zeros_like(x_p), zeros))
        torch.testing.assert_close(model(y_t, t, x_p, None), model(y_t, t, x_p, zeros))


def test_the_encoder_does_not_see_the_noise_level() -> None:
    names = [name for name, _ in PIDM(SMALL).named_parameters() if name.startswith("encoder.")]
    assert names
    assert not [name for name in names if "emb" in name or "time" in name]


def test_an_image_of_a_batch_equals_the_same_image_alone() -> None:
    model, (y_t, t, x_p, x_s) = randomised(SMALL), inputs(SMALL)
    with torch.no_grad():
        together = model(y_t, t, x_p, model.encode(x_s))
        alone = model(y_t[1:2], t[1:2], x_p[1:2], model.encode(x_s[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_after_three_steps_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    model, (y_t, t, x_p, x_s) = PIDM(SMALL), inputs(SMALL)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(4):  # zero-initialised layers let the gradient through one after another
        adam.zero_grad()
        (model(y_t, t, x_p, model.encode(x_s)) - 1).square().mean().backward()
        adam.step()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert dead == []


def test_with_positions_attention_starts_at_the_same_place() -> None:
    torch.manual_seed(0)
    block = TextureDiffusionBlock(96, positions=True)
    f_s = torch.randn(1, 96, 16, 8) * 0.1
    q = tokens(block.phi_q(position_code(f_s)))
    k = tokens(block.phi_kv(f_s + position_code(f_s))).chunk(2, 2)[0]
    weights = (q @ k.transpose(1, 2) / 96**0.5).softmax(2)[0]  # (128, 128)
    assert (weights.argmax(1) == torch.arange(128)).float().mean() > 0.9


@pytest.mark.parametrize("size", [(8, 6), (64, 32)])  # two ways forward, two of summing back
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_our_group_norm_equals_torch_in_channels_last(
    dtype: torch.dtype, tolerance: float, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(4, 64, *size).mul(2).add(1)
    g = torch.randn(4, 64, *size)
    results = []
    for ours in (True, False):
        leaf = x.to(dtype if ours else torch.float32)
        leaf = leaf.contiguous(memory_format=torch.channels_last).requires_grad_()
        norm.zero_grad()
        y = norm(leaf) if ours else F.group_norm(leaf, 32, norm.weight, norm.bias)
        y.backward(g.to(y.dtype))
        assert leaf.grad is not None
        grads = [p.grad.clone() for p in norm.parameters() if p.grad is not None]
        results.append([y, leaf.grad, *grads])
        if ours:
            with torch.no_grad():  # as when sampling
                results[0].append(norm(leaf))
        else:
            results[1].append(y)
    for mine, reference in zip(*results, strict=True):
        error = (mine.float() - reference).abs().max() / reference.abs().max()
        assert error < tolerance


def test_the_time_embedding_is_the_authors() -> None:
    # half = 2, frequencies 1 and 1/100: cosines first, then sines, of t = 3
    expected = torch.tensor([[3.0, 0.03]])
    got = time_embedding(torch.tensor([3]), 4)
    torch.testing.assert_close(got, torch.cat([expected.cos(), expected.sin()], 1))
