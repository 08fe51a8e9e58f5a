"""How a person of ToyMarket looks: perspective, ray casting, cloth and light.

Camera frame: x right, y down, z into the picture; metres. Pixel centres are whole numbers.
Only + - * / and square roots touch the pixels (no sine, no power, no BLAS), so that every
machine draws the same bytes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pidm_core.toy_body import (
    ARM,
    BAG,
    COAT,
    FOOT,
    HAIR,
    HAT,
    HEAD,
    LEG,
    SKIRT,
    TORSO,
    Skeleton,
    Solids,
    solids_of,
)
from pidm_core.toy_people import BARS, CHECKS, PATCHES, PLAIN, STRIPES, Cloth, Look, stream

HEIGHT, WIDTH = 128, 64
FINE = 1.5  # rays per pixel and axis
ROWS, COLUMNS = int(HEIGHT * FINE), int(WIDTH * FINE)
FAR = np.float32(1e6)


@dataclass(frozen=True)
class View:
    """Where the camera stands and how the box was cut."""

    azimuth: float
    """Turn of the body in radians: 0 = faces the camera, pi/2 = its left side is near."""
    height: float
    """Camera above the ground in metres."""
    distance: float
    roll: float
    fill: float
    """Share of the picture's height that the person takes."""
    shift: tuple[float, float]
    """Of the person from the centre, (x, y) as shares of the picture."""


