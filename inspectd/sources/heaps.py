"""Parts that touch are one blob: tells them apart by the size of those that were seen alone. Pure; letters as there.

It is done only where it is sure: single parts were seen, and are alike; the blob has about the area of two or more of
them; and it falls apart, at its waists or else along the grooves in it, into so many pieces, each about as large as a
single one (those at the zone's edges, of which a part may be outside, no larger). Otherwise it stays one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

LEAST_SINGLES = 3
SINGLES = 30
ALIKE = 1.35
"""The larger quartile of single parts is at most so many times the smaller one; else sizes say nothing."""
LARGER = 1.5
"""A blob so many times as large as a single part is more than one."""
MOST = 6
HOLE_SIDE = 0.6
"""A hole is at most so many times as wide as a square of a part's area."""
PIECE_AREAS = (0.55, 1.6)
SLIVER_AREA = 0.1
"""What shows less than so much of a part at the zone's edge is no piece yet."""
WAISTS = (0.45, 0.55, 0.65, 0.75, 0.85)
"""Depths at which a heap is cut, as shares of its deepest place; the first that gives the right number is taken."""

GROOVE_SIDE = 0.35
"""A groove between parts is at most so many times as wide as a square of a part's area."""

MaskU8 = NDArray[np.uint8]
ReliefF32 = NDArray[np.float32]
Relief = Callable[[], ReliefF32]
"""How far each pixel is from belt, in grey levels, finer than the mask by any factor: `(f·H, f·W)`."""


class Heaps:
    """Learns how large a single part is, and cuts heaps of them."""

    def __init__(self) -> None:
        self._areas: deque[float] = deque(maxlen=SINGLES)

    def learn(self, area: float) -> None:
        """A part was seen whole and by itself (or so it seems: the smaller half of what is learnt counts)."""
        self._areas.append(area)

    @property
    def single_area(self) -> float | None:
        """How large one part is; None while that is not known, or where parts are of all sizes."""
        if len(self._areas) < LEAST_SINGLES:
            return None
        low, middle = np.quantile(np.asarray(self._areas), (0.1, 0.4)).tolist()
        return float(middle) if middle <= ALIKE * low else None

    def pieces(self, mask: MaskU8, relief: Relief | None = None, *, groove_levels: float = 0.0) -> list[MaskU8]:
        """The parts in a blob's mask `(H, W) uint8`, holes filled; none where it is one, or cannot be told apart.

        Args:
            relief: looked at where the outline does not tell; a groove is deeper than `groove_levels`.
        """
        single = self.single_area
        if single is None:
            return []
        solid = filled(mask, HOLE_SIDE * single**0.5)
        parts = float(solid.sum()) / single
        if not LARGER <= parts < MOST + 0.5:
            return []
        pieces = _fall_apart(solid, solid, single)
        if not pieces and relief is not None:
            pieces = _along_grooves(solid, relief(), single, groove_levels)
        shown = filled(mask)
        return [_largest(piece & shown) for piece in pieces]


def _along_grooves(solid: MaskU8, heights: ReliefF32, single_area: float, groove_levels: float) -> list[MaskU8]:
    size_wh = solid.shape[::-1]
    fine = np.asarray(cv2.resize(solid, heights.shape[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    area = single_area * fine.size / solid.size
    grooves = _depth_between(heights, GROOVE_SIDE * area**0.5) >= groove_levels
    pieces = _fall_apart(fine, np.where(grooves, np.uint8(0), fine), area)
    return [np.asarray(cv2.resize(one, size_wh, interpolation=cv2.INTER_NEAREST), dtype=np.uint8) for one in pieces]


def _fall_apart(solid: MaskU8, body: MaskU8, single_area: float) -> list[MaskU8]:
    """The parts of a heap: what `body`, which may have grooves, becomes where it is worn down evenly."""
    depth = cv2.distanceTransform(body, cv2.DIST_L2, 5)
    for waist in WAISTS:
        pieces = _cut(solid, (depth > waist * depth.max()).astype(np.uint8))
        if _are_parts(pieces, single_area, float(solid.sum()) / single_area):
            return pieces
    return []


def _depth_between(heights: ReliefF32, widest_px: float) -> ReliefF32:
    """How much lower each place lies than what is on both sides of it."""
    side = 1 + 2 * max(1, round(widest_px / 2))
    smooth = cv2.GaussianBlur(heights, (0, 0), 1.0)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT, kernel), dtype=np.float32)


def _are_parts(pieces: list[MaskU8], single_area: float, parts: float) -> bool:
    """Whether each piece is about one part, or at the zone's edge a share of one, and their number fits the area."""
    areas = [float(piece.sum()) / single_area for piece in pieces]
    whole = [area for area, piece in zip(areas, pieces, strict=True) if not _at_edge(piece)]
    small, large = PIECE_AREAS
    if len(pieces) < 2 or min(areas) < SLIVER_AREA or min(whole, default=1.0) < small or max(areas) > large:
        return False
    return len(whole) < len(pieces) or len(pieces) == round(parts)


def _at_edge(mask: MaskU8) -> bool:
    return any(bool(side.any()) for side in _sides(mask))


def _sides(mask: MaskU8) -> tuple[MaskU8, ...]:
    """The outermost rows and columns, as views."""
    return mask[0], mask[-1], mask[:, 0], mask[:, -1]


def filled(mask: MaskU8, widest_px: float = 0.0) -> MaskU8:
    """One blob's mask without its holes: a ring is as large as a disc.

    Also without those that the zone's edge has opened, if they are no wider there than `widest_px`.
    """
    closed = mask.copy()
    for side in _sides(closed):
        lies = np.flatnonzero(side)
        for before, after in pairwise(lies.tolist()):
            if after - before <= widest_px:
                side[before:after] = 1
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(closed, outlines, -1, 1, cv2.FILLED), dtype=np.uint8)


def _cut(solid: MaskU8, cores: MaskU8) -> list[MaskU8]:
    """A mask divided among the cores in it: each pixel goes to the nearest."""
    count, _ = cv2.connectedComponents(cores, connectivity=8)
    if count <= 2:
        return []
    _, nearest = cv2.distanceTransformWithLabels(1 - cores, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    return [_largest(np.asarray((nearest == number) & (solid > 0), dtype=np.uint8)) for number in range(1, count)]


def _largest(mask: MaskU8) -> MaskU8:
    """The largest patch of a mask: what lies behind a neighbour is that one's."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax(), dtype=np.uint8)
