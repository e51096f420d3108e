"""Geometry of the demo parts: a signed distance field, a relief and an ink mask for each kind.

Letters: S side of the square picture in pixels. Every array is ``(S, S) float32``. Distances and heights are in
pixels, negative distance is inside the part. Local coordinates ``x, y`` are in units of the part's radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.float32]


class PartKind(StrEnum):
    """The kinds of parts that can be rendered; the value is the noun that prompts use."""

    WASHER = "washer"
    RING = "ring"
    GEAR = "gear"
    NUT = "hex nut"
    CAP = "bottle cap"
    PLATE = "plate"
    BRACKET = "bracket"
    PILL = "capsule"
    BUTTON = "button"
    CONNECTOR = "connector"
    BEARING = "bearing"
    SCREW = "screw head"
    DISC = "disc"
    KNOB = "knob"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Body:
    """What a part is made of before material, light and defects.

    ``sdf_px`` is the outline (holes included), ``relief_px`` the height above the flat top, ``accent`` the share
    of the second material in [0, 1], ``cuts`` sdfs whose inside may be taken away as a missing piece.
    """

    sdf_px: Plane
    relief_px: Plane
    accent: Plane
    cuts: tuple[Plane, ...]


def circle(x: Plane, y: Plane, radius: float) -> Plane:
    """Signed distance to a circle around the origin."""
    return np.hypot(x, y) - np.float32(radius)


def box(x: Plane, y: Plane, half_w: float, half_h: float, corner: float) -> Plane:
    """Signed distance to a rounded rectangle around the origin."""
    dx = np.abs(x) - np.float32(half_w - corner)
    dy = np.abs(y) - np.float32(half_h - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)


def polygon(x: Plane, y: Plane, radius: float, sides: int) -> Plane:
    """Distance to a regular polygon of the given inner radius (exact inside, a bound outside)."""
    sector = 2 * np.pi / sides
    angle = np.arctan2(y, x)
    folded = (angle + sector / 2) % sector - sector / 2
    return (np.hypot(x, y) * np.cos(folded) - radius).astype(np.float32)


def cut(solid: Plane, hole: Plane) -> Plane:
    """The solid without the hole."""
    return np.maximum(solid, -hole)


def bevel(sdf: Plane, width: float) -> Plane:
    """Height in [0, 1]: a rounded rise from the outline over ``width``."""
    t = np.clip(-sdf / np.float32(width), 0, 1)
    return np.sqrt(np.maximum(1 - (1 - t) ** 2, 0)).astype(np.float32)


def inside(sdf: Plane, soft: float = 0.012) -> Plane:
    """Anti-aliased coverage in [0, 1] of the inside."""
    return np.clip(0.5 - sdf / np.float32(2 * soft), 0, 1).astype(np.float32)


def _sector(x: Plane, y: Plane, angle: float, half_angle: float) -> Plane:
    turned = np.arctan2(y, x) - angle
    turned = np.abs((turned + np.pi) % (2 * np.pi) - np.pi)
    return ((turned - half_angle) * np.hypot(x, y)).astype(np.float32)


def _spots(x: Plane, y: Plane, centres: list[tuple[float, float]], radius: float) -> Plane:
    return np.minimum.reduce([circle(x - np.float32(cx), y - np.float32(cy), radius) for cx, cy in centres])


def _on_circle(radius: float, count: int, phase: float = 0.0) -> list[tuple[float, float]]:
    angles = phase + np.arange(count) * 2 * np.pi / count
    return [(float(radius * np.cos(a)), float(radius * np.sin(a))) for a in angles]


def _text(size: int, words: str, thickness: int) -> Plane:
    canvas = np.zeros((size, size), np.uint8)
    (width, height), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_DUPLEX, 1.0, thickness)
    scale = 0.9 * size / max(width, height, 1)
    width, height = int(width * scale), int(height * scale)
    origin = ((size - width) // 2, (size + height) // 2)
    cv2.putText(canvas, words, origin, cv2.FONT_HERSHEY_DUPLEX, scale, 255, thickness, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def _print(x: Plane, y: Plane, words: str, half: float, thickness: int) -> Plane:
    """Text printed in the local square of half side ``half`` around the origin."""
    texture = _text(96, words, thickness)
    u = ((x / half + 1) * 48).astype(np.float32)
    v = ((y / half + 1) * 48).astype(np.float32)
    return cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _word(rng: np.random.Generator) -> str:
    letters = "ABCDEFHKLMNPRSTUXZ0123456789"
    return "".join(rng.choice(list(letters), int(rng.integers(1, 5))))


def _washer(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    inner = rng.uniform(0.32, 0.62)
    sdf = cut(circle(x, y, 1), circle(x, y, inner))
    relief = bevel(sdf, rng.uniform(0.04, 0.12)) * rng.uniform(0.03, 0.08)
    groove = np.abs(circle(x, y, (1 + inner) / 2)) - 0.02
    if rng.random() < 0.3:
        relief = relief - inside(groove, 0.03) * 0.03
    return sdf, relief, np.zeros_like(x), []


def _ring(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    width = rng.uniform(0.16, 0.3)
    sdf = np.abs(circle(x, y, 1 - width)) - np.float32(width)
    return sdf, bevel(sdf, width) * width * 0.6, np.zeros_like(x), []


def _gear(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    teeth = int(rng.integers(9, 25))
    depth = rng.uniform(0.1, 0.2) if teeth < 16 else rng.uniform(0.08, 0.13)
    wave = np.cos(teeth * np.arctan2(y, x)) * rng.uniform(2.0, 4.0)
    outline = np.hypot(x, y) - np.float32(1 - depth / 2) - np.tanh(wave) * np.float32(depth / 2)
    outline = (outline * 0.8).astype(np.float32)
    bore = rng.uniform(0.14, 0.28)
    sdf = cut(outline, circle(x, y, bore))
    relief = bevel(sdf, 0.05) * 0.05
    hub = rng.uniform(bore + 0.1, bore + 0.22)
    relief = relief + inside(circle(x, y, hub), 0.03) * 0.05
    if rng.random() < 0.5:
        spokes = _spots(x, y, _on_circle((hub + 1 - depth) / 2, int(rng.integers(3, 7))), (1 - depth - hub) * 0.3)
        sdf = cut(sdf, spokes)
    else:
        relief = relief - inside(np.abs(circle(x, y, (hub + 1 - depth) / 2)) - (1 - depth - hub) * 0.3, 0.04) * 0.05
    tooth = float(rng.integers(teeth)) * 2 * np.pi / teeth
    wedge = _sector(x, y, tooth, np.pi / teeth * (3 if teeth > 14 else 2.0))
    return sdf, relief, np.zeros_like(x), [np.maximum(wedge, -circle(x, y, 1 - depth * 1.15))]


def _nut(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    bore = rng.uniform(0.38, 0.55)
    sdf = cut(polygon(x, y, 0.9, 6), circle(x, y, bore))
    chamfer = np.clip((np.hypot(x, y) - 0.84) / 0.2, 0, 1)
    relief = bevel(sdf, 0.04) * 0.04 - chamfer.astype(np.float32) * 0.08
    rings = np.sin((np.hypot(x, y) - bore) * 90) * inside(circle(x, y, bore + 0.1), 0.03)
    return sdf, relief + rings.astype(np.float32) * 0.01, np.zeros_like(x), []


def _cap(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    ribs = int(rng.choice([21, 24, 36, 48]))
    wave = np.cos(ribs * np.arctan2(y, x))
    sdf = (np.hypot(x, y) - 0.97 - 0.025 * wave).astype(np.float32)
    rim = np.clip((np.hypot(x, y) - 0.78) / 0.2, 0, 1)
    relief = bevel(sdf, 0.25) * 0.12 + (wave * rim).astype(np.float32) * 0.025
    accent = np.zeros_like(x)
    choice = rng.random()
    if choice < 0.45:
        accent = _print(x, y, _word(rng), 0.5, int(rng.integers(1, 4)))
    elif choice < 0.7:
        accent = inside(np.abs(circle(x, y, 0.55)) - rng.uniform(0.03, 0.12))
    return sdf, relief, accent, []


def _plate(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    half_h = rng.uniform(0.55, 0.9)
    sdf = box(x, y, 0.95, half_h, rng.uniform(0.05, 0.25))
    at_x, at_y, radius = 0.72, half_h - 0.23, rng.uniform(0.07, 0.12)
    holes = _spots(x, y, [(at_x, at_y), (-at_x, at_y), (at_x, -at_y), (-at_x, -at_y)], radius)
    if rng.random() < 0.6:
        holes = np.minimum(holes, box(x, y, rng.uniform(0.2, 0.4), rng.uniform(0.08, 0.2), 0.07))
    sdf = cut(sdf, holes)
    relief = bevel(sdf, 0.05) * 0.05
    accent = np.zeros_like(x)
    if rng.random() < 0.35:
        accent = _print(x, y - np.float32(half_h * 0.55), _word(rng), 0.25, 2)
    return sdf, relief, accent, []


def _bracket(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    arm = rng.uniform(0.25, 0.36)
    shift = np.float32(0.85 - arm)
    sdf = np.minimum(
        box(x + shift, y, arm, 0.85, 0.08),
        box(x, y - shift, 0.85, arm, 0.08),
    )
    centres = [(-0.85 + arm, -0.5), (0.5, 0.85 - arm), (-0.85 + arm, 0.85 - arm)]
    sdf = cut(sdf, _spots(x, y, centres, arm * rng.uniform(0.35, 0.5)))
    return sdf, bevel(sdf, 0.06) * 0.06, np.zeros_like(x), []


def _pill(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    half = rng.uniform(0.33, 0.45)
    sdf = box(x, y, 1.0, half, half - 1e-3)
    relief = bevel(sdf, half) * half * 0.7
    seam = rng.uniform(-0.1, 0.1)
    accent = inside((seam - x).astype(np.float32)) if rng.random() < 0.8 else np.zeros_like(x)
    relief = relief + inside((x - np.float32(seam)).astype(np.float32), 0.01) * 0.015
    return sdf, relief, accent, []


def _button(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    count = int(rng.choice([2, 4]))
    holes = _spots(x, y, _on_circle(rng.uniform(0.2, 0.3), count, np.pi / 4), rng.uniform(0.09, 0.13))
    sdf = cut(circle(x, y, 1), holes)
    rim = np.abs(circle(x, y, 0.82)) - 0.12
    relief = bevel(sdf, 0.08) * 0.06 + bevel(rim, 0.12) * 0.06
    return sdf, relief, np.zeros_like(x), []


def _connector(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    half_h = rng.uniform(0.42, 0.6)
    sdf = box(x, y, 1.0, half_h, 0.08)
    notch = box(x, y + np.float32(half_h), 0.18, 0.1, 0.02)
    sdf = cut(sdf, notch)
    cavity = box(x, y, 0.84, half_h - 0.16, 0.05)
    relief = bevel(sdf, 0.05) * 0.06 - inside(cavity, 0.03) * 0.12
    columns, rows = int(rng.integers(4, 7)), int(rng.integers(1, 3))
    step_x = 1.5 / columns
    pins = [
        box(x - np.float32((c - (columns - 1) / 2) * step_x), y - np.float32((r - (rows - 1) / 2) * 0.3), 0.075, 0.075, 0.02)
        for c in range(columns)
        for r in range(rows)
    ]
    pin = np.minimum.reduce(pins)
    return sdf, relief + inside(pin, 0.02) * 0.12, inside(pin), []


def _bearing(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    bore = rng.uniform(0.3, 0.42)
    sdf = cut(circle(x, y, 1), circle(x, y, bore))
    middle, half = (1 + bore) / 2, (1 - bore) / 2
    race = np.abs(circle(x, y, middle)) - np.float32(half * 0.45)
    relief = bevel(sdf, 0.05) * 0.05 - inside(race, 0.02) * 0.07
    balls = _spots(x, y, _on_circle(middle, int(rng.integers(7, 12))), half * 0.42)
    sealed = rng.random() < 0.5
    if not sealed:
        relief = relief + bevel(balls, half * 0.42) * 0.12
    return sdf, relief, inside(race) if sealed else inside(cut(race, balls)), []


def _screw(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    sdf = circle(x, y, 1)
    relief = bevel(sdf, rng.uniform(0.2, 0.9)) * 0.15
    width, reach = rng.uniform(0.09, 0.15), rng.uniform(0.5, 0.75)
    drive = rng.random()
    if drive < 0.4:
        slot = np.minimum(box(x, y, reach, width, 0.04), box(x, y, width, reach, 0.04))
    elif drive < 0.7:
        slot = box(x, y, reach, width, 0.03)
    else:
        slot = polygon(x, y, reach * 0.6, 6)
    return sdf, relief - inside(slot, 0.03) * 0.14, inside(slot) * 0.5, []


def _disc(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    sdf = circle(x, y, 1)
    relief = bevel(sdf, 0.06) * 0.06
    accent = inside(np.abs(circle(x, y, 0.85)) - 0.03) if rng.random() < 0.5 else np.zeros_like(x)
    if rng.random() < 0.7:
        accent = np.maximum(accent, _print(x, y, _word(rng), 0.55, int(rng.integers(1, 5))))
    return sdf, relief, accent, []


def _knob(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    lobes = int(rng.integers(3, 9))
    wave = np.cos(lobes * np.arctan2(y, x)).astype(np.float32)
    sdf = ((np.hypot(x, y) - 0.86 - wave * rng.uniform(0.08, 0.13)) * 0.9).astype(np.float32)
    relief = bevel(sdf, 0.18) * 0.12
    hub = circle(x, y, rng.uniform(0.22, 0.38))
    relief = relief + inside(hub, 0.03) * rng.uniform(-0.06, 0.06)
    return sdf, relief, inside(hub) if rng.random() < 0.5 else np.zeros_like(x), []


_SHAPES = {
    PartKind.WASHER: _washer,
    PartKind.RING: _ring,
    PartKind.GEAR: _gear,
    PartKind.NUT: _nut,
    PartKind.CAP: _cap,
    PartKind.PLATE: _plate,
    PartKind.BRACKET: _bracket,
    PartKind.PILL: _pill,
    PartKind.BUTTON: _button,
    PartKind.CONNECTOR: _connector,
    PartKind.BEARING: _bearing,
    PartKind.SCREW: _screw,
    PartKind.DISC: _disc,
    PartKind.KNOB: _knob,
}


def local_grid(size: int, centre_xy_px: tuple[float, float], angle_rad: float, radius_px: float) -> tuple[Plane, Plane]:
    """Local coordinates of every pixel, in units of the part's radius."""
    axis = np.arange(size, dtype=np.float32)
    dx = (axis[None, :] - centre_xy_px[0]) / radius_px
    dy = (axis[:, None] - centre_xy_px[1]) / radius_px
    c, s = np.float32(np.cos(angle_rad)), np.float32(np.sin(angle_rad))
    return (dx * c + dy * s).astype(np.float32), (dy * c - dx * s).astype(np.float32)


def build_body(kind: PartKind, seed: int, x: Plane, y: Plane, radius_px: float) -> Body:
    """The body of the product ``(kind, seed)`` on a local grid; the same seed is the same product."""
    sdf, relief, accent, cuts = _SHAPES[kind](x, y, np.random.default_rng(seed))
    scale = np.float32(radius_px)
    return Body(
        sdf_px=(sdf * scale).astype(np.float32),
        relief_px=(relief * scale).astype(np.float32),
        accent=accent.astype(np.float32),
        cuts=tuple((c * scale).astype(np.float32) for c in cuts),
    )
