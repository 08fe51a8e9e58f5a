"""Where a drawn or photographed person's clothes are, by the joints, and their colours.

The upper garment is looked for along the spine, the lower one along the upper half of both
thighs (where shorts and skirts reach too). Widths are shares of the torso's length, from neck to
the middle of the hips, so that the regions grow with the person and stay within a profile.
"""

from __future__ import annotations

import numpy as np

from pidm_core.files import BAD_DATA, UserError
from pidm_core.keypoints import L_HIP, NECK, R_HIP

_R_KNEE, _L_KNEE = 9, 12
_NEEDED = {"upper": (NECK, 2, 5, 8, 11), "lower": (NECK, R_HIP, L_HIP, _R_KNEE, _L_KNEE, 10, 13)}
_LIMBS: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], float]]] = {
    # from (the middle of) these joints to those, and half the width in torso lengths
    "upper": [
        ((2,), (5,), 0.15), ((2,), (8,), 0.24), ((5,), (11,), 0.24),
        ((2, 5, 8, 11), (2, 5, 8, 11), 0.36),
        ((2,), (3,), 0.18), ((3,), (4,), 0.15), ((5,), (6,), 0.18), ((6,), (7,), 0.15),
    ],
    "lower": [
        ((8, 11), (9, 12), 0.3),
        ((8,), (9,), 0.24), ((9,), (10,), 0.2), ((11,), (12,), 0.24), ((12,), (13,), 0.2),
    ],
}  # fmt: skip
_SPINE = (0.25, 0.85)  # stretch between neck (0) and the middle of the hips (1)
_THIGH = (0.15, 0.55)  # stretch between hip (0) and knee (1)
_SPINE_RADIUS, _THIGH_RADIUS = 0.14, 0.10  # in torso lengths
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def colour_error(
    images: np.ndarray, joints: np.ndarray, references: np.ndarray, reference_joints: np.ndarray
) -> np.ndarray:
    """CIELAB distance of each image's garment colours from its reference's: (B, 2) upper, lower.

    images, references: uint8 (B, H, W, 3); each one's regions come from its own joints (B, 18, 2)
    px. The distance is that of the regions' mean colours (CIE 1976; about 2 is just visible, black
    to white is 100); NaN where the joints of a region are missing.
    """
    ours, theirs = garment_colours(images, joints), garment_colours(references, reference_joints)
    return np.asarray(np.linalg.norm(ours - theirs, axis=2))


def garment_colours(images: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Mean CIELAB colour of upper and lower garment: (B, 2, 3), NaN = not in the picture."""
    colours = np.full((len(images), 2, 3), np.nan)
    for row, image, points in zip(colours, images, joints, strict=True):
        lab = rgb_to_lab(image)
        for place, region in enumerate(garment_regions(points, image.shape[:2])):
            if region.any():
                row[place] = lab[region].mean(0)
    return colours


def garment_regions(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of the upper and of the lower garment: (18, 2) px -> bool (2, H, W).

    A region is empty where a joint it hangs on is missing or it lies outside the picture.
    """
    points = np.asarray(joints, dtype=np.float64)
    hips = (points[R_HIP] + points[L_HIP]) / 2
    torso = float(np.linalg.norm(hips - points[NECK]))
    upper = _near(points[NECK], hips, _SPINE, _SPINE_RADIUS * torso, size)
    right, left = (
        _near(points[hip], points[knee], _THIGH, _THIGH_RADIUS * torso, size)
        for hip, knee in ((R_HIP, _R_KNEE), (L_HIP, _L_KNEE))
    )
    return np.stack([upper, right | left])


def garment_mask(joints: np.ndarray, garment: str, size: tuple[int, int]) -> np.ndarray:
    """Where a garment and some loose cloth are: (18, 2) px -> bool (H, W).

    garment: "upper" (trunk and arms) or "lower" (hips and legs). Raises UserError if neck, hips and
    shoulders, or neck, hips, knees and ankles, are not all in the picture.
    """
    points = np.asarray(joints, dtype=np.float64)
    if np.isnan(points[list(_NEEDED[garment])]).any():
        raise UserError(f"{garment} garment: its joints are not all in the picture", BAD_DATA)
    hips = points[[R_HIP, L_HIP]].mean(0)
    torso = float(np.linalg.norm(hips - points[NECK]))
    mask = np.zeros(size, dtype=bool)
    for start, end, width in _LIMBS[garment]:
        a, b = (points[list(joined)].mean(0) for joined in (start, end))
        mask |= _near(a, b, (0, 1), width * torso, size)
    return mask


def _near(
    start: np.ndarray,
    end: np.ndarray,
    stretch: tuple[float, float],
    radius: float,
    size: tuple[int, int],
) -> np.ndarray:
    """Pixels at most `radius` from a stretch of the line start - end: bool (H, W)."""
    a, b = (start + share * (end - start) for share in stretch)
    y, x = np.indices(size)
    pixels = np.stack([x, y], axis=2)  # (H, W, 2)
    along = (pixels - a) @ (b - a) / max(float((b - a) @ (b - a)), 1e-9)
    nearest = a + np.clip(along, 0, 1)[..., None] * (b - a)
    distance = np.linalg.norm(pixels - nearest, axis=2)
    return np.asarray(distance <= radius)  # NaN is not


def rgb_to_lab(image: np.ndarray) -> np.ndarray:
    """sRGB uint8 (..., 3) -> CIELAB under D65: L in [0, 100], a and b about -100 ... 100."""
    encoded = image / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    t = linear @ _XYZ.T / _WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
