"""What of a frame the model is shown: the box around the region of interest, whole or cut into tiles. Pure geometry.

A polygon's corners lie on pixel edges: `[0, 0]` is the frame's top left corner, `[W, H]` its bottom right one, and a
pixel belongs to the polygon when its centre does. Letters: h, w the box in pixels; G the sides of the model's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import SourceError
from inspectd.recipe import Recipe, Tiling
from inspectd.records import MapF32, PixelsU8

MaskBool = NDArray[np.bool_]

LEAST_SIDE_PX = 16
"""Frames with a shorter side are refused: nothing can be seen in them."""
MOST_TILES = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """One crop of the box: `xywh_px` in the box's own pixels, `inside (G, G)` the patches that the polygon touches
    (None: all of them)."""

    xywh_px: tuple[int, int, int, int]
    inside: MaskBool | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Viewport:
    """Where to look in frames of one size. `roi (h, w)` is True inside the polygon; None: everywhere. `averaged`: all
    tiles count alike; otherwise the worst one is the score and maps blend."""

    box_xywh_px: tuple[int, int, int, int]
    roi: MaskBool | None
    tiles: tuple[Tile, ...]
    averaged: bool = False

    @property
    def origin_xy_px(self) -> tuple[int, int]:
        """The top left pixel of the box in the frame."""
        return self.box_xywh_px[:2]

    @property
    def size_hw_px(self) -> tuple[int, int]:
        """Height and width of the box."""
        return self.box_xywh_px[3], self.box_xywh_px[2]

    def box(self, pixels: PixelsU8) -> PixelsU8:
        """The box of a frame, a view."""
        x, y, w, h = self.box_xywh_px
        return pixels[y : y + h, x : x + w]

    def tiles_of(self, box: PixelsU8) -> list[PixelsU8]:
        """The tiles of a box, views."""
        return [box[y : y + h, x : x + w] for x, y, w, h in (tile.xywh_px for tile in self.tiles)]


def frame_size_error(recipe: Recipe, size_wh_px: tuple[int, int]) -> str | None:
    """Why frames of that size cannot be inspected by the recipe, in one line; None when they can."""
    width, height = size_wh_px
    if min(size_wh_px) < LEAST_SIDE_PX:
        return f"a frame is {width}x{height}, at least {LEAST_SIDE_PX} px a side are needed"
    box = box_of(recipe, size_wh_px)
    if box[0] + box[2] > width or box[1] + box[3] > height:
        return (
            f"{recipe.path}: region.polygon_px reaches x = {box[0] + box[2]}, y = {box[1] + box[3]}, "
            f"but a frame is {width}x{height}"
        )
    count = len(tile_boxes((box[2], box[3]), recipe.tiling))
    if count > MOST_TILES:
        return f"{recipe.path}: tiling.tile_px cuts a frame into {count} tiles, at most {MOST_TILES} are allowed"
    if recipe.region is not None and not polygon_mask(recipe.region.polygon_px, box).any():
        return f"{recipe.path}: region.polygon_px holds no pixel"
    return None


def viewport(recipe: Recipe, size_wh_px: tuple[int, int], grid_hw: tuple[int, int]) -> Viewport:
    """Where the recipe looks in frames of that size. Tiles that do not touch the polygon are left out.

    Raises:
        SourceError: frames of that size cannot be inspected (see `frame_size_error`).
    """
    error = frame_size_error(recipe, size_wh_px)
    if error is not None:
        raise SourceError(error)
    box = box_of(recipe, size_wh_px)
    roi = None if recipe.region is None else polygon_mask(recipe.region.polygon_px, box)
    if roi is not None and roi.all():
        roi = None
    tiles = (_tile(xywh, roi, grid_hw) for xywh in tile_boxes((box[2], box[3]), recipe.tiling))
    return Viewport(
        box_xywh_px=box,
        roi=roi,
        tiles=tuple(tile for tile in tiles if tile is not None),
        averaged=recipe.tiling is not None and recipe.tiling.combine == "averaged",
    )


def box_of(recipe: Recipe, size_wh_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels that the polygon touches as x, y, width, height; the whole frame without a polygon."""
    if recipe.region is None:
        return (0, 0, *size_wh_px)
    xs, ys = zip(*recipe.region.polygon_px, strict=True)
    x, y = floor(min(xs)), floor(min(ys))
    return x, y, ceil(max(xs)) - x, ceil(max(ys)) - y


