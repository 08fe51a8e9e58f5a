"""Who the people of ToyMarket are: clothes, hair, skin and bags are the identity."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Colour = tuple[float, float, float]
PLAIN, STRIPES, BARS, CHECKS, DOTS, PATCHES = range(6)  # patterns of cloth

# Share of people who wear it: (weight, hue, saturation, value); hue in [0, 1).
_CLOTH = (
    (6, 0.0, 0.0, 0.10), (4, 0.0, 0.0, 0.38), (4, 0.0, 0.0, 0.62), (6, 0.0, 0.0, 0.92),
    (4, 0.64, 0.65, 0.28), (5, 0.60, 0.70, 0.60), (5, 0.57, 0.40, 0.85), (6, 0.99, 0.80, 0.72),
    (4, 0.98, 0.75, 0.38), (5, 0.94, 0.45, 0.90), (5, 0.14, 0.75, 0.92), (5, 0.36, 0.60, 0.48),
    (4, 0.23, 0.50, 0.42), (5, 0.77, 0.50, 0.55), (4, 0.10, 0.35, 0.72), (4, 0.07, 0.60, 0.40),
    (5, 0.06, 0.80, 0.90), (5, 0.48, 0.55, 0.70),
)  # fmt: skip
_TROUSERS = (
    (9, 0.0, 0.0, 0.12), (9, 0.61, 0.50, 0.34), (8, 0.60, 0.38, 0.58), (7, 0.0, 0.0, 0.42),
    (8, 0.10, 0.38, 0.68), (8, 0.0, 0.0, 0.88), (7, 0.23, 0.40, 0.38), (7, 0.07, 0.55, 0.36),
    (7, 0.98, 0.65, 0.45), (7, 0.58, 0.40, 0.82), (6, 0.94, 0.40, 0.80),
    (6, 0.13, 0.65, 0.80), (6, 0.36, 0.50, 0.50),
)  # fmt: skip
_HAIR = (
    (32, 0.08, 0.30, 0.11), (20, 0.06, 0.55, 0.25), (15, 0.09, 0.55, 0.45), (13, 0.12, 0.50, 0.78),
    (8, 0.04, 0.75, 0.50), (12, 0.0, 0.0, 0.66),
)  # fmt: skip
_SKIN = (
    (30, 0.07, 0.36, 0.88), (25, 0.07, 0.45, 0.76), (22, 0.07, 0.50, 0.58), (23, 0.06, 0.52, 0.36),
)  # fmt: skip


def stream(*keys: str | int) -> np.random.Generator:
    """A random stream that depends on nothing but its keys."""
    digest = hashlib.sha256("/".join(map(str, keys)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


# ---------------------------------------------------------------- clothes


@dataclass(frozen=True)
class Cloth:
    """A colour, a second one, and how they are woven."""

    colour: Colour
    second: Colour
    pattern: int = PLAIN
    period: float = 0.1
    """Metres after which the pattern repeats."""


@dataclass(frozen=True)
class Look:
    """What makes a person recognisable, from any side."""

    upper: Cloth
    lower: Cloth
    sleeve: float
    """End of the sleeves: 0 shoulder, 1 elbow, 2 wrist."""
    leg: float
    """End of the trousers: 0 hip, 1 knee, 2 ankle."""
    skirt: float
    """Length of a skirt in metres, 0 = none."""
    coat: float
    """Length of the upper garment below the waist in metres, 0 = it ends there."""
    panel: str
    """Second colour on: none, sleeves, chest, sides, band."""
    front: str
    """Second colour on the front: none, logo, print."""
    back: str
    """Second colour on the back: none, print, stripe."""
    inner: Colour
    opened: float
    """Half-width of an open jacket's gap (0 = closed, 1 = a quarter turn)."""
    skin: Colour
    hair: Colour
    cut: str
    """Hair: short, long, tail, bun, bald."""
    shoes: Colour
    socks: Colour
    hat: str
    """none, cap, woolly."""
    hat_colour: Colour
    bag: str
    """none, backpack, shoulder, hand."""
    bag_colour: Colour
    build: float
    """Thickness of the limbs and the torso, 1 = average."""


def _colour(rng: np.random.Generator, table: tuple[tuple[float, ...], ...]) -> Colour:
    weights = np.array([row[0] for row in table])
    _, hue, saturation, value = table[rng.choice(len(table), p=weights / weights.sum())]
    hue = (hue + rng.uniform(-0.03, 0.03)) % 1.0
    saturation = min(1.0, max(0.0, saturation + rng.uniform(-0.08, 0.08)))
    value = min(1.0, max(0.04, value + rng.uniform(-0.07, 0.07)))
    phase = [(hue + shift) % 1.0 for shift in (0.0, 2 / 3, 1 / 3)]
    levels = [min(1.0, max(0.0, abs(p * 6.0 - 3.0) - 1.0)) for p in phase]
    red, green, blue = (value * (1.0 - saturation + saturation * level) for level in levels)
    return red, green, blue


