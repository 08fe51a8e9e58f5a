"""Keypoints -> pose map x_p, the condition of H_N, on any device (paper.md, official network).

Everything is worked out in the authors' frame, 256 px high, whatever the size of the map:
a map of 128x64 samples the same drawing at its own pixel centres.

Legend: B batch, L = 17 limbs, H W size of the map.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CHANNELS = 20
OFFICIAL_HEIGHT = 256
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLOURS = (  # of joint i and of limb i, as red, green, blue
    (0, 0, 255), (0, 85, 255), (0, 170, 255), (0, 255, 255), (0, 255, 170), (0, 255, 85),
    (0, 255, 0), (85, 255, 0), (170, 255, 0), (255, 255, 0), (255, 170, 0), (255, 85, 0),
    (255, 0, 0), (255, 0, 85), (255, 0, 170), (255, 0, 255), (170, 0, 255), (85, 0, 255),
)  # fmt: skip
RADIUS = 4.0  # of a joint's disc
HALF_WIDTH = 4.0  # of a limb
EDGE = 0.5  # OpenCV also fills the pixels that a polygon's edge passes
OPACITY = 0.6
DISTANCE_RANGE = 3.0 * 255.0  # px at which a distance map reaches 1.0
FAR = 1e6


def pose_map(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw keypoints (B, 18, 2), px of a frame of `size` (height, width), NaN = missing.

    Returns float32 (B, 20, H, W) in [0, 1] on the same device: the skeleton in RGB, then for each
    limb the L1 distance to it, 0 on it and 1 everywhere when it is missing; so that nobody's
    map is the all-zeros null condition.
    """
    height, width = size
    zoom = OFFICIAL_HEIGHT / height
    joints = (keypoints.double() + 0.5) * zoom - 0.5  # (B, 18, 2)
    x = (torch.arange(width, device=keypoints.device) + 0.5) * zoom - 0.5  # (W,)
    y = (torch.arange(height, device=keypoints.device) + 0.5) * zoom - 0.5  # (H,)
    out = torch.empty(len(keypoints), CHANNELS, height, width, device=keypoints.device)
    distance = _limb_distances(joints, x, y, out[:, 3:])  # (B, L, H, W)
    out[:, :3] = _drawing(distance <= EDGE, _top_disc(joints, x, y, zoom))
    distance.mul_(1 / DISTANCE_RANGE).clamp_(0, 1)
    return out


