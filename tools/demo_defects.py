"""Defects of the demo parts: each changes a surface and says where.

Letters: S side of the square picture in pixels. Planes are ``(S, S) float32``, colours ``(S, S, 3) float32`` RGB in
[0, 1]. Sizes are drawn for a picture of 240 pixels and grow with ``scale = S / 240``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

import cv2
import numpy as np
from demo_shapes import Plane
from numpy.typing import NDArray


class DefectKind(StrEnum):
    """The kinds of defects that can be rendered."""

    SCRATCH = "scratch"
    CHIP = "chip"
    DENT = "dent"
    STAIN = "stain"
    HOLE = "hole"
    MISSING = "missing piece"
    CONTAMINATION = "contamination"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surface:
    """A part before light: outline, height, colour and gloss, and what lies on top of it."""

    sdf_px: Plane
    height_px: Plane
    albedo: Plane
    gloss: Plane
    top_alpha: Plane
    top_rgb: Plane
    top_height_px: Plane
    cuts: tuple[Plane, ...]


Bits: TypeAlias = NDArray[np.bool_]


def blob(rng: np.random.Generator, size: int, centre: tuple[float, float], radius_px: float, rough: float) -> Plane:
    """Signed distance (approximate) to an irregular blob."""
    axis = np.arange(size, dtype=np.float32)
    dx, dy = axis[None, :] - centre[0], axis[:, None] - centre[1]
    stretch, turn = rng.uniform(0.65, 1.0), rng.uniform(0, np.pi)
    u = dx * np.cos(turn) + dy * np.sin(turn)
    v = (dy * np.cos(turn) - dx * np.sin(turn)) / stretch
    angle = np.arctan2(v, u)
    wobble = np.zeros((size, size), np.float32)
    for order in (2, 3, 5, 7):
        wobble += (rng.normal() / order) * np.cos(order * angle + rng.uniform(0, 6.3))
    return ((np.hypot(u, v) - radius_px * (1 + rough * wobble)) * stretch).astype(np.float32)


def path(rng: np.random.Generator, start: tuple[float, float], length_px: float, bend: float) -> NDArray[np.float32]:
    """A wandering line of about ``length_px``, centred on ``start``: ``(n, 2)`` points."""
    count = max(int(length_px / 3), 4)
    turns = np.cumsum(rng.normal(0, bend, count)) + rng.uniform(-bend, bend) * np.linspace(0, 4, count)
    angle = rng.uniform(0, 2 * np.pi) + turns
    steps = np.stack([np.cos(angle), np.sin(angle)], 1) * (length_px / count)
    points = np.cumsum(steps, 0)
    return (points - points.mean(0) + np.asarray(start)).astype(np.float32)


def draw_path(size: int, points: NDArray[np.float32], width_px: float, taper: bool) -> Plane:
    """Anti-aliased coverage of a line, thinner at its ends with ``taper``."""
    big = np.zeros((size * 2, size * 2), np.uint8)
    scaled = np.round(points * 2 * 16).astype(np.int32)
    count = len(points) - 1
    for i in range(count):
        share = np.sin(np.pi * (i + 0.7) / (count + 0.4)) ** 0.5 if taper else 1.0
        cv2.line(
            big, scaled[i].tolist(), scaled[i + 1].tolist(), 255, max(1, round(width_px * 2 * share)), cv2.LINE_AA, 4
        )
    return cv2.resize(big, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _spot(rng: np.random.Generator, allowed: Bits, fallback: Bits) -> tuple[float, float]:
    rows, columns = np.nonzero(allowed)
    if len(rows) == 0:
        rows, columns = np.nonzero(fallback)
    pick = int(rng.integers(len(rows)))
    return float(columns[pick]), float(rows[pick])


def _deep_spot(rng: np.random.Generator, sdf: Plane, depth_px: float) -> tuple[float, float]:
    """A point of the part at least ``depth_px`` inside, or as deep as the part is."""
    deepest = float(-sdf.min())
    limit = min(depth_px, deepest * 0.75)
    return _spot(rng, sdf < -limit, sdf <= -deepest * 0.75)


def _mix(base: Plane, colour: NDArray[np.float32], weight: Plane) -> Plane:
    w = weight[..., None]
    return base * (1 - w) + colour * w


def _against(
    rng: np.random.Generator, surface: Surface, at: tuple[float, float], low: float, high: float
) -> NDArray[np.float32]:
    """A grey-ish colour that differs from the surface at a point by ``low`` to ``high`` in brightness."""
    here = surface.albedo[int(at[1]), int(at[0])]
    level = float(here.mean())
    step = rng.uniform(low, high)
    up = level + step <= 0.95
    down = level - step >= 0.03
    sign = 1 if up and (not down or rng.random() < 0.5) else -1
    tint = rng.normal(0, 0.03, 3)
    return np.clip(here * 0.4 + level * 0.6 + sign * step + tint, 0.01, 1).astype(np.float32)


def _scratch(surface: Surface, rng: np.random.Generator, scale: float, strength: float) -> tuple[Surface, Plane]:
    size = surface.sdf_px.shape[0]
    alpha = np.clip(0.5 - surface.sdf_px, 0, 1)
    footprint = np.zeros_like(surface.sdf_px)
    height, albedo = surface.height_px, surface.albedo
    at = _deep_spot(rng, surface.sdf_px, 8 * scale)
    colour = _against(rng, surface, at, 0.32 * strength, 0.55 * strength)
    bend = rng.uniform(0.0, 0.12)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        near = (at[0] + rng.normal(0, 5 * scale), at[1] + rng.normal(0, 5 * scale))
        width = rng.uniform(2.8, 4.6) * scale
        line = draw_path(size, path(rng, near, rng.uniform(40, 90) * scale, bend), width, True) * alpha
        height = height - line * np.float32(rng.uniform(0.5, 1.5) * scale)
        albedo = _mix(albedo, colour, line * np.float32(rng.uniform(0.75, 1.0)))
        footprint = np.maximum(footprint, line)
    return replace(surface, height_px=height, albedo=albedo), footprint


def _bite(
    surface: Surface, rng: np.random.Generator, scale: float, gone: Plane, rim_px: float
) -> tuple[Surface, Plane]:
    """Takes ``gone`` (an sdf) away and leaves a rough, differently lit fracture along the new edge."""
    sdf = np.maximum(surface.sdf_px, -gone)
    band = np.clip(1 - gone / np.float32(rim_px), 0, 1) * (surface.sdf_px < 0)
    rows, columns = np.nonzero((surface.sdf_px < 0) & (gone < rim_px))
    at = (float(np.median(columns)), float(np.median(rows))) if len(rows) else (0.0, 0.0)
    fresh = _against(rng, surface, at, 0.15, 0.4)
    rough = cv2.GaussianBlur(rng.normal(0, 1, sdf.shape).astype(np.float32), (0, 0), 1.2 * scale) * np.float32(
        4 * scale
    )
    height = surface.height_px - band * (rim_px * np.float32(0.5) + rough)
    albedo = _mix(surface.albedo, fresh, np.clip(band * np.float32(1.6), 0, 1) * np.float32(0.85))
    footprint = ((gone < rim_px + 1) & (surface.sdf_px < 1)).astype(np.float32)
    return replace(surface, sdf_px=sdf, height_px=height, albedo=albedo), footprint


def _chip(surface: Surface, rng: np.random.Generator, scale: float, strength: float) -> tuple[Surface, Plane]:
    size = surface.sdf_px.shape[0]
    at = _spot(rng, np.abs(surface.sdf_px) < 1.5, surface.sdf_px < 0)
    radius = rng.uniform(11, 18) * scale * (0.75 + 0.25 * strength)
    gone = blob(rng, size, at, radius, 0.25)
    gone = gone + cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 1.5 * scale) * np.float32(
        3 * scale
    )
    return _bite(surface, rng, scale, gone.astype(np.float32), rng.uniform(2.5, 4.5) * scale)


def _dent(surface: Surface, rng: np.random.Generator, scale: float, strength: float) -> tuple[Surface, Plane]:
    size = surface.sdf_px.shape[0]
    radius = rng.uniform(11, 19) * scale
    at = _deep_spot(rng, surface.sdf_px, radius * 0.7)
    inside = np.clip(-blob(rng, size, at, radius, 0.12) / np.float32(radius), 0, 1)
    bowl = np.float32(radius * rng.uniform(0.8, 1.2) * (0.5 + 0.5 * strength)) * inside**2 * (3 - 2 * inside)
    lip = np.clip(1 - np.abs(blob(rng, size, at, radius * 1.12, 0.1)) / np.float32(radius * 0.25), 0, 1)
    height = surface.height_px - bowl + lip * np.float32(0.6 * scale)
    albedo = surface.albedo * (1 - np.float32(0.25 * strength) * inside[..., None])
    footprint = ((inside > 0) | (lip > 0.3)) & (surface.sdf_px < 0)
    return replace(surface, height_px=height, albedo=albedo), footprint.astype(np.float32)


def _stain(surface: Surface, rng: np.random.Generator, scale: float, strength: float) -> tuple[Surface, Plane]:
    size = surface.sdf_px.shape[0]
    at = _deep_spot(rng, surface.sdf_px, 6 * scale)
    weight = np.zeros_like(surface.sdf_px)
    for i in range(int(rng.choice([1, 1, 2, 3, 4]))):
        spread = 0 if i == 0 else 12 * scale
        centre = (at[0] + rng.normal(0, 1) * spread, at[1] + rng.normal(0, 1) * spread)
        radius = rng.uniform(10, 20) * scale * (1 if i == 0 else 0.4)
        edge = rng.uniform(1, 5) * scale
        weight = np.maximum(weight, np.clip(0.5 - blob(rng, size, centre, radius, 0.35) / np.float32(edge), 0, 1))
    mottle = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 3 * scale) * np.float32(2.0)
    weight = weight * np.clip(0.85 + mottle, 0.4, 1) * (surface.sdf_px < 0)
    dirt = np.asarray(
        [(0.25, 0.13, 0.04), (0.06, 0.05, 0.05), (0.35, 0.25, 0.02), (0.3, 0.06, 0.04), (0.08, 0.16, 0.3)]
    )
    colour = dirt[int(rng.integers(len(dirt)))].astype(np.float32)
    if float(surface.albedo[int(at[1]), int(at[0])].mean()) < 0.25:
        colour = np.clip(colour * 1.3 + rng.uniform(0.3, 0.5), 0, 1).astype(np.float32)
    opacity = np.float32(rng.uniform(0.7, 0.95) * (0.6 + 0.4 * strength))
    gloss = surface.gloss * (1 - weight * np.float32(rng.uniform(0.2, 0.9)))
    return replace(surface, albedo=_mix(surface.albedo, colour, weight * opacity), gloss=gloss), weight


def _hole(surface: Surface, rng: np.random.Generator, scale: float, strength: float) -> tuple[Surface, Plane]:
    size = surface.sdf_px.shape[0]
    radius = rng.uniform(7.5, 12) * scale * (0.8 + 0.2 * strength)
    at = _deep_spot(rng, surface.sdf_px, radius * 1.3)
    gone = blob(rng, size, at, radius, 0.18)
    pit = np.clip(0.5 - gone / np.float32(1.5 * scale), 0, 1) * (surface.sdf_px < 0)
    height = surface.height_px - pit * np.float32(6 * scale)
    albedo = surface.albedo * (1 - np.float32(rng.uniform(0.75, 0.95)) * pit[..., None])
    return replace(surface, height_px=height, albedo=albedo, gloss=surface.gloss * (1 - pit)), pit


def _missing(surface: Surface, rng: np.random.Generator, scale: float, strength: float) -> tuple[Surface, Plane]:
    size = surface.sdf_px.shape[0]
    if surface.cuts and rng.random() < 0.6:
        gone = surface.cuts[0]
    else:
        solid = surface.sdf_px < 0
        angle = rng.uniform(0, 2 * np.pi)
        axis = np.arange(size, dtype=np.float32)
        along = axis[None, :] * np.float32(np.cos(angle)) + axis[:, None] * np.float32(np.sin(angle))
        reach = np.quantile(along[solid], 1 - rng.uniform(0.07, 0.15) * min(strength, 1.1))
        rough = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 2.5 * scale)
        gone = np.float32(reach) - along + rough * np.float32(12 * scale)
        if rng.random() < 0.5:
            across = axis[:, None] * np.float32(np.cos(angle)) - axis[None, :] * np.float32(np.sin(angle))
            middle = np.float32(np.median(across[solid & (gone < 0)])) if (solid & (gone < 0)).any() else np.float32(0)
            gone = np.maximum(gone, np.abs(across - middle) - np.float32(rng.uniform(20, 38) * scale))
    return _bite(surface, rng, scale, gone.astype(np.float32), rng.uniform(3.0, 5.0) * scale)


def _contamination(surface: Surface, rng: np.random.Generator, scale: float, strength: float) -> tuple[Surface, Plane]:
    size = surface.sdf_px.shape[0]
    at = _deep_spot(rng, surface.sdf_px, 7 * scale)
    colour = _against(rng, surface, at, 0.35 * strength, 0.6 * strength)
    if rng.random() < 0.5:
        colour = np.clip(colour + rng.uniform(-0.3, 0.3, 3), 0.02, 1).astype(np.float32)
    alpha, height = surface.top_alpha, surface.top_height_px
    if rng.random() < 0.45:
        for _ in range(int(rng.integers(1, 3))):
            line = draw_path(
                size,
                path(rng, at, rng.uniform(35, 75) * scale, rng.uniform(0.1, 0.3)),
                rng.uniform(2.4, 3.6) * scale,
                False,
            )
            alpha = np.maximum(alpha, line)
    else:
        for i in range(int(rng.integers(1, 6))):
            spread = 0 if i == 0 else 14 * scale
            centre = (at[0] + rng.normal(0, 1) * spread, at[1] + rng.normal(0, 1) * spread)
            grain = blob(rng, size, centre, rng.uniform(7, 12) * scale * (1 if i == 0 else 0.5), 0.3)
            alpha = np.maximum(alpha, np.clip(0.5 - grain, 0, 1))
            height = np.maximum(height, np.sqrt(np.clip(-grain, 0, None)) * np.float32(1.5 * np.sqrt(scale)))
    rgb = np.broadcast_to(colour, surface.top_rgb.shape).astype(np.float32)
    return replace(surface, top_alpha=alpha.astype(np.float32), top_rgb=rgb, top_height_px=height), alpha


_DEFECTS = {
    DefectKind.SCRATCH: _scratch,
    DefectKind.CHIP: _chip,
    DefectKind.DENT: _dent,
    DefectKind.STAIN: _stain,
    DefectKind.HOLE: _hole,
    DefectKind.MISSING: _missing,
    DefectKind.CONTAMINATION: _contamination,
}


def apply_defect(kind: DefectKind, surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Bits]:
    """The surface with the defect, and the pixels that the defect may have touched."""
    damaged, footprint = _DEFECTS[kind](surface, rng, surface.sdf_px.shape[0] / 240, strength)
    grown = cv2.dilate((footprint > 0.12).astype(np.uint8), np.ones((3, 3), np.uint8))
    return damaged, grown > 0
