"""Belts to measure the presence trigger on: rendered parts that lie apart, near, touching, heaped, and what shakes.

Frames come one by one, without a video file between. The ground truth is where each part lies at any frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from demo_clip import Camera, Layout, Order, Piece, frame_count, station
from demo_parts import render_sprite, sample_pose
from demo_shapes import PartKind
from numpy.typing import NDArray

LAYOUT = Layout(width_px=640, height_px=360, zone_px=240, rail_px=36)
APART_PX = 60
LONE = 4
"""The first parts of every belt lie alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belt:
    """What to render. `gap_px` stands between neighbours that belong together, 0 where they touch; `group` is how many
    do; `abreast` lays every second one beside its neighbour instead of behind it."""

    name: str
    seed: int
    speed_px: float
    parts: int
    kind: PartKind = PartKind.NUT
    station: int = 0
    group: int = 1
    gap_px: int = APART_PX
    abreast: bool = False
    shake_px: float = 0.0
    drift: float = 0.0
    halts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A belt in motion: its frames, and where each part's box is in them."""

    frames: int
    camera: Camera
    pieces: list[Piece]
    belt: Belt
    moved_px: list[float]
    shakes_px: NDArray[np.float64]

    def pictures_bgr(self) -> Iterator[NDArray[np.uint8]]:
        """`(H, W, 3) uint8` BGR, one a frame."""
        for index, moved in enumerate(self.moved_px):
            light = 1 + self.belt.drift * np.sin(index / 45)
            picture = self.camera.frame(round(moved / self.belt.speed_px))
            dx, dy = self.shakes_px[index].tolist()
            if dx or dy:
                shift = np.float32([[1, 0, dx], [0, 1, dy]])
                picture = cv2.warpAffine(picture, shift, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
            yield np.clip(picture[..., ::-1].astype(np.float32) * light, 0, 255).astype(np.uint8)

    def box(self, piece: Piece, index: int) -> tuple[float, float, float, float]:
        """Where a part lies in a frame, x, y, width, height."""
        half = LAYOUT.zone_px // 2
        x, y, width, height = piece.cover_xywh_px
        dx, dy = self.shakes_px[index].tolist()
        moved = round(self.belt.speed_px * round(self.moved_px[index] / self.belt.speed_px))
        return piece.start_x_px + moved - half + x + dx, piece.y_px - half + y + dy, width, height


def set_in_motion(belt: Belt) -> Run:
    """Lays the parts out and starts the belt."""
    rng = np.random.default_rng(belt.seed)
    product, scene = station(belt.station, belt.kind)
    product = replace(product, radius=product.radius * 0.62)
    order = Order(
        seed=belt.seed,
        product=product,
        scene=scene,
        parts=belt.parts,
        speed_px_per_frame=belt.speed_px,
        bad_share=0.0,
        defects=(),
    )
    pieces = _pieces(belt, order, rng)
    frames = frame_count(order, pieces, LAYOUT)
    moved = [belt.speed_px * index for index in range(frames)]
    if belt.halts:
        stops = rng.integers(frames // 6, frames, 3)
        moved = sorted([*moved, *(belt.speed_px * float(stop) for stop in stops for _ in range(40))])
    shakes = rng.normal(0, belt.shake_px, (len(moved), 2)) if belt.shake_px else np.zeros((len(moved), 2))
    return Run(
        frames=len(moved),
        camera=Camera(order, LAYOUT, pieces),
        pieces=pieces,
        belt=belt,
        moved_px=moved,
        shakes_px=shakes,
    )


def _pieces(belt: Belt, order: Order, rng: np.random.Generator) -> list[Piece]:
    """The parts, the first one just before the picture; groups are apart, the parts of one group `gap_px`."""
    pieces: list[Piece] = []
    front = -20.0
    for number in range(1, belt.parts + 1):
        pose = replace(sample_pose(rng, 0.0), shift_xy=(0.0, 0.0))
        seed = int(rng.integers(2**31))
        sprite, _, _ = render_sprite(order.product, order.scene, pose, size_px=LAYOUT.zone_px, seed=seed, defects=())
        x, y, width, height = (int(side) for side in cv2.boundingRect((sprite.alpha > 0.5).astype(np.uint8)))
        centre_x, centre_y = x + width / 2, y + height / 2
        within, half = (number - 1 - LONE) % belt.group if number > LONE else 0, LAYOUT.zone_px // 2
        beside = belt.abreast and within % 2 == 1
        if not beside:
            front -= width if within else width + APART_PX + float(rng.uniform(0, 90))
            front -= belt.gap_px if within else 0
        paired = belt.abreast and number > LONE
        aside = (height + belt.gap_px) / 2 if paired else float(rng.uniform(-12, 12)) * (belt.group == 1)
        middle_y = LAYOUT.height_px / 2 + (aside if beside or not paired else -aside)
        pieces.append(
            Piece(
                number=number,
                start_x_px=round(front + width / 2 + half - centre_x),
                y_px=round(middle_y + half - centre_y),
                sprite=sprite,
                cover_xywh_px=(x, y, width, height),
                masks=(),
            )
        )
    return pieces