@dataclass(frozen=True)
class Shot:
    """A view fitted to a skeleton: body frame -> camera frame -> pixels."""

    turn: np.ndarray  # (3, 3)
    offset: np.ndarray  # (3,)
    focal: float
    centre: tuple[float, float]

    def place(self, points: np.ndarray) -> np.ndarray:
        """Body frame -> camera frame, (n, 3)."""
        return np.asarray(np.einsum("ij,nj->ni", self.turn, points) + self.offset)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Body frame -> pixels, (n, 2)."""
        placed = self.place(points)
        return np.asarray(placed[:, :2] / placed[:, 2:] * self.focal + np.array(self.centre))


def fit(bones: Skeleton, view: View) -> Shot:
    """Look at the person and cut the box; depends on bones and view alone, never on clothes."""
    pitch = math.atan2(view.height - 0.9, view.distance)
    c, s = math.cos(pitch), math.sin(pitch)
    camera = np.array([[1, 0, 0], [0, -c, s], [0, -s, -c]])
    a, b = math.cos(view.roll), math.sin(view.roll)
    camera = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ camera
    a, b = math.cos(view.azimuth), math.sin(view.azimuth)
    turn = camera @ np.array([[a, 0, b], [0, 1, 0], [-b, 0, a]])
    offset = -camera @ np.array([0.0, view.height, view.distance])
    top = bones.points["head"] + bones.head[:, 1] * 0.13 * bones.unit
    toes = [bones.points[side + "ankle"] * np.array([1, 0.2, 1]) for side in "rl"]
    shot = Shot(turn, offset, 1.0, (0.0, 0.0))
    flat = shot.pixels(np.vstack([bones.joints, top, *toes]))
    low, high = flat.min(axis=0), flat.max(axis=0)
    focal = view.fill * HEIGHT / float(high[1] - low[1])
    middle = 0.5 * (low + high) * focal
    centre = (
        (WIDTH - 1) / 2 + view.shift[0] * WIDTH - float(middle[0]),
        (HEIGHT - 1) / 2 + view.shift[1] * HEIGHT - float(middle[1]),
    )
    return Shot(turn, offset, focal, centre)


# ---------------------------------------------------------------- ray casting


@dataclass
class Surface:
    """What the rays met."""

    depth: np.ndarray  # (ROWS, COLUMNS) float32 metres, FAR where nothing
    at: np.ndarray  # flat indices of the n pixels with something
    part: np.ndarray  # (n,) row in Solids
    local: list[np.ndarray]  # 3 x (n,), coordinates in the part's frame
    normal: list[np.ndarray]  # 3 x (n,), unit, camera frame


def _bounds(solids: Solids, shot: Shot) -> np.ndarray:
    """Pixel boxes (n, 4) on the fine grid: left, top, right, bottom."""
    c0, c1, c2 = solids.profile.T[:, :, None]
    ends = np.concatenate([solids.clip, solids.clip.mean(axis=1, keepdims=True)], axis=1)
    reach = np.sqrt(np.maximum(c0 + c1 * ends + c2 * ends * ends, 0.0).max(axis=1) * 1.1)
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (0, 1) for z in (-1, 1)], dtype=float)
    corners = signs[None] * np.stack([reach, np.ones_like(reach), reach], axis=1)[:, None]
    corners[:, :, 1] = np.where(signs[None, :, 1] > 0, solids.clip[:, 1:], solids.clip[:, :1])
    points = solids.centre[:, None] + np.einsum("nij,nkj->nki", solids.axes, corners)
    flat = shot.pixels(points.reshape(-1, 3)).reshape(-1, 8, 2)
    fine = (np.concatenate([flat.min(axis=1), flat.max(axis=1) + 1.5], axis=1) + 0.5) * FINE
    limits = [COLUMNS, ROWS] * 2
    return np.clip(np.floor(fine), 0, limits).astype(int)


def cast(solids: Solids, shot: Shot) -> Surface:
    """The nearest surface along every ray."""
    # Rows of `inverse` take a camera-frame vector to a part's own coordinates.
    lengths = (solids.axes**2).sum(axis=1)
    inverse = np.einsum("nji,kj->nik", solids.axes, shot.turn) / lengths[:, :, None]
    origin = -np.einsum("nij,nj->ni", inverse, shot.place(solids.centre))
    m = inverse.astype(np.float32)
    forms = _Forms.of(solids, inverse, origin)
    u = ((np.arange(COLUMNS) + 0.5) / FINE - 0.5 - shot.centre[0]) / shot.focal
    v = ((np.arange(ROWS) + 0.5) / FINE - 0.5 - shot.centre[1]) / shot.focal
    depth = np.full((ROWS, COLUMNS), FAR, dtype=np.float32)
    which = np.full(depth.shape, -1, dtype=np.int16)
    fields = _Fields(forms, u, v)
    for i, box in enumerate(_bounds(solids, shot).tolist()):
        if box[0] < box[2] and box[1] < box[3]:
            _meet(fields, forms, solids.clip[i].tolist(), box, depth, which, i)
    u, v = u.astype(np.float32), v.astype(np.float32)
    at = np.flatnonzero(which >= 0)
    part, t = which.ravel()[at], depth.ravel()[at]
    x, y = t * u[at % COLUMNS], t * v[at // COLUMNS]
    o = origin.astype(np.float32)
    rows = [[m[:, i, j][part] for j in range(3)] for i in range(3)]
    local = [o[:, i][part] + a * x + b * y + c * t for i, (a, b, c) in enumerate(rows)]
    c1, c2 = (solids.profile[:, i].astype(np.float32)[part] for i in (1, 2))
    slope = [local[0], -(0.5 * c1 + c2 * local[1]), local[2]]
    normal = [
        rows[0][j] * slope[0] + rows[1][j] * slope[1] + rows[2][j] * slope[2] for j in range(3)
    ]
    size = np.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2]) + 1e-6
    return Surface(depth, at, part, local, [axis / size for axis in normal])


@dataclass
class _Forms:
    """A ray t (u, v, 1) meets quadric i where a t² + 2 b t + c = 0; a and b depend on (u, v)."""

    ray: np.ndarray  # (n, 3, 3): the ray in the part's coordinates
    origin: np.ndarray  # (n, 3): the camera there
    profile: np.ndarray  # (n, 3)
    a: np.ndarray  # (n, 3, 3), quadratic form
    b: np.ndarray  # (n, 3), linear form
    root: np.ndarray  # (n, 3, 3), b² - a c
    flat: np.ndarray  # (n,), has a visible flat end

    @classmethod
    def of(cls, solids: Solids, ray: np.ndarray, origin: np.ndarray) -> _Forms:
        c0, c1, c2 = solids.profile.T
        x, y, z = origin.T
        weight = np.stack([np.ones_like(c2), -c2, np.ones_like(c2)], axis=1)
        a = np.einsum("nk,nki,nkj->nij", weight, ray, ray)
        b = np.einsum("nk,nki->ni", np.stack([x, -c2 * y - 0.5 * c1, z], axis=1), ray)
        c = x * x + z * z - c0 - c1 * y - c2 * y * y
        root = b[:, :, None] * b[:, None] - c[:, None, None] * a
        return cls(ray, origin, solids.profile, a, b, root, solids.paint == BAG)


class _Fields:
    """The forms of all solids on the grid of rays, ready to be added up over a window."""

    def __init__(self, forms: _Forms, u: np.ndarray, v: np.ndarray) -> None:
        self.u = u.astype(np.float32)
        self.linear = [
            self._split(f[:, 0, None] * u + f[:, 2, None], f[:, 1, None] * v)
            for f in (forms.b, forms.ray[:, 0], forms.ray[:, 1], forms.ray[:, 2])
        ]
        self.quadratic = [
            self._split(
                f[:, 0, 0, None] * u * u + 2 * f[:, 0, 2, None] * u + f[:, 2, 2, None],
                f[:, 1, 1, None] * v * v + 2 * f[:, 1, 2, None] * v,
                2 * f[:, 0, 1, None] * v,
            )
            for f in (forms.a, forms.root)
        ]

    @staticmethod
    def _split(*fields: np.ndarray) -> list[np.ndarray]:
        across, *down = (field.astype(np.float32) for field in fields)
        return [across[:, None, :], *(field[:, :, None] for field in down)]

    def b(self, i: int, rows: slice, columns: slice, which: int = 0) -> np.ndarray:
        """b, or with which = 1, 2, 3 the ray's x, y, z in part i."""
        across, down = self.linear[which]
        return np.asarray(across[i, :, columns] + down[i, rows])

    def a(self, i: int, rows: slice, columns: slice, which: int = 0) -> np.ndarray:
        """a, or with which = 1 the root's argument."""
        across, down, mixed = self.quadratic[which]
        result: np.ndarray = mixed[i, rows] * self.u[columns]
        result += across[i, :, columns]
        result += down[i, rows]
        return result


