"""Parts that touch are one blob: tells them apart by the size of those that were seen alone. Pure; letters as there.

It is done only where it is sure: single parts were seen, and are alike; the blob has about the area of two or more of
them; and it falls apart at its waists into so many pieces, each about as large as a single one. Otherwise it stays one.
"""

from __future__ import annotations

from collections import deque

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
PIECE_AREAS = (0.55, 1.6)
WAISTS = (0.45, 0.55, 0.65, 0.75, 0.85)
"""Depths at which a heap is cut, as shares of its deepest place; the first that gives the right number is taken."""

MaskU8 = NDArray[np.uint8]


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

    def pieces(self, mask: MaskU8) -> list[MaskU8]:
        """The parts in a blob's mask `(H, W) uint8`, holes filled; none where it is one, or cannot be told apart."""
        single = self.single_area
        if single is None:
            return []
        solid = filled(mask)
        wanted = round(float(solid.sum()) / single)
        if float(solid.sum()) < LARGER * single or not 2 <= wanted <= MOST:
            return []
        depth = cv2.distanceTransform(solid, cv2.DIST_L2, 5)
        for waist in WAISTS:
            pieces = _cut(solid, (depth > waist * depth.max()).astype(np.uint8))
            areas = [float(piece.sum()) / single for piece in pieces]
            if len(pieces) == wanted and PIECE_AREAS[0] <= min(areas) and max(areas) <= PIECE_AREAS[1]:
                return pieces
        return []


def filled(mask: MaskU8) -> MaskU8:
    """A mask without its holes: a ring is as large as a disc."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED), dtype=np.uint8)


def _cut(solid: MaskU8, cores: MaskU8) -> list[MaskU8]:
    """A mask divided among the cores in it: each pixel goes to the nearest."""
    count, _ = cv2.connectedComponents(cores, connectivity=8)
    if count <= 2:
        return []
    _, nearest = cv2.distanceTransformWithLabels(1 - cores, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    return [np.asarray((nearest == number) & (solid > 0), dtype=np.uint8) for number in range(1, count)]