def _apart(rng: np.random.Generator, other: Colour) -> Colour:
    """A cloth colour that one can tell from `other`."""
    for _ in range(20):
        colour = _colour(rng, _CLOTH)
        if sum(abs(a - b) for a, b in zip(colour, other, strict=True)) > 0.7:
            break
    return colour


def pick(rng: np.random.Generator, **weights: float) -> str:
    total = sum(weights.values())
    return str(rng.choice(list(weights), p=[weight / total for weight in weights.values()]))


def _cloth(rng: np.random.Generator, base: Colour, plain: float) -> Cloth:
    if rng.random() < plain:
        return Cloth(base, _apart(rng, base))
    pattern = int(rng.choice([STRIPES, BARS, CHECKS, DOTS, PATCHES], p=[0.4, 0.1, 0.2, 0.15, 0.15]))
    return Cloth(base, _apart(rng, base), pattern, float(rng.uniform(0.07, 0.15)))


def _dress(rng: np.random.Generator) -> Look:
    upper = _cloth(rng, _colour(rng, _CLOTH), 0.5)
    lower = _cloth(rng, _colour(rng, _TROUSERS), 0.8)
    kind = pick(rng, trousers=0.62, shorts=0.22, skirt=0.16)
    coat = float(rng.uniform(0.18, 0.45)) if kind == "trousers" and rng.random() < 0.14 else 0.0
    jacket = coat > 0.0 or rng.random() < 0.2
    plain = upper.pattern == PLAIN
    return Look(
        upper=upper,
        lower=lower,
        sleeve=1.9 if jacket else float(rng.choice([0.1, 0.55, 1.1, 1.9], p=[0.1, 0.5, 0.1, 0.3])),
        leg={"trousers": 1.92, "shorts": float(rng.uniform(0.5, 1.1)), "skirt": 0.3}[kind],
        skirt=float(rng.uniform(0.36, 0.62)) if kind == "skirt" else 0.0,
        coat=coat,
        panel=pick(rng, none=0.45, sleeves=0.2, chest=0.15, sides=0.08, band=0.12),
        front=pick(rng, none=0.66, logo=0.17, print=0.17) if plain else "none",
        back=pick(rng, none=0.76, print=0.14, stripe=0.1) if plain else "none",
        inner=_apart(rng, upper.colour),
        opened=float(rng.uniform(0.25, 0.5)) if jacket and rng.random() < 0.5 else 0.0,
        skin=_colour(rng, _SKIN),
        hair=_colour(rng, _HAIR),
        cut=pick(rng, short=0.5, long=0.22, tail=0.15, bun=0.06, bald=0.07),
        shoes=_colour(rng, _CLOTH),
        socks=_colour(rng, _CLOTH),
        hat=pick(rng, none=0.7, cap=0.18, woolly=0.12),
        hat_colour=_colour(rng, _CLOTH),
        bag=pick(rng, none=0.45, backpack=0.25, shoulder=0.18, hand=0.12),
        bag_colour=_colour(rng, _CLOTH),
        build=float(np.clip(rng.normal(1.0, 0.11), 0.8, 1.35)),
    )


TWIN_EVERY = 8  # person 7, 15, 23 ... of a range is a near twin of the one before


@functools.lru_cache(maxsize=8192)
def look_of(seed: int, number: int) -> Look:
    """The clothes of person `number`; every eighth copies the one before but for 1-2 things."""
    if number % TWIN_EVERY != TWIN_EVERY - 1:
        return _dress(stream(seed, "look", number))
    look, other = look_of(seed, number - 1), _dress(stream(seed, "look", number))
    rng = stream(seed, "twin", number)
    changes: list[dict[str, Any]] = [
        {"upper": replace(look.upper, colour=_apart(rng, look.upper.colour))},
        {"lower": replace(look.lower, colour=_apart(rng, look.lower.colour))},
        {"bag": "backpack" if look.bag != "backpack" else "none", "bag_colour": other.bag_colour},
        {"hair": other.hair, "cut": "long" if look.cut != "long" else "short"},
        {"shoes": _apart(rng, look.shoes), "skin": other.skin},
        {"upper": replace(look.upper, pattern=(look.upper.pattern + 1) % 6, period=0.12)},
        {"sleeve": 0.55 if look.sleeve > 1.0 else 1.9},
        {"hat": "cap" if look.hat == "none" else "none", "build": other.build},
        {"panel": "sleeves" if look.panel != "sleeves" else "band"},
        {"front": "print" if look.front == "none" else "none", "back": other.back},
    ]
    for index in rng.choice(len(changes), size=int(rng.integers(1, 3)), replace=False):
        look = replace(look, **changes[index])
    return look
