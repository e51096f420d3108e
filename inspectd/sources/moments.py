"""The best moments of one part: the frames in which it is whole, near the zone's centre, and sharp. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from inspectd.records import Frame

KEPT = 3
"""So many moments are kept at least, more where more frames vote."""
SHARP_REACH = 0.06
"""A sharper frame is taken instead of the most centred one within so large a share of the zone's longer side."""
SHARPER = 1.3
"""And only where it is so many times sharper: everything else is grain and noise."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moment:
    """One frame of one part.

    In pixels of the view: `off_centre` is the distance from the zone's centre, `way_xy` how far the belt had come.
    """

    frame: Frame
    clipped: bool
    off_centre: float
    way_xy: tuple[float, float]
    bbox_xywh_px: Box

    @property
    def key(self) -> tuple[bool, float]:
        """The smaller, the better."""
        return self.clipped, self.off_centre

    def sharpness(self) -> float:
        """The strength of the finest structures on the part: the variance of the Laplacian."""
        x, y, width, height = self.bbox_xywh_px
        pixels = self.frame.pixels_bgr[y : y + height, x : x + width]
        return float(np.var(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), cv2.CV_32F)))


class Moments:
    """The moments of one part that are worth keeping, until it is taken.

    Args:
        votes: so many frames are wanted.
        reach: within so many pixels of the view sharpness counts more than the way to the centre.
    """

    def __init__(self, *, votes: int, reach: float) -> None:
        self._votes = votes
        self._reach = reach
        self._kept: list[Moment] = []
        self._latest: deque[Moment] = deque(maxlen=max(KEPT, votes))

    def offer(self, moment: Moment) -> None:
        """Takes the next frame of the part; they come in order."""
        self._latest.append(moment)
        # A later frame is better than an earlier one that is just as near: what shook has come to rest.
        self._kept = sorted([moment, *self._kept], key=lambda each: each.key)[: self._latest.maxlen]

    def taken(self, *, standing: bool) -> list[Moment]:
        """The frames to inspect, the best first: the nearest to the centre, or the latest of a part that stands."""
        ranked = list(reversed(self._latest)) if standing else self._kept
        whole = [each for each in ranked if not each.clipped] or ranked
        first = whole[0]
        rivals = [each for each in whole if standing or each.off_centre <= first.off_centre + self._reach]
        best = _sharpest(rivals)
        return [best, *(each for each in whole if each is not best)][: self._votes]


def _sharpest(rivals: list[Moment]) -> Moment:
    """The first one, unless another is clearly sharper."""
    if len(rivals) == 1:
        return rivals[0]
    sharpness = [each.sharpness() for each in rivals]
    top = int(np.argmax(sharpness))
    return rivals[top] if sharpness[top] > SHARPER * sharpness[0] else rivals[0]
