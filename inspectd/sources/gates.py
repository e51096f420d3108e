"""Gates before the model: what a frame must be, to be worth a verdict. Pure; a gate gives a reason, never a pass."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from inspectd.log import get_logger
from inspectd.quality import fault, look
from inspectd.recipe import QualityLimits, Recipe
from inspectd.records import Frame, PixelsU8, Reason, TriggerKind
from inspectd.settings import Camera
from inspectd.viewport import box_of, frame_size_error, polygon_mask

SAMPLE_PX = 16
"""Every so manieth pixel each way is compared first: a moving picture shows there at once."""


class Frozen:
    """Notices a camera that gives the same picture again and again, for `frozen_after_s` of capture time.

    Live pictures differ by their noise. A single repeat is not yet a fault: cameras double frames. Every picture is
    held against the one that the freeze began with, so that a scene that changes slowly is alive. A connection that
    was lost and comes back with the same picture is still frozen.

    Args:
        frozen_after_s: how long a picture may stand.
        tolerance_levels: no pixel of a frozen picture differs by more grey levels; 0: equal to the bit.
        before: a frame that an earlier process was given: its picture may have stood since then, or too long already.
    """

    def __init__(self, frozen_after_s: float, *, tolerance_levels: int = 0, before: Frame | None = None) -> None:
        self._frozen_after_s = frozen_after_s
        self._tolerance_levels = tolerance_levels
        self._still: PixelsU8 | None = None
        self._since_ns = 0
        if before is not None:
            stood_ns = round(frozen_after_s * 1e9) if before.frozen else 0
            self._still, self._since_ns = before.pixels_bgr, before.captured_ns - stood_ns

    def feed(self, frame: Frame) -> bool:
        """Takes every sound frame of the source, in order; whether it has stood too long.

        Keeps the last new picture, so it must not be overwritten.
        """
        if self._still is None or not same_pixels(self._still, frame.pixels_bgr, self._tolerance_levels):
            self._still, self._since_ns = frame.pixels_bgr, frame.captured_ns
            return False
        return frame.captured_ns - self._since_ns >= self._frozen_after_s * 1e9


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


class UsualSize:
    """Notices a camera that came back with frames of another size: region, zone and threshold were set for the first.

    Args:
        size_wh_px: what an earlier process found; None: the first sound frame has it.
    """

    def __init__(self, size_wh_px: tuple[int, int] | None = None) -> None:
        self.size_wh_px = self._last_wh_px = size_wh_px

    def check(self, frame: Frame) -> Frame:
        """Takes every frame of the source, in order; one of another size comes back as damaged."""
        if frame.damage is not None:
            return frame
        height, width = frame.pixels_bgr.shape[:2]
        before, self._last_wh_px = self._last_wh_px, (width, height)
        usual_w, usual_h = self.size_wh_px = self.size_wh_px or (width, height)
        if (width, height) == (usual_w, usual_h):
            return frame
        if (width, height) != before:
            get_logger().error("frame_size_changed", size_wh_px=(width, height), usual_wh_px=(usual_w, usual_h))
        return replace(frame, damage=f"{width}x{height} px, where {usual_w}x{usual_h} came before")


class Gates:
    """The gates of one camera. Every frame is fed, in order; those to be inspected are asked about.

    Args:
        slot_bytes: the largest frame that the ring takes.
        inspected: the frame that was inspected last, before this process; None: not known.
    """

    def __init__(self, camera: Camera, *, slot_bytes: int, inspected: Frame | None = None) -> None:
        after_s = camera.source.frozen_after_s
        tolerance = camera.frozen_tolerance_levels
        self._frozen = None if after_s is None else Frozen(after_s, tolerance_levels=tolerance, before=inspected)
        self._part_by_part = TriggerKind(camera.trigger.kind) is not TriggerKind.CONTINUOUS
        self._slot_bytes = slot_bytes
        self._inspected = None if inspected is None else inspected.pixels_bgr
        self._refused: tuple[Frame | None, Reason | None] = None, None

    def feed(self, frame: Frame) -> Frame:
        """Takes every frame of the source, inspected or not; gives it with the word on its moment, for later.

        A damaged picture says nothing: it neither stands still nor shows that the camera lives.
        """
        if self._frozen is None or frame.damage is not None or not self._frozen.feed(frame):
            return frame
        return replace(frame, frozen=True)

    def refuse(self, frame: Frame) -> Reason | None:
        """Why a frame is an error already; None for one worth a look.

        Once judged: two triggers, or parts that lie side by side, may share a frame, which is no repeated picture.
        """
        if self._refused[0] is not frame:
            self._refused = frame, self._fault_of(frame)
        return self._refused[1]

    def _fault_of(self, frame: Frame) -> Reason | None:
        if frame.damage is not None or frame.pixels_bgr.nbytes > self._slot_bytes:
            return Reason.FRAME_CORRUPT
        return Reason.FRAME_FROZEN if frame.frozen or self._is_repeated(frame) else None

    def _is_repeated(self, frame: Frame) -> bool:
        """Whether the picture is that of the last part, bit for bit: parts come one by one, so it must differ."""
        if self._frozen is None or not self._part_by_part:
            return False
        repeated = self._inspected is not None and same_pixels(self._inspected, frame.pixels_bgr)
        self._inspected = frame.pixels_bgr
        return repeated


def same_pixels(left: PixelsU8, right: PixelsU8, tolerance_levels: int = 0) -> bool:
    """Whether no value of two pictures differs by more than that. A sample comes first, since most pictures differ."""
    if left.shape != right.shape:
        return False
    sample = np.s_[SAMPLE_PX // 2 :: SAMPLE_PX, SAMPLE_PX // 2 :: SAMPLE_PX]
    return _differ(left[sample], right[sample]) <= tolerance_levels and _differ(left, right) <= tolerance_levels


def _differ(left: PixelsU8, right: PixelsU8) -> float:
    """The largest difference of two pictures in grey levels."""
    return cv2.norm(left, right, cv2.NORM_INF) if left.size else 0.0
