"""Pictures for people: what is drawn is where it belongs, and the original stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

from inspectd.drawing import Cell, blend_heat, colour_of, contact_sheet, draw_regions, draw_verdict
from inspectd.recipe import Filters
from inspectd.records import Decision
from inspectd.regions import find_regions


def grey_frame(height: int = 240, width: int = 320) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def test_regions_are_drawn_at_their_place_and_nowhere_else():
    """The region is tinted and outlined; a corner far away keeps its pixels, and so does the original."""
    frame, anomaly = grey_frame(), np.zeros((240, 320), np.float32)
    anomaly[100:140, 150:200] = 0.9
    found = find_regions(anomaly, None, 0.5, Filters())
    drawn = draw_regions(frame, found.regions, found.mask)
    assert (frame == 100).all()
    assert (drawn[105:135, 155:195] != 100).any(axis=2).all()
    assert (drawn[:60] == 100).all()
    assert (drawn[:, 220:] == 100).all()


@pytest.mark.parametrize("place", [(0, 0), (0, 300), (220, 0), (220, 300)])
def test_regions_at_the_border_can_be_drawn(place: tuple[int, int]):
    """Tags are moved inside; nothing is written beyond the picture."""
    anomaly = np.zeros((240, 320), np.float32)
    anomaly[place[0] : place[0] + 20, place[1] : place[1] + 20] = 1
    found = find_regions(anomaly, None, 0.5, Filters())
    assert draw_regions(grey_frame(), found.regions, found.mask).shape == (240, 320, 3)


def test_heat_begins_above_the_low_mark():
    """Cool pixels are untouched, hot ones are not, and only inside the map's box."""
    anomaly = np.zeros((50, 60), np.float32)
    anomaly[:, 30:] = 1
    heated = blend_heat(grey_frame(), anomaly, (20, 10), low=0.2, high=1.0)
    changed = (heated != 100).any(axis=2)
    assert changed[10:60, 50:80].all()
    assert changed.sum() == 50 * 30


def test_the_verdict_stands_in_a_strip_below_in_its_colour():
    """The picture itself is whole, the strip has the verdict's colour."""
    picture = draw_verdict(grey_frame(), Decision.FAIL, "0.71 ≥ 0.55")
    assert (picture[:240] == 100).all()
    assert picture.shape[0] > 240
    assert tuple(picture[240, 5]) == colour_of(Decision.FAIL)


def test_verdicts_have_colours_of_their_own():
    """No two verdicts look alike."""
    assert len({colour_of(decision) for decision in Decision}) == 3


@pytest.mark.parametrize(("count", "rows"), [(0, 0), (1, 1), (8, 1), (9, 2), (20, 3)])
def test_a_contact_sheet_has_a_framed_cell_for_every_part(count: int, rows: int):
    """Rows are filled from the left, each cell has its verdict's colour around it."""
    cells = [
        Cell(picture_bgr=grey_frame(), decision=list(Decision)[index % 3], caption="0.5", note=f"part {index}")
        for index in range(count)
    ]
    sheet = contact_sheet(cells, title="bottle")
    assert sheet.shape[0] == 76 + rows * (165 + 46 + 14) + 14
    for index, cell in enumerate(cells):
        row, column = divmod(index, 8)
        corner = sheet[76 + row * 225, 14 + column * 234]
        assert tuple(corner) == colour_of(cell.decision)


def test_pictures_of_any_shape_fit_their_cells():
    """A tall, a wide and a tiny picture are shrunk or enlarged whole: each keeps its shape."""
    shapes = [(2000, 40), (30, 1500), (1, 1), (240, 320)]
    cells = [
        Cell(picture_bgr=np.full((*shape, 3), 255, np.uint8), decision=Decision.PASS, caption="") for shape in shapes
    ]
    sheet = contact_sheet(cells, columns=4)
    for index, (height, width) in enumerate(shapes):
        white = (sheet[80:-60, 18 + 234 * index : 230 + 234 * index] == 255).all(axis=2)
        rows, columns = np.nonzero(white)
        seen = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert seen[0] / seen[1] == pytest.approx(height / width, rel=0.3)
