"""Geometry of the demo parts: a signed distance field, a relief and an ink mask for each kind.

Letters: S side of the square picture in pixels. Every array is ``(S, S) float32``. Distances and heights are in
pixels, negative distance is inside the part. Local coordinates ``x, y`` are in units of the part's radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.float32]


class PartKind(StrEnum):
    """The kinds of parts that can be rendered; the value is the noun that prompts use."""

    WASHER = "washer"
    RING = "ring"
    NUT = "hex nut"
    CAP = "bottle cap"
    PLATE = "plate"
    BRACKET = "bracket"
    PILL = "capsule"
    DISC = "disc"
    KNOB = "knob"
    CROSS = "cross"
    TEE = "tee"
    CHANNEL = "channel"
    ZED = "z plate"
    STAR = "star"


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


def _spots(x: Plane, y: Plane, centres: list[tuple[float, float]], radius: float) -> Plane:
    return np.minimum.reduce([circle(x - np.float32(cx), y - np.float32(cy), radius) for cx, cy in centres])


def _washer(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    inner = rng.uniform(0.32, 0.62)
    sdf = cut(circle(x, y, 1), circle(x, y, inner))
    relief = bevel(sdf, rng.uniform(0.04, 0.12)) * rng.uniform(0.03, 0.08)
    return sdf, relief, np.zeros_like(x), []


def _ring(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    width = rng.uniform(0.16, 0.3)
    sdf = np.abs(circle(x, y, 1 - width)) - np.float32(width)
    return sdf, bevel(sdf, width) * width * 0.6, np.zeros_like(x), []


def _nut(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    bore = rng.uniform(0.38, 0.55)
    sdf = cut(polygon(x, y, 0.9, 6), circle(x, y, bore))
    chamfer = np.clip((np.hypot(x, y) - 0.84) / 0.2, 0, 1)
    relief = bevel(sdf, 0.04) * 0.04 - chamfer.astype(np.float32) * 0.08
    return sdf, relief, np.zeros_like(x), []


def _cap(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    sdf = circle(x, y, 1)
    relief = bevel(sdf, rng.uniform(0.2, 0.35)) * 0.16
    inner = circle(x, y, rng.uniform(0.5, 0.68))
    relief = relief - inside(inner, 0.05) * rng.uniform(0.02, 0.05)
    accent = inside(inner) if rng.random() < 0.4 else np.zeros_like(x)
    return sdf, relief, accent, []


def _plate(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    half_h = rng.uniform(0.55, 0.85)
    sdf = box(x, y, 0.95, half_h, rng.uniform(0.1, 0.3))
    if rng.random() < 0.3:
        sdf = cut(sdf, circle(x, y, rng.uniform(0.2, 0.3)))
    return sdf, bevel(sdf, 0.06) * 0.06, np.zeros_like(x), []


def _bracket(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    arm = rng.uniform(0.25, 0.36)
    shift = np.float32(0.85 - arm)
    sdf = np.minimum(
        box(x + shift, y, arm, 0.85, 0.08),
        box(x, y - shift, 0.85, arm, 0.08),
    )
    return sdf, bevel(sdf, 0.06) * 0.06, np.zeros_like(x), []


def _pill(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    half = rng.uniform(0.33, 0.45)
    sdf = box(x, y, 1.0, half, half - 1e-3)
    relief = bevel(sdf, half) * half * 0.7
    seam = rng.uniform(-0.1, 0.1)
    accent = inside((seam - x).astype(np.float32)) if rng.random() < 0.8 else np.zeros_like(x)
    relief = relief + inside((x - np.float32(seam)).astype(np.float32), 0.01) * 0.015
    return sdf, relief, accent, []


def _disc(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    sdf = circle(x, y, 1)
    relief = bevel(sdf, rng.uniform(0.06, 0.2)) * 0.08
    accent = inside(np.abs(circle(x, y, 0.78)) - 0.06) if rng.random() < 0.4 else np.zeros_like(x)
    return sdf, relief, accent, []


def _knob(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    lobes = int(rng.integers(3, 7))
    wave = np.cos(lobes * np.arctan2(y, x)).astype(np.float32)
    sdf = ((np.hypot(x, y) - 0.86 - wave * rng.uniform(0.08, 0.13)) * 0.9).astype(np.float32)
    relief = bevel(sdf, 0.18) * 0.12
    hub = circle(x, y, rng.uniform(0.22, 0.38))
    relief = relief + inside(hub, 0.03) * rng.uniform(0.03, 0.06)
    return sdf, relief, inside(hub) if rng.random() < 0.4 else np.zeros_like(x), []


def _cross(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    arm, reach, corner = rng.uniform(0.26, 0.4), rng.uniform(0.8, 1.0), rng.uniform(0.03, 0.15)
    sdf = np.minimum(box(x, y, 1.0, arm, corner), box(x, y, arm, reach, corner))
    return sdf, bevel(sdf, 0.06) * 0.06, np.zeros_like(x), []


def _tee(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    arm, corner = rng.uniform(0.24, 0.36), rng.uniform(0.03, 0.15)
    shift = np.float32(0.85 - arm)
    stem = box(x - np.float32(rng.uniform(-0.35, 0.35)), y, arm, 0.85, corner)
    sdf = np.minimum(box(x, y + shift, 0.9, arm, corner), stem)
    return sdf, bevel(sdf, 0.06) * 0.06, np.zeros_like(x), []


def _channel(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    half_h, wall, corner = rng.uniform(0.6, 0.85), rng.uniform(0.2, 0.3), rng.uniform(0.02, 0.12)
    gap = box(x, y - np.float32(2 * wall), 0.9 - 2 * wall, half_h, corner)
    sdf = cut(box(x, y, 0.9, half_h, corner), gap)
    return sdf, bevel(sdf, 0.06) * 0.06, np.zeros_like(x), []


def _zed(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    arm, corner, half_stem = rng.uniform(0.2, 0.28), rng.uniform(0.02, 0.12), rng.uniform(0.2, 0.3)
    rise, reach = np.float32(0.85 - arm), np.float32(rng.uniform(0.3, 0.45))
    feet = np.minimum(box(x - reach, y + rise, 0.5, arm, corner), box(x + reach, y - rise, 0.5, arm, corner))
    sdf = np.minimum(feet, box(x, y, half_stem, 0.85, corner))
    return sdf, bevel(sdf, 0.06) * 0.06, np.zeros_like(x), []


def _star(x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane, Plane, list[Plane]]:
    sector, waist = 2 * np.pi / int(rng.integers(4, 7)), rng.uniform(0.5, 0.65)
    folded = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    edge_x, edge_y = waist * np.cos(sector / 2) - 1, waist * np.sin(sector / 2)
    sdf = ((edge_y * (along - 1) - edge_x * across) / np.hypot(edge_x, edge_y)).astype(np.float32)
    return sdf, bevel(sdf, 0.08) * 0.06, np.zeros_like(x), []


_SHAPES = {
    PartKind.WASHER: _washer,
    PartKind.RING: _ring,
    PartKind.NUT: _nut,
    PartKind.CAP: _cap,
    PartKind.PLATE: _plate,
    PartKind.BRACKET: _bracket,
    PartKind.PILL: _pill,
    PartKind.DISC: _disc,
    PartKind.KNOB: _knob,
    PartKind.CROSS: _cross,
    PartKind.TEE: _tee,
    PartKind.CHANNEL: _channel,
    PartKind.ZED: _zed,
    PartKind.STAR: _star,
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
