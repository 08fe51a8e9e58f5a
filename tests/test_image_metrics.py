"""SSIM against scikit-image, and on cases with a known answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from pidm_core.image_metrics import SSIM_256_SIGMA, ssim


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Smooth pictures and noisy versions of them, uint8 (3, 128, 64, 3)."""
    rng = np.random.default_rng(0)
    y, x, phase = np.ogrid[0:128, 0:64, 0:3]
    waves = [127 + 90 * np.sin(x / 9 + y / (11 + i) + phase) for i in range(3)]
    clean = np.stack(waves)
    noisy = clean + rng.normal(0, [[[[5]]], [[[25]]], [[[60]]]], clean.shape)
    return noisy.clip(0, 255).astype(np.uint8), clean.astype(np.uint8)


def oracle(image: np.ndarray, reference: np.ndarray, **options: Any) -> float:
    value = structural_similarity(image, reference, channel_axis=2, **options)  # type: ignore[no-untyped-call]
    return float(value)


def test_the_uniform_window_equals_scikit_image(images: tuple[np.ndarray, np.ndarray]) -> None:
    expected = [
        oracle(a / 255, b / 255, win_size=51, data_range=1) for a, b in zip(*images, strict=True)
    ]
    np.testing.assert_allclose(ssim(*images), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [SSIM_256_SIGMA, 1.5])
def test_the_gaussian_window_equals_scikit_image(
    images: tuple[np.ndarray, np.ndarray], sigma: float
) -> None:
    expected = [
        oracle(
            a, b, gaussian_weights=True, sigma=sigma, use_sample_covariance=False,
            data_range=int(a.max()) - int(a.min()),
        )
        for a, b in zip(*images, strict=True)
    ]  # fmt: skip
    spread = np.ptp(images[0].reshape(3, -1), axis=1) / 255
    np.testing.assert_allclose(ssim(*images, sigma=sigma, data_range=spread), expected, atol=1e-6)


def test_an_image_equals_itself_and_bytes_equal_fractions(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    np.testing.assert_allclose(ssim(images[0], images[0]), 1)
    np.testing.assert_allclose(ssim(images[0] / 255, images[1] / 255), ssim(*images))


def test_flat_images_differ_in_brightness_alone() -> None:
    # no variance: (2 a b + c) / (a^2 + b^2 + c) with c = 0.01^2
    a, b = (np.full((1, 64, 64, 3), value) for value in (0.2, 0.4))
    np.testing.assert_allclose(ssim(a, b), (2 * 0.2 * 0.4 + 1e-4) / (0.04 + 0.16 + 1e-4))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        ssim(np.zeros((1, 64, 64, 3)), np.zeros((1, 64, 32, 3)))
    with pytest.raises(ValueError, match="smaller than the window of 51"):
        ssim(np.zeros((1, 64, 32, 3)), np.zeros((1, 64, 32, 3)))
