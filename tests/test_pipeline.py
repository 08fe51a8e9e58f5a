"""The pipeline: independence of the images, appearance editing, style interpolation, tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

from pidm_core import ENVIRONMENT, UserError
from pidm_core.config import DiffusionConfig, SampleConfig
from pidm_core.diffusion import Step
from pidm_core.hardware import place, to_uint8
from pidm_core.pipeline import PIDMPipeline, _softened, slerp


@pytest.fixture(scope="module")
def pipe() -> PIDMPipeline:
    from pidm_core.model import PIDM

    torch.manual_seed(0)
    model = PIDM(TINY)
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.02)
    settings = SampleConfig(steps=3, batch_size=4)
    placement = place("fp32", torch.device("cpu"))
    return PIDMPipeline(model, DiffusionConfig(), settings=settings, placement=placement)


def people(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    sources = rng.integers(0, 256, (count, 32, 16, 3), dtype=np.uint8)
    return sources, rng.uniform(0, 16, (count, 18, 2)).astype(np.float32)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_image_does_not_depend_on_its_neighbours(pipe: PIDMPipeline, sampler: str) -> None:
    sources, keypoints = people(6)
    pipe = pipe.with_settings(sampler=sampler)
    together = pipe.render(sources, keypoints, [5, 6, 7, 8, 9, 10])
    for i in (0, 3, 5):
        alone = pipe.render(sources[i : i + 1], keypoints[i : i + 1], [5 + i])
        assert np.array_equal(alone[0], together[i])


def test_another_seed_source_or_pose_gives_another_image(pipe: PIDMPipeline) -> None:
    sources, keypoints = people(2)
    first = pipe.render(sources[:1], keypoints[:1], [0])
    assert np.array_equal(first, pipe.render(sources[:1], keypoints[:1], [0]))
    for other in (
        pipe.render(sources[:1], keypoints[:1], [1]),
        pipe.render(sources[1:], keypoints[:1], [0]),
        pipe.render(sources[:1], keypoints[1:], [0]),
    ):
        assert not np.array_equal(first, other)


def test_a_watcher_sees_every_step_and_can_end_the_drawing(pipe: PIDMPipeline) -> None:
    sources, keypoints = people(2)
    seen: list[Step] = []
    images = pipe.watched(seen.append)(sources, keypoints, seeds=[0, 1], steps=5).images
    assert [step.number for step in seen] == [0, 1, 2, 3, 4]
    assert seen[0].y.shape == (4, 3, 32, 16)  # a batch, padded
    assert np.array_equal(to_uint8(seen[-1].y)[:2], images)
    assert np.array_equal(pipe(sources, keypoints, seeds=[0, 1], steps=5).images, images)
    assert len(seen) == 5  # the pipeline itself is not watched

    def enough(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.watched(enough)(sources, keypoints)


def test_a_call_accepts_paths_images_and_arrays(pipe: PIDMPipeline, market: Path) -> None:
    path = next((market / "market1501" / "query").iterdir())
    _, keypoints = people(2)
    images = pipe([path, str(path)], keypoints, steps=1, guidance="none").images
    assert images.shape == (2, 32, 16, 3)
    assert pipe(path, keypoints, seeds=[0, 0], steps=1).images.dtype == np.uint8
    with pytest.raises(UserError, match="do not match"):
        pipe([path] * 3, keypoints)
    assert pipe(path, keypoints, seeds=np.arange(2), steps=1).images.shape == (2, 32, 16, 3)
    wrong = {"step": 3, "sampler": "DDIM", "spacing": "Trailing", "guidance": "dfc", "w_p": np.nan}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=name):
            pipe(path, keypoints, **{name: value})


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "L"])
def test_an_opened_image_counts_as_its_file(pipe: PIDMPipeline, tmp_path: Path, mode: str) -> None:
    path, (height, width) = tmp_path / "a.png", pipe.size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "RGBA":
        Image.fromarray(pixels).save(path)
    else:
        high = pixels[..., 0].astype(np.uint16) * 257
        Image.fromarray(high if mode == "I;16" else pixels[..., 0]).save(path)
    _, keypoints = people(1)
    with Image.open(path) as image:
        assert image.mode == mode
        opened = pipe(image, keypoints, steps=1).images
    assert np.array_equal(opened, pipe(path, keypoints, steps=1).images)


def test_what_is_no_image_or_of_another_count_is_refused(pipe: PIDMPipeline) -> None:
    sources, keypoints = people(2)
    for wrong in (sources[0] / 255, sources[0, :, :, 0], sources[0][..., :2]):
        with pytest.raises(UserError, match=r"uint8 \(H, W, 3\)"):
            pipe([wrong], keypoints[:1])
    with pytest.raises(UserError, match="no image is given"):
        pipe([], keypoints)
    with pytest.raises(UserError, match="2 poses are given"):
        pipe.interpolate_style(sources[0], sources[1], keypoints, 3)
    with pytest.raises(UserError, match="2 sources, 1 poses, 2 seeds do not match"):
        pipe.render(sources, keypoints[:1], [0, 1])


@pytest.mark.parametrize("shape", [(2, 18, 3), (2, 18), (18, 3), (17, 2), (1, 2, 18, 2), (36,)])
def test_poses_of_another_shape_are_refused(pipe: PIDMPipeline, shape: tuple[int, ...]) -> None:
    sources, _ = people(2)
    for draw in (pipe, pipe.render):
        with pytest.raises(UserError, match=r"not \(B, 18, 2\)"):
            draw(sources, np.zeros(shape), seeds=[0, 1])


def test_rendered_sources_have_the_models_size_and_of_none_nothing_is_drawn(
    pipe: PIDMPipeline,
) -> None:
    sources, keypoints = people(2)
    with pytest.raises(UserError, match=r"not \(B, 32, 16, 3\)"):
        pipe.render(sources[:, 1:], keypoints, [0, 1])
    assert pipe.render(sources[:0], keypoints[:0], []).shape == (0, 32, 16, 3)


def test_steps_that_the_noise_levels_do_not_give_are_refused_at_once(pipe: PIDMPipeline) -> None:
    for steps in (1_001, 30_000_000):
        with pytest.raises(UserError, match="not between 1 and the 1000"):
            pipe.with_settings(steps=steps)


# ---------------------------------------------------------------- appearance editing


def mask(rows: int) -> np.ndarray:
    """True in the upper `rows` rows."""
    return np.repeat(np.arange(32)[:, None] < rows, 16, axis=1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_outside_the_mask_an_edit_equals_the_reference(pipe: PIDMPipeline, sampler: str) -> None:
    images, keypoints = people(3)
    edited = pipe.edit_appearance(
        images[:1], images[1:], mask(12), keypoints[1:], sampler=sampler
    ).images
    assert np.array_equal(edited[:, 12:], images[1:, 12:])
    assert (edited[:, :12] != images[1:, :12]).mean() > 0.5


def test_a_mask_of_everything_is_plain_generation_and_of_nothing_the_reference(
    pipe: PIDMPipeline,
) -> None:
    images, keypoints = people(2)
    edit = [images[:1], images[1:], mask(32), keypoints[1:]]
    plain = pipe(images[:1], keypoints[1:]).images
    assert np.array_equal(pipe.edit_appearance(*edit).images, plain)
    assert np.array_equal(pipe.edit_appearance(*edit[:2], mask(0), edit[3]).images, images[1:])


def test_the_kept_region_guides_the_redrawn_one(pipe: PIDMPipeline) -> None:
    images, keypoints = people(3)
    edited = pipe.edit_appearance(
        images[0], images[1:], mask(12), keypoints[0], seeds=[7, 7]
    ).images
    assert not np.array_equal(edited[0, :12], edited[1, :12])


def test_a_soft_edge_fades_behind_the_edge_and_keeps_the_rest(pipe: PIDMPipeline) -> None:
    images, keypoints = people(2)
    edit = (images[:1], images[1:], mask(16), keypoints[1:])
    hard, soft = (pipe.edit_appearance(*edit, soften=s).images.astype(int) for s in (0.0, 6.0))
    assert np.array_equal(soft[:, 16:], images[1:, 16:])
    far, edge = (np.abs(soft - images[1:])[:, rows].mean() for rows in (slice(0, 6), slice(14, 16)))
    assert edge < 0.5 * far
    assert np.abs(hard - images[1:])[:, 14:16].mean() > 2 * edge


def test_a_soft_edge_leaves_something_of_a_narrow_mask() -> None:
    stripes = np.zeros((4, 12), dtype=bool)
    stripes[:, 1], stripes[:, 4:9] = True, True
    weights = [0, 0.5, 0, 0, 0.5, 1, 1, 1, 0.5, 0, 0, 0]
    assert np.array_equal(_softened(stripes, 2), np.tile(weights, (4, 1)))
    assert np.array_equal(_softened(stripes, 0), stripes)
    assert (_softened(np.ones((4, 4), dtype=bool), 2) == 1).all()  # nothing is kept: no edge


def test_one_edit_is_drawn_with_every_seed(pipe: PIDMPipeline) -> None:
    images, keypoints = people(2)
    edit = (images[0], images[1], mask(16), keypoints[1])
    edited = pipe.edit_appearance(*edit, seeds=[3, 4, 5]).images
    alone = pipe.edit_appearance(*edit, seeds=[4]).images
    assert edited.shape == (3, 32, 16, 3)
    assert np.array_equal(edited[1], alone[0])
    with pytest.raises(UserError, match=r"2 styles, 1 references, .* 3 seeds do not match"):
        pipe.edit_appearance(images, images[1], mask(16), keypoints[1], seeds=[3, 4, 5])


def test_an_edit_refuses_a_mask_of_another_size(pipe: PIDMPipeline) -> None:
    images, keypoints = people(1)
    with pytest.raises(UserError, match=r"the mask is \(16, 32\), the model draws \(32, 16\)"):
        pipe.edit_appearance(images, images, mask(4).T, keypoints)


# ---------------------------------------------------------------- style interpolation


def test_the_ends_of_an_interpolation_are_the_two_people(pipe: PIDMPipeline) -> None:
    images, keypoints = people(2)
    frames = pipe.interpolate_style(
        images[0], images[1], keypoints[0], frames=6, seeds=(3, 4)
    ).images
    ends = pipe(images, keypoints[0], seeds=[3, 4]).images
    assert np.abs(frames[[0, 5]].astype(int) - ends).max() <= 1
    steps = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert steps.max() < np.abs(ends[0].astype(int) - ends[1]).mean()


def test_slerp_keeps_the_length_of_noise() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([0.5**0.5, 0.5**0.5]))
    torch.testing.assert_close(slerp(a, b, 1 / 3), torch.tensor([0.75**0.5, 0.5]))


def test_between_equal_noises_lies_the_same_noise() -> None:
    for seed in range(8):  # the cosine of their angle is 1 up to rounding, which seeds decide
        y = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(slerp(y, y, 0.5), y)


def test_one_source_and_pose_are_drawn_with_every_seed(pipe: PIDMPipeline) -> None:
    source = np.full((32, 16, 3), 99, dtype=np.uint8)
    pose = np.random.default_rng(0).uniform(0, 16, (1, 18, 2))
    images = pipe(source, pose, seeds=[3, 4]).images
    assert len(images) == 2
    assert np.array_equal(images[1], pipe(source, pose, seeds=[4]).images[0])


def test_an_interpolation_refuses_noise_and_single_frames(pipe: PIDMPipeline) -> None:
    images, keypoints = people(2)
    with pytest.raises(UserError, match="1 frames"):
        pipe.interpolate_style(*images, keypoints[0], 1)
    with pytest.raises(UserError, match="without noise"):
        pipe.interpolate_style(*images, keypoints[0], 3, sampler="ddpm")


# ---------------------------------------------------------------- four tasks from one model


def test_no_source_and_no_pose_are_the_all_zeros_conditions(pipe: PIDMPipeline) -> None:
    images, keypoints = people(2)
    pipe = pipe.with_settings(guidance="none", steps=2)
    drawn = {
        "both": pipe(images, keypoints, seeds=[0, 1]).images,
        "pose": pipe(None, keypoints, seeds=[0, 1]).images,
        "style": pipe(images, None, seeds=[0, 1]).images,
        "neither": pipe(None, None, seeds=[0, 1]).images,
    }
    for name, pictures in drawn.items():
        assert pictures.shape == (2, 32, 16, 3)
        others = [drawn[other] for other in drawn if other != name]
        assert not any(np.array_equal(pictures, other) for other in others)
    y_T = torch.stack([torch.randn(3, 32, 16, generator=torch.Generator().manual_seed(s))
                       for s in (0, 1)])  # fmt: skip
    diffusion, y = pipe.diffusion, y_T
    with torch.inference_mode():
        texture = pipe.model.encode(torch.zeros(2, 3, 32, 16))
        for step in diffusion.sample(
            lambda y, t: pipe.model(y, t, None, texture), y_T, steps=2, sampler="ddim"
        ):
            y = step.y
    expected = (y.clamp(-1, 1) * 127.5 + 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn["neither"] - expected).max() <= 1


def test_too_little_memory_names_the_setting(
    pipe: PIDMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipe.model, "encode", full)
    sources, keypoints = people(1)
    with pytest.raises(UserError, match=r"fewer than 4 images at once \(--batch-size\)") as error:
        pipe.render(sources, keypoints, [1])
    assert error.value.code == ENVIRONMENT
