"""Finds what lies on the belt: a small view of the zone against a learnt picture of the empty belt. Pure.

The belt's texture moves with the parts, so single pixels never stand still: the view is blurred, and a part is what
differs by more than the belt's own restlessness. Letters: H, W the sides of the view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.records import PixelsU8
from inspectd.sources.heaps import Heaps, Relief, ReliefF32, filled

ViewF32 = NDArray[np.float32]

VIEW_PX = (128, 288)
"""The longer side of the view: so many pixels at least and at most."""
PART_AREA_PX = 150
"""The smallest part covers so many pixels of the view, as far as its limits allow."""
BLUR_PX = 1.4
"""Sigma of the blur that takes the belt's grain away."""
CLOSE_PX = 3
FINER = 4.0
"""So many times finer than the view it is looked where one part ends and the next begins."""
GROOVE_CONTRAST = 0.5
"""Between two parts it is darker, or nearer to the belt, by so large a share of a part's contrast."""
FOLLOW_LEVELS = 0.25
"""Grey levels by which the empty belt follows each view at most, once it is learnt."""
SMALL_FACTOR = 4.0
LEARN_VIEWS = 40
"""So many views of bare belt are averaged at first."""
RESTLESSNESS = 9.0
"""A part differs by at least so many times what the quietest `QUIET_SHARE` of the zone differ by (3.5 sigma)."""
QUIET_SHARE = 0.3
MOST_RESTLESS = 3.0
"""A restless belt raises the contrast that is asked of a part by so many times at most."""
MOVED_CONTRAST = 0.5
MOVED_AREA = 0.02
"""What lies in the zone has moved where so large a share of it changed by so large a share of a part's contrast."""
BARE_SHARE = 0.2
"""So much of the zone must lie bare to learn anything about the belt."""
LIGHT_EXPLAINED = 0.7
"""A change of light changes everything; so much of the bare belt must agree on it."""
LIGHT_GAINS = (0.4, 2.5)
RELEARN_SHARE = 0.85
RELEARN_S = 15.0
"""A zone that is filled for so long was learnt wrongly or has changed: learn anew."""
GHOST_EDGES = 0.6
"""A ghost's rim has at most so large a share of the edges that the learnt picture has there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One connected patch that is not belt, in pixels of the view. `number` is its label in this view."""

    number: int
    bbox_xywh: tuple[int, int, int, int]
    centroid_xy: tuple[float, float]
    area: int
    clipped: bool
    """It crosses one edge of the zone: part of it is outside."""
    spans_xy: tuple[bool, bool] = (False, False)
    """It crosses both edges of the zone, across or down: where it begins and ends is not seen."""
    cut: bool = False
    """It was cut out of a heap by the size of a part: a part by itself, no fragment of one."""


