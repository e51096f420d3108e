"""The demo's picture: every part as the daemon saw it, with its regions and its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from inspectd.demo.truth import Truth
from inspectd.drawing import Cell, contact_sheet, draw_regions
from inspectd.images import decode_label_png, encode_png
from inspectd.records import Decision, LabelMask, PixelsU8, Region
from inspectd.source_settings import FileSource
from inspectd.sources.base import EndOfSource
from inspectd.sources.open import open_source

COLUMNS = 8
CELL_WIDTH_PX = 200


def draw_sheet(
    clip: Path, truth: Truth, verdicts: Sequence[Mapping[str, Any]], masks: Mapping[int, bytes], title: str
) -> bytes:
    """The contact sheet as a PNG: frames are read from the clip again, everything drawn on them is from the messages.

    Raises:
        SourceError: a mask is no label mask.
    """
    wanted = {verdict["frame"]["index"] for verdict in verdicts if verdict["frame"] is not None}
    frames = _frames(clip, wanted)
    cells = [
        _cell(frames[verdict["frame"]["index"]], truth, verdict, masks.get(verdict["seq"]))
        for verdict in verdicts
        if verdict["frame"] is not None
    ]
    return encode_png(contact_sheet(cells, columns=COLUMNS, title=title, cell_width_px=CELL_WIDTH_PX))


def _cell(pixels_bgr: PixelsU8, truth: Truth, verdict: Mapping[str, Any], mask_png: bytes | None) -> Cell:
    regions = [Region(**region) for region in verdict["regions"]]
    mask = None
    if mask_png is not None:
        origin_x, origin_y = verdict["mask"]["origin_xy_px"]
        mask = LabelMask(labels=decode_label_png(mask_png), origin_xy_px=(origin_x, origin_y))
    x, y, w, h = truth.zone_xywh_px
    part = truth.part_of(verdict)
    what = "no part" if part is None else ", ".join(part.defects) or "good"
    verdict_is_right = part is not None and part.is_right(verdict)
    return Cell(
        picture_bgr=draw_regions(pixels_bgr, regions, mask, tags=False)[y : y + h, x : x + w],
        decision=Decision(verdict["decision"]),
        caption=verdict["reason"] if verdict["score"] is None else f"{verdict['score']:.3f}",
        note=f"{'' if part is None else part.id}  {what}{'' if verdict_is_right else '  WRONG'}",
    )


def _frames(clip: Path, wanted: set[int]) -> dict[int, PixelsU8]:
    """The frames of a clip with these indices."""
    found: dict[int, PixelsU8] = {}
    with closing(open_source(FileSource(kind="file", path=clip, pace="fast"))) as source:
        while len(found) < len(wanted):
            try:
                frame = source.read(1.0)
            except EndOfSource:
                break
            if frame is not None and frame.index in wanted:
                found[frame.index] = frame.pixels_bgr
    return found
