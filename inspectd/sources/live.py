"""The shell of live cameras: a thread waits for frames, `read` never blocks longer than asked, a watchdog gives up.

What a kind of camera adds is a `Connection`: it opens, gives arrivals, and may block as long as its own limits allow.
The watchdog does not trust those limits. A thread that hangs in a driver or a dead network is left to itself, and no
more than `MOST_READERS` of them are borne.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inspectd.errors import SourceError, SourceLost, SourceTimeout
from inspectd.records import Frame, PixelsU8, TimeKind

THREAD_NAME = "camera-reader"
MOST_READERS = 8
"""Connections of this process that may wait for their own time limits to end; more would be a leak."""
JOIN_S = 0.2
"""A connection that runs lets its thread end soon; a stalled one is not waited for."""
QUEUE_FRAMES = 2
STALE_S = 0.5
"""A frame that nobody took for so long is not handed out any more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """One frame as it came. `load` gives `(pixels_bgr, damage)`, None pixels where nothing can be shown.

    `load` runs when the frame is read: one that nobody takes costs no conversion. `fresh` is False for a frame that
    waited somewhere: it is counted, never handed out. The times are those of `Frame`.
    """

    load: Callable[[], tuple[PixelsU8 | None, str | None]]
    captured_ns: int
    captured_utc_ns: int
    time_kind: TimeKind = TimeKind.ARRIVAL
    lag_ns: int = 0
    pts_s: float | None = None
    fresh: bool = True


class Connection(Protocol):
    """One connection to one camera, used by the thread of its reader alone, but for `notes`."""

    notes: tuple[str, ...]
    """What a person should know of the camera as it opened, one line each: settings that it did not take."""

    def open(self) -> None:
        """Connects; may block for as long as the settings allow.

        Raises:
            SourceError: the camera is not there, or not as the settings say.
        """

    def take(self) -> Arrival | None:
        """The next frame, or None when there is none yet; may block for about as long as the camera may be silent.

        Raises:
            SourceError: the camera is gone.
        """

    def close(self) -> None:
        """Lets go of the camera. Harmless when it never opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a camera may take to open, and how long it may then be silent."""

    open_s: float
    silence_s: float


class LiveCamera:
    """A `FrameSource` over one connection. When `read` raises, close it and open another."""

    simulated = False
    live = True

    def __init__(
        self,
        connection: Connection,
        *,
        name: str,
        size_wh_px: tuple[int, int],
        patience: Patience,
        start_index: int = 0,
    ) -> None:
        """Starts connecting and returns at once. `name` stands in errors and holds no secret.

        Raises:
            SourceLost: too many earlier connections still hang.
        """
        self.size_wh_px = size_wh_px
        self.next_index = start_index
        self.frames_missed = 0
        self._connection = connection
        self._name = name
        self._patience = patience
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, Arrival]] = deque()
        self._failure: SourceError | None = None
        self._stopping = False
        self._opened = False
        self._heard_s = time.monotonic()
        if sum(thread.name == THREAD_NAME for thread in threading.enumerate()) >= MOST_READERS:
            raise SourceLost(f"{name}: {MOST_READERS} earlier connections still hang; waiting for them to end")
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the camera as it opened."""
        return self._connection.notes

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, or None."""
        until_s = time.monotonic() + timeout_s
        while (waiting := self._take(until_s)) is not None:
            index, arrival = waiting
            if time.monotonic_ns() - arrival.captured_ns - arrival.lag_ns <= STALE_S * 1e9:
                return self._frame(index, arrival)
            self.frames_missed += 1
        self._check()
        return None

    def close(self) -> None:
        """Tells the connection to end. Its thread follows, or hangs until the driver's own limits end it."""
        self._stopping = True
        with self._changed:
            self._queue.clear()
        self._thread.join(JOIN_S)

    def end(self, limit_s: float) -> None:
        """Closes and waits until the camera is really let go of, so that it can be opened again at once."""
        self.close()
        self._thread.join(limit_s)

    def _take(self, until_s: float) -> tuple[int, Arrival] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._failure, max(0.0, until_s - time.monotonic()))
            return self._queue.popleft() if self._queue else None

    def _check(self) -> None:
        """The watchdog: raises what ended the connection, or SourceTimeout when it is silent beyond its limit."""
        if self._failure is not None:
            raise self._failure
        silent_s, patience = time.monotonic() - self._heard_s, self._patience
        if not self._opened and silent_s > patience.open_s:
            raise SourceTimeout(f"{self._name}: no answer for {patience.open_s:g} s")
        if self._opened and silent_s > patience.silence_s:
            raise SourceTimeout(f"{self._name}: no frame for {patience.silence_s:g} s")

    def _frame(self, index: int, arrival: Arrival) -> Frame:
        pixels_bgr, damage = arrival.load()
        most_w, most_h = self.size_wh_px
        if pixels_bgr is not None and (pixels_bgr.shape[1] > most_w or pixels_bgr.shape[0] > most_h):
            height, width = pixels_bgr.shape[:2]
            raise SourceLost(f"{self._name}: sends {width}x{height} px, max_size_wh_px is [{most_w}, {most_h}]")
        if pixels_bgr is None:
            pixels_bgr, damage = np.zeros((most_h, most_w, 3), np.uint8), damage or "nothing to show"
        return Frame(
            index=index,
            pixels_bgr=pixels_bgr,
            captured_ns=arrival.captured_ns,
            captured_utc_ns=arrival.captured_utc_ns,
            time_kind=arrival.time_kind,
            lag_ns=arrival.lag_ns,
            pts_s=arrival.pts_s,
            damage=damage,
        )

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Opens and takes until stopped or failed."""
        failure: SourceError = SourceLost(f"{self._name}: the reader stopped")
        try:
            self._connection.open()
            self._heard_s, self._opened = time.monotonic(), True
            while not self._stopping:
                arrival = self._connection.take()
                if arrival is not None:
                    self._put(arrival)
        except SourceError as error:
            failure = error
        finally:
            self._connection.close()
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _put(self, arrival: Arrival) -> None:
        with self._changed:
            self._heard_s = time.monotonic()
            index, self.next_index = self.next_index, self.next_index + 1
            if not arrival.fresh or self._stopping:
                self.frames_missed += 1
                return
            if len(self._queue) >= QUEUE_FRAMES:
                self._queue.popleft()
                self.frames_missed += 1
            self._queue.append((index, arrival))
            self._changed.notify_all()
