"""Renders parts on a belt, good and damaged, with an exact mask of the damage.

A product (kind, shape, material) lies on a belt under a light; the camera adds blur, noise and JPEG. Everything
comes from seeds. Letters: S side of the square picture in pixels. Colours are RGB; floats are linear-ish [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from typing import TypeAlias

import cv2
import numpy as np
from demo_defects import Bits, DefectKind, Surface, apply_defect
from demo_shapes import PartKind, Plane, build_body, local_grid
from numpy.typing import NDArray

Rgb: TypeAlias = NDArray[np.uint8]

MIN_DEFECT_PX_AT_240 = 60
"""A defect that changes fewer pixels than this (in a picture of 240) is drawn again."""

MEAN_STEP = 0.13
"""Smallest mean change over a defect's mask; fainter ones are drawn again."""

VISIBLE_STEP = 0.045
"""Smallest change of a colour channel, before the camera, that counts as damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """How a surface looks: colour, gloss, and which grain it has."""

    rgb: tuple[float, float, float]
    grain: str
    grain_strength: float
    specular: float
    shininess: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One article: the same seed gives the same geometry and material in every picture."""

    kind: PartKind
    shape_seed: int
    base: Material
    accent: Material
    radius: float


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where the part lies: shift of the centre and scale in shares of the picture's side, and turn."""

    shift_xy: tuple[float, float]
    angle_rad: float
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sprite:
    """A lit part without its belt: ``rgb`` and ``alpha`` over the belt, ``shade`` multiplies the belt."""

    rgb: Plane
    alpha: Plane
    shade: Plane


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Render:
    """One picture: ``pixels_rgb (S, S, 3) uint8``, ``mask (S, S) bool`` of the damage, the part's ``cover``."""

    pixels_rgb: Rgb
    mask: Bits
    cover: Bits
    defects: tuple[DefectKind, ...]


def _hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    pixel = np.asarray([[[hue * 360, saturation, value]]], np.float32)
    r, g, b = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return (r, g, b)


def sample_material(rng: np.random.Generator) -> Material:
    """Brushed, turned or cast metal, plastic, rubber, wood, paint or ceramic."""
    name = rng.choice(["brushed", "turned", "cast", "plastic", "plastic", "plastic", "rubber", "wood", "ceramic", "anodised"])
    grey = rng.uniform(0.4, 0.75)
    if name in ("brushed", "turned", "cast"):
        warm = rng.choice([0.0, 0.0, 0.0, 0.12, 0.2])
        rgb = (grey + warm * 0.6, grey + warm * 0.25, grey - warm)
        return Material(rgb=rgb, grain=str(name), grain_strength=rng.uniform(0.04, 0.14), specular=rng.uniform(0.2, 0.6), shininess=rng.uniform(8, 40))
    if name == "rubber":
        dark = rng.uniform(0.07, 0.22)
        return Material(rgb=(dark, dark, dark), grain="cast", grain_strength=0.05, specular=0.08, shininess=6)
    if name == "wood":
        return Material(rgb=_hsv(rng.uniform(0.06, 0.1), rng.uniform(0.35, 0.6), rng.uniform(0.5, 0.85)), grain="wood", grain_strength=rng.uniform(0.06, 0.16), specular=0.05, shininess=8)
    if name == "ceramic":
        light = rng.uniform(0.75, 0.92)
        return Material(rgb=(light, light, light * 0.97), grain="plain", grain_strength=0.01, specular=rng.uniform(0.2, 0.5), shininess=60)
    if name == "anodised":
        return Material(rgb=_hsv(rng.random(), rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.7)), grain="brushed", grain_strength=rng.uniform(0.03, 0.09), specular=0.4, shininess=20)
    rgb = _hsv(rng.random(), rng.uniform(0.0, 0.9), rng.uniform(0.15, 0.9))
    return Material(rgb=rgb, grain="plain", grain_strength=rng.uniform(0.005, 0.03), specular=rng.uniform(0.05, 0.5), shininess=rng.uniform(15, 70))


