"""A belt with parts for tests of the presence trigger: grain that moves with the parts, in any direction, any light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.records import Frame
from inspectd.sources.presence import Presence

SIZE_PX = 240
ZONE = (60, 60, 120, 120)
RADIUS_PX = 22
FPS = 25.0
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "askew": (0.8, 0.6)}


@cache
def _grain(strength: float) -> NDArray[np.float32]:
    noise = np.random.default_rng(7).normal(0, 1, (2048, 2048)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 1.5) * np.float32(strength * 4)


@dataclass
class Belt:
    """Parts lie at `starts_px` along the belt's way, measured from the middle of the zone against its direction."""

    starts_px: Sequence[float]
    speed_px: float = 6.0
    direction: str = "right"
    grain: float = 4.0
    part_level: int = 200
    asides_px: Sequence[float] = ()
    light: Callable[[int], float] = field(default=lambda _: 1.0)
    travel: Callable[[int], float] | None = None
    """How far the belt has come at a frame, where it does not run steadily."""

    def __post_init__(self) -> None:
        self._texture = _grain(self.grain)

    def moved_px(self, index: int) -> float:
        return self.speed_px * index if self.travel is None else self.travel(index)

    def frame(self, index: int) -> Frame:
        """The belt at one moment, part by part."""
        dx, dy = DIRECTIONS[self.direction]
        moved = self.moved_px(index)
        roll = (round(moved * dy) % 2048, round(moved * dx) % 2048)
        grey = 90 + np.roll(self._texture, roll, (0, 1))[:SIZE_PX, :SIZE_PX]
        for number, start in enumerate(self.starts_px):
            aside = self.asides_px[number] if self.asides_px else 0.0
            way = moved - start
            centre = SIZE_PX / 2 + dx * way - dy * aside, SIZE_PX / 2 + dy * way + dx * aside
            if max(abs(c - SIZE_PX / 2) for c in centre) < SIZE_PX:
                cv2.circle(
                    grey, (round(centre[0] * 16), round(centre[1] * 16)), RADIUS_PX * 16, self.part_level, -1, 8, 4
                )
        picture = np.clip(grey * self.light(index), 0, 255).astype(np.uint8)
        return Frame(
            index=index,
            pixels_bgr=np.repeat(picture[..., None], 3, 2),
            captured_ns=round(index / FPS * 1e9),
            captured_utc_ns=0,
            pts_s=index / FPS,
        )

    def centred_at(self) -> list[float]:
        """The frame at which each part of a steady belt is in the middle."""
        return [start / self.speed_px for start in self.starts_px]


def fired_by(belt: Belt, frames: range, presence: Presence | None = None) -> list[int]:
    """The indices of the frames that the trigger asks to inspect."""
    presence = presence or Presence(ZONE)
    fired = [part.best.index for index in frames for part in presence.feed(belt.frame(index))]
    return fired + [part.best.index for part in presence.flush()]
