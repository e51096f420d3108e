"""The shell of live cameras: a thread waits for frames, `read` never blocks longer than asked, a watchdog gives up.

What a kind of camera adds is a `Connection`: it opens, gives arrivals, and may block as long as its own limits allow.
The watchdog does not trust those limits. A thread that hangs in a driver or a dead network is left to itself, and no
more than `MOST_READERS` of them are borne. A network camera that does not answer is asked again by another connection
while the first still waits: what was sent into a dead network is lost, also when the network is back.
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
from inspectd.sources.timing import CATCH_UP_S

THREAD_NAME = "camera-reader"
MOST_READERS = 8
"""Connections of this process that may wait for their own time limits to end; more would be a leak."""
JOIN_S = 0.2
"""A connection that runs lets its thread end soon; a stalled one is not waited for."""
QUEUE_FRAMES = 2
STALE_S = 0.5
"""A frame that nobody took for so long is not handed out any more."""
TRIGGERED_S = 10.0
"""Who lets a camera be silent for so long has it triggered by parts: its first frame may take hours."""
ANOTHER_S = 1.0
"""A connection that has not opened after so long gets company."""


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
    """How long a camera may take to open and then to its first frame, and how long it may be silent from there on."""

    open_s: float
    silence_s: float
    first_s: float = 0.0


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
        another: Callable[[], Connection] | None = None,
    ) -> None:
        """Starts connecting and returns at once. `name` stands in errors and holds no secret.

        Args:
            another: makes further connections, for a camera that bears several; the first that opens is used.

        Raises:
            SourceLost: too many earlier connections still hang.
        """
        self.size_wh_px = size_wh_px
        self._name = name
        self._patience = patience
        self._another = another
        self._waiting = _Waiting(start_index)
        self._lost_ns = 0
        self._seen_wh_px: tuple[int, int] | None = None
        if _readers() >= MOST_READERS:
            raise SourceLost(f"{name}: {MOST_READERS} earlier connections still hang; waiting for them to end")
        self._links = [_Link(connection, name, self._waiting)]

    @property
    def is_there(self) -> bool:
        """Whether the connection is open, to a camera that may be silent for long."""
        return self._waiting.user is not None and self._patience.silence_s >= TRIGGERED_S

    @property
    def next_index(self) -> int:
        """The index after the last frame that arrived."""
        return self._waiting.next_index

    @property
    def frames_missed(self) -> int:
        """Frames that arrived stale or were overwritten by newer ones."""
        return self._waiting.missed

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the camera as it opened."""
        return self._link.connection.notes

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, or None."""
        until_s = time.monotonic() + timeout_s
        while (taken := self._waiting.take(until_s, lambda: self._link.failure is not None)) is not None:
            self._lost_ns = max(self._lost_ns, taken.lost_ns)
            arrival = taken.arrival
            if time.monotonic_ns() - arrival.captured_ns - arrival.lag_ns <= STALE_S * 1e9:
                return self._frame(taken.index, arrival)
            self._waiting.missed += 1
            self._lost_ns = max(self._lost_ns, arrival.captured_ns)
        self._check()
        self._ask_again()
        return None

    def acknowledge(self) -> None:
        """Nothing to note: no camera gives a frame twice."""

    def close(self) -> None:
        """Tells the connections to end. Their threads follow, or hang until their own limits end them."""
        for link in self._links:
            link.stopping = True
        self._waiting.clear()
        until_s = time.monotonic() + JOIN_S
        for link in self._links:
            link.thread.join(max(0.0, until_s - time.monotonic()))

    def end(self, limit_s: float) -> None:
        """Closes and waits until the camera is really let go of, so that it can be opened again at once."""
        self.close()
        for link in self._links:
            link.thread.join(limit_s)

    @property
    def _link(self) -> _Link:
        """The connection that counts: the one that opened first, before that the first one."""
        return self._waiting.user or self._links[0]

    def _ask_again(self) -> None:
        """A further connection, where none has opened for long."""
        newest = self._links[-1]
        if self._another is None or self._waiting.user is not None or _readers() >= MOST_READERS:
            return
        if time.monotonic() - newest.begun_s > ANOTHER_S:
            self._links.append(_Link(self._another(), self._name, self._waiting))

    def _check(self) -> None:
        """The watchdog: raises what ended the connection, or SourceTimeout when it is silent beyond its limit."""
        link, patience = self._link, self._patience
        if link.failure is not None:
            raise link.failure
        now_s = time.monotonic()
        if link.opened_s is None:
            if now_s - link.begun_s > patience.open_s:
                raise SourceTimeout(f"{self._name}: no answer for {patience.open_s:g} s")
            return
        limit_s = patience.silence_s if link.heard_s is not None else max(patience.first_s, patience.silence_s)
        if now_s - (link.heard_s or link.opened_s) > limit_s:
            raise SourceTimeout(f"{self._name}: no frame for {limit_s:g} s")
        late_s = now_s - (link.fresh_s or link.heard_s or now_s)
        if late_s > patience.silence_s + CATCH_UP_S:
            raise SourceTimeout(f"{self._name}: for {late_s:.1f} s frames have come late")

    def _frame(self, index: int, arrival: Arrival) -> Frame:
        pixels_bgr, damage = arrival.load()
        if pixels_bgr is None:
            width, height = self.size_wh_px
            pixels_bgr, damage = np.zeros((height, width, 3), np.uint8), damage or "nothing to show"
        else:
            self._check_size(pixels_bgr.shape[1], pixels_bgr.shape[0])
        return Frame(
            index=index,
            pixels_bgr=pixels_bgr,
            captured_ns=arrival.captured_ns,
            captured_utc_ns=arrival.captured_utc_ns,
            time_kind=arrival.time_kind,
            lag_ns=arrival.lag_ns,
            pts_s=arrival.pts_s,
            damage=damage,
            lost_ns=self._lost_ns,
        )

    def _check_size(self, width: int, height: int) -> None:
        """Refuses a picture that the ring cannot take, or that the recipe's region was not made for a moment ago."""
        most_w, most_h = self.size_wh_px
        if width > most_w or height > most_h:
            raise SourceLost(f"{self._name}: sends {width}x{height} px, max_size_wh_px is [{most_w}, {most_h}]")
        if self._seen_wh_px not in (None, (width, height)):
            raise SourceLost(f"{self._name}: the frame size changed to {width}x{height} px")
        self._seen_wh_px = width, height