def _meet(
    fields: _Fields, forms: _Forms, clip: list[float], box: list[int],
    depth: np.ndarray, which: np.ndarray, i: int,
) -> None:  # fmt: skip
    """Intersect the rays of a box with quadric i and keep what is nearer (in place)."""
    (ox, oy, oz), (c0, c1, c2) = forms.origin[i].tolist(), forms.profile[i].tolist()
    window = slice(box[1], box[3]), slice(box[0], box[2])
    depth, which = depth[window], which[window]
    root = fields.a(i, *window, which=1)
    hit = root > 0
    np.maximum(root, 0, out=root)
    np.sqrt(root, out=root)
    root += fields.b(i, *window)
    root /= fields.a(i, *window)
    t = np.negative(root, out=root)
    hit &= t < depth
    dy = fields.b(i, *window, which=2)
    y = t * dy
    hit &= y > clip[0] - oy
    hit &= y < clip[1] - oy
    np.copyto(depth, t, where=hit)
    np.copyto(which, i, where=hit)
    if forms.flat[i] and not clip[0] <= oy <= clip[1]:  # the flat end that faces the camera
        end = clip[1] if oy > clip[1] else clip[0]
        t = np.float32(end - oy) / dy
        x, z = ox + t * fields.b(i, *window, which=1), oz + t * fields.b(i, *window, which=3)
        hit = (x * x + z * z < c0 + c1 * end + c2 * end * end) & (t > 0) & (t < depth)
        np.copyto(depth, t, where=hit)
        np.copyto(which, i, where=hit)


# ---------------------------------------------------------------- cloth


(SKIN_INK, HAIR_INK, UPPER, UPPER2, LOWER, LOWER2, SHOES, SOCKS, HAT_INK, BAG_INK, INNER, DARK,
 LIPS) = range(13)  # fmt: skip
_INK = np.zeros(11, dtype=np.int8)
for _part, _ink in ((HAIR, HAIR_INK), (TORSO, UPPER), (ARM, UPPER), (LEG, LOWER), (FOOT, SHOES),
                    (SKIRT, LOWER), (COAT, UPPER), (HAT, HAT_INK), (BAG, BAG_INK)):  # fmt: skip
    _INK[_part] = _ink
_METRES = np.full(11, 0.4, dtype=np.float32)  # length of one unit of s
_METRES[[TORSO, ARM]] = 0.52, 0.29


