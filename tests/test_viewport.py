"""The geometry between frames, boxes, tiles and grids."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from tests_inspection import bright_recipe

from inspectd.errors import SourceError
from inspectd.recipe import Tiling
from inspectd.viewport import frame_size_error, nearest_kinds, polygon_mask, stitch, tile_boxes, upsample, viewport

GRID = (15, 15)
HALF = "[region]\npolygon_px = [[32, 0], [64, 0], [64, 48], [32, 48]]\n"


def naive_inside(polygon, x: float, y: float) -> bool:
    """Even-odd rule for one point, from the textbook."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


@pytest.mark.parametrize("seed", range(6))
def test_a_polygon_holds_the_pixels_whose_centres_it_holds(seed: int):
    """Agrees with the textbook's point test at every pixel, also for polygons that cross themselves."""
    polygon = [tuple(point) for point in np.random.default_rng(seed).uniform(0, 40, (7, 2)).tolist()]
    mask = polygon_mask(polygon, (3, 2, 37, 38))
    wanted = [[naive_inside(polygon, 3 + x + 0.5, 2 + y + 0.5) for x in range(37)] for y in range(38)]
    assert mask.tolist() == wanted


def test_the_box_is_what_the_polygon_touches(tmp_path: Path):
    """Corners with fractions widen the box to whole pixels; the polygon inside it is exact."""
    recipe = bright_recipe(tmp_path, "[region]\npolygon_px = [[10.6, 5.2], [40, 5.2], [40, 30.4], [10.6, 30.4]]")
    view = viewport(recipe, (64, 48), GRID)
    assert view.box_xywh_px == (10, 5, 30, 26)
    assert view.roi.sum() == 29 * 25  # the pixel column 10 and the pixel row 30 have their centres outside


def test_a_polygon_around_the_whole_frame_is_no_polygon(tmp_path: Path):
    """[W, H] is the corner of a frame W x H: nothing is left out."""
    recipe = bright_recipe(tmp_path, "[region]\npolygon_px = [[0, 0], [64, 0], [64, 48], [0, 48]]")
    view = viewport(recipe, (64, 48), GRID)
    assert (view.box_xywh_px, view.roi, view.tiles[0].inside) == ((0, 0, 64, 48), None, None)


@pytest.mark.parametrize(
    ("text", "size", "part"),
    [
        ("", (15, 400), "at least 16 px"),
        ("[region]\npolygon_px = [[0, 0], [65, 0], [0, 40]]", (64, 48), "reaches x = 65, y = 40, but a frame is 64x48"),
        ("[region]\npolygon_px = [[0, 0], [60, 0], [0, 48.5]]", (64, 48), "y = 49"),
        ("[region]\npolygon_px = [[0, 10.6], [640, 10.6], [640, 10.8], [0, 10.8]]", (640, 480), "holds no pixel"),
        ("[tiling]\ntile_px = 32\noverlap = 0.5", (1920, 1080), "at most 1024"),
    ],
)
def test_frames_that_cannot_be_looked_at_are_named(tmp_path: Path, text: str, size: tuple[int, int], part: str):
    """One line says what does not fit, and `viewport` refuses with the same line."""
    recipe = bright_recipe(tmp_path, text)
    error = frame_size_error(recipe, size)
    assert part in error
    with pytest.raises(SourceError, match=re.escape(error)):
        viewport(recipe, size, GRID)


@pytest.mark.parametrize("size", [(100, 40), (101, 83), (40, 41), (333, 250)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.75])
def test_tiles_are_squares_inside_that_cover_with_the_overlap(size: tuple[int, int], overlap: float):
    """Every pixel is covered, no tile leaves the box, neighbours share at least the overlap."""
    boxes = tile_boxes(size, Tiling(tile_px=40, overlap=overlap))
    covered = np.zeros(size[::-1], dtype=int)
    for x, y, w, h in boxes:
        assert w == h == 40
        assert min(x, y) >= 0
        assert (x + w <= size[0], y + h <= size[1]) == (True, True)
        covered[y : y + h, x : x + w] += 1
    assert covered.min() >= 1
    starts = sorted({x for x, *_ in boxes})
    assert all(40 - (b - a) >= 40 * overlap for a, b in itertools.pairwise(starts))
    assert len(set(boxes)) == len(boxes)


def test_a_box_no_larger_than_a_tile_is_one_crop_of_the_box():
    """Nothing is cut, nothing is padded."""
    assert tile_boxes((40, 30), Tiling(tile_px=40)) == [(0, 0, 40, 30)]
    assert tile_boxes((640, 480), None) == [(0, 0, 640, 480)]


def test_patches_inside_are_those_with_a_pixel_of_the_polygon(tmp_path: Path):
    """A 30x30 box of 15x15 patches has 2x2 pixels each; tiles beside the polygon are not looked at."""
    recipe = bright_recipe(tmp_path, "[region]\npolygon_px = [[0, 0], [60, 0], [60, 30], [30, 30], [30, 11], [0, 11]]")
    (tile,) = viewport(recipe, (64, 48), GRID).tiles
    wanted = np.zeros(GRID, dtype=bool)
    wanted[:6, :] = True  # rows of pixels 0 to 10
    wanted[:, 8:] = True
    wanted[:, 7] = True  # columns of pixels 28 to 31: two of them inside
    assert np.array_equal(tile.inside, wanted)
    tiled = bright_recipe(
        tmp_path,
        "[region]\npolygon_px = [[0, 0], [64, 0], [64, 10], [32, 10], [32, 64], [0, 64]]\n"
        "[tiling]\ntile_px = 32\noverlap = 0",
    )
    assert [tile.xywh_px[:2] for tile in viewport(tiled, (64, 64), GRID).tiles] == [(0, 0), (32, 0), (0, 32)]


