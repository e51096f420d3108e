"""Whether a picture is one to judge: its light and its sharpness, measured cheaply, against a recipe's limits. Pure.

Letters: h, w the box around the region of interest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.recipe import QualityLimits
from inspectd.records import PixelsU8

BAND_PX = 8
BANDS = 16
"""So many bands of rows are looked at, whole and at full resolution: shrinking would hide the blur."""
CLIPPED_LEVEL = 254
SLACK = 0.7
"""A grey level of 0.7 is about half the light (display gamma); sharpness goes with its square."""
CLIPPED_MORE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a picture looks: mean grey level, the share of pixels at 254 grey levels or more, and the variance of the
    Laplacian in squared grey levels."""

    brightness: float
    clipped_share: float
    sharpness: float


def look(box_bgr: PixelsU8, roi: NDArray[np.bool_] | None = None) -> Look:
    """Looks at a box `(h, w, 3) uint8` BGR, at the pixels of `roi (h, w)` alone where there is one."""
    rows = _bands(box_bgr.shape[0])
    grey = np.concatenate([cv2.cvtColor(box_bgr[band], cv2.COLOR_BGR2GRAY) for band in rows])
    inside = np.concatenate([_bytes(roi, band, grey.shape[1]) for band in rows])
    edges = cv2.Laplacian(grey, cv2.CV_16S)
    inner = inside.copy()
    if len(rows) > 1:  # where two bands meet there is no edge of the picture
        inner[0::BAND_PX] = inner[BAND_PX - 1 :: BAND_PX] = 0
    clipped = cv2.threshold(grey, CLIPPED_LEVEL - 1, 1, cv2.THRESH_BINARY)[1]
    return Look(
        brightness=cv2.mean(grey, inside)[0],
        clipped_share=cv2.mean(clipped, inside)[0],
        sharpness=float(cv2.meanStdDev(edges, mask=inner)[1][0, 0]) ** 2,
    )


def fault(seen: Look, limits: QualityLimits) -> str | None:
    """What is wrong with a picture, for people; None for a usable one."""
    if limits.min_brightness is not None and seen.brightness < limits.min_brightness:
        return f"too dark: mean {seen.brightness:.1f}, at least {limits.min_brightness:g}"
    if limits.max_brightness is not None and seen.brightness > limits.max_brightness:
        return f"too bright: mean {seen.brightness:.1f}, at most {limits.max_brightness:g}"
    if limits.max_clipped_share is not None and seen.clipped_share > limits.max_clipped_share:
        return f"overexposed: {seen.clipped_share:.1%} clipped, at most {limits.max_clipped_share:.1%}"
    if limits.min_sharpness is not None and seen.sharpness < limits.min_sharpness:
        return f"blurred: sharpness {seen.sharpness:.1f}, at least {limits.min_sharpness:g}"
    return None


def learn(looks: Sequence[Look]) -> QualityLimits:
    """Limits that pictures of good parts keep with room to spare: half or twice their light, half their sharpness.

    >>> learn([Look(brightness=100, clipped_share=0.0, sharpness=300), Look(brightness=120, clipped_share=0.02,
    ... sharpness=200)]).model_dump()
    {'min_brightness': 70.0, 'max_brightness': 171.4, 'max_clipped_share': 0.12, 'min_sharpness': 98.0}
    """
    brightest = max(each.brightness for each in looks) / SLACK
    most_clipped = max(each.clipped_share for each in looks) + CLIPPED_MORE
    return QualityLimits(
        min_brightness=round(SLACK * min(each.brightness for each in looks), 1),
        max_brightness=round(brightest, 1) if brightest < 255 else None,
        max_clipped_share=round(most_clipped, 3) if most_clipped < 1 else None,
        min_sharpness=round(SLACK**2 * min(each.sharpness for each in looks), 1),
    )


def _bands(height_px: int) -> list[slice]:
    """Bands of rows, evenly spread; all rows of a low picture.

    >>> [(band.start, band.stop) for band in _bands(40)], len(_bands(1080))
    ([(0, 8), (8, 16), (16, 24), (24, 32), (32, 40)], 16)
    """
    if height_px < BAND_PX:
        return [slice(0, height_px)]
    period = max(BAND_PX, -(-height_px // BANDS))
    return [slice(top, top + BAND_PX) for top in range(0, height_px - BAND_PX + 1, period)]


def _bytes(roi: NDArray[np.bool_] | None, band: slice, width_px: int) -> PixelsU8:
    """The band of a region as OpenCV wants its masks; everything where there is no region."""
    if roi is None:
        return np.ones((band.stop - band.start, width_px), np.uint8)
    return roi[band].astype(np.uint8)
