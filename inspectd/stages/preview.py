"""Preview pictures: what the model was given, with its heatmap blended in. Made only while somebody looks."""

from __future__ import annotations

import numpy as np

from inspectd.drawing import blend_heat
from inspectd.images import encode_jpeg, rgb_to_bgr
from inspectd.inspection import Crops
from inspectd.records import Inspection, PixelsU8

JPEG_QUALITY = 80


class PreviewClock:
    """Lets a camera's previews through at a limited rate. Pure: time comes in."""

    def __init__(self, rate_fps: float) -> None:
        self._period_ns = round(1e9 / rate_fps)
        self._due_ns: dict[int, int] = {}

    def is_due(self, camera: int, now_ns: int) -> bool:
        """Whether a preview of the camera may go out now; if so, the next one waits a period."""
        if now_ns < self._due_ns.get(camera, 0):
            return False
        self._due_ns[camera] = now_ns + self._period_ns
        return True


def preview_jpeg(crops: Crops, inspection: Inspection, pixel_threshold: float) -> bytes:
    """The inspected box with its heat as a JPEG.

    Raises:
        ValueError: the picture cannot be encoded.
    """
    return encode_jpeg(picture_bgr(crops, inspection, pixel_threshold), quality=JPEG_QUALITY)


def picture_bgr(crops: Crops, inspection: Inspection, pixel_threshold: float) -> PixelsU8:
    """The inspected box, with its heat where there is a map: it begins at half the pixel threshold and is full at it.

    Raises:
        ValueError: there is no such picture.
    """
    picture = rgb_to_bgr(_box_rgb(crops))
    if inspection.anomaly_map is None:
        return picture
    return blend_heat(
        picture, inspection.anomaly_map, (0, 0), low=0.5 * pixel_threshold, high=max(pixel_threshold, 1e-6)
    )


def _box_rgb(crops: Crops) -> PixelsU8:
    """The box from its tiles; black where no tile looks."""
    box = np.zeros((*crops.view.size_hw_px, 3), np.uint8)
    for tile, image in zip(crops.view.tiles, crops.images_rgb, strict=True):
        x, y, w, h = tile.xywh_px
        box[y : y + h, x : x + w] = image
    return box