def test_upsampling_is_torchs_bilinear():
    """cv2's linear resize equals torch's without aligned corners, which the specification asks for."""
    torch_upsample = pytest.importorskip("inspectd.detect.preprocess").upsample_map
    grid = np.random.default_rng(0).random((15, 15)).astype(np.float32)
    for size_hw in [(240, 240), (1080, 1920), (37, 501), (9, 4)]:
        assert np.allclose(upsample(grid, size_hw), torch_upsample(grid, size_hw), atol=2e-6)


def test_one_crop_needs_no_stitching(tmp_path: Path):
    """The map of an untiled box is the upsampled grid itself."""
    view = viewport(bright_recipe(tmp_path), (64, 48), GRID)
    grid = np.random.default_rng(1).random(GRID).astype(np.float32)
    assert np.array_equal(stitch(view, [grid]), upsample(grid, (48, 64)))
    assert stitch(view, [None]) is None


def test_a_pattern_that_repeats_by_the_step_gives_a_map_that_does(tmp_path: Path):
    """All tiles see the same, so the stitched map repeats too, across every seam."""
    view = viewport(bright_recipe(tmp_path, "[tiling]\ntile_px = 40\noverlap = 0.25"), (160, 100), GRID)
    grid = np.random.default_rng(2).random(GRID).astype(np.float32)
    stitched = stitch(view, [grid] * len(view.tiles))
    assert stitched.shape == (100, 160)
    inner = stitched[30:70, 30:130]
    assert np.allclose(inner[:, :70], inner[:, 30:], atol=1e-6)


def test_stitching_shows_no_seam(tmp_path: Path):
    """Tiles of different levels are blended: no step between neighbours is larger than the ramp's."""
    view = viewport(bright_recipe(tmp_path, "[tiling]\ntile_px = 40\noverlap = 0.5"), (100, 40), GRID)
    levels = [np.full(GRID, level, np.float32) for level in (0.0, 1.0, 0.0, 1.0)]
    stitched = stitch(view, levels[: len(view.tiles)])
    assert np.abs(np.diff(stitched, axis=1)).max() <= 1 / 20 + 1e-6
    assert stitched[:, 0].max() == 0


def test_averaged_tiles_count_alike_where_they_overlap(tmp_path: Path):
    """Without blending the map of two tiles is each one's own, and their mean in the overlap."""
    recipe = bright_recipe(tmp_path, '[tiling]\ntile_px = "short_side"\noverlap = 0.5\ncombine = "averaged"')
    view = viewport(recipe, (60, 40), GRID)
    stitched = stitch(view, [np.full(GRID, level, np.float32) for level in (0.2, 0.6)])
    assert [tile.xywh_px for tile in view.tiles] == [(0, 0, 40, 40), (20, 0, 40, 40)]
    assert [float(stitched[7, x]) for x in (0, 19, 20, 39, 40, 59)] == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6])


def test_tiles_of_the_short_side_cover_wide_and_high_boxes_and_leave_a_square_whole():
    """`short_side` cuts along the longer side only."""
    tiling = Tiling(tile_px="short_side", overlap=0)
    assert tile_boxes((100, 40), tiling) == [(0, 0, 40, 40), (40, 0, 40, 40), (60, 0, 40, 40)]
    assert tile_boxes((40, 70), tiling) == [(0, 0, 40, 40), (0, 30, 40, 40)]
    assert tile_boxes((50, 50), tiling) == [(0, 0, 50, 50)]


def test_regions_are_named_by_the_patches_that_they_lie_in(tmp_path: Path):
    """A region takes the kind that most of its pixels are near to, over all tiles that see it, wherever the box is."""
    text = "[region]\npolygon_px = [[10, 20], [70, 20], [70, 60], [10, 60]]\n"
    view = viewport(bright_recipe(tmp_path, text + "[tiling]\ntile_px = 40\noverlap = 0.5"), (100, 80), GRID)
    left, right = (np.full((2, *GRID), 0.1, np.float32) for _ in range(2))
    left[0], right[1] = 0.9, 0.9
    labels = np.zeros((30, 60), np.uint8)
    labels[5:20, :10], labels[5:20, 50:] = 1, 2
    assert [tile.xywh_px[0] for tile in view.tiles] == [0, 20]
    assert nearest_kinds(view, [left, right], labels, (10, 25)) == [0, 1]
    assert nearest_kinds(view, [left, None], labels, (10, 25)) == [0, None]
    assert nearest_kinds(view, [None, None], labels, (10, 25)) == [None, None]


def test_kind_follows_the_patch_and_not_the_tile(tmp_path: Path):
    """Two regions of one tile over patches of two kinds have two names."""
    view = viewport(bright_recipe(tmp_path), (60, 45), GRID)
    grid = np.zeros((3, *GRID), np.float32)
    grid[1, :, :7], grid[2, :, 8:] = 0.7, 0.6
    labels = np.zeros((10, 60), np.uint8)
    labels[:, 2:20], labels[:, 40:50] = 2, 1
    assert nearest_kinds(view, [grid], labels, (0, 30)) == [2, 1]


def test_a_constant_map_stays_constant_with_tiles_left_out(tmp_path: Path):
    """Weights sum to one wherever any tile speaks; a tile without a map says nothing."""
    view = viewport(bright_recipe(tmp_path, "[tiling]\ntile_px = 40\noverlap = 0.25"), (130, 90), GRID)
    grids = [np.full(GRID, 0.7, np.float32) for _ in view.tiles]
    assert np.allclose(stitch(view, grids), 0.7)
    partial = stitch(view, [grids[0], *[None] * (len(grids) - 1)])
    assert np.allclose(partial[:40, :40], 0.7)
    assert partial[40:, 40:].max() == 0
