"""Pictures for people: regions and heat on a frame, a verdict under it, and a contact sheet of many.

Colours are Okabe and Ito's, which colour-blind people can tell apart, and no colour stands without its word. Pixels
are `(H, W, 3) uint8` BGR; nothing is drawn into what was given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

import cv2
import numpy as np

from inspectd.records import Decision, LabelMask, MapF32, PixelsU8, Region

Colour = tuple[int, int, int]

_GREEN: Colour = (115, 158, 0)
_VERMILLION: Colour = (0, 94, 213)
_YELLOW: Colour = (66, 228, 240)
_WHITE: Colour = (255, 255, 255)
_INK: Colour = (30, 26, 24)
_PANEL: Colour = (44, 38, 35)
_PALE: Colour = (176, 168, 160)

_FONT = "sans"
_REGULAR, _BOLD = 400, 650
_TAGS = 12
"""Regions that get a written score; more would hide the part."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """One picture of a contact sheet. `caption` stands under it beside the verdict, `note` in a line of its own."""

    picture_bgr: PixelsU8
    decision: Decision
    caption: str
    note: str = ""


def colour_of(decision: Decision) -> Colour:
    """The colour of a verdict: bluish green, vermillion, yellow."""
    match decision:
        case Decision.PASS:
            return _GREEN
        case Decision.FAIL:
            return _VERMILLION
        case Decision.ERROR:
            return _YELLOW


def blend_heat(
    pixels_bgr: PixelsU8, anomaly_map: MapF32, origin_xy_px: tuple[int, int], *, low: float, high: float
) -> PixelsU8:
    """The frame with the anomaly map `(h, w) float32` laid over it: nothing up to `low`, strongest from `high` on."""
    picture = pixels_bgr.copy()
    x, y = origin_xy_px
    h, w = anomaly_map.shape
    heat = np.clip((anomaly_map - low) / max(high - low, 1e-6), 0, 1)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    part = picture[y : y + h, x : x + w]
    alpha = 0.75 * heat[..., None]
    part[:] = (part * (1 - alpha) + colours * alpha).astype(np.uint8)
    return picture


def draw_regions(
    pixels_bgr: PixelsU8, regions: Sequence[Region], mask: LabelMask | None, *, tags: bool = True
) -> PixelsU8:
    """The frame with every region outlined, boxed, and (with `tags`) tagged with its highest score."""
    picture = pixels_bgr.copy()
    scale = _scale(picture)
    if mask is not None:
        _outline(picture, mask, max(1, round(scale)))
    for region in regions:
        x, y, w, h = region.bbox_xywh_px
        pad = round(4 * scale)
        corners = (x - pad, y - pad), (x + w + pad, y + h + pad)
        cv2.rectangle(picture, *corners, _INK, max(3, round(3 * scale)), cv2.LINE_AA)
        cv2.rectangle(picture, *corners, _VERMILLION, max(1, round(1.5 * scale)), cv2.LINE_AA)
    for region in regions[: _TAGS if tags else 0]:
        _tag(picture, region, scale)
    return picture


def draw_verdict(picture_bgr: PixelsU8, decision: Decision, caption: str) -> PixelsU8:
    """The picture with a strip below it: the verdict in its colour, then the caption."""
    scale = _scale(picture_bgr)
    width = picture_bgr.shape[1]
    strip = np.full((round(34 * scale), width, 3), _INK, np.uint8)
    strip[: max(2, round(4 * scale))] = colour_of(decision)
    baseline, size = round(25 * scale), round(16 * scale)
    end = _write(strip, decision.upper(), (round(10 * scale), baseline), size, colour_of(decision), bold=True)
    _write(strip, caption, (end + round(12 * scale), baseline), size, _WHITE)
    return np.vstack([picture_bgr, strip])


def contact_sheet(
    cells: Sequence[Cell],
    *,
    columns: int = 8,
    title: str = "",
    counts: Mapping[Decision, int] | None = None,
    cell_width_px: int = 220,
) -> PixelsU8:
    """All cells in rows of `columns`, each with a coloured frame and its verdict below, under a heading.

    Args:
        counts: the verdicts that the heading tells, where the cells are only some of them.
    """
    gap, heading = 14, 76
    width, height = cell_width_px, _picture_height(cells, cell_width_px) + _CAPTION_PX
    columns = max(1, min(columns, len(cells)))
    rows = ceil(len(cells) / columns)
    sheet = np.full((heading + rows * (height + gap) + gap, max(420, columns * (width + gap) + gap), 3), _INK, np.uint8)
    shown = Counter(cell.decision for cell in cells)
    _head(sheet, title, shown if counts is None else counts)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x, y = gap + column * (width + gap), heading + row * (height + gap)
        sheet[y : y + height, x : x + width] = _cell(cell, (width, height - _CAPTION_PX))
    return sheet


def _picture_height(cells: Sequence[Cell], width_px: int) -> int:
    """The height that suits most pictures, none extreme."""
    heights = [width_px * cell.picture_bgr.shape[0] / cell.picture_bgr.shape[1] for cell in cells]
    return round(min(max(median(heights), 0.4 * width_px), 1.5 * width_px)) if heights else width_px


_CAPTION_PX = 46


def _cell(cell: Cell, cell_wh_px: tuple[int, int]) -> PixelsU8:
    width, height = cell_wh_px
    colour = colour_of(cell.decision)
    tile = np.full((height + _CAPTION_PX, width, 3), _PANEL, np.uint8)
    _fit(cell.picture_bgr, tile[:height])
    cv2.rectangle(tile, (0, 0), (width - 1, height + _CAPTION_PX - 1), colour, 3)
    tile[height : height + 3] = colour
    end = _write(tile, cell.decision.upper(), (10, height + 22), 14, _bright(colour), bold=True)
    _write(tile, cell.caption, (end + 8, height + 22), 14, _WHITE)
    _write(tile, cell.note, (10, height + 39), 12, _PALE)
    return tile


def _head(sheet: PixelsU8, title: str, counts: Mapping[Decision, int]) -> None:
    _write(sheet, title, (16, 34), 24, _WHITE, bold=True)
    x = 16
    for decision in Decision:
        if count := counts.get(decision, 0):
            cv2.rectangle(sheet, (x, 48), (x + 11, 59), colour_of(decision), cv2.FILLED)
            x = _write(sheet, f"{count} {decision}", (x + 18, 59), 15, _PALE) + 22


def _fit(picture_bgr: PixelsU8, room: PixelsU8) -> None:
    """Shrinks (or enlarges) a picture into the middle of `room` without distorting it."""
    height, width = picture_bgr.shape[:2]
    factor = min(room.shape[0] / height, room.shape[1] / width)
    w, h = max(1, round(width * factor)), max(1, round(height * factor))
    shrunk = cv2.resize(picture_bgr, (w, h), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    x, y = (room.shape[1] - w) // 2, (room.shape[0] - h) // 2
    room[y : y + h, x : x + w] = shrunk


def _outline(picture: PixelsU8, mask: LabelMask, thickness_px: int) -> None:
    """Tints the regions and draws their contours, into `picture`."""
    (x, y), (h, w) = mask.origin_xy_px, mask.labels.shape
    hot = mask.labels > 0
    part = picture[y : y + h, x : x + w]
    part[hot] = (part[hot] * 0.7 + np.array(_VERMILLION) * 0.3).astype(np.uint8)
    contours, _ = cv2.findContours(hot.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    cv2.drawContours(picture, contours, -1, _WHITE, thickness_px, cv2.LINE_AA)


def _tag(picture: PixelsU8, region: Region, scale: float) -> None:
    """The region's highest score on a dark plate above its box, or inside where there is no room above."""
    text, size = f"{region.score_max:.2f}", max(11, round(13 * scale))
    x, y = region.bbox_xywh_px[:2]
    width, height = _width(text, size, bold=True) + size, round(1.5 * size)
    left = max(0, min(x - round(4 * scale), picture.shape[1] - width))
    top = y - round(4 * scale) - height
    top = max(0, min(top if top >= 0 else y, picture.shape[0] - height))
    cv2.rectangle(picture, (left, top), (left + width, top + height), _VERMILLION, cv2.FILLED)
    _write(picture, text, (left + size // 2, top + round(1.15 * size)), size, _WHITE, bold=True)


def _write(
    picture: PixelsU8, text: str, baseline_xy_px: tuple[int, int], size_px: int, colour: Colour, *, bold: bool = False
) -> int:
    """Writes into `picture`, the text's baseline beginning there; gives the x at which it ends."""
    if not text:
        return baseline_xy_px[0]
    weight = _BOLD if bold else _REGULAR
    cv2.putText(picture, text, baseline_xy_px, colour, cv2.FontFace(_FONT), size_px, weight)
    return baseline_xy_px[0] + _width(text, size_px, bold=bold)


def _width(text: str, size_px: int, *, bold: bool) -> int:
    weight = _BOLD if bold else _REGULAR
    box = cv2.getTextSize((4096, 256), text, (0, 128), cv2.FontFace(_FONT), size_px, weight)
    return int(box[0] + box[2])


def _bright(colour: Colour) -> Colour:
    """A colour that can be read as text on the dark panel."""
    blue, green, red = (round(channel + (255 - channel) * 0.3) for channel in colour)
    return blue, green, red


def _scale(picture: PixelsU8) -> float:
    """How much larger than 640 px the picture is: lines and letters grow with it."""
    return max(0.7, int(max(picture.shape[:2])) / 640)
