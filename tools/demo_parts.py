"""Renders parts on a belt, good and damaged, with an exact mask of the damage.

A product (kind, shape, material) lies on a belt under a light; the camera adds blur, noise and JPEG. Everything
comes from seeds. Letters: S side of the square picture in pixels. Colours are RGB; floats are linear-ish [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from demo_defects import Bits, DefectKind, Surface, apply_defect
from demo_shapes import PartKind, Plane, build_body, local_grid
from demo_station import Rgb, Scene, belt_texture, cloud, expose, hsv, illuminate

MIN_DEFECT_PX_AT_240 = 150
"""A defect that changes fewer pixels than this (in a picture of 240) is drawn again."""

MEAN_STEP = 0.2
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


def sample_material(rng: np.random.Generator) -> Material:
    """Brushed or cast metal, plastic, rubber, ceramic or anodised aluminium; the grain is faint."""
    name = str(rng.choice(["brushed", "cast", "plastic", "plastic", "rubber", "ceramic", "anodised"]))
    shine, gloss = float(rng.uniform(10, 50)), float(rng.uniform(0.1, 0.45))
    grain, strength = "plain", float(rng.uniform(0.0, 0.012))
    match name:
        case "brushed" | "cast":
            grey, warm = rng.uniform(0.4, 0.75), float(rng.choice([0.0, 0.0, 0.12, 0.2]))
            rgb = (grey + warm * 0.6, grey + warm * 0.25, grey - warm)
            grain, strength = name, float(rng.uniform(0.01, 0.03))
        case "rubber":
            dark = rng.uniform(0.07, 0.2)
            rgb, grain, gloss = (dark, dark, dark), "cast", 0.06
        case "ceramic":
            light = rng.uniform(0.75, 0.9)
            rgb = (light, light, light * 0.97)
        case "anodised":
            rgb = hsv(rng.random(), rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.7))
            grain, strength = "brushed", float(rng.uniform(0.008, 0.025))
        case _:
            rgb = hsv(rng.random(), rng.uniform(0.0, 0.9), rng.uniform(0.2, 0.9))
    return Material(rgb=rgb, grain=grain, grain_strength=strength, specular=gloss, shininess=shine)


def sample_product(rng: np.random.Generator, kind: PartKind) -> Product:
    """A random article of a kind."""
    base = sample_material(rng)
    accent = sample_material(rng)
    while abs(float(np.mean(accent.rgb)) - float(np.mean(base.rgb))) < 0.15:
        accent = sample_material(rng)
    return Product(
        kind=kind, shape_seed=int(rng.integers(2**31)), base=base, accent=accent, radius=float(rng.uniform(0.3, 0.385))
    )


def sample_pose(rng: np.random.Generator, reach: float = 0.05) -> Pose:
    """Any turn, a small shift and scale."""
    shift = rng.uniform(-reach, reach, 2)
    return Pose(
        shift_xy=(float(shift[0]), float(shift[1])),
        angle_rad=float(rng.uniform(0, 2 * np.pi)),
        scale=float(rng.uniform(0.95, 1.05)),
    )


def _grain(material: Material, rng: np.random.Generator, x: Plane, y: Plane, scale: float) -> Plane:
    size = x.shape[0]
    match material.grain:
        case "brushed":
            lines = rng.normal(0, 1, 512).astype(np.float32)
            lines = lines + np.repeat(rng.normal(0, 0.8, 64), 8).astype(np.float32)
            field = cv2.remap(
                lines[None, :], ((y * 0.5 + 1) * 180 % 511).astype(np.float32), np.zeros_like(x), cv2.INTER_LINEAR
            )
            return field * (0.8 + 0.2 * cloud(rng, size, size, 30 * scale))
        case "cast":
            return cv2.GaussianBlur(rng.normal(0, 1.5, (size, size)).astype(np.float32), (0, 0), 0.8 * scale)
        case _:
            return cloud(rng, size, size, 25 * scale)


def _paint(material: Material, rng: np.random.Generator, x: Plane, y: Plane, scale: float) -> Plane:
    grain = _grain(material, rng, x, y, scale) * np.float32(material.grain_strength)
    colour = np.asarray(material.rgb, np.float32)
    return np.clip(colour * (1 + grain[..., None]), 0.01, 1).astype(np.float32)


def build_surface(product: Product, pose: Pose, size: int, seed: int) -> Surface:
    """The good part in its pose; ``seed`` draws the grain of this one piece."""
    rng = np.random.default_rng(seed)
    scale = size / 240
    radius_px = product.radius * pose.scale * size
    centre = ((0.5 + pose.shift_xy[0]) * size - 0.5, (0.5 + pose.shift_xy[1]) * size - 0.5)
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


def _shade(height: Plane, scene: Scene, gloss: Plane, shininess: float) -> tuple[Plane, Plane]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp:
    """The light of a scene on a material, at the scale of a picture."""

    scene: Scene
    shininess: float
    scale: float

    def light(self, surface: Surface) -> Sprite:
        """Shades a surface and casts its shadow."""
        scene, scale = self.scene, self.scale
        alpha = np.clip(0.5 - surface.sdf_px, 0, 1)
        diffuse, specular = _shade(
            cv2.GaussianBlur(surface.height_px, (0, 0), 0.7 * scale), scene, surface.gloss, self.shininess
        )
        rgb = surface.albedo * diffuse[..., None] + specular[..., None] * np.float32(0.6)
        if float(surface.top_alpha.max()) > 0:
            lit, _ = _shade(surface.top_height_px, scene, np.zeros_like(alpha), 1)
            top = surface.top_alpha[..., None]
            rgb = rgb * (1 - top) + surface.top_rgb * lit[..., None] * top
            alpha = np.maximum(alpha, surface.top_alpha)
        shift = 5 * scale * scene.light_slope
        move = np.asarray(
            [[1, 0, -np.cos(scene.light_azimuth) * shift], [0, 1, -np.sin(scene.light_azimuth) * shift]], np.float32
        )
        dark = cv2.warpAffine(alpha, move, alpha.shape[::-1])
        dark = cv2.GaussianBlur(np.maximum(dark, alpha * np.float32(0.8)), (0, 0), scene.shadow_blur * scale)
        return Sprite(
            rgb=np.clip(rgb, 0, 1.2).astype(np.float32),
            alpha=alpha.astype(np.float32),
            shade=1 - dark * np.float32(scene.shadow),
        )


def lay(belt: Plane, sprite: Sprite) -> Plane:
    """The part on the belt."""
    a = sprite.alpha[..., None]
    return belt * sprite.shade[..., None] * (1 - a) + sprite.rgb * a


def render_empty(scene: Scene, size: int, seed: int) -> Render:
    """The bare belt: nothing to complain about."""
    scale = size / 240
    belt = illuminate(belt_texture(scene, size, size, scale, seed), scene)
    none = np.zeros((size, size), np.bool_)
    return Render(pixels_rgb=expose(belt, scene, np.random.default_rng(seed), scale), mask=none, cover=none, defects=())


def damage(
    surface: Surface, good: Sprite, lamp: Lamp, defect: DefectKind, rng: np.random.Generator
) -> tuple[Surface, Sprite, Bits]:
    """Applies a defect until it can be seen; the mask is what it changed within its footprint.

    Raises:
        RuntimeError: if no visible defect came out of 20 tries (a part of no area).
    """
    backdrop = np.full((*good.alpha.shape, 3), np.asarray(lamp.scene.belt_rgb, np.float32))
    before = lay(backdrop, good)
    strength = float(rng.uniform(0.85, 1.3))
    for _ in range(20):
        damaged, footprint = apply_defect(defect, surface, rng, strength)
        sprite = lamp.light(damaged)
        step = np.abs(lay(backdrop, sprite) - before).max(-1)
        gone = (good.alpha > 0.5) & (sprite.alpha <= 0.5)
        mask = footprint & ((step > VISIBLE_STEP) | gone)
        mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
        mean_step = float(step[mask].mean()) if mask.any() else 0.0
        if mask.sum() >= MIN_DEFECT_PX_AT_240 * lamp.scale**2 and mean_step > MEAN_STEP:
            return damaged, sprite, mask
        strength = min(strength * 1.15, 2.0)
    raise RuntimeError(f"no visible {defect} after 20 tries")


def render_sprite(
    product: Product, scene: Scene, pose: Pose, *, size_px: int, seed: int, defects: tuple[DefectKind, ...] = ()
) -> tuple[Sprite, Bits, tuple[DefectKind, ...]]:
    """The lit part with its defects, and their mask; a defect that cannot be made visible is left out."""
    rng = np.random.default_rng(seed + 1)
    lamp = Lamp(scene=scene, shininess=product.base.shininess, scale=size_px / 240)
    surface = build_surface(product, pose, size_px, seed)
    sprite = lamp.light(surface)
    mask = np.zeros((size_px, size_px), np.bool_)
    done: list[DefectKind] = []
    for defect in defects:
        try:
            surface, sprite, changed = damage(surface, sprite, lamp, defect, rng)
        except RuntimeError:
            continue
        mask |= changed
        done.append(defect)
    return sprite, mask, tuple(done)


def render_part(
    product: Product, scene: Scene, pose: Pose, *, size_px: int, seed: int, defects: tuple[DefectKind, ...] = ()
) -> Render:
    """One picture of a part on its belt; without ``defects`` it is a good part."""
    scale = size_px / 240
    sprite, mask, done = render_sprite(product, scene, pose, size_px=size_px, seed=seed, defects=defects)
    belt = belt_texture(scene, size_px, size_px, scale, seed)
    picture = illuminate(lay(belt, sprite), scene)
    pixels = expose(picture, scene, np.random.default_rng(seed + 2), scale)
    return Render(pixels_rgb=pixels, mask=mask, cover=sprite.alpha > 0.5, defects=done)
