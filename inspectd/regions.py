"""From an anomaly map to regions: threshold, polygon, morphology, components, area filter, largest first. Pure.

Letters: h, w the map's height and width in pixels of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import DetectorError
from inspectd.recipe import Filters
from inspectd.records import LabelMask, MapF32, PixelsU8, Region

MOST_REGIONS = 255
"""What an 8-bit label mask can name."""
_LABELS_16 = 65535


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regions:
    """What was found. `mask` is None when there is no region; `truncated` tells of more than 255."""

    regions: tuple[Region, ...] = ()
    mask: LabelMask | None = None
    truncated: bool = False


def find_regions(
    anomaly_map: MapF32,
    roi: NDArray[np.bool_] | None,
    threshold: float,
    filters: Filters,
    origin_xy_px: tuple[int, int] = (0, 0),
) -> Regions:
    """The regions of a map `(h, w) float32`, in coordinates of the frame that has the map's corner at `origin_xy_px`.

    A pixel belongs to a region when its value reaches the threshold and it lies in `roi (h, w)`; opening and closing
    follow, then 8-connected components of at least the least area, the largest first (equal ones: top, then left).

    Raises:
        DetectorError: a value is not finite: the map can vouch for nothing.
    """
    if not np.isfinite(anomaly_map).all():
        raise DetectorError("an anomaly map holds values that are not finite")
    hot = (anomaly_map >= threshold).view(np.uint8)
    if roi is not None:
        hot &= roi.view(np.uint8)
    x, y, w, h = cv2.boundingRect(hot)
    if not w:
        return Regions()
    margin = max(filters.open_px, filters.close_px)  # morphology must not meet the cut's edge
    x0, y0 = max(0, x - margin), max(0, y - margin)
    part = np.s_[y0 : y + h + margin, x0 : x + w + margin]
    hot = _morphed(hot[part], filters)
    if roi is not None:
        hot &= roi[part].view(np.uint8)
    return _components(hot, anomaly_map[part], filters.min_area_px, (origin_xy_px[0] + x0, origin_xy_px[1] + y0))


def filters_error(filters: Filters, roi: NDArray[np.bool_]) -> str | None:
    """Why no region could come through the filters though all of `roi (h, w)` were anomalous; None where one can."""
    every = filters.model_copy(update={"min_area_px": 1})
    regions = find_regions(roi.astype(np.float32), roi, 0.5, every).regions
    if not regions:
        return f"filters.open_px: {filters.open_px} leaves no region of all that is inspected"
    if filters.min_area_px > regions[0].area_px:
        return f"filters.min_area_px: {filters.min_area_px}, but a region has {regions[0].area_px} px at most here"
    return None


def disk(diameter_px: int) -> PixelsU8:
    """A disk `(d, d) uint8`: 1 where a pixel's centre is within half the diameter of the disk's. Symmetric for any d.

    >>> disk(4).tolist()
    [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    """
    offset = np.arange(diameter_px) - (diameter_px - 1) / 2
    inside: PixelsU8 = (offset[:, None] ** 2 + offset**2 <= diameter_px**2 / 4).astype(np.uint8)
    return inside


def _morphed(hot: PixelsU8, filters: Filters) -> PixelsU8:
    """Opening takes specks away, then closing joins neighbours."""
    if filters.open_px > 1:
        hot = _dilated(_eroded(hot, filters.open_px), filters.open_px)
    if (margin := filters.close_px) > 1:
        h, w = hot.shape
        padded = np.pad(hot, margin)  # room to grow, or closing would reach for the border itself
        hot = _eroded(_dilated(padded, margin), margin)[margin : margin + h, margin : margin + w]
    return hot


# An even disk has no middle pixel: erosion and dilation must be anchored at mirrored pixels, or opening would shift
# a region by one (`cv2.morphologyEx` does). Nothing is known beyond the map, so its border does not erode.
def _eroded(hot: PixelsU8, diameter_px: int) -> PixelsU8:
    anchor = diameter_px // 2
    return np.asarray(cv2.erode(hot, disk(diameter_px), anchor=(anchor, anchor)), dtype=np.uint8)


def _dilated(hot: PixelsU8, diameter_px: int) -> PixelsU8:
    anchor = diameter_px - 1 - diameter_px // 2
    return np.asarray(cv2.dilate(hot, disk(diameter_px), anchor=(anchor, anchor)), dtype=np.uint8)


def _components(hot: PixelsU8, values: MapF32, min_area_px: int, origin_xy_px: tuple[int, int]) -> Regions:
    kind = cv2.CV_16U if _runs(hot) < _LABELS_16 else cv2.CV_32S  # 16-bit labels take half the time
    _, labels, whole, centroids = cv2.connectedComponentsWithStats(hot, connectivity=8, ltype=kind)
    stats = np.asarray(whole, dtype=np.int32)
    chosen, truncated = _largest(stats, min_area_px)
    if not chosen.size:
        return Regions()
    corner, far = stats[chosen, :2].min(axis=0), (stats[chosen, :2] + stats[chosen, 2:4]).max(axis=0)
    renamed = np.zeros(len(stats), np.uint8)
    renamed[chosen] = np.arange(1, len(chosen) + 1)
    renamed_labels = renamed[labels[corner[1] : far[1], corner[0] : far[0]]]
    origin = (origin_xy_px[0] + int(corner[0]), origin_xy_px[1] + int(corner[1]))
    regions = []
    for number, label in enumerate(chosen.tolist(), start=1):
        x, y, w, h, area = (int(value) for value in stats[label])
        own = values[y : y + h, x : x + w][labels[y : y + h, x : x + w] == label]
        regions.append(
            Region(
                id=number,
                bbox_xywh_px=(origin_xy_px[0] + x, origin_xy_px[1] + y, w, h),
                area_px=area,
                centroid_xy_px=(
                    origin_xy_px[0] + float(centroids[label, 0]),
                    origin_xy_px[1] + float(centroids[label, 1]),
                ),
                score_max=float(own.max()),
                score_mean=float(own.mean(dtype=np.float64)),
            )
        )
    mask = LabelMask(labels=renamed_labels, origin_xy_px=origin)
    return Regions(regions=tuple(regions), mask=mask, truncated=truncated)


def _largest(stats: NDArray[np.int32], min_area_px: int) -> tuple[NDArray[np.intp], bool]:
    """The labels of the regions that count, in their order, and whether there were more than can be named."""
    left, top, _, _, area = stats.T
    enough = 1 + np.flatnonzero(area[1:] >= min_area_px)
    order = np.lexsort((left[enough], top[enough], -area[enough]))
    return enough[order][:MOST_REGIONS], len(enough) > MOST_REGIONS


def _runs(hot: PixelsU8) -> int:
    """How many horizontal runs there are: no fewer than the components."""
    return int(np.count_nonzero(hot[:, 1:] > hot[:, :-1])) + int(np.count_nonzero(hot[:, 0]))
