"""Metrics of generated images against true ones, with the settings that papers of the field use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pidm_core.config import PresetName

SSIM_WINDOW = 51  # px, PIDM's and GFLA's "SSIM"
SSIM_256_SIGMA = 1.2  # px, PIDM's and PCDMs' "SSIM_256"; GFLA, DPTN and CFLD take 1.5
_TRUNCATE = 3.5  # sigmas at which scikit-image cuts the Gaussian window
_K1, _K2 = 0.01, 0.03  # Wang et al. 2004


@dataclass(frozen=True)
class Preset:
    """The settings behind a published number. Numbers of different presets are not comparable."""

    name: PresetName
    size: tuple[int, int] | None  # (H, W) px before LPIPS and FID; None = as the images are
    sigma: float  # px, of SSIM_256
    batch_images: int = 64

    def whole(self, images: int) -> int:
        """How many images count in LPIPS and FID: those scripts drop a last partial batch."""
        return images if images < self.batch_images else images - images % self.batch_images


PRESETS: dict[PresetName, Preset] = {
    "pidm": Preset("pidm", (256, 176), SSIM_256_SIGMA),
    "gfla": Preset("gfla", None, 1.5),  # also DPTN's and CFLD's
}


def bring_to(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (H, W, 3) as float32 in [0, 1], brought to (height, width) by OpenCV, bilinear."""
    values = image.astype(np.float32)
    if size:
        import cv2

        values = np.asarray(cv2.resize(values, (size[1], size[0])), dtype=np.float32)
    return values / np.float32(255)


def ssim(
    images: np.ndarray,
    references: np.ndarray,
    *,
    sigma: float | None = None,
    data_range: float | np.ndarray = 1.0,
) -> np.ndarray:
    """Structural similarity of each image to its reference: (B,) in [-1, 1], mean of the channels.

    images, references: (B, H, W, C), uint8, or float in [0, 1]. The window is uniform, 51 px
    wide, with sample covariance (the papers' SSIM), or with `sigma` in px a Gaussian cut at
    3.5 sigma with plain covariance (SSIM_256). Only windows that lie within the image count.
    data_range: largest difference of two values, one for all or (B,); the published SSIM_256 takes
    max - min of each generated image. Equals scikit-image's structural_similarity.
    Raises ValueError for shapes that differ and for images smaller than the window.
    """
    if images.shape != references.shape or images.ndim != 4:
        raise ValueError(
            f"shapes {images.shape} and {references.shape}; expected twice (B, H, W, C)"
        )
    window = np.full(SSIM_WINDOW, 1 / SSIM_WINDOW) if sigma is None else _gaussian(sigma)
    if min(images.shape[1:3]) < len(window):
        raise ValueError(f"{images.shape[1:3]} is smaller than the window of {len(window)} px")
    samples = len(window) ** 2
    unbiased = samples / (samples - 1) if sigma is None else 1.0
    x, y = _channels(images), _channels(references)  # (B, C, H, W)
    mean_x, mean_y = _smooth(x, window), _smooth(y, window)
    var_x = unbiased * (_smooth(x * x, window) - mean_x**2)
    var_y = unbiased * (_smooth(y * y, window) - mean_y**2)
    covariance = unbiased * (_smooth(x * y, window) - mean_x * mean_y)
    spread = np.asarray(data_range, dtype=np.float64).reshape(-1, 1, 1, 1)
    c_1, c_2 = (_K1 * spread) ** 2, (_K2 * spread) ** 2
    similar = (2 * mean_x * mean_y + c_1) * (2 * covariance + c_2)
    similar /= (mean_x**2 + mean_y**2 + c_1) * (var_x + var_y + c_2)
    return np.asarray(similar.mean((1, 2, 3)))


def _channels(images: np.ndarray) -> np.ndarray:
    values = images / 255.0 if images.dtype == np.uint8 else images.astype(np.float64)
    return np.moveaxis(values, 3, 1)


def gaussian_window(sigma: float) -> int:
    """Width in px of the window of SSIM with `sigma` px."""
    return 2 * int(_TRUNCATE * sigma + 0.5) + 1


def _gaussian(sigma: float) -> np.ndarray:
    radius = gaussian_window(sigma) // 2
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum())


def _smooth(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Weighted means over all windows within the image: (..., H, W) -> (..., H-n+1, W-n+1)."""
    down, across = (_windows(size, window) for size in values.shape[-2:])
    # two large products: thousands of small ones would be lost in waking up BLAS's threads
    rows = np.tensordot(values, across, (-1, 1))  # (..., H, W-n+1)
    return np.moveaxis(np.tensordot(rows, down, (-2, 1)), -1, -2)


def _windows(size: int, window: np.ndarray) -> np.ndarray:
    """The matrix (size-n+1, size) whose every row weighs one window."""
    places = np.arange(size - len(window) + 1)
    matrix = np.zeros((len(places), size))
    matrix[places[:, None], places[:, None] + np.arange(len(window))] = window
    return matrix