def _palette(look: Look) -> np.ndarray:
    dark = (0.07, 0.05, 0.05)
    lips = tuple(0.75 * a * b for a, b in zip(look.skin, (1.0, 0.75, 0.75), strict=True))
    return np.array(
        [look.skin, look.hair, look.upper.colour, look.upper.second, look.lower.colour,
         look.lower.second, look.shoes, look.socks, look.hat_colour, look.bag_colour, look.inner,
         dark, lips], dtype=np.float32)  # fmt: skip


def _woven(cloth: Cloth, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Where the second colour shows; coordinates in metres."""
    if cloth.pattern == PATCHES:
        rows, columns = ((axis * (2.4 / cloth.period)).astype(int) & 63 for axis in (along, across))
        return np.asarray(_noise_tile()[rows, columns] > 0.54)
    x, y = across / cloth.period, along / cloth.period
    x, y = x - np.floor(x), y - np.floor(y)
    if cloth.pattern == STRIPES:
        return np.asarray(y < 0.45)
    if cloth.pattern == BARS:
        return np.asarray(x < 0.4)
    if cloth.pattern == CHECKS:
        return np.asarray((x < 0.5) ^ (y < 0.5))
    return np.asarray((x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5) < 0.1)


@functools.cache
def _noise_tile() -> np.ndarray:
    """Smooth noise in [0, 1], (64, 64) float32, tileable."""
    rough = stream("world", "noise").integers(0, 256, (16, 16), dtype=np.uint8)
    wide = Image.fromarray(np.tile(rough, (3, 3))).resize((192, 192), Image.Resampling.BICUBIC)
    return np.asarray(np.asarray(wide, dtype=np.float32)[64:128, 64:128] / np.float32(255))


def dye(look: Look, solids: Solids, surface: Surface) -> np.ndarray:
    """Colours of the surface before light, (n, 3) float32 in [0, 1]."""
    part, (x, y, z) = surface.part, surface.local
    kind = solids.paint[part].astype(np.int8)
    along = solids.along.astype(np.float32)[part]
    s = along[:, 0] + along[:, 1] * y
    girth = solids.girth.astype(np.float32)[part]
    angle = 1 - z / (np.abs(x) + np.abs(z) + 1e-6)  # 0 front, 1 side, 2 back, without arctan
    across = np.where(x > 0, angle, -angle) * girth * 1.5 + 4.0
    metres = s * _METRES[kind] + 4.0
    ink = _INK[kind]
    torso, arm, leg = kind == TORSO, kind == ARM, kind == LEG
    ink[arm & (s > look.sleeve)] = SKIN_INK
    ink[leg & (s > look.leg)] = SKIN_INK
    ink[leg & (s > max(look.leg, 1.72))] = SOCKS
    ink[torso & (s < 0.07)] = LOWER
    for base, cloth in ((UPPER, look.upper), (LOWER, look.lower)):
        if cloth.pattern != PLAIN:
            mine = np.flatnonzero(ink == base)
            ink[mine[_woven(cloth, across[mine], metres[mine])]] = base + 1
    _decorate(look, ink, torso, arm, kind, s, angle, across, metres)
    sideways = x * girth / np.sqrt(np.maximum(solids.profile[:, 0], 0.01)).astype(np.float32)[part]
    _carry(look, ink, torso, s, angle, np.where(torso, x, sideways))
    face = kind == HEAD
    if face.any():
        front = face & (z > 0.3)
        ink[front & (np.abs(np.abs(x) - 0.36) < 0.15) & (np.abs(y - 0.08) < 0.09)] = DARK
        ink[front & (np.abs(x) < 0.28) & (np.abs(y + 0.5) < 0.07)] = LIPS
    bag = kind == BAG
    ink[bag & (np.abs(y - 0.25) < 0.06)] = DARK
    return np.asarray(_palette(look)[ink])


def _decorate(
    look: Look, ink: np.ndarray, torso: np.ndarray, arm: np.ndarray, kind: np.ndarray,
    s: np.ndarray, angle: np.ndarray, across: np.ndarray, metres: np.ndarray,
) -> None:  # fmt: skip
    """Panels, prints, the open jacket and the collar (changes `ink`)."""
    body = torso & (s >= 0.07)
    if look.panel == "sleeves":
        ink[arm & ((ink == UPPER) | (ink == UPPER2))] = UPPER2
    elif look.panel == "chest":
        ink[body & (s > 0.6)] = UPPER2
    elif look.panel == "sides":
        ink[body & (np.abs(angle - 1) < 0.3)] = UPPER2
    elif look.panel == "band":
        ink[body & (s > 0.3) & (s < 0.5)] = UPPER2
    if look.front == "logo":
        ink[body & (angle < 0.3) & (s > 0.6) & (s < 0.82)] = UPPER2
    elif look.front == "print":
        ink[body & (angle < 0.55) & (np.abs(s - 0.58) + 0.4 * angle < 0.26)] = UPPER2
    if look.back == "print":
        ink[body & (angle > 1.45) & (s > 0.42) & (s < 0.82)] = UPPER2
    elif look.back == "stripe":
        ink[body & (angle > 1.0) & (s > 0.62) & (s < 0.76)] = UPPER2
    if look.opened:
        ink[body & (angle < look.opened)] = INNER
        ink[(kind == COAT) & (angle < look.opened)] = LOWER
    ink[body & (s > 0.9) & (angle < 0.3)] = SKIN_INK


def _carry(
    look: Look, ink: np.ndarray, torso: np.ndarray, s: np.ndarray, angle: np.ndarray, x: np.ndarray
) -> None:
    """Straps of the bag over the torso (changes `ink`)."""
    if look.bag == "backpack":
        ink[torso & (s > 0.35) & (angle < 1.1) & (np.abs(np.abs(x) - 0.1) < 0.022)] = BAG_INK
    elif look.bag == "shoulder":
        ink[torso & (np.abs(x + 0.1 - 0.26 * (1 - s)) < 0.022)] = BAG_INK


# ---------------------------------------------------------------- light


@dataclass(frozen=True)
class Light:
    """Light on the person, camera frame."""

    direction: tuple[float, float, float]
    """Towards the light; y is down."""
    sun: float
    sky: float


def shade(surface: Surface, light: Light) -> np.ndarray:
    """Brightness of the surface, (n, 1) float32."""
    size = math.sqrt(sum(axis * axis for axis in light.direction))
    lx, ly, lz = (axis / size for axis in light.direction)
    nx, ny, nz = surface.normal
    facing = np.maximum(nx * lx + ny * ly + nz * lz, 0)
    bright = light.sky * (0.95 - 0.35 * ny) + light.sun * facing
    # Folds: noise that follows the part's own coordinates.
    tile = _noise_tile()
    x, y, _ = surface.local
    rows = (y * 23 + surface.part * 7).astype(int) & 63
    bright *= 0.86 + 0.28 * tile[rows, (x * 24 + 64).astype(int) & 63]
    # What lies behind a nearer edge gets less light from the sky.
    depth = surface.depth
    near = np.minimum(depth, 50)
    gap = np.zeros_like(depth)
    for dy, dx in ((0, 4), (0, -4), (4, 0), (-4, 0)):
        gap += np.clip(near - np.roll(near, (dy, dx), (0, 1)), 0, 0.25)
    bright *= 1 - 0.7 * gap.ravel()[surface.at]
    return np.asarray(bright, dtype=np.float32)[:, None]


def draw_person(
    look: Look, bones: Skeleton, shot: Shot, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """RGBA uint8 (H, W, 4) with premultiplied alpha, and the depth (ROWS, COLUMNS) in metres."""
    solids = solids_of(look, bones)
    surface = cast(solids, shot)
    rgba = np.zeros((ROWS * COLUMNS, 4), dtype=np.uint8)
    rgba[surface.at, :3] = np.minimum(dye(look, solids, surface) * shade(surface, light) * 255, 255)
    rgba[surface.at, 3] = 255
    # "RGBX": Pillow would premultiply and divide RGBA by itself.
    fine = Image.frombuffer("RGBX", (COLUMNS, ROWS), rgba.tobytes(), "raw", "RGBX", 0, 1)
    return np.asarray(fine.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)), surface.depth


def depth_at(depth: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Depth of the surface at pixels (n, 2); the border's outside the picture."""
    ray = np.rint((pixels + 0.5) * FINE - 0.5)
    columns = np.clip(ray[:, 0], 0, COLUMNS - 1).astype(int)
    return np.asarray(depth[np.clip(ray[:, 1], 0, ROWS - 1).astype(int), columns])