def polygon_mask(polygon_px: Sequence[tuple[float, float]], box_xywh_px: tuple[int, int, int, int]) -> MaskBool:
    """`(h, w)` bool over the box: True where a pixel's centre lies inside the polygon (even-odd rule, exact).

    >>> polygon_mask([(0, 0), (3, 0), (3, 2), (0, 2)], (0, 0, 4, 3)).astype(int).tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    """
    x, y, w, h = box_xywh_px
    corners = np.asarray(polygon_px, dtype=np.float64) - (x, y)
    toggles = np.zeros((h, w + 1), dtype=np.int32)
    centres = np.arange(h) + 0.5
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = np.flatnonzero((centres >= min(y0, y1)) & (centres < max(y0, y1)))
        if rows.size:
            crossings = x0 + (centres[rows] - y0) * (x1 - x0) / (y1 - y0)
            first = np.clip(np.ceil(crossings - 0.5), 0, w).astype(np.intp)
            np.add.at(toggles, (rows, first), 1)
    inside: MaskBool = np.cumsum(toggles, axis=1)[:, :w] % 2 == 1
    return inside


def tile_boxes(size_wh_px: tuple[int, int], tiling: Tiling | None) -> list[tuple[int, int, int, int]]:
    """Squares x, y, side, side that cover a box, row by row; the box itself where it is no larger than one tile.

    A box with one side shorter than a tile gets squares of that side. The step is the same everywhere, but the last
    square of a row or column is shifted back inside.

    >>> [box[:2] for box in tile_boxes((100, 40), Tiling(tile_px=40, overlap=0.25))]
    [(0, 0), (30, 0), (60, 0)]
    """
    width, height = size_wh_px
    if tiling is None:
        return [(0, 0, width, height)]
    tile_px = min(size_wh_px) if isinstance(tiling.tile_px, str) else tiling.tile_px
    if max(size_wh_px) <= tile_px:
        return [(0, 0, width, height)]
    side = min(tile_px, width, height)
    step = max(1, floor(side * (1 - tiling.overlap)))
    return [(x, y, side, side) for y in _starts(height, side, step) for x in _starts(width, side, step)]


def _starts(length: int, side: int, step: int) -> list[int]:
    return [min(start, length - side) for start in range(0, length - side + step, step)]


def _tile(xywh_px: tuple[int, int, int, int], roi: MaskBool | None, grid_hw: tuple[int, int]) -> Tile | None:
    """The tile with the patches that the polygon touches; None when it touches none."""
    if roi is None:
        return Tile(xywh_px=xywh_px, inside=None)
    x, y, w, h = xywh_px
    rows, columns = np.nonzero(roi[y : y + h, x : x + w])
    if not rows.size:
        return None
    inside = np.zeros(grid_hw, dtype=np.bool_)
    inside[_patch_of(rows, h, grid_hw[0]), _patch_of(columns, w, grid_hw[1])] = True
    return Tile(xywh_px=xywh_px, inside=None if inside.all() else inside)


def _patch_of(pixels: NDArray[np.intp], length_px: int, grid: int) -> NDArray[np.intp]:
    """The patch that each pixel's centre falls into, along one axis."""
    return ((pixels + 0.5) * (grid / length_px)).astype(np.intp)