def skeleton(keypoints: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A picture of one person's keypoints (18, 2), as the pose map has it: uint8 (H, W, 3)."""
    height, width = size
    drawn = pose_map(torch.from_numpy(keypoints[None]), (height, width))[0, :3]
    picture: np.ndarray = (drawn.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return picture


def _limb_distances(joints: Tensor, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """L1 distance of each pixel to each limb's ellipse, negative inside, FAR when missing.

    The L1 distance to a convex shape is max over |q|_inf = 1 of q.(p - centre) - h(q) with its
    support function h. On two sides of that square q = (±1, t), so the best t depends on y
    alone; on the others on x alone: a map is the maximum of two sums of one-dimensional curves.
    """
    centre, sxx, syy, sxy = _ellipses(joints)
    dx = x - centre[..., :1]  # (B, L, W)
    dy = y - centre[..., 1:]  # (B, L, H)
    middle, half = _span(dy, sxx, syy, sxy)  # (B, L, H)
    torch.sub(dx[:, :, None], middle[..., None], out=out).abs_().sub_(half[..., None])
    middle, half = _span(dx, syy, sxx, sxy)  # (B, L, W)
    across = (dy[..., None] - middle[:, :, None]).abs_().sub_(half[:, :, None])
    return torch.maximum(out, across, out=out)


def _ellipses(joints: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres (B, L, 2) and matrices sxx, syy, sxy (B, L, 1) of the limbs; cut to whole numbers
    as the authors do. h(q)^2 = sxx q_x^2 + 2 sxy q_x q_y + syy q_y^2.
    """
    ends = joints[:, torch.tensor(LIMBS, device=joints.device)]  # (B, L, 2, 2)
    along = ends[:, :, 0] - ends[:, :, 1]
    centre = ends.mean(2).trunc().nan_to_num(0.0)  # a missing limb is told by its span
    half = (along.norm(dim=-1, keepdim=True) / 2).trunc().clamp(min=EDGE)
    angle = torch.atan2(along[..., 1:], along[..., :1]).rad2deg().trunc().deg2rad()
    cos, sin, a, b = angle.cos(), angle.sin(), half**2, HALF_WIDTH**2
    sxx, syy = a * cos**2 + b * sin**2, a * sin**2 + b * cos**2
    return centre.float(), sxx.float(), syy.float(), ((a - b) * sin * cos).float()


def _span(v: Tensor, along: Tensor, across: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half length of what the shape covers at offset v, seen along 45-degree rays.

    The upper end is the minimum over t in [-1, 1] of sqrt(along + 2 t mixed + t^2 across) - t v.
    """
    steep = v * ((along * across - mixed**2) / (across - v**2).clamp(min=1e-9)).sqrt()
    t = ((steep - mixed) / across).clamp(-1, 1)
    upper = (along + t * (2 * mixed + t * across)).clamp(min=0).sqrt() - t * v
    t = ((steep + mixed) / across).clamp(-1, 1)
    lower = t * v - (along - t * (2 * mixed - t * across)).clamp(min=0).sqrt()
    middle, half = (upper + lower) / 2, (upper - lower) / 2
    return middle.nan_to_num(0.0), half.nan_to_num(-FAR)


def _top_disc(joints: Tensor, x: Tensor, y: Tensor, step: float) -> Tensor:
    """The number 1 ... 18 of the joint whose disc is drawn last at each pixel, 0 = none (B, H, W).

    x and y go on by `step`. Discs are small, so only the pixels around each joint are visited.
    """
    reach = int(RADIUS / step) + 1
    near = torch.arange(-reach, reach + 1, device=joints.device)
    gone = joints.isnan().any(-1)[..., None]  # (B, 18, 1)
    centre = torch.where(gone, -FAR, joints).trunc()  # the authors cut to whole pixels
    column = ((centre[..., :1] - x[0]) / step).round().long() + near  # (B, 18, N)
    row = ((centre[..., 1:] - y[0]) / step).round().long() + near
    dx = column * step + x[0] - centre[..., :1]
    dy = row * step + y[0] - centre[..., 1:]
    hit = dx[:, :, None] ** 2 + dy[..., None] ** 2 <= RADIUS**2  # (B, 18, N, N)
    hit &= ((column >= 0) & (column < len(x)))[:, :, None]
    hit &= ((row >= 0) & (row < len(y)))[..., None]
    place = torch.where(hit, row[..., None] * len(x) + column[:, :, None], 0)
    number = torch.arange(1, 19, device=joints.device)[:, None, None] * hit
    top = torch.zeros(len(joints), len(y) * len(x), dtype=torch.long, device=joints.device)
    top.scatter_reduce_(1, place.flatten(1), number.flatten(1), "amax")
    return top.view(-1, len(y), len(x))


def _drawing(limbs: Tensor, top: Tensor) -> Tensor:
    """Skeleton (B, 3, H, W): discs first, then limb after limb laid over them half transparent.

    Each pixel is a weighted sum of colours; the weights come from the last limb backwards.
    """
    colours = torch.tensor(COLOURS, device=top.device) / 255  # (18, 3)
    weight = limbs * OPACITY  # (B, L, H, W)
    left = torch.ones_like(weight[:, 0])  # what the limbs on top let through
    for limb in reversed(weight.unbind(1)):
        left.sub_(limb.mul_(left))
    discs = torch.cat([torch.zeros_like(colours[:1]), colours])[top]  # (B, H, W, 3)
    drawn = colours[: len(LIMBS)].T @ weight.flatten(2)  # (B, 3, HW)
    return drawn.view(-1, 3, *top.shape[1:]) + discs.permute(0, 3, 1, 2) * left[:, None]
