"""Gates before the model: what a frame must be, to be worth a verdict. Pure; a gate gives a reason, never a pass."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from inspectd.quality import fault, look
from inspectd.recipe import QualityLimits, Recipe
from inspectd.records import Frame, PixelsU8, Reason
from inspectd.viewport import box_of, frame_size_error, polygon_mask

SAMPLE_PX = 16
"""Every so manieth pixel each way is compared first: a moving picture shows there at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a frame is not looked at. `detail` is for people."""

    reason: Reason
    detail: str


class Frozen:
    """Notices a camera that gives the same picture again and again, for `frozen_after_s` of capture time.

    Live pictures differ by their noise. A single repeat is not yet a fault: cameras double frames. Every picture is held
    against the one that the freeze began with, so that a scene that changes slowly is alive. A connection that was lost
    and comes back with the same picture to the bit is still frozen.

    Args:
        frozen_after_s: how long a picture may stand.
        tolerance_levels: no pixel of a frozen picture differs by more grey levels; 0: equal to the bit.
    """

    def __init__(self, frozen_after_s: float, *, tolerance_levels: int = 0) -> None:
        self._frozen_after_s = frozen_after_s
        self._tolerance_levels = tolerance_levels
        self._still: PixelsU8 | None = None
        self._since_ns = 0

    def feed(self, frame: Frame) -> Refusal | None:
        """Takes every frame of the source, in order. Keeps the last new picture, so it must not be overwritten."""
        if self._still is None or not same_pixels(self._still, frame.pixels_bgr, self._tolerance_levels):
            self._still, self._since_ns = frame.pixels_bgr, frame.captured_ns
            return None
        still_s = (frame.captured_ns - self._since_ns) / 1e9
        if still_s < self._frozen_after_s:
            return None
        return Refusal(reason=Reason.FRAME_FROZEN, detail=f"the same picture for {still_s:.1f} s")


class Light:
    """Whether parts can be seen at all by the light that the recipe's own words ask for.

    For frames between the parts, of which `presence` makes no verdict: learnt limits and sharpness are about parts, and
    an empty belt may be another picture.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._limits = QualityLimits(**recipe.quality.stated).model_copy(update={"min_sharpness": None})
        region = recipe.region  # its box is the same in frames of every size
        self._roi = None if region is None else polygon_mask(region.polygon_px, box_of(recipe, (0, 0)))

    def fails(self, pixels_bgr: PixelsU8) -> bool:
        """Whether a frame `(H, W, 3) uint8` is beyond the limits."""
        size_wh_px = (pixels_bgr.shape[1], pixels_bgr.shape[0])
        if not self._limits.stated or frame_size_error(self._recipe, size_wh_px) is not None:
            return False
        x, y, w, h = box_of(self._recipe, size_wh_px)
        return fault(look(pixels_bgr[y : y + h, x : x + w], self._roi), self._limits) is not None


class Lasting:
    """Tells of a thing that lasts at its beginning and then every so often.

    >>> blind = Lasting(1.0)
    >>> [blind.due(True, now_s * 10**9) for now_s in (0, 0.5, 1.2, 1.9)], blind.due(False, 2 * 10**9)
    ([True, False, True, False], False)
    """

    def __init__(self, again_s: float) -> None:
        self._again_ns = round(again_s * 1e9)
        self._due_ns: float | None = None

    def due(self, lasts: bool, now_ns: float) -> bool:
        """Whether to tell of it now."""
        if not lasts:
            self._due_ns = None
            return False
        if self._due_ns is not None and now_ns < self._due_ns:
            return False
        self._due_ns = now_ns + self._again_ns
        return True


def same_pixels(left: PixelsU8, right: PixelsU8, tolerance_levels: int = 0) -> bool:
    """Whether no value of two pictures differs by more than that. A sample comes first, since most pictures differ."""
    if left.shape != right.shape:
        return False
    sample = np.s_[SAMPLE_PX // 2 :: SAMPLE_PX, SAMPLE_PX // 2 :: SAMPLE_PX]
    return _differ(left[sample], right[sample]) <= tolerance_levels and _differ(left, right) <= tolerance_levels


def _differ(left: PixelsU8, right: PixelsU8) -> float:
    """The largest difference of two pictures in grey levels."""
    return cv2.norm(left, right, cv2.NORM_INF) if left.size else 0.0


def refuse_damaged(frame: Frame) -> Refusal | None:
    """Decode damage makes a frame worthless, however good it looks."""
    return None if frame.damage is None else Refusal(reason=Reason.FRAME_CORRUPT, detail=frame.damage)