def stitch(view: Viewport, grid_maps: Sequence[MapF32 | None]) -> MapF32 | None:
    """The anomaly map `(h, w) float32` of the box from its tiles' maps `(G, G)`; None where no tile has one.

    Maps are upsampled bilinearly. Overlapping tiles are blended with weights that fall to nothing at a tile's edge, so
    that no seam shows, or averaged. A tile without a map says nothing; where no tile has one, 0.
    """
    have = [(tile.xywh_px, grid) for tile, grid in zip(view.tiles, grid_maps, strict=True) if grid is not None]
    if not have:
        return None
    if len(view.tiles) == 1 and have[0][0][2:] == view.box_xywh_px[2:]:
        return upsample(have[0][1], view.size_hw_px)
    total, weights = np.zeros(view.size_hw_px, np.float32), np.zeros(view.size_hw_px, np.float32)
    for (x, y, w, h), grid in have:
        weight = np.ones((h, w), np.float32) if view.averaged else np.outer(_hat(h), _hat(w))
        total[y : y + h, x : x + w] += weight * upsample(grid, (h, w))
        weights[y : y + h, x : x + w] += weight
    return np.divide(total, weights, out=total, where=weights > 0)


def nearest_kinds(
    view: Viewport, grids: Sequence[MapF32 | None], labels: PixelsU8, origin_xy_px: tuple[int, int]
) -> list[int | None]:
    """For each region the kind that its pixels are nearest to on average; None where no tile says anything.

    Args:
        grids: for each tile how near each patch is to each of K kinds, `(K, G, G)`, or None.
        labels: `(h, w)`, 0 or the region's number from 1, its corner at `origin_xy_px` in the frame.
    """
    offset = origin_xy_px[0] - view.origin_xy_px[0], origin_xy_px[1] - view.origin_xy_px[1]
    said = [(tile, grid) for tile, grid in zip(view.tiles, grids, strict=True) if grid is not None]
    regions = int(labels.max())
    if not said:
        return [None] * regions
    nearness = np.zeros((regions, len(said[0][1])))
    for tile, grid in said:
        counts = _patch_counts(labels, offset, tile.xywh_px, (grid.shape[1], grid.shape[2]))
        nearness += counts[1:] @ grid.reshape(len(grid), -1).T
    return [int(row.argmax()) if row.any() else None for row in nearness]


def _patch_counts(
    labels: PixelsU8, offset_xy_px: tuple[int, int], tile_xywh_px: tuple[int, int, int, int], grid_hw: tuple[int, int]
) -> NDArray[np.intp]:
    """How many pixels of each label lie in each patch of a tile: `(1 + regions, P)`, the background uncounted."""
    x, y, w, h = tile_xywh_px
    left, top = x - offset_xy_px[0], y - offset_xy_px[1]  # of the tile, as the labels count
    first_x, first_y = max(0, left), max(0, top)
    rows, columns = np.nonzero(labels[first_y : max(0, top + h), first_x : max(0, left + w)])
    own = labels[rows + first_y, columns + first_x].astype(np.intp)
    patch = _patch_of(rows + first_y - top, h, grid_hw[0]) * grid_hw[1]
    patch += _patch_of(columns + first_x - left, w, grid_hw[1])
    shape = int(labels.max()) + 1, grid_hw[0] * grid_hw[1]
    return np.bincount(own * shape[1] + patch, minlength=shape[0] * shape[1]).reshape(shape)


def upsample(grid_map: MapF32, size_hw_px: tuple[int, int]) -> MapF32:
    """A map at the grid's resolution as `(h, w)` pixels: bilinear, half-pixel centres (torch's `align_corners=False`,
    to rounding, at a tenth of its time)."""
    h, w = size_hw_px
    return np.asarray(cv2.resize(grid_map, (w, h), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _hat(side_px: int) -> MapF32:
    """Weights along a tile's side: 1 in the middle, falling in a straight line to (nearly) 0 at both ends."""
    centre = np.arange(side_px, dtype=np.float32) + 0.5
    weights: MapF32 = np.minimum(centre, side_px - centre) / np.float32(side_px / 2)
    return weights