class Foreground:
    """Keeps the picture of the empty belt and tells what lies on it."""

    def __init__(
        self, zone_xywh_px: tuple[int, int, int, int], *, contrast_levels: float, min_part_share: float
    ) -> None:
        self._zone = zone_xywh_px
        self._contrast_levels = contrast_levels
        side = float(np.clip(np.sqrt(PART_AREA_PX / min_part_share), *VIEW_PX))
        scale = min(1.0, side / max(zone_xywh_px[2:]))
        self.size_wh = max(1, round(zone_xywh_px[2] * scale)), max(1, round(zone_xywh_px[3] * scale))
        self._min_area = max(4.0, min_part_share * self.size_wh[0] * self.size_wh[1])
        self.relearned = 0
        self._belt = np.zeros((self.size_wh[1], self.size_wh[0], 3), np.float32)
        self._view_now = self._belt
        self._mask = np.zeros(self._belt.shape[:2], np.uint8)
        self._labels = np.zeros(self._belt.shape[:2], np.int32)
        self._heaps = Heaps()
        self._seen = 0
        self._restlessness = 0.0
        self._filled_since_s: float | None = None
        self.stands = False
        """Whether what lies in the zone stands: it looked the same in the last two views."""

    def look(self, pixels_bgr: PixelsU8, time_s: float) -> list[Blob]:
        """The blobs in one frame, largest first."""
        view = self._view(pixels_bgr)
        if self._seen == 0:
            self._belt = view.copy()
        self._light(view)
        difference = _strongest(np.abs(view - self._belt))
        self._learn_restlessness(difference)
        self.stands = self._alike(view)
        self._view_now = view
        limit = min(max(1.0, RESTLESSNESS * self._restlessness / self._contrast_levels), MOST_RESTLESS)
        self._mask = _closed(difference > limit * self._contrast_levels)
        blobs = self._blobs(partial(self._relief, pixels_bgr))
        self._follow(blobs)
        self._check_filled(time_s)
        return blobs

    def is_ghost(self, blob: Blob) -> bool:
        """Whether a standing blob is a part that was learnt as belt and has left: its rim is learnt, not seen."""
        rim = cv2.morphologyEx(self._blob_mask(blob), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
        return bool(rim.any()) and bool(
            _edges(self._view_now)[rim].mean() < GHOST_EDGES * _edges(self._belt)[rim].mean()
        )

    def absorb(self, blob: Blob) -> None:
        """Takes what is seen at a blob for belt."""
        mask = cv2.dilate(self._blob_mask(blob), np.ones((7, 7), np.uint8)) > 0
        self._belt[mask] = self._view_now[mask]

    def _view(self, pixels_bgr: PixelsU8) -> ViewF32:
        x, y, width, height = self._zone
        small = cv2.resize(pixels_bgr[y : y + height, x : x + width], self.size_wh, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (0, 0), BLUR_PX), dtype=np.float32)

    def _alike(self, view: ViewF32) -> bool:
        """Whether a view shows the last one again, wherever anything lay in that."""
        lay = self._mask > 0
        changed = _strongest(np.abs(view - self._view_now)) > MOVED_CONTRAST * self._contrast_levels
        return float(changed[lay].mean()) < MOVED_AREA if lay.any() else False

    def _relief(self, pixels_bgr: PixelsU8) -> ReliefF32:
        """How far each place of the zone is from belt, finer than the view."""
        x, y, width, height = self._zone
        fine = min(FINER, width / self.size_wh[0])
        size = round(self.size_wh[0] * fine), round(self.size_wh[1] * fine)
        zone = cv2.resize(pixels_bgr[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA)
        return _strongest(np.abs(zone.astype(np.float32) - cv2.resize(self._belt, size)))

    def _learn_restlessness(self, difference: ViewF32) -> None:
        """How far the bare belt strays from its picture: grain, noise, dirt."""
        bare = difference[::2, ::2][self._mask[::2, ::2] == 0]
        if bare.size < BARE_SHARE * difference.size / 4:
            return
        quiet = float(np.quantile(bare, QUIET_SHARE))
        self._restlessness += (quiet - self._restlessness) / min(self._seen + 1, LEARN_VIEWS)

    def _light(self, view: ViewF32) -> None:
        """Brightens or dims the belt as the light has changed: what lay bare in the last view says by how much."""
        bare = self._mask[::2, ::2] == 0
        if bare.mean() < BARE_SHARE:
            return
        now, before = view[::2, ::2][bare], self._belt[::2, ::2][bare]
        gain = np.clip(np.median(now, axis=0) / np.maximum(np.median(before, axis=0), 1.0), *LIGHT_GAINS)
        explained = (np.abs(now - before * gain).max(axis=1) <= self._contrast_levels).mean()
        if explained >= LIGHT_EXPLAINED:
            self._belt *= gain.astype(np.float32)

    def _follow(self, blobs: list[Blob]) -> None:
        """Averages the first views, then follows slow changes; only where no part lies: one that stands stays seen.

        What differs but is too small for a part is followed too, or the rest of an old part would stay for ever.
        """
        self._seen += 1
        difference = self._view_now - self._belt
        slow = np.clip(difference, -FOLLOW_LEVELS, FOLLOW_LEVELS)
        step = difference / self._seen if self._seen <= LEARN_VIEWS else slow
        small = self._mask > 0
        step[small] = SMALL_FACTOR * slow[small]
        parts = np.isin(self._labels, [blob.number for blob in blobs]).astype(np.uint8)
        cv2.add(self._belt, step, dst=self._belt, mask=1 - cv2.dilate(parts, np.ones((5, 5), np.uint8)))

    def _check_filled(self, time_s: float) -> None:
        if self._mask.mean() < RELEARN_SHARE:
            self._filled_since_s = None
        elif self._filled_since_s is None:
            self._filled_since_s = time_s
        elif time_s - self._filled_since_s > RELEARN_S:
            self._seen, self._restlessness, self._filled_since_s = 0, 0.0, None
            self.relearned += 1

    def _blobs(self, relief: Relief) -> list[Blob]:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(self._mask, connectivity=8)
        self._labels = np.asarray(labels, dtype=np.int32)
        groove_levels = GROOVE_CONTRAST * self._contrast_levels
        blobs = []
        for number in range(1, count):
            if stats[number, cv2.CC_STAT_AREA] < self._min_area:
                continue
            patch = self._mask_of(number)
            pieces = self._heaps.pieces(patch, relief, groove_levels=groove_levels)
            for piece in pieces:
                self._labels[(piece > 0) & (patch > 0)] = count
                blobs.append(self._blob(count, cut=True))
                count += 1
            if not pieces:
                blobs.append(self._blob(number, cut=False))
        return sorted((blob for blob in blobs if blob.area > 0), key=lambda blob: -blob.area)

    @property
    def single_area(self) -> float | None:
        """How many pixels of the view one part covers; None while that is not known."""
        return self._heaps.single_area

    def learn_single(self, blob: Blob) -> None:
        """A blob that is whole is taken for one part, to tell by its size how many a larger one is."""
        self._heaps.learn(float(filled(self._blob_mask(blob)).sum()))

    def _blob(self, number: int, *, cut: bool) -> Blob:
        mask = self._mask_of(number)
        x, y, width, height = cv2.boundingRect(mask)
        moments = cv2.moments(mask, binaryImage=True)
        area = max(1.0, moments["m00"])
        left, right = x <= 0, x + width >= self.size_wh[0]
        top, bottom = y <= 0, y + height >= self.size_wh[1]
        return Blob(
            number=number,
            bbox_xywh=(x, y, width, height),
            centroid_xy=(moments["m10"] / area, moments["m01"] / area),
            area=round(moments["m00"]),
            clipped=left != right or top != bottom,
            spans_xy=(left and right, top and bottom),
            cut=cut,
        )

    def _blob_mask(self, blob: Blob) -> NDArray[np.uint8]:
        return self._mask_of(blob.number)

    def _mask_of(self, number: int) -> NDArray[np.uint8]:
        return np.asarray(self._labels == number, dtype=np.uint8)


def _strongest(difference: ViewF32) -> ViewF32:
    """`(H, W)`: the largest difference of a pixel's channels."""
    blue, green, red = cv2.split(difference)
    return np.asarray(cv2.max(cv2.max(blue, green), red), dtype=np.float32)


def _closed(different: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The mask without specks, its cracks closed; the zone's edges close nothing off."""
    mask = cv2.morphologyEx(different.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    kernel = np.ones((CLOSE_PX, CLOSE_PX), np.uint8)
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), dtype=np.uint8)


def _edges(view: ViewF32) -> ViewF32:
    """`(H, W)` strength of the edges in a view."""
    grey = view.mean(axis=2)
    return np.asarray(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)), dtype=np.float32)
