"""Renders a clip of parts passing on a belt, with its ground truth.

The station (product, belt, light, rails) comes from one seed, the run (poses, defects, gaps) from another: clips of
other seeds show other pieces of the same product. Everything moves by whole pixels, as a belt with an encoder does.
Coordinates are pixels of the full frame, x before y, origin at the top left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from demo_defects import Bits, DefectKind
from demo_parts import (
    Material,
    Product,
    Sprite,
    render_sprite,
    sample_pose,
    sample_product,
)
from demo_shapes import PartKind, Plane
from demo_station import Rgb, Scene, belt_texture, sample_scene

LOOP_PX = 2880
"""Length of the belt before it comes round again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The picture: its size, the square zone at its centre, the height of each rail, and the frame rate."""

    width_px: int = 960
    height_px: int = 540
    zone_px: int = 360
    rail_px: int = 54
    fps: int = 25

    @property
    def zone_xywh_px(self) -> tuple[int, int, int, int]:
        """The zone as a box."""
        x, y = (self.width_px - self.zone_px) // 2, (self.height_px - self.zone_px) // 2
        return x, y, self.zone_px, self.zone_px


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to render."""

    seed: int
    product: Product
    scene: Scene
    parts: int
    speed_px_per_frame: float
    bad_share: float
    defects: tuple[DefectKind, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """One part on its way: where it starts, and how it looks."""

    number: int
    start_x_px: int
    y_px: int
    sprite: Sprite
    cover_xywh_px: tuple[int, int, int, int]
    masks: tuple[tuple[DefectKind, Bits], ...]


def plan_defects(order: Order, rng: np.random.Generator) -> list[DefectKind | None]:
    """Which part gets which defect: every kind in turn, in random order, the share exactly kept."""
    bad = round(order.parts * order.bad_share)
    kinds = [order.defects[i % len(order.defects)] for i in range(bad)]
    plan: list[DefectKind | None] = [*kinds, *([None] * (order.parts - bad))]
    return [plan[int(i)] for i in rng.permutation(order.parts)]


def _box(bits: Bits) -> tuple[int, int, int, int]:
    x, y, w, h = cv2.boundingRect(bits.astype(np.uint8))
    return int(x), int(y), int(w), int(h)


def make_pieces(order: Order, layout: Layout) -> list[Piece]:
    """Draws every part of the clip; no two touch the zone at the same time."""
    rng = np.random.default_rng(order.seed)
    size = layout.zone_px
    pieces: list[Piece] = []
    reach = 0.0
    for number, defect in enumerate(plan_defects(order, rng), start=1):
        pose = replace(sample_pose(rng, 0.0), shift_xy=(0.0, float(rng.uniform(-0.035, 0.035))))
        seed = int(rng.integers(2**31))
        wanted = () if defect is None else (defect,)
        sprite, mask, done = render_sprite(order.product, order.scene, pose, size_px=size, seed=seed, defects=wanted)
        if len(done) != len(wanted):
            raise RuntimeError(f"part {number}: no visible {defect} could be drawn")
        cover = _box(sprite.alpha > 0.5)
        near = reach + size + cover[2] + 2 * order.speed_px_per_frame
        reach = near + float(rng.uniform(0, 0.28) * size) if pieces else float(size / 2 + cover[2])
        masks = tuple((kind, mask) for kind in done)
        start = round(layout.width_px / 2 - reach)
        pieces.append(
            Piece(
                number=number,
                start_x_px=start,
                y_px=layout.height_px // 2,
                sprite=sprite,
                cover_xywh_px=cover,
                masks=masks,
            )
        )
    return pieces


def offset_px(order: Order, frame: int) -> int:
    """How far the belt has moved at a frame."""
    return round(order.speed_px_per_frame * frame)


def frame_count(order: Order, pieces: list[Piece], layout: Layout) -> int:
    """Frames until the last part has left the picture."""
    way = layout.width_px + layout.zone_px / 2 - pieces[-1].start_x_px
    return int(np.ceil(way / order.speed_px_per_frame))


def belt_loop(scene: Scene, layout: Layout) -> Plane:
    """``(H, LOOP, 3)`` belt whose end joins its start."""
    scale = layout.zone_px / 240
    overlap = 240
    long = belt_texture(scene, layout.height_px, LOOP_PX + overlap, scale)
    weight = np.linspace(0, 1, overlap, dtype=np.float32)[None, :, None]
    long[:, :overlap] = long[:, :overlap] * weight + long[:, LOOP_PX:] * (1 - weight)
    return long[:, :LOOP_PX]


def rails(layout: Layout, scene: Scene) -> tuple[Plane, Plane]:
    """The fixed frame of the conveyor: ``(H, W, 3)`` colour and ``(H, W, 1)`` cover, and the shade it casts."""
    height, width, rail = layout.height_px, layout.width_px, layout.rail_px
    rng = np.random.default_rng(scene.belt_seed + 1)
    y = np.arange(height, dtype=np.float32)[:, None]
    depth = np.minimum(y, height - 1 - y) / rail
    profile = (
        0.50
        + 0.22 * np.sin(np.clip(depth, 0, 1) * np.pi)
        - 0.25 * (np.abs(depth - 0.82) < 0.035)
        - 0.3 * (depth > 0.96)
    )
    grain = np.repeat(rng.normal(0, 0.012, (height, 1)), width, 1)
    colour = (profile + grain).astype(np.float32)[..., None] * np.asarray([0.98, 1.0, 1.04], np.float32)
    for x in range(60, width, 210):
        for line in (rail * 0.42, height - rail * 0.42):
            centre = (x, round(line))
            cv2.circle(colour, (x + 1, round(line) + 2), 9, (0.3, 0.3, 0.32), -1, cv2.LINE_AA)
            cv2.circle(colour, centre, 8, (0.66, 0.67, 0.7), -1, cv2.LINE_AA)
            angle = float(rng.uniform(0, np.pi))
            dx, dy = round(6 * np.cos(angle)), round(6 * np.sin(angle))
            cv2.line(colour, (x - dx, centre[1] - dy), (x + dx, centre[1] + dy), (0.28, 0.28, 0.3), 2, cv2.LINE_AA)
    cover = np.repeat((depth <= 1).astype(np.float32), width, 1)[..., None]
    shade = 1 - 0.45 * np.exp(-np.clip(depth - 1, 0, None) * rail / 14)
    return np.clip(colour, 0, 1), np.concatenate([cover, np.repeat(shade, width, 1)[..., None].astype(np.float32)], 2)


def _light_field(layout: Layout, scene: Scene) -> Plane:
    u = np.linspace(-1, 1, layout.width_px, dtype=np.float32)[None, :]
    v = np.linspace(-0.6, 0.6, layout.height_px, dtype=np.float32)[:, None]
    ramp = 1 + scene.gradient * 0.6 * (u * np.cos(scene.gradient_azimuth) + v * np.sin(scene.gradient_azimuth))
    lamp = 1 + 0.10 * np.exp(-(u * u * 2.2 + v * v * 2.2)) - 0.32 * scene.vignette * (u * u + v * v)
    return (scene.exposure * ramp * lamp)[..., None] * np.asarray(scene.balance, np.float32)


def _put(frame: Plane, sprite: Sprite, left: int, top: int) -> None:
    """Lays a sprite into the frame, clipped at its edges."""
    size = sprite.alpha.shape[0]
    x0, x1 = max(left, 0), min(left + size, frame.shape[1])
    y0, y1 = max(top, 0), min(top + size, frame.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    alpha = sprite.alpha[part][..., None]
    view = frame[y0:y1, x0:x1]
    view *= sprite.shade[part][..., None] * (1 - alpha)
    view += sprite.rgb[part] * alpha


class Camera:
    """Looks at the belt of one order: any frame of the clip, by its number."""

    def __init__(self, order: Order, layout: Layout, pieces: list[Piece]) -> None:
        self._order, self._layout, self._pieces = order, layout, pieces
        self._belt = belt_loop(order.scene, layout)
        self._rail, cover = rails(layout, order.scene)
        self._hidden, self._shade = cover[..., :1], cover[..., 1:]
        self._light = _light_field(layout, order.scene)
        self._columns = np.arange(layout.width_px)

    def frame(self, number: int) -> Rgb:
        """``(H, W, 3) uint8`` RGB."""
        layout, scene = self._layout, self._order.scene
        moved, half = offset_px(self._order, number), layout.zone_px // 2
        picture = self._belt[:, (self._columns - moved) % LOOP_PX] * self._shade
        for piece in self._pieces:
            left = piece.start_x_px + moved - half
            if -layout.zone_px < left < layout.width_px:
                _put(picture, piece.sprite, left, piece.y_px - half)
        flicker = np.float32(1 + 0.006 * np.sin(number * 0.31) + 0.002 * np.sin(number * 2.17))
        picture = (picture * (1 - self._hidden) + self._rail * self._hidden) * self._light * flicker
        picture = cv2.GaussianBlur(picture, (0, 0), scene.blur * layout.zone_px / 240 * 0.7)
        return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_clip(path: Path, frames: Iterator[Rgb], layout: Layout, crf: int) -> int:
    """Encodes H.264; returns the number of frames."""
    count = 0
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(layout.fps))
        stream.width, stream.height, stream.pix_fmt = layout.width_px, layout.height_px, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "slow", "g": "250", "threads": "1"}
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
            count += 1
        for packet in stream.encode():
            container.mux(packet)
    return count


