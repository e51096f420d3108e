"""Finds what lies on the belt: a small view of the zone against a learnt picture of the empty belt. Pure.

The belt's texture moves with the parts, so single pixels never stand still: the view is blurred, and a part is what
differs by more than the belt's own restlessness. Letters: H, W the sides of the view, at most `VIEW_PX`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.records import PixelsU8

ViewF32 = NDArray[np.float32]

VIEW_PX = 160
BLUR_PX = 1.6
"""Sigma of the blur that takes the belt's grain away."""
CLOSE_PX = 5
LEARN_AT = (1, 2, 3, 5, 8, 12, 18, 26)
"""The empty belt is worked out anew after so many views; from then on it only follows slow changes."""
LESSON_S = 0.02
"""After n lessons the next one is so many times n seconds away, so that a slow part cannot lie in all of them."""
CLUSTER_SHARE = 0.4
"""The densest so large share of a pixel's first values is taken for the belt: parts may lie there more often than not."""
FOLLOW_LEVELS = 0.25
"""Grey levels by which the empty belt follows each view at most."""
RESTLESSNESS = 5.0
"""A part differs by at least so many times the belt's typical deviation."""
MOTION_LEVELS = 1.0
"""Mean grey levels by which a view must differ to teach something new about the belt."""
RELEARN_SHARE = 0.85
RELEARN_S = 30.0
"""A zone that is filled for so long was learnt wrongly or has changed: learn anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One connected patch that is not belt, in pixels of the view. `number` is its label in this view."""

    number: int
    bbox_xywh: tuple[int, int, int, int]
    centroid_xy: tuple[float, float]
    area: int
    clipped: bool
    """It crosses one edge of the zone: part of it is outside. (Across two opposite edges it fills the zone.)"""