def sample_product(rng: np.random.Generator, kind: PartKind) -> Product:
    """A random article of a kind."""
    base = sample_material(rng)
    accent = sample_material(rng)
    while abs(float(np.mean(accent.rgb)) - float(np.mean(base.rgb))) < 0.15:
        accent = sample_material(rng)
    return Product(kind=kind, shape_seed=int(rng.integers(2**31)), base=base, accent=accent, radius=float(rng.uniform(0.3, 0.385)))


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random station."""
    pattern = str(rng.choice(["plain", "fine", "weave", "stripes", "speckle", "worn"]))
    if rng.random() < 0.6:
        level = rng.uniform(0.08, 0.75)
        belt = (level * rng.uniform(0.93, 1.05), level, level * rng.uniform(0.93, 1.07))
    else:
        belt = _hsv(rng.random(), rng.uniform(0.15, 0.65), rng.uniform(0.15, 0.7))
    balance = rng.normal(1, 0.03, 3)
    return Scene(
        belt_seed=int(rng.integers(2**31)),
        belt_rgb=belt,
        belt_pattern=pattern,
        light_azimuth=rng.uniform(0, 2 * np.pi),
        light_slope=rng.uniform(0.3, 0.9),
        gradient=rng.uniform(0, 0.3),
        gradient_azimuth=rng.uniform(0, 2 * np.pi),
        ambient=rng.uniform(0.25, 0.6),
        shadow=rng.uniform(0.15, 0.6),
        shadow_blur=rng.uniform(1.5, 7),
        exposure=rng.uniform(0.8, 1.15),
        balance=(float(balance[0]), float(balance[1]), float(balance[2])),
        vignette=rng.uniform(0, 0.25),
        blur=rng.uniform(0.3, 0.75),
        noise=rng.uniform(0.003, 0.014),
        jpeg_quality=int(rng.integers(70, 97)),
    )


def sample_pose(rng: np.random.Generator, reach: float = 0.07) -> Pose:
    """Any turn, a small shift and scale."""
    shift = rng.uniform(-reach, reach, 2)
    return Pose(shift_xy=(float(shift[0]), float(shift[1])), angle_rad=float(rng.uniform(0, 2 * np.pi)), scale=float(rng.uniform(0.95, 1.05)))


def cloud(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Plane:
    """Smooth noise of unit-like spread with features of ``cell_px``."""
    rows, columns = max(int(height / cell_px), 2) + 2, max(int(width / cell_px), 2) + 2
    coarse = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _grain(material: Material, rng: np.random.Generator, x: Plane, y: Plane, scale: float) -> Plane:
    size = x.shape[0]
    match material.grain:
        case "brushed":
            lines = rng.normal(0, 1, 512).astype(np.float32)
            lines = lines + np.repeat(rng.normal(0, 0.8, 64), 8).astype(np.float32)
            field = cv2.remap(lines[None, :], ((y * 0.5 + 1) * 180 % 511).astype(np.float32), np.zeros_like(x), cv2.INTER_LINEAR)
            return field * (0.8 + 0.2 * cloud(rng, size, size, 30 * scale))
        case "turned":
            lines = rng.normal(0, 1, 512).astype(np.float32)
            radius = np.hypot(x, y)
            field = cv2.remap(lines[None, :], (radius * 200 % 511).astype(np.float32), np.zeros_like(x), cv2.INTER_LINEAR)
            return field * np.float32(0.7) + 1.6 * np.cos(2 * np.arctan2(y, x) + np.float32(rng.uniform(0, 6.3))).astype(np.float32)
        case "cast":
            return cv2.GaussianBlur(rng.normal(0, 1.5, (size, size)).astype(np.float32), (0, 0), 0.8 * scale)
        case "wood":
            warp = cloud(rng, size, size, 60 * scale) * np.float32(0.05)
            return np.sin((y * 1.0 + warp + 0.1 * x) * np.float32(rng.uniform(18, 34))).astype(np.float32) + cloud(rng, size, size, 4 * scale) * np.float32(0.3)
        case _:
            return cloud(rng, size, size, 25 * scale)


def _paint(material: Material, rng: np.random.Generator, x: Plane, y: Plane, scale: float) -> Plane:
    grain = _grain(material, rng, x, y, scale) * np.float32(material.grain_strength)
    colour = np.asarray(material.rgb, np.float32)
    return np.clip(colour * (1 + grain[..., None]), 0.01, 1).astype(np.float32)


def build_surface(product: Product, pose: Pose, size: int, seed: int, oversize: float = 1.0) -> Surface:
    """The good part in its pose; ``seed`` draws the grain of this one piece."""
    rng = np.random.default_rng(seed)
    scale = size / 240 / oversize
    radius_px = product.radius * pose.scale * size / oversize
    centre = ((0.5 + pose.shift_xy[0] / oversize) * size - 0.5, (0.5 + pose.shift_xy[1] / oversize) * size - 0.5)
    x, y = local_grid(size, centre, pose.angle_rad, radius_px)
    body = build_body(product.kind, product.shape_seed, x, y, radius_px)
    weight = body.accent[..., None]
    albedo = _paint(product.base, rng, x, y, scale)
    if float(body.accent.max()) > 0:
        albedo = albedo * (1 - weight) + _paint(product.accent, rng, x, y, scale) * weight
    gloss = product.base.specular * (1 - body.accent) + product.accent.specular * body.accent
    return Surface(
        sdf_px=body.sdf_px,
        height_px=body.relief_px,
        albedo=albedo.astype(np.float32),
        gloss=gloss.astype(np.float32),
        top_alpha=np.zeros((size, size), np.float32),
        top_rgb=np.zeros((size, size, 3), np.float32),
        top_height_px=np.zeros((size, size), np.float32),
        cuts=body.cuts,
    )


def _light(height: Plane, scene: Scene, gloss: Plane, shininess: float) -> tuple[Plane, Plane]:
    """Diffuse factor (1 on flat ground) and specular term of a height field."""
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    length = np.sqrt(1 + slope_x**2 + slope_y**2)
    lx, ly = np.cos(scene.light_azimuth) * scene.light_slope, np.sin(scene.light_azimuth) * scene.light_slope
    dot = np.maximum((1 - slope_x * np.float32(lx) - slope_y * np.float32(ly)) / length, 0)
    diffuse = scene.ambient + (1 - scene.ambient) * dot
    hx, hy, hz = lx, ly, 1 + np.sqrt(1 + scene.light_slope**2)
    norm = np.sqrt(hx * hx + hy * hy + hz * hz)
    half = np.clip((hz - slope_x * np.float32(hx) - slope_y * np.float32(hy)) / (length * np.float32(norm)), 0, 1)
    return diffuse.astype(np.float32), (gloss * half ** np.float32(shininess)).astype(np.float32)


def light_sprite(surface: Surface, scene: Scene, shininess: float, scale: float) -> Sprite:
    """Shades a surface and casts its shadow."""
    alpha = np.clip(0.5 - surface.sdf_px, 0, 1)
    diffuse, specular = _light(cv2.GaussianBlur(surface.height_px, (0, 0), 0.7 * scale), scene, surface.gloss, shininess)
    rgb = surface.albedo * diffuse[..., None] + specular[..., None] * np.float32(0.6)
    if float(surface.top_alpha.max()) > 0:
        lit, _ = _light(surface.top_height_px, scene, np.zeros_like(alpha), 1)
        top = surface.top_alpha[..., None]
        rgb = rgb * (1 - top) + surface.top_rgb * lit[..., None] * top
        alpha = np.maximum(alpha, surface.top_alpha)
    shift = 5 * scale * scene.light_slope
    move = np.asarray([[1, 0, -np.cos(scene.light_azimuth) * shift], [0, 1, -np.sin(scene.light_azimuth) * shift]], np.float32)
    dark = cv2.warpAffine(alpha, move, alpha.shape[::-1])
    dark = cv2.GaussianBlur(np.maximum(dark, alpha * np.float32(0.8)), (0, 0), scene.shadow_blur * scale)
    return Sprite(rgb=np.clip(rgb, 0, 1.2).astype(np.float32), alpha=alpha.astype(np.float32), shade=1 - dark * np.float32(scene.shadow))


def belt_texture(scene: Scene, height: int, width: int, scale: float, seed: int | None = None) -> Plane:
    """``(H, W, 3)`` bare belt; wear and marks on it are normal."""
    rng = np.random.default_rng(scene.belt_seed if seed is None else seed)
    style = np.random.default_rng(scene.belt_seed)
    pitch, turn = style.uniform(3, 12) * scale, float(style.choice([0, np.pi / 2, np.pi / 4]))
    axis_x, axis_y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    along = axis_x * np.float32(np.cos(turn)) + axis_y * np.float32(np.sin(turn))
    across = axis_y * np.float32(np.cos(turn)) - axis_x * np.float32(np.sin(turn))
    step = np.float32(2 * np.pi / pitch)
    depth = style.uniform(0.03, 0.12)
    tone = cloud(rng, height, width, 40 * scale) * np.float32(0.02)
    match scene.belt_pattern:
        case "fine":
            tone = tone + cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 0.8 * scale) * np.float32(depth)
        case "weave":
            tone = tone + np.sin(along * step) * np.sin(across * step) * np.float32(depth)
        case "stripes":
            tone = tone + np.sin(across * step * np.float32(0.5)) * np.float32(depth)
        case "speckle":
            tone = tone + (cloud(rng, height, width, 2 * scale) > 1.2) * np.float32(depth * style.choice([-1, 1]))
        case "worn":
            tone = tone + cloud(rng, height, width, 12 * scale) * np.float32(depth * 0.7)
        case _:
            pass
    tone = tone + _belt_marks(rng, height, width, scale)
    return np.clip(np.asarray(scene.belt_rgb, np.float32) * (1 + tone[..., None]), 0.01, 1).astype(np.float32)


def _belt_marks(rng: np.random.Generator, height: int, width: int, scale: float) -> Plane:
    """Scuffs and old stains on the belt."""
    marks = np.zeros((height, width), np.float32)
    area = height * width / (240 * 240 * scale * scale)
    for _ in range(rng.poisson(0.6 * area)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle, length = rng.uniform(0, np.pi), rng.uniform(15, 90) * scale
        end = (int(x + np.cos(angle) * length), int(y + np.sin(angle) * length))
        cv2.line(marks, (int(x), int(y)), end, float(rng.uniform(-0.13, 0.13)), max(1, round(rng.uniform(2, 5) * scale)), cv2.LINE_AA)
    for _ in range(rng.poisson(0.5 * area)):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        axes = (int(rng.uniform(3, 16) * scale), int(rng.uniform(3, 12) * scale))
        cv2.ellipse(marks, centre, axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(-0.14, 0.12)), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(marks, (0, 0), 2.2 * scale)


def lay(belt: Plane, sprite: Sprite) -> Plane:
    """The part on the belt."""
    a = sprite.alpha[..., None]
    return belt * sprite.shade[..., None] * (1 - a) + sprite.rgb * a


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


def render_empty(scene: Scene, size: int, seed: int) -> Render:
    """The bare belt: nothing to complain about."""
    scale = size / 240
    belt = illuminate(belt_texture(scene, size, size, scale, seed), scene)
    none = np.zeros((size, size), np.bool_)
    return Render(pixels_rgb=expose(belt, scene, np.random.default_rng(seed), scale), mask=none, cover=none, defects=())


def damage(
    surface: Surface, good: Sprite, scene: Scene, shininess: float, defect: DefectKind, rng: np.random.Generator, scale: float
) -> tuple[Surface, Sprite, Bits]:
    """Applies a defect until it can be seen; the mask is what it changed within its footprint.

    Raises:
        RuntimeError: if no visible defect came out of 20 tries (a part of no area).
    """
    backdrop = np.full((*good.alpha.shape, 3), np.asarray(scene.belt_rgb, np.float32))
    before = lay(backdrop, good)
    strength = float(rng.uniform(0.85, 1.3))
    for _ in range(20):
        damaged, footprint = apply_defect(defect, surface, rng, strength)
        sprite = light_sprite(damaged, scene, shininess, scale)
        step = np.abs(lay(backdrop, sprite) - before).max(-1)
        gone = (good.alpha > 0.5) & (sprite.alpha <= 0.5)
        mask = footprint & ((step > VISIBLE_STEP) | gone)
        mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
        mean_step = float(step[mask].mean()) if mask.any() else 0.0
        if mask.sum() >= MIN_DEFECT_PX_AT_240 * scale * scale and mean_step > MEAN_STEP:
            return damaged, sprite, mask
        strength = min(strength * 1.15, 2.0)
    raise RuntimeError(f"no visible {defect} after 20 tries")


def render_sprite(
    product: Product, scene: Scene, pose: Pose, size: int, seed: int, defects: tuple[DefectKind, ...], oversize: float = 1.0
) -> tuple[Sprite, Bits, tuple[DefectKind, ...]]:
    """The lit part with its defects, and their mask; a defect that cannot be made visible is left out."""
    rng = np.random.default_rng(seed + 1)
    scale = size / 240 / oversize
    surface = build_surface(product, pose, size, seed, oversize)
    shininess = product.base.shininess
    sprite = light_sprite(surface, scene, shininess, scale)
    mask = np.zeros((size, size), np.bool_)
    done: list[DefectKind] = []
    for defect in defects:
        try:
            surface, sprite, changed = damage(surface, sprite, scene, shininess, defect, rng, scale)
        except RuntimeError:
            continue
        mask |= changed
        done.append(defect)
    return sprite, mask, tuple(done)


def render_part(
    product: Product, scene: Scene, pose: Pose, size: int, seed: int, defects: tuple[DefectKind, ...] = ()
) -> Render:
    """One picture of a part on its belt; without ``defects`` it is a good part."""
    scale = size / 240
    sprite, mask, done = render_sprite(product, scene, pose, size, seed, defects)
    belt = belt_texture(scene, size, size, scale, seed)
    picture = illuminate(lay(belt, sprite), scene)
    pixels = expose(picture, scene, np.random.default_rng(seed + 2), scale)
    return Render(pixels_rgb=pixels, mask=mask, cover=sprite.alpha > 0.5, defects=done)


def vary_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same station a moment later: slightly other light and exposure."""
    return replace(
        scene,
        exposure=scene.exposure * float(rng.uniform(0.94, 1.06)),
        gradient=float(np.clip(scene.gradient + rng.normal(0, 0.03), 0, 0.4)),
        light_azimuth=scene.light_azimuth + float(rng.normal(0, 0.05)),
    )