def _readers() -> int:
    return sum(thread.name == THREAD_NAME for thread in threading.enumerate())


@dataclass(slots=True)
class _Numbered:
    """An arrival that waits. `lost_ns`: when the last frame was exposed that was dropped before it, or 0."""

    index: int
    arrival: Arrival
    lost_ns: int


class _Waiting:
    """The frames that wait to be read, of the one connection that opened first."""

    def __init__(self, start_index: int) -> None:
        self.next_index = start_index
        self.missed = 0
        self.user: _Link | None = None
        self._changed = threading.Condition()
        self._queue: deque[_Numbered] = deque()
        self._lost_ns = 0

    def claim(self, link: _Link) -> bool:
        """A connection has opened: whether it is the one to be used."""
        with self._changed:
            self.user = self.user or link
            return self.user is link

    def put(self, arrival: Arrival) -> None:
        """Numbers a frame; one that finds the queue full takes the place of the oldest."""
        with self._changed:
            index, self.next_index = self.next_index, self.next_index + 1
            if not arrival.fresh:
                self.missed += 1
                self._lost_ns = max(self._lost_ns, arrival.captured_ns)
                return
            self._queue.append(_Numbered(index, arrival, self._lost_ns))
            if len(self._queue) > QUEUE_FRAMES:
                dropped, oldest = self._queue.popleft(), self._queue[0]
                self.missed += 1
                oldest.lost_ns = max(oldest.lost_ns, dropped.lost_ns, dropped.arrival.captured_ns)
            self._changed.notify_all()

    def take(self, until_s: float, over: Callable[[], bool]) -> _Numbered | None:
        """The oldest frame; None at `until_s`, or when it is `over` with the connection."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or over(), max(0.0, until_s - time.monotonic()))
            return self._queue.popleft() if self._queue else None

    def clear(self) -> None:
        """Nothing is read any more."""
        with self._changed:
            self._queue.clear()

    def wake(self) -> None:
        """Lets `take` look again."""
        with self._changed:
            self._changed.notify_all()


class _Link:
    """One connection and its thread."""

    def __init__(self, connection: Connection, name: str, waiting: _Waiting) -> None:
        self.stopping = False
        self.failure: SourceError | None = None
        self.begun_s = time.monotonic()
        self.opened_s: float | None = None
        self.heard_s: float | None = None
        """When the last frame arrived."""
        self.fresh_s: float | None = None
        """When the last fresh one did."""
        self.connection = connection
        self._name = name
        self._waiting = waiting
        self.thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        """Opens and takes until stopped or failed."""
        failure: SourceError = SourceLost(f"{self._name}: the reader stopped")
        try:
            self.connection.open()
            self.opened_s = time.monotonic()
            used = self._waiting.claim(self)
            while used and not self.stopping:
                arrival = self.connection.take()
                if arrival is not None and not self.stopping:
                    self._put(arrival)
        except SourceError as error:
            failure = error
        finally:
            self.connection.close()
            self.failure = failure
            self._waiting.wake()

    def _put(self, arrival: Arrival) -> None:
        self.heard_s = time.monotonic()
        if arrival.fresh:
            self.fresh_s = self.heard_s
        self._waiting.put(arrival)