class Foreground:
    """Keeps the picture of the empty belt and tells what lies on it."""

    def __init__(
        self, zone_xywh_px: tuple[int, int, int, int], *, contrast_levels: float, min_part_share: float
    ) -> None:
        self._zone = zone_xywh_px
        self._contrast_levels = contrast_levels
        scale = min(1.0, VIEW_PX / max(zone_xywh_px[2:]))
        self.size_wh = max(1, round(zone_xywh_px[2] * scale)), max(1, round(zone_xywh_px[3] * scale))
        self._min_area = max(4.0, min_part_share * self.size_wh[0] * self.size_wh[1])
        self.relearned = 0
        self._learn_from_scratch()

    def look(self, pixels_bgr: PixelsU8, time_s: float) -> list[Blob]:
        """The blobs in one frame, largest first."""
        view = self._view(pixels_bgr)
        self._learn(view, time_s)
        difference = view - self._belt
        self._view_now = view
        self._mask = self._mask_of(difference)
        self._follow(difference)
        self._check_filled(time_s)
        return self._blobs()

    def is_ghost(self, blob: Blob) -> bool:
        """Whether a standing blob is a part that was learnt as belt and has left: its edge is in the belt's picture only."""
        mask = self._blob_mask(blob)
        rim = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
        return _edges(self._view_now)[rim].mean() < 0.6 * _edges(self._belt)[rim].mean()

    def absorb(self, blob: Blob) -> None:
        """Takes what is seen at a blob for belt."""
        mask = cv2.dilate(self._blob_mask(blob), np.ones((7, 7), np.uint8)) > 0
        self._belt[mask] = self._view_now[mask]

    def _learn_from_scratch(self) -> None:
        width, height = self.size_wh
        self._lessons: list[ViewF32] = []
        self._lesson_s = -math.inf
        self._belt: ViewF32 = np.zeros((height, width, 3), np.float32)
        self._view_now = self._belt
        self._mask = np.zeros((height, width), np.uint8)
        self._labels = np.zeros((height, width), np.int32)
        self._restlessness = 0.0
        self._filled_since_s: float | None = None

    def _view(self, pixels_bgr: PixelsU8) -> ViewF32:
        x, y, width, height = self._zone
        crop = pixels_bgr[y : y + height, x : x + width]
        small = cv2.resize(crop, self.size_wh, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (0, 0), BLUR_PX), dtype=np.float32)

    def _learn(self, view: ViewF32, time_s: float) -> None:
        """The first views that differ, ever further apart: the densest cluster of each pixel's values is the belt."""
        if len(self._lessons) >= LEARN_AT[-1] or time_s - self._lesson_s < LESSON_S * len(self._lessons):
            return
        if self._lessons and float(np.abs(view - self._lessons[-1]).mean()) < MOTION_LEVELS:
            return
        self._lessons.append(view)
        self._lesson_s = time_s
        if len(self._lessons) in LEARN_AT:
            self._belt = _densest(np.stack(self._lessons))
            self._restlessness = float(np.median(np.abs(self._lessons[-1] - self._belt).max(axis=2)))

    def _mask_of(self, difference: ViewF32) -> NDArray[np.uint8]:
        limit = max(self._contrast_levels, RESTLESSNESS * self._restlessness)
        mask = (np.abs(difference).max(axis=2) > limit).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        padded = cv2.copyMakeBorder(mask, CLOSE_PX, CLOSE_PX, CLOSE_PX, CLOSE_PX, cv2.BORDER_REPLICATE)
        closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((CLOSE_PX, CLOSE_PX), np.uint8))
        return np.ascontiguousarray(closed[CLOSE_PX:-CLOSE_PX, CLOSE_PX:-CLOSE_PX])

    def _follow(self, difference: ViewF32) -> None:
        """Slow changes of light and dirt, only where no part lies: a part that stands must not become belt."""
        belt = cv2.dilate(self._mask, np.ones((5, 5), np.uint8)) == 0
        if not belt.any():
            return
        step = np.clip(difference, -FOLLOW_LEVELS, FOLLOW_LEVELS)
        self._belt += step * belt[..., None]
        deviation = float(np.median(np.abs(difference[belt]).max(axis=1)))
        self._restlessness += 0.05 * (deviation - self._restlessness)

    def _check_filled(self, time_s: float) -> None:
        if self._mask.mean() < RELEARN_SHARE:
            self._filled_since_s = None
        elif self._filled_since_s is None:
            self._filled_since_s = time_s
        elif time_s - self._filled_since_s > RELEARN_S:
            self._learn_from_scratch()
            self.relearned += 1

    def _blobs(self) -> list[Blob]:
        count, self._labels, stats, centroids = cv2.connectedComponentsWithStats(self._mask, connectivity=8)
        blobs = [
            self._blob(number, stats[number].tolist(), centroids[number].tolist())
            for number in range(1, count)
            if stats[number, cv2.CC_STAT_AREA] >= self._min_area
        ]
        return sorted(blobs, key=lambda blob: -blob.area)

    def _blob(self, number: int, stats: list[int], centroid: list[float]) -> Blob:
        x, y, width, height, area = stats
        left, right = x <= 0, x + width >= self.size_wh[0]
        top, bottom = y <= 0, y + height >= self.size_wh[1]
        return Blob(
            number=number,
            bbox_xywh=(x, y, width, height),
            centroid_xy=(centroid[0], centroid[1]),
            area=area,
            clipped=left != right or top != bottom,
        )

    def _blob_mask(self, blob: Blob) -> NDArray[np.uint8]:
        return (self._labels == blob.number).astype(np.uint8)


def _densest(values: ViewF32) -> ViewF32:
    """The mean of the tightest `CLUSTER_SHARE` of values along axis 0: `(N, H, W, 3)` to `(H, W, 3)`.

    >>> _densest(np.array([9.0, 1.0, 2.0, 60.0, 1.0], np.float32).reshape(5, 1, 1, 1)).item()
    1.0
    """
    ordered = np.sort(values, axis=0)
    size = max(1, round(CLUSTER_SHARE * len(ordered)))
    widths = ordered[size - 1 :] - ordered[: len(ordered) - size + 1]
    start = widths.argmin(axis=0)[None]
    picked = [np.take_along_axis(ordered, start + offset, axis=0)[0] for offset in range(size)]
    return np.asarray(np.mean(picked, axis=0), dtype=np.float32)


def _edges(view: ViewF32) -> ViewF32:
    """`(H, W)` strength of the edges in a view."""
    grey = view.mean(axis=2)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)).astype(np.float32)
