"""What a replay leaves on disk: verdicts as JSON lines, masks, annotated pictures and a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappush, heappushpop
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import cv2
import numpy as np

from inspectd.drawing import Cell, blend_heat, contact_sheet, draw_regions, draw_verdict
from inspectd.errors import ConfigError
from inspectd.evaluation.report import VERDICTS
from inspectd.images import encode_jpeg, encode_label_png, encode_png
from inspectd.records import Decision, Frame, Inspection, PixelsU8, Verdict
from inspectd.transport.wire import verdict_body

SHEET_CELLS = 48
SHEET_FAILS = 36
"""Of a long replay the sheet shows so many parts at most that did not pass; passes fill up, highest scores first."""
THUMB_PX = 440


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a disk that cannot be written into one line.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror or error}") from error


class Evidence:
    """The folder of one replay, open for writing."""

    def __init__(self, folder: Path, *, pictures: bool, title: str) -> None:
        """Makes the folder.

        Raises:
            ConfigError: it holds a replay already, or cannot be written.
        """
        self._folder, self._pictures, self._title = folder, pictures, title
        self._counts: Counter[Decision] = Counter()
        self._shown = {decision: _Best(SHEET_CELLS) for decision in Decision}
        if (folder / VERDICTS).exists():
            raise ConfigError(f"{folder}: holds a replay already; name another folder")
        with writing(folder):
            for each in [folder / "masks", *([folder / "annotated"] if pictures else [])]:
                each.mkdir(parents=True, exist_ok=True)
            self._lines: TextIO = (folder / VERDICTS).open("x", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()

    def add(self, verdict: Verdict, inspection: Inspection, frame: Frame) -> None:
        """One verdict and what belongs to it. Files are numbered by `seq`.

        Raises:
            ConfigError: the folder cannot be written.
        """
        self._counts[verdict.decision] += 1
        with writing(self._folder):
            self._lines.write(verdict_body(verdict).decode() + "\n")
            if inspection.mask is not None and verdict.mask is not None:
                mask_path = self._folder / "masks" / f"{verdict.seq:06}.png"
                mask_path.write_bytes(encode_label_png(inspection.mask.labels))
            if self._pictures:
                annotated = self._folder / "annotated" / f"{verdict.seq:06}.jpg"
                annotated.write_bytes(encode_jpeg(annotate(frame.pixels_bgr, verdict, inspection)))
                self._shown[verdict.decision].offer(verdict, inspection, frame.pixels_bgr)

    def finish(self) -> None:
        """Writes the contact sheet.

        Raises:
            ConfigError: the folder cannot be written.
        """
        cells = self._cells()
        if cells:
            sheet = contact_sheet(cells, title=self._title, counts=self._counts)
            with writing(self._folder):
                (self._folder / "sheet.png").write_bytes(encode_png(sheet))

    def _cells(self) -> list[Cell]:
        passes = self._shown[Decision.PASS].best(SHEET_CELLS)
        others = [
            one for decision in (Decision.ERROR, Decision.FAIL) for one in self._shown[decision].best(SHEET_CELLS)
        ]
        others = others[: max(SHEET_FAILS, SHEET_CELLS - len(passes))]
        chosen = [*others, *passes[: SHEET_CELLS - len(others)]]
        return [one.cell() for one in sorted(chosen, key=lambda one: one.seq)]


def annotate(pixels_bgr: PixelsU8, verdict: Verdict, inspection: Inspection) -> PixelsU8:
    """The frame with its regions (and heat, where the map was kept), and the verdict in a strip below."""
    picture = pixels_bgr
    if inspection.anomaly_map is not None:
        high = float(inspection.anomaly_map.max())
        picture = blend_heat(picture, inspection.anomaly_map, inspection.map_origin_xy_px, low=high / 2, high=high)
    picture = draw_regions(picture, verdict.regions, inspection.mask)
    return draw_verdict(picture, verdict.decision, caption(verdict))


def caption(verdict: Verdict) -> str:
    """The verdict in a few words: `0.712 ≥ 0.550 · 2 regions · frame 31`."""
    words = [verdict.reason.value]
    if verdict.score is not None and verdict.threshold is not None:
        sign = "≥" if verdict.score >= verdict.threshold else "<"
        words = [f"{verdict.score:.3f} {sign} {verdict.threshold:.3f}"]
    if verdict.regions:
        words.append(f"{len(verdict.regions)} region{'s' if len(verdict.regions) > 1 else ''}")
    if verdict.frame is not None:
        words.append(f"frame {verdict.frame.index}")
    return " · ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Thumb:
    """A part as the sheet will show it, its picture shrunk."""

    seq: int
    verdict: Verdict
    picture_bgr: PixelsU8

    def cell(self) -> Cell:
        verdict = self.verdict
        frame = "" if verdict.frame is None else f"frame {verdict.frame.index}"
        score = verdict.reason.value if verdict.score is None else f"{verdict.score:.3f}"
        return Cell(picture_bgr=self.picture_bgr, decision=verdict.decision, caption=score, note=frame)


class _Best:
    """The `limit` parts with the highest scores of those offered; of equals the first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, int, _Thumb]] = []

    def offer(self, verdict: Verdict, inspection: Inspection, pixels_bgr: PixelsU8) -> None:
        score = 0.0 if verdict.score is None else verdict.score
        if len(self._heap) >= self._limit and self._heap[0][:2] >= (score, -verdict.seq):
            return
        thumb = _Thumb(seq=verdict.seq, verdict=verdict, picture_bgr=_thumb(verdict, inspection, pixels_bgr))
        push = heappushpop if len(self._heap) >= self._limit else heappush
        push(self._heap, (score, -verdict.seq, thumb))

    def best(self, count: int) -> list[_Thumb]:
        return [thumb for _, _, thumb in sorted(self._heap, key=lambda one: one[:2], reverse=True)[:count]]


def _thumb(verdict: Verdict, inspection: Inspection, pixels_bgr: PixelsU8) -> PixelsU8:
    drawn = draw_regions(pixels_bgr, verdict.regions, inspection.mask, tags=False)
    height, width = drawn.shape[:2]
    factor = min(1.0, THUMB_PX / max(height, width))
    size_wh = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(drawn, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
