"""Recordings: what plays a video file or an image folder, like the camera that took it or as fast as it is read.

A recording is a row of shots. A shot is cheap until it is loaded, so that one which nobody reads in time costs its
decoding (later frames need it) but no conversion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from inspectd.records import Frame, PixelsU8, TimeKind
from inspectd.sources.base import EndOfSource, SourceInfo
from inspectd.sources.timing import Pacer

USUAL_FPS = 25.0
"""The rate of a recording that states none."""
SKIP_LIMIT_S = 0.25
"""So long at most one `read` skips lost frames; a machine slower than the recording still gets some."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shot:
    """One frame of a recording before it is loaded: `load` gives `(pixels_bgr, damage)`, None pixels if unreadable."""

    pts_s: float | None
    load: Callable[[], tuple[PixelsU8 | None, str | None]]


Pass = Generator[Shot, None, None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Loaded:
    index: int
    pixels_bgr: PixelsU8
    pts_s: float | None
    damage: str | None
    due_ns: int


class Recording:
    """A `FrameSource` over the shots of a video file or an image folder."""

    simulated = True
    live = False
    is_there = True

    def __init__(
        self,
        begin: Callable[[], Pass],
        *,
        name: str,
        info: SourceInfo,
        pace: Literal["realtime", "fast"],
        loop: bool,
        start_index: int = 0,
    ) -> None:
        """`begin` starts a pass; a loop goes through passes for ever, with index and PTS going on.

        `start_index` is where a capture that died goes on: the frames before it are passed over.
        """
        period_s = 1 / (info.fps or USUAL_FPS)
        self.size_wh_px = info.size_wh_px
        self.next_index = 0
        self.frames_missed = 0
        self._name = name
        self._shots = _again_and_again(begin, period_s) if loop else begin()
        self._realtime = pace == "realtime"
        self._pacer = Pacer(period_s)
        self._start_index = start_index
        self._next: _Loaded | None = None
        self._last_size_wh_px = info.size_wh_px

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame; in real time the next one due, without those that a camera would have lost."""
        until_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        if not self._pass_over(until_ns):
            return None
        if self._next is not None and self._is_lost(self._next.due_ns):
            self._next = None
            self.frames_missed += 1
        if self._next is None:
            self._next = self._load(*self._next_kept())
        if self._realtime and not _sleep_to(self._next.due_ns, until_ns):
            return None
        loaded, self._next = self._next, None
        return Frame(
            index=loaded.index,
            pixels_bgr=loaded.pixels_bgr,
            captured_ns=time.monotonic_ns(),
            captured_utc_ns=time.time_ns(),
            time_kind=TimeKind.FILE,
            pts_s=loaded.pts_s,
            damage=loaded.damage,
        )

    def acknowledge(self) -> None:
        """Nothing to note: a recording begins anew with each daemon."""

    def close(self) -> None:
        """Lets go of the file."""
        self._next = None
        self._shots.close()

    def _advance(self) -> Shot:
        shot = next(self._shots, None)
        if shot is None:
            raise EndOfSource(f"{self._name}: through after {self.next_index} frames")
        self.next_index += 1
        return shot

    def _pass_over(self, until_ns: int) -> bool:
        """Goes towards `start_index` until the time is up; True once there."""
        while self.next_index < self._start_index:
            self._advance()
            if time.monotonic_ns() > until_ns:
                return False
        return True

    def _next_kept(self) -> tuple[Shot, int]:
        """The next shot and when it is due, after dropping those that are lost."""
        begun_ns = time.monotonic_ns()
        while True:
            shot = self._advance()
            now_ns = time.monotonic_ns()
            due_ns = self._pacer.due_ns(shot.pts_s, now_ns)
            if not self._is_lost(due_ns):
                return shot, due_ns
            if now_ns - begun_ns > SKIP_LIMIT_S * 1e9:
                self._pacer.restart(now_ns)
                return shot, now_ns
            self.frames_missed += 1

    def _is_lost(self, due_ns: int) -> bool:
        return self._realtime and self._pacer.is_lost(due_ns, time.monotonic_ns())

    def _load(self, shot: Shot, due_ns: int) -> _Loaded:
        pixels_bgr, damage = shot.load()
        if pixels_bgr is not None and _exceeds(pixels_bgr, self.size_wh_px):
            height, width = pixels_bgr.shape[:2]
            damage = (
                f"a frame of {width}x{height} px where at most {self.size_wh_px[0]}x{self.size_wh_px[1]} is expected"
            )
            pixels_bgr = None
        if pixels_bgr is None:
            width, height = self._last_size_wh_px
            pixels_bgr = np.zeros((height, width, 3), np.uint8)
        self._last_size_wh_px = pixels_bgr.shape[1], pixels_bgr.shape[0]
        return _Loaded(index=self.next_index - 1, pixels_bgr=pixels_bgr, pts_s=shot.pts_s, damage=damage, due_ns=due_ns)


def _exceeds(pixels_bgr: PixelsU8, size_wh_px: tuple[int, int]) -> bool:
    height, width = pixels_bgr.shape[:2]
    return bool(width > size_wh_px[0] or height > size_wh_px[1])


def _sleep_to(due_ns: int, until_ns: int) -> bool:
    """Sleeps to `due_ns`, or to `until_ns` if that comes first; True when it is due."""
    wait_s = (min(due_ns, until_ns) - time.monotonic_ns()) / 1e9
    if wait_s > 0:
        time.sleep(wait_s)
    return time.monotonic_ns() >= due_ns


def _again_and_again(begin: Callable[[], Pass], period_s: float) -> Pass:
    """Passes without end, the PTS of each going on one period after the last. A pass without a shot ends them."""
    shift_s = 0.0
    while True:
        first_s = last_s = None
        empty = True
        for shot in begin():
            empty = False
            first_s = shot.pts_s if first_s is None else first_s
            last_s = shot.pts_s if last_s is None or shot.pts_s is None else max(last_s, shot.pts_s)
            yield _shifted(shot, shift_s)
        if empty:
            return
        if first_s is not None and last_s is not None:
            shift_s += last_s - first_s + period_s


def _shifted(shot: Shot, shift_s: float) -> Shot:
    return Shot(pts_s=None if shot.pts_s is None else shot.pts_s + shift_s, load=shot.load)
