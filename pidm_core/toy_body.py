"""The bodies of ToyMarket: bones, poses, and the solids that clothes make of them.

Body frame: x to the person's left, y up, z to the front; metres; the lowest foot stands on y = 0.
Every solid is a quadric of revolution in its own frame,
    x² + z² = c0 + c1 y + c2 y²,   y0 <= y <= y1,
which is an ellipsoid, a bulging or waisted limb, or a box with rounded sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pidm_core.toy_people import Look, pick, stream

# What a solid is painted as.
HEAD, NECK, HAIR, TORSO, ARM, LEG, FOOT, SKIRT, COAT, HAT, BAG = range(11)


@dataclass(frozen=True)
class Body:
    """Lengths of the bones in metres."""

    height: float
    legs: float
    """Height of the hips over that of the whole person."""
    shoulders: float
    """Half the distance between the shoulder joints."""
    hips: float


def body_of(seed: int, number: int) -> Body:
    """The bones of person `number`."""
    rng = stream(seed, "body", number)
    height = float(np.clip(rng.normal(1.70, 0.08), 1.48, 1.95))
    legs, shoulders, hips = rng.uniform((0.505, 0.098, 0.050), (0.545, 0.116, 0.062))
    return Body(height, float(legs), float(shoulders) * height, float(hips) * height)


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians; (right, left) where there are two."""

    hip: tuple[float, float]
    knee: tuple[float, float]
    spread: tuple[float, float]
    shoulder: tuple[float, float]
    abduct: tuple[float, float]
    elbow: tuple[float, float]
    inward: tuple[float, float]
    lean: float
    sway: float
    twist: float
    head: tuple[float, float]
    """Turn to the left, nod."""


def pose_of(rng: np.random.Generator) -> Pose:
    """A random pose: most people walk, some stand."""
    walking = rng.random() < 0.7
    phase = rng.uniform(0, 2 * math.pi)
    stride = rng.uniform(0.28, 0.52) if walking else rng.uniform(0.0, 0.12)
    swing = rng.uniform(0.15, 0.6) if walking else rng.uniform(0.0, 0.15)
    sides = np.array([0.0, math.pi]) + phase
    hip = stride * np.sin(sides) + rng.normal(0, 0.03, 2) + 0.05
    lifted = np.maximum(0.0, np.cos(sides))  # a leg bends while it swings forward
    knee = np.abs(rng.normal(0.06, 0.05, 2)) + (2.0 * stride * lifted if walking else 0.0)
    shoulder = -swing * np.sin(sides) + rng.normal(0, 0.08, 2)
    elbow = np.abs(rng.normal(0.35, 0.2, 2)) + 0.3 * swing
    abduct = rng.uniform(0.06, 0.28, 2)
    inward = rng.uniform(-0.1, 0.3, 2)
    for side in range(2):
        habit = pick(rng, free=0.74, phone=0.08, pocket=0.1, strap=0.08)
        if habit == "phone":
            shoulder[side], elbow[side], inward[side] = rng.uniform(
                (0.2, 1.5, 0.3), (0.6, 2.1, 0.7)
            )
        elif habit == "pocket":
            shoulder[side], elbow[side], abduct[side] = rng.uniform(
                (-0.4, 0.6, 0.3), (-0.1, 1.0, 0.5)
            )
        elif habit == "strap":
            shoulder[side], elbow[side], inward[side] = rng.uniform(
                (0.3, 2.1, 0.2), (0.6, 2.5, 0.6)
            )
    turn, spread = rng.normal(0, 0.3), rng.uniform(0.0, 0.12, 2)
    lean, sway, twist, nod = rng.normal((0.06, 0.0, 0.0, 0.08), (0.06, 0.03, 0.1, 0.15)).tolist()
    return Pose(
        hip=_pair(hip),
        knee=_pair(knee),
        spread=_pair(spread),
        shoulder=_pair(shoulder),
        abduct=_pair(abduct),
        elbow=_pair(elbow),
        inward=_pair(inward),
        lean=lean,
        sway=sway,
        twist=twist,
        head=(float(turn), nod),
    )


