"""Gates before the model: what a frame must be, to be worth a verdict. Pure; a gate gives a reason, never a pass."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from inspectd.records import Frame, PixelsU8, Reason

SAMPLE_PX = 16
"""Every so manieth pixel each way is compared first: a moving picture shows there at once."""
LOOK_PX = 320
"""Brightness is judged on a picture of about this width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLimits:
    """What a usable picture is. None switches a limit off."""

    min_brightness: float | None = None
    """The darkest mean grey level, 0 to 255."""
    max_brightness: float | None = None
    """The brightest mean grey level, 0 to 255."""
    max_clipped_share: float | None = None
    """The largest share of pixels at 254 grey levels or more."""
    min_sharpness: float | None = None
    """The smallest variance of the Laplacian of the grey picture, in squared grey levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a frame is not looked at. `detail` is for people."""

    reason: Reason
    detail: str


class Frozen:
    """Notices a camera that gives the same picture again and again: bit-identical for `frozen_after_s` of capture time.

    Live pictures differ by their noise. A single repeat is not yet a fault: cameras double frames.
    """

    def __init__(self, frozen_after_s: float) -> None:
        self._frozen_after_s = frozen_after_s
        self._still: PixelsU8 | None = None
        self._since_ns = 0

    def feed(self, frame: Frame) -> Refusal | None:
        """Takes every frame of the source, in order. Keeps the last new picture, so it must not be overwritten."""
        if self._still is None or not same_pixels(self._still, frame.pixels_bgr):
            self._still, self._since_ns = frame.pixels_bgr, frame.captured_ns
            return None
        still_s = (frame.captured_ns - self._since_ns) / 1e9
        if still_s < self._frozen_after_s:
            return None
        return Refusal(reason=Reason.FRAME_FROZEN, detail=f"the same picture for {still_s:.1f} s")

    def reset(self) -> None:
        """The source was opened anew."""
        self._still = None


def same_pixels(left: PixelsU8, right: PixelsU8) -> bool:
    """Whether two pictures are equal to the bit. A sample is compared first, since most pictures differ."""
    if left.shape != right.shape:
        return False
    sample = np.s_[SAMPLE_PX // 2 :: SAMPLE_PX, SAMPLE_PX // 2 :: SAMPLE_PX]
    return bool(np.array_equal(left[sample], right[sample]) and np.array_equal(left, right))


def refuse_damaged(frame: Frame) -> Refusal | None:
    """Decode damage makes a frame worthless, however good it looks."""
    return None if frame.damage is None else Refusal(reason=Reason.FRAME_CORRUPT, detail=frame.damage)


def refuse_poor(frame: Frame, limits: QualityLimits) -> Refusal | None:
    """Holds a frame against the limits of brightness, clipping and sharpness."""
    if limits == QualityLimits():
        return None
    detail = _poor(frame.pixels_bgr, limits)
    return None if detail is None else Refusal(reason=Reason.FRAME_QUALITY, detail=detail)


def _poor(pixels_bgr: PixelsU8, limits: QualityLimits) -> str | None:
    grey = cv2.cvtColor(pixels_bgr, cv2.COLOR_BGR2GRAY)
    step = max(1, grey.shape[1] // LOOK_PX)
    sample = grey[::step, ::step]
    brightness, clipped = float(sample.mean()), float((sample >= 254).mean())
    if limits.min_brightness is not None and brightness < limits.min_brightness:
        return f"too dark: mean {brightness:.1f}, at least {limits.min_brightness:g}"
    if limits.max_brightness is not None and brightness > limits.max_brightness:
        return f"too bright: mean {brightness:.1f}, at most {limits.max_brightness:g}"
    if limits.max_clipped_share is not None and clipped > limits.max_clipped_share:
        return f"overexposed: {clipped:.1%} clipped, at most {limits.max_clipped_share:.1%}"
    if limits.min_sharpness is not None:
        sharpness = float(cv2.Laplacian(grey, cv2.CV_16S).var())
        if sharpness < limits.min_sharpness:
            return f"blurred: sharpness {sharpness:.1f}, at least {limits.min_sharpness:g}"
    return None
