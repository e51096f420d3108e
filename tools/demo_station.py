"""The station of the demo parts: its belt, its light, its camera. Everything comes from seeds.

Colours are RGB, floats are linear-ish in [0, 1]. ``scale`` is the picture's scale against a view of 240 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import cv2
import numpy as np
from demo_shapes import Plane
from numpy.typing import NDArray

Rgb: TypeAlias = NDArray[np.uint8]

BELT_CONTRAST = 0.22


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Belt, light and camera of one station."""

    belt_seed: int
    belt_rgb: tuple[float, float, float]
    belt_pattern: str
    light_azimuth: float
    light_slope: float
    gradient: float
    gradient_azimuth: float
    ambient: float
    shadow: float
    shadow_blur: float
    exposure: float
    balance: tuple[float, float, float]
    vignette: float
    blur: float
    noise: float
    jpeg_quality: int


def hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """A colour from hue, saturation and value in [0, 1]."""
    pixel = np.asarray([[[hue * 360, saturation, value]]], np.float32)
    r, g, b = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return (r, g, b)


def sample_scene(rng: np.random.Generator, part_rgb: tuple[float, float, float]) -> Scene:
    """A random station whose belt is well apart from the part in brightness or colour."""
    scene = _sample_scene(rng)
    while float(np.abs(np.subtract(scene.belt_rgb, part_rgb)).max()) < BELT_CONTRAST:
        scene = _sample_scene(rng)
    return scene


def _sample_scene(rng: np.random.Generator) -> Scene:
    pattern = str(rng.choice(["plain", "plain", "fine", "weave", "stripes", "worn"]))
    if rng.random() < 0.6:
        level = rng.uniform(0.08, 0.75)
        belt = (level * rng.uniform(0.93, 1.05), level, level * rng.uniform(0.93, 1.07))
    else:
        belt = hsv(rng.random(), rng.uniform(0.15, 0.65), rng.uniform(0.15, 0.7))
    balance = rng.normal(1, 0.03, 3)
    return Scene(
        belt_seed=int(rng.integers(2**31)),
        belt_rgb=belt,
        belt_pattern=pattern,
        light_azimuth=rng.uniform(0, 2 * np.pi),
        light_slope=rng.uniform(0.3, 0.9),
        gradient=rng.uniform(0, 0.2),
        gradient_azimuth=rng.uniform(0, 2 * np.pi),
        ambient=rng.uniform(0.25, 0.6),
        shadow=rng.uniform(0.15, 0.6),
        shadow_blur=rng.uniform(1.5, 7),
        exposure=rng.uniform(0.8, 1.15),
        balance=(float(balance[0]), float(balance[1]), float(balance[2])),
        vignette=rng.uniform(0, 0.25),
        blur=rng.uniform(0.3, 0.75),
        noise=rng.uniform(0.002, 0.01),
        jpeg_quality=int(rng.integers(80, 97)),
    )


def cloud(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Plane:
    """Smooth noise of unit-like spread with features of ``cell_px``."""
    rows, columns = max(int(height / cell_px), 2) + 2, max(int(width / cell_px), 2) + 2
    coarse = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def belt_texture(scene: Scene, height: int, width: int, scale: float, seed: int | None = None) -> Plane:
    """``(H, W, 3)`` bare belt; wear and marks on it are normal."""
    rng = np.random.default_rng(scene.belt_seed if seed is None else seed)
    style = np.random.default_rng(scene.belt_seed)
    pitch, turn = style.uniform(3, 12) * scale, float(style.choice([0, np.pi / 2, np.pi / 4]))
    axis_x, axis_y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    along = axis_x * np.float32(np.cos(turn)) + axis_y * np.float32(np.sin(turn))
    across = axis_y * np.float32(np.cos(turn)) - axis_x * np.float32(np.sin(turn))
    step = np.float32(2 * np.pi / pitch)
    depth = style.uniform(0.015, 0.045)
    tone = cloud(rng, height, width, 40 * scale) * np.float32(0.02)
    match scene.belt_pattern:
        case "fine":
            tone = tone + cv2.GaussianBlur(
                rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 0.8 * scale
            ) * np.float32(depth)
        case "weave":
            tone = tone + np.sin(along * step) * np.sin(across * step) * np.float32(depth)
        case "stripes":
            tone = tone + np.sin(across * step * np.float32(0.5)) * np.float32(depth)
        case "worn":
            tone = tone + cloud(rng, height, width, 12 * scale) * np.float32(depth * 0.7)
        case _:
            pass
    return np.clip(np.asarray(scene.belt_rgb, np.float32) * (1 + tone[..., None]), 0.01, 1).astype(np.float32)


def illuminate(picture: Plane, scene: Scene) -> Plane:
    """Light fall-off over the field of view, vignette, exposure and white balance."""
    height, width = picture.shape[:2]
    u = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    ramp = 1 + scene.gradient * (u * np.cos(scene.gradient_azimuth) + v * np.sin(scene.gradient_azimuth))
    field = scene.exposure * ramp * (1 - scene.vignette * 0.5 * (u * u + v * v))
    return (picture * field[..., None].astype(np.float32) * np.asarray(scene.balance, np.float32)).astype(np.float32)


def expose(picture: Plane, scene: Scene, rng: np.random.Generator, scale: float, jpeg: bool = True) -> Rgb:
    """Lens blur, sensor noise, 8 bits, JPEG."""
    picture = cv2.GaussianBlur(picture, (0, 0), scene.blur * scale)
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(scene.noise)
    pixels = (np.clip(picture + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    if not jpeg:
        return pixels
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg_quality])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def vary_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same station a moment later: slightly other light and exposure."""
    return replace(
        scene,
        exposure=scene.exposure * float(rng.uniform(0.94, 1.06)),
        gradient=float(np.clip(scene.gradient + rng.normal(0, 0.03), 0, 0.4)),
        light_azimuth=scene.light_azimuth + float(rng.normal(0, 0.05)),
    )