def _pair(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _rot(axis: int, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    if axis == 0:
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == 1:
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@dataclass
class Skeleton:
    """Where the bones are, in the body frame."""

    joints: np.ndarray  # (18, 3), OpenPose order
    points: dict[str, np.ndarray]
    torso: np.ndarray  # (3, 3), columns are its axes
    pelvis: np.ndarray
    head: np.ndarray
    feet: list[np.ndarray]
    bent: dict[str, bool]
    """Elbows and knees with a visible corner."""
    unit: float
    """Height of the person over 1.7 m."""


def pose_skeleton(body: Body, pose: Pose) -> Skeleton:
    """Forward kinematics."""
    unit = body.height / 1.7
    down = np.array([0.0, -1.0, 0.0])
    shank = 0.5 * (body.legs * body.height - 0.07)
    pelvis = _rot(1, pose.twist) @ _rot(2, pose.sway)
    torso = _rot(0, pose.lean) @ _rot(1, -pose.twist) @ _rot(2, -pose.sway)
    p: dict[str, np.ndarray] = {"pelvis": np.zeros(3)}
    p["neck"] = torso @ np.array([0.0, body.height * (0.825 - body.legs), 0.0])
    feet, bent = [], {}
    for i, (side, sign) in enumerate((("r", -1.0), ("l", 1.0))):
        p[side + "hip"] = pelvis @ np.array([sign * body.hips, 0.0, 0.0])
        tilt = pelvis @ _rot(2, sign * pose.spread[i])
        upper = tilt @ _rot(0, -pose.hip[i])
        lower = tilt @ _rot(0, pose.knee[i] - pose.hip[i])
        p[side + "knee"] = p[side + "hip"] + upper @ down * shank
        p[side + "ankle"] = p[side + "knee"] + lower @ down * shank
        pitch = max(0.0, pose.knee[i] - pose.hip[i]) * 0.6
        bent[side + "elbow"], bent[side + "knee"] = pose.elbow[i] > 0.4, pose.knee[i] > 0.3
        feet.append(pelvis @ _rot(1, sign * 0.15) @ _rot(0, pitch))
        p[side + "shoulder"] = p["neck"] + torso @ np.array(
            [sign * body.shoulders, -0.052 * unit, 0]
        )
        arm = torso @ _rot(2, sign * pose.abduct[i]) @ _rot(0, -pose.shoulder[i])
        fore = arm @ _rot(1, -sign * pose.inward[i]) @ _rot(0, -pose.elbow[i])
        p[side + "elbow"] = p[side + "shoulder"] + arm @ down * (0.172 * body.height)
        p[side + "wrist"] = p[side + "elbow"] + fore @ down * (0.148 * body.height)
        p[side + "hand"] = p[side + "wrist"] + fore @ down * (0.045 * body.height)
    head = torso @ _rot(1, pose.head[0]) @ _rot(0, pose.head[1])
    p["head"] = (
        p["neck"] + (torso @ np.array([0, 0.075, 0.01]) + head @ np.array([0, 0.105, 0.02])) * unit
    )
    face = {"nose": (0, -0.02, 0.1), "reye": (-0.032, 0.015, 0.085), "leye": (0.032, 0.015, 0.085),
            "rear": (-0.075, 0.0, 0.0), "lear": (0.075, 0.0, 0.0)}  # fmt: skip
    for name, offset in face.items():
        p[name] = p["head"] + head @ np.array(offset) * unit
    ground = np.array([0.0, min(p["rankle"][1], p["lankle"][1]) - 0.07 * unit, 0.0])
    p = {name: point - ground for name, point in p.items()}
    order = ("nose neck rshoulder relbow rwrist lshoulder lelbow lwrist rhip rknee rankle "
             "lhip lknee lankle reye leye rear lear")  # fmt: skip
    joints = np.stack([p[name] for name in order.split()])
    return Skeleton(joints, p, torso, pelvis, head, feet, bent, unit)


# ---------------------------------------------------------------- solid parts


@dataclass
class Solids:
    """The solids of one person, body frame, one row each."""

    centre: np.ndarray  # (n, 3) metres
    axes: np.ndarray  # (n, 3, 3): columns = local axes times their lengths
    profile: np.ndarray  # (n, 3): c0, c1, c2
    clip: np.ndarray  # (n, 2): y0, y1
    paint: np.ndarray  # (n,): HEAD ... BAG
    along: np.ndarray  # (n, 2): s = along[0] + along[1] * y, 0..2 down an arm or a leg
    girth: np.ndarray  # (n,): radius in metres


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Unit vector at right angles to both (np.cross takes ten times as long)."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    size = math.sqrt(x * x + y * y + z * z)
    return np.array([x / size, y / size, z / size])


class _Builder:
    def __init__(self) -> None:
        self.rows: list[tuple[object, ...]] = []

    def add(
        self, paint: int, centre: np.ndarray, axes: np.ndarray, profile: tuple[float, float, float],
        clip: tuple[float, float], along: tuple[float, float] = (0.0, 0.0), girth: float = 0.1,
    ) -> None:  # fmt: skip
        self.rows.append((centre, axes, profile, clip, paint, along, girth))

    def ball(
        self, paint: int, centre: np.ndarray, radii: tuple[float, float, float],
        frame: np.ndarray | None = None, along: tuple[float, float] = (0.0, 0.0), low: float = -1.0,
    ) -> None:  # fmt: skip
        """An ellipsoid; `low` > -1 keeps only its upper part."""
        frame = np.eye(3) if frame is None else frame
        self.add(
            paint, centre, frame * np.array(radii), (1, 0, -1), (low, 1), along, max(radii[::2])
        )

    def limb(
        self, paint: int, start: np.ndarray, end: np.ndarray, radii: tuple[float, float, float],
        side: np.ndarray, along: tuple[float, float], flat: float = 1.0,
        clip: tuple[float, float] = (0, 1),
    ) -> None:  # fmt: skip
        """From start (y = 0) to end (y = 1), with radii at start, middle and end."""
        axis = end - start
        z = _cross(side, axis)
        x = _cross(axis, z)
        first, middle, last = (radius * radius for radius in radii)
        curve = 2.0 * (first + last - 2.0 * middle)
        axes = np.stack([x, axis, z * flat], axis=1)
        profile = (first, last - first - curve, curve)
        self.add(paint, start, axes, profile, clip, along, max(radii))

    def build(self) -> Solids:
        columns = [np.array(column, dtype=np.float64) for column in zip(*self.rows, strict=True)]
        columns[4] = columns[4].astype(np.int64)
        return Solids(*columns)


def solids_of(look: Look, bones: Skeleton) -> Solids:
    """The person as solids: the look's clothes and thickness on somebody's bones."""
    make, p, u = _Builder(), bones.points, bones.unit
    x_axis, wide = bones.torso[:, 0], look.build
    _torso(make, look, bones)
    loose = 1.15 if look.sleeve > 1.5 else 1.0
    for side in "rl":
        shoulder, elbow, wrist = p[side + "shoulder"], p[side + "elbow"], p[side + "wrist"]
        r = np.array([0.054, 0.047, 0.040, 0.042, 0.030]) * (u * wide * loose)
        make.ball(ARM, shoulder, (r[0] * 1.06,) * 3)
        make.limb(ARM, shoulder, elbow, (r[0], r[1], r[2]), x_axis, (0, 1))
        if bones.bent[side + "elbow"]:
            make.ball(ARM, elbow, (r[2],) * 3, along=(1, 0))
        make.limb(ARM, elbow, wrist, (r[2], r[3], r[4]), x_axis, (1, 1))
        make.limb(
            ARM,
            wrist,
            2 * p[side + "hand"] - wrist,
            (0.028 * u, 0.042 * u, 0.01),
            x_axis,
            (2.0, 0.5),
            0.7,
        )
        hip, knee, ankle = p[side + "hip"], p[side + "knee"], p[side + "ankle"]
        r = np.array([0.092, 0.080, 0.058, 0.058, 0.042]) * (u * wide)
        r += 0.008 if look.leg > 1.5 else 0.0
        across = bones.pelvis[:, 0]
        make.limb(LEG, hip, knee, (r[0], r[1], r[2]), across, (0, 1))
        if bones.bent[side + "knee"]:
            make.ball(LEG, knee, (r[2],) * 3, along=(1, 0))
        make.limb(LEG, knee, ankle, (r[2], r[3], r[4]), across, (1, 1))
        foot = bones.feet[side == "l"]
        middle = ankle + foot @ np.array([0.0, -0.035, 0.065]) * u
        make.ball(FOOT, middle, (0.048 * u, 0.045 * u, 0.135 * u), foot)
    _head(make, look, bones)
    _bag(make, look, bones)
    return make.build()


def _torso(make: _Builder, look: Look, bones: Skeleton) -> None:
    p, u, wide = bones.points, bones.unit, look.build
    half = abs(float((bones.torso[:, 0] * (p["lshoulder"] - p["neck"])).sum()))
    hips = abs(float((bones.pelvis[:, 0] * p["lhip"]).sum())) + 0.075 * u * wide
    chest = half * (0.52 + 0.4 * wide)
    radii = (hips, 0.5 * (hips + half) * (0.55 + 0.42 * wide), chest)
    base = p["pelvis"] - bones.torso[:, 1] * 0.02 * u
    deep = 0.66 + 0.1 * (wide - 1.0)
    make.limb(TORSO, base, p["neck"], radii, bones.torso[:, 0], (0, 1), deep, (0, 0.97))
    yoke = (half + 0.012 * u, 0.05 * u, half * deep * 0.9)
    make.ball(TORSO, p["neck"] - bones.torso[:, 1] * 0.03 * u, yoke, bones.torso, (0.94, 0.06))
    slope = p["neck"] + bones.torso @ np.array([0, 0.055, -0.01]) * u
    low = p["neck"] - bones.torso[:, 1] * 0.01 * u
    radii = (half * 0.85, half * 0.5, 0.055 * u)
    make.limb(TORSO, low, slope, radii, bones.torso[:, 0], (0.96, 0.06), 0.55)
    make.ball(LEG, p["pelvis"], (hips, 0.12 * u, hips * 0.72), bones.pelvis)
    for paint, length in ((SKIRT, look.skirt), (COAT, look.coat)):
        if length:
            _hang(make, paint, length, bones, hips)


def _hang(make: _Builder, paint: int, length: float, bones: Skeleton, hips: float) -> None:
    """A skirt or the lower half of a coat: a cone around both legs and one around each thigh."""
    p, u, across = bones.points, bones.unit, bones.pelvis[:, 0]
    top = p["pelvis"] + bones.torso[:, 1] * 0.10 * u
    knees = 0.5 * (p["rknee"] + p["lknee"]) - p["pelvis"]
    knees = knees / math.sqrt(float((knees * knees).sum()))
    flare = 1.2 if paint == SKIRT else 1.05
    radii = (hips * 0.95, hips * 1.08, hips * flare)
    make.limb(paint, top, top + knees * (length * u + 0.1), radii, across, (0, 1), 0.72)
    for side in "rl":
        thigh = p[side + "knee"] - p[side + "hip"]
        share = length * u / math.sqrt(float((thigh * thigh).sum()))
        radii = (hips * 0.55, hips * 0.6, hips * 0.6 * flare)
        make.limb(
            paint, p[side + "hip"], p[side + "hip"] + thigh * share, radii, across, (0.0, 1.0)
        )


def _head(make: _Builder, look: Look, bones: Skeleton) -> None:
    p, u, frame = bones.points, bones.unit, bones.head
    head = p["head"]

    def at(x: float, y: float, z: float) -> np.ndarray:
        return np.asarray(head + frame @ np.array([x, y, z]) * u)

    make.limb(NECK, p["neck"], at(0, -0.05, -0.01), (0.058 * u,) * 3, frame[:, 0], (0, 1))
    make.ball(HEAD, head, (0.076 * u, 0.115 * u, 0.095 * u), frame)
    tilted = frame @ _rot(0, -0.75)  # the cap of hair leans back, off the face
    if look.cut != "bald":
        make.ball(HAIR, at(0, 0.012, -0.008), (0.087 * u, 0.118 * u, 0.108 * u), tilted, low=-0.12)
    if look.cut == "long":
        make.limb(HAIR, at(0, 0.04, -0.05), at(0, -0.25, -0.075), (0.07 * u, 0.09 * u, 0.06 * u),
                  frame[:, 0], (0, 1), 0.6)  # fmt: skip
    elif look.cut == "tail":
        make.limb(HAIR, at(0, 0.04, -0.1), at(0, -0.22, -0.13), (0.03 * u, 0.042 * u, 0.01 * u),
                  frame[:, 0], (0, 1))  # fmt: skip
    elif look.cut == "bun":
        make.ball(HAIR, at(0, 0.1, -0.08), (0.05 * u,) * 3)
    if look.hat != "none":
        high = 0.13 if look.hat == "woolly" else 0.105
        make.ball(HAT, at(0, 0.03, -0.005), (0.094 * u, high * u, 0.114 * u), frame, low=0.05)
    if look.hat == "cap":
        make.ball(HAT, at(0, 0.045, 0.12), (0.07 * u, 0.014 * u, 0.075 * u), frame)


def _bag(make: _Builder, look: Look, bones: Skeleton) -> None:
    p, u, torso = bones.points, bones.unit, bones.torso
    box = (1.0, 0.0, -0.45)
    if look.bag == "backpack":
        back = p["neck"] + torso @ np.array([0, -0.24, -0.19]) * u
        make.add(BAG, back, torso * (np.array([0.165, 0.26, 0.10]) * u), box, (-0.85, 0.85))
    elif look.bag == "shoulder":
        side = p["pelvis"] + torso @ np.array([0.21, 0.02, -0.02]) * u
        make.add(BAG, side, torso * (np.array([0.07, 0.15, 0.16]) * u), box, (-0.8, 0.8))
    elif look.bag == "hand":
        below = p["lhand"] - np.array([0.0, 0.20, 0.0]) * u
        make.add(BAG, below, bones.pelvis * (np.array([0.06, 0.16, 0.15]) * u), box, (-0.9, 0.9))