def describe(order: Order, layout: Layout, pieces: list[Piece]) -> dict[str, object]:
    """The ground truth of a clip, ready for JSON."""
    zone_x, zone_y, zone_w, zone_h = layout.zone_xywh_px
    corners = [
        [zone_x, zone_y],
        [zone_x + zone_w, zone_y],
        [zone_x + zone_w, zone_y + zone_h],
        [zone_x, zone_y + zone_h],
    ]
    return {
        "schema": "inspectd.demo_truth/1",
        "seed": order.seed,
        "fps": layout.fps,
        "frames": frame_count(order, pieces, layout),
        "size_wh_px": [layout.width_px, layout.height_px],
        "speed_px_per_frame": order.speed_px_per_frame,
        "zone_polygon_xy_px": corners,
        "parts": [_describe_piece(order, layout, piece) for piece in pieces],
    }


def _describe_piece(order: Order, layout: Layout, piece: Piece) -> dict[str, object]:
    zone_x, _, zone_w, _ = layout.zone_xywh_px
    centred = round((layout.width_px / 2 - piece.start_x_px) / order.speed_px_per_frame)
    half = layout.zone_px // 2
    x, _, w, _ = piece.cover_xywh_px
    lefts = [piece.start_x_px - half + x + offset_px(order, f) for f in range(frame_count(order, [piece], layout))]
    touching = [f for f, left in enumerate(lefts) if left < zone_x + zone_w and left + w > zone_x]
    left, top = piece.start_x_px - half + offset_px(order, centred), piece.y_px - half
    defects = []
    for kind, mask in piece.masks:
        mx, my, mw, mh = _box(mask)
        defects.append({"kind": str(kind), "area_px": int(mask.sum()), "bbox_xywh_px": [left + mx, top + my, mw, mh]})
    return {
        "id": piece.number,
        "kind": str(order.product.kind),
        "frame_centred": centred,
        "frames_in_zone": [touching[0], touching[-1]],
        "bad": bool(piece.masks),
        "defects": defects,
    }


