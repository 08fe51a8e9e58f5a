"""The six cameras of ToyMarket: viewpoints, backgrounds, light, colour response and occluders."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pidm_core.toy_people import stream
from pidm_core.toy_render import HEIGHT, WIDTH, Light, View

BACKGROUNDS = 20  # per camera
_TALL, _LONG = 192, 384  # pixels of a background, from which boxes are cut
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Camera:
    """One camera. Ranges are (least, most)."""

    heights: tuple[float, float]
    distances: tuple[float, float]
    directions: tuple[float, ...]
    """Ways people walk here, degrees of body turn; 0 = towards the camera."""
    light: tuple[float, float, float]
    """Towards the sun, camera frame (y is down)."""
    sun: tuple[float, float]
    sky: tuple[float, float]
    gains: tuple[float, float, float]
    """White balance."""
    gamma: float
    contrast: float
    black: float
    """Grey level of black, 0-255."""
    saturation: float
    detail: tuple[float, float]
    """Resolution of the sensor over that of the file."""
    noise: float
    """Standard deviation in grey levels."""
    quality: tuple[int, int]
    """JPEG quality."""
    jitter: float
    """How badly boxes are cut."""
    hidden: float
    """Share of pictures with something in front of the person."""
    ground: RGB
    walls: tuple[RGB, ...]
    scenery: str
    """road, shop, grass, brick, hall, plaza."""


CAMERAS = {
    1: Camera((2.2, 3.4), (6, 11), (15, 195), (-0.6, -0.7, -0.5),
              (0.32, 0.4), (0.64, 0.69), (1.015, 1.0, 0.98), 1.0, 1.01,
              0, 1.0, (0.84, 0.97), 1.4, (80, 95), 0.8, 0.06,
              (128, 124, 118), ((150, 132, 110), (96, 104, 92)), "shop"),
    2: Camera((3.2, 5.0), (7, 12), (95, 265, 285), (0.8, -0.5, -0.2),
              (0.28, 0.35), (0.63, 0.68), (0.98, 1.0, 1.02), 1.02, 0.99,
              2, 0.97, (0.75, 0.88), 2.4, (60, 85), 1.0, 0.06,
              (104, 110, 112), ((126, 134, 142), (88, 96, 110)), "road"),
    3: Camera((1.5, 2.3), (5, 9), (150, 330), (0.1, -0.9, 0.5),
              (0.28, 0.35), (0.66, 0.72), (0.995, 1.01, 0.99), 0.98, 1.0,
              1, 0.99, (0.81, 0.95), 1.8, (70, 90), 0.8, 0.05,
              (110, 132, 80), ((70, 100, 54), (140, 160, 180)), "grass"),
    4: Camera((2.6, 4.2), (6, 12), (45, 225, 250), (-0.9, -0.3, 0.1),
              (0.32, 0.4), (0.63, 0.68), (1.02, 1.0, 0.97), 1.01, 1.01,
              0, 1.01, (0.77, 0.93), 1.8, (65, 88), 0.9, 0.05,
              (150, 138, 122), ((128, 88, 72), (104, 82, 76)), "brick"),
    5: Camera((3.0, 4.6), (5, 8), (0, 180, 170), (0.3, -0.9, -0.6),
              (0.24, 0.31), (0.67, 0.72), (0.99, 1.0, 1.0), 1.0, 0.98,
              3, 0.96, (0.74, 0.86), 2.6, (58, 80), 1.0, 0.06,
              (160, 162, 166), ((190, 192, 196), (120, 124, 134)), "hall"),
    6: Camera((1.7, 2.8), (7, 14), (115, 240, 300, 60), (-0.3, -0.6, 0.8),
              (0.3, 0.38), (0.63, 0.68), (1.0, 0.99, 1.01), 1.0, 1.0,
              1, 1.0, (0.72, 0.86), 2.2, (60, 85), 0.9, 0.06,
              (92, 88, 92), ((104, 92, 100), (70, 76, 96)), "plaza"),
}  # fmt: skip


@dataclass(frozen=True)
class Passage:
    """What the pictures share that one camera takes of a person in one session."""

    direction: float
    """Body turn in degrees."""
    exposure: float
    tint: tuple[float, float, float]
    sun: float
    sky: float
    height: float
    distance: float


def passage_of(camera: Camera, rng: np.random.Generator) -> Passage:
    """A random passage of a person before `camera`."""
    tint = np.clip(rng.normal(1.0, 0.01, 3), 0.95, 1.05)
    return Passage(
        direction=float(rng.choice(camera.directions) + rng.normal(0, 15)),
        exposure=float(np.clip(rng.normal(1.0, 0.03), 0.9, 1.1)),
        tint=(float(tint[0]), float(tint[1]), float(tint[2])),
        sun=float(rng.uniform(*camera.sun)),
        sky=float(rng.uniform(*camera.sky)),
        height=float(rng.uniform(*camera.heights)),
        distance=float(rng.uniform(*camera.distances)),
    )


def light_of(camera: Camera, passage: Passage) -> Light:
    """The light in a passage."""
    return Light(camera.light, passage.sun, passage.sky)


def view_of(camera: Camera, passage: Passage, rng: np.random.Generator, bad_box: bool) -> View:
    """A random view within a passage; `bad_box` cuts the person as a poor detector does."""
    degrees = passage.direction if rng.random() < 0.9 else rng.choice(camera.directions)
    shift, fill = (
        camera.jitter * rng.normal(0, (0.04, 0.022)),
        rng.normal(0.90, 0.04 * camera.jitter),
    )
    if bad_box:
        fill *= rng.uniform(1.2, 2.2)
        shift += rng.uniform(0.15, 0.45, 2) * rng.choice([-1.0, 1.0], 2)
    return View(
        azimuth=math.radians(float(degrees + rng.normal(0, 10))),
        height=passage.height,
        distance=passage.distance * float(rng.uniform(0.85, 1.15)),
        roll=float(rng.normal(0, 0.03)),
        fill=float(np.clip(fill, 0.68, 2.2)),
        shift=(float(np.clip(shift[0], -0.6, 0.6)), float(np.clip(shift[1], -0.6, 0.6))),
    )


# ---------------------------------------------------------------- backgrounds


def _vary(rng: np.random.Generator, colour: RGB, by: int) -> RGB:
    r, g, b = (min(255, max(0, level + int(step))) for level, step in zip(
        colour, rng.integers(-by, by + 1, 3), strict=True))  # fmt: skip
    return r, g, b


@functools.cache
def background(number: int, variant: int) -> Image.Image:
    """A wide picture without people, from which the background of a box is cut."""
    camera, rng = CAMERAS[number], stream("world", "background", number, variant)
    wall = _vary(rng, camera.walls[int(rng.integers(len(camera.walls)))], 44)
    horizon = int(rng.integers(50, 110))
    image = Image.new("RGB", (_LONG, _TALL), wall)
    draw = ImageDraw.Draw(image)
    _scenery(draw, rng, camera.scenery, wall, horizon)
    ground = _vary(rng, camera.ground, 44)
    draw.rectangle((0, horizon, _LONG, _TALL), ground)
    _paving(draw, rng, camera.scenery, ground, horizon)
    for _ in range(int(rng.integers(3, 8))):  # things that stand about
        x, base = int(rng.integers(_LONG)), horizon + int(rng.integers(2, 40))
        w, h = int(rng.integers(6, 30)), int(rng.integers(12, 70))
        colour = _vary(rng, (118, 114, 110), 52)
        shape = draw.ellipse if rng.random() < 0.3 else draw.rectangle
        shape((x, base - h, x + w, base), colour)
        draw.rectangle((x, base, x + w, base + 3), _vary(rng, (60, 60, 60), 10))
    return _grain(image, rng)


def _scenery(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, kind: str, wall: RGB, horizon: int
) -> None:
    if kind in ("shop", "hall", "road"):
        step = int(rng.integers(28, 60))
        for x in range(-int(rng.integers(step)), _LONG, step):
            pane = _vary(rng, (90, 96, 104) if kind != "hall" else (214, 218, 222), 45)
            draw.rectangle((x + 5, 10, x + step - 4, horizon - 6), pane)
    elif kind == "brick":
        for y in range(0, horizon, 7):
            draw.line((0, y, _LONG, y), _vary(rng, wall, 24))
            for x in range((y % 2) * 7, _LONG, 14):
                draw.line((x, y, x, y + 7), _vary(rng, wall, 24))
    else:
        for _ in range(40):
            x, y, r = int(rng.integers(_LONG)), int(rng.integers(horizon)), int(rng.integers(6, 28))
            leaf = (60, 92, 46) if kind == "grass" else (96, 90, 104)
            draw.ellipse((x - r, y - r, x + r, y + r), _vary(rng, leaf, 32))


def _paving(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, kind: str, ground: RGB, horizon: int
) -> None:
    if kind == "grass":
        path = int(rng.integers(60, 300))
        corners = [(path, horizon), (path + 40, horizon), (path + 150, _TALL), (path - 60, _TALL)]
        draw.polygon(corners, _vary(rng, (150, 140, 122), 14))
    elif kind in ("plaza", "hall", "brick"):
        joint = _vary(rng, (ground[0] - 22, ground[1] - 22, ground[2] - 22), 8)
        y, step = float(horizon), 3.0
        while y < _TALL:
            draw.line((0, int(y), _LONG, int(y)), joint)
            y, step = y + step, step * 1.25
        for x in range(-_LONG, 2 * _LONG, int(rng.integers(20, 40))):
            draw.line((x, horizon, x + (x - _LONG // 2), _TALL), joint)
    else:
        for _ in range(3):
            x, y = int(rng.integers(_LONG)), int(rng.integers(horizon, _TALL))
            w = int(rng.integers(60, 200))
            draw.polygon([(x, y), (x + w, y), (x + w + 14, y + 7), (x + 9, y + 7)],
                         _vary(rng, (212, 210, 200), 20))  # fmt: skip


def _grain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dirt, shade and texture."""
    pixels = np.array(image, dtype=np.float32)
    for size, strength in ((8, 0.35), (32, 0.16), (128, 0.14)):
        rough = rng.integers(0, 256, (size // 2, size), dtype=np.uint8)
        smooth = Image.fromarray(rough).resize((_LONG, _TALL), Image.Resampling.BICUBIC)
        noise = np.asarray(smooth, dtype=np.float32)[:, :, None] / np.float32(255) - np.float32(0.5)
        pixels *= 1 + np.float32(strength) * noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def cut_background(number: int, rng: np.random.Generator) -> np.ndarray:
    """A random box of one of a camera's backgrounds, float32 (H, W, 3) in 0-255."""
    wide = background(number, int(rng.integers(BACKGROUNDS)))
    tall = float(rng.uniform(110, _TALL))
    left, top = rng.uniform(0, _LONG - tall / 2), rng.uniform(0, _TALL - tall)
    box = (float(left), float(top), float(left + tall / 2), float(top + tall))
    cut = wide.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box)
    return np.asarray(cut, dtype=np.float32)


def cast_shadow(ground: np.ndarray, feet: np.ndarray, strength: float) -> None:
    """Darken the ground under the ankles `feet` (2, 2) px (in place)."""
    x, y = feet.mean(axis=0)
    wide = 9.0 + 0.5 * abs(float(feet[0, 0] - feet[1, 0]))
    dx = (np.arange(WIDTH, dtype=np.float32) - np.float32(x)) / np.float32(wide)
    dy = (np.arange(HEIGHT, dtype=np.float32) - np.float32(y + 4)) / np.float32(6.0)
    dark = np.maximum(0, 1 - (dx * dx)[None] - (dy * dy)[:, None])
    ground *= (1 - np.float32(strength) * dark)[:, :, None]


# ---------------------------------------------------------------- occluders and response


def occlude(image: Image.Image, rng: np.random.Generator) -> None:
    """Draw something in front of the person: a pole, a car, a bicycle or a bush (in place)."""
    draw = ImageDraw.Draw(image)
    kind = str(rng.choice(["pole", "car", "bicycle", "bush"], p=[0.3, 0.3, 0.25, 0.15]))
    colour = _vary(rng, (118, 116, 114), 70)
    if kind == "pole":
        x, w = int(rng.integers(0, WIDTH)), int(rng.integers(3, 9))
        draw.rectangle((x, 0, x + w, HEIGHT), colour)
        draw.rectangle((x + w // 2, 0, x + w, HEIGHT), _vary(rng, colour, 25))
    elif kind == "car":
        top, tilt = int(rng.integers(84, 112)), int(rng.integers(-10, 11))
        draw.polygon([(0, top + tilt), (20, top - 5), (44, top - 5), (64, top - tilt), (64, 128),
                      (0, 128)], colour)  # fmt: skip
        draw.rectangle((0, min(top + 18, HEIGHT - 1), WIDTH, HEIGHT), _vary(rng, (40, 40, 42), 10))
    elif kind == "bicycle":
        y, r = int(rng.integers(96, 112)), int(rng.integers(13, 18))
        for x in (int(rng.integers(2, 14)), int(rng.integers(46, 60))):
            draw.ellipse((x - r, y - r, x + r, y + r), outline=(36, 36, 36), width=2)
        draw.line((8, y, 22, y - 22, 48, y - 24, 54, y), colour, 2)
        draw.line((22, y - 22, 32, y, 48, y - 24), colour, 2)
    else:
        for _ in range(12):
            x, y, r = (
                int(rng.integers(WIDTH)),
                int(rng.integers(100, 132)),
                int(rng.integers(5, 12)),
            )
            draw.ellipse((x - r, y - r, x + r, y + r), _vary(rng, (58, 88, 46), 26))


def respond(
    image: Image.Image, camera: Camera, passage: Passage, rng: np.random.Generator
) -> np.ndarray:
    """What the camera makes of it: resolution, colour, noise. uint8 (H, W, 3)."""
    detail = rng.uniform(*camera.detail)
    small = (max(8, round(WIDTH * detail)), max(16, round(HEIGHT * detail)))
    image = image.resize(small, Image.Resampling.BOX)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32)
    grey = pixels[:, :, :1] * 0.3 + pixels[:, :, 1:2] * 0.59 + pixels[:, :, 2:] * 0.11
    pixels = grey + np.float32(camera.saturation) * (pixels - grey)
    levels = np.clip(pixels, 0, 255).astype(np.uint8)
    exposure = passage.exposure * float(np.clip(rng.normal(1, 0.03), 0.9, 1.1))
    ramp = np.arange(256) / 255.0
    channels = []
    for i, (gain, tint) in enumerate(zip(camera.gains, passage.tint, strict=True)):
        curve = np.minimum(ramp * gain * tint * exposure, 1.0) ** camera.gamma
        curve = ((curve - 0.5) * camera.contrast + 0.5) * (255 - camera.black) + camera.black
        channels.append(curve.astype(np.float32)[levels[:, :, i]])
    noise = rng.standard_normal((HEIGHT, WIDTH, 3), dtype=np.float32) * np.float32(camera.noise)
    return np.asarray(np.clip(np.stack(channels, axis=2) + noise, 0, 255), dtype=np.uint8)