SAMPLE_PRODUCT = Product(
    kind=PartKind.NUT,
    shape_seed=4,
    base=Material(rgb=(0.70, 0.56, 0.30), grain="brushed", grain_strength=0.028, specular=0.38, shininess=18),
    accent=Material(rgb=(0.4, 0.4, 0.42), grain="plain", grain_strength=0.0, specular=0.3, shininess=20),
    radius=0.36,
)
"""The brass nut of the sample video."""

SAMPLE_SCENE = Scene(
    belt_seed=11,
    belt_rgb=(0.115, 0.165, 0.20),
    belt_pattern="weave",
    light_azimuth=-2.2,
    light_slope=0.62,
    gradient=0.10,
    gradient_azimuth=-2.4,
    ambient=0.34,
    shadow=0.5,
    shadow_blur=3.5,
    exposure=1.0,
    balance=(1.02, 1.0, 0.98),
    vignette=0.3,
    blur=0.45,
    noise=0.004,
    jpeg_quality=92,
)
"""The slate-blue belt of the sample video."""


def station(seed: int, kind: PartKind) -> tuple[Product, Scene]:
    """The product and the belt of a station seed; 0 is the sample's own station, with ``kind`` on it."""
    if seed == 0:
        return replace(SAMPLE_PRODUCT, kind=kind), SAMPLE_SCENE
    rng = np.random.default_rng(seed)
    product = sample_product(rng, kind)
    return product, sample_scene(rng, product.base.rgb)
