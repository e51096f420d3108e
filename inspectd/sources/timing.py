"""When frames are due, when they are stale, and when to try again. Pure: time comes in, decisions go out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

LONGEST_PAUSE_S = 60.0
"""A larger step of PTS is a jump of the clock, not a pause of the camera."""
CAMERA_BUFFER_S = 0.1
"""So far behind, a camera's own buffers still hold a frame; later it is lost."""
GAP_S = 0.5
"""No packet for so long is a gap: what arrives next was waiting somewhere."""
CLOCK_WINDOW_NS = 5_000_000_000
CATCH_UP_S = 2.0
"""A backlog that takes longer than this to drain is the network's pace, not a backlog."""


class Pacer:
    """Says when each frame of a recording is due, so that it behaves like the camera that took it.

    The schedule follows PTS (and so variable frame rates); frames without PTS, and steps backwards or beyond
    `LONGEST_PAUSE_S`, count as one period.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self._last_pts_s: float | None = None
        self._due_ns: int | None = None

    def due_ns(self, pts_s: float | None, now_ns: int) -> int:
        """When the next frame is due, on the clock of `now_ns`; the first is due now."""
        step_s = self._step_s(pts_s)
        self._last_pts_s = pts_s
        self._due_ns = now_ns if self._due_ns is None else self._due_ns + round(step_s * 1e9)
        return self._due_ns

    def is_lost(self, due_ns: int, now_ns: int) -> bool:
        """Whether a camera would have overwritten a frame that was due then and is read only now."""
        return (now_ns - due_ns) / 1e9 > max(CAMERA_BUFFER_S, 2 * self.period_s)

    def restart(self, now_ns: int) -> None:
        """Goes on from now: the machine cannot keep up with the recording's own time."""
        self._due_ns = now_ns

    def _step_s(self, pts_s: float | None) -> float:
        if pts_s is None or self._last_pts_s is None:
            return self.period_s
        step_s = pts_s - self._last_pts_s
        return step_s if 0 <= step_s <= LONGEST_PAUSE_S else self.period_s


class Freshness:
    """Tells frames that were just exposed from frames that waited in a stalled server or in the network.

    After a gap the first packet is stale, and so is every further one that comes in faster than half its own pace:
    the backlog of the gap. The beginning is a gap too: opening takes time, and servers greet with what they have.
    """

    def __init__(self) -> None:
        self._arrival_s: float | None = None
        self._pts_s: float | None = None
        self._gap_ended_s: float | None = None

    def is_fresh(self, arrival_s: float, pts_s: float | None) -> bool:
        """Takes one packet, in order of arrival."""
        since_s = None if self._arrival_s is None else arrival_s - self._arrival_s
        pace_s = None if pts_s is None or self._pts_s is None else pts_s - self._pts_s
        self._arrival_s, self._pts_s = arrival_s, pts_s
        if since_s is None or (since_s > GAP_S and (pace_s is None or since_s > 2 * pace_s)):
            self._gap_ended_s = arrival_s
            return False
        if self._gap_ended_s is not None:
            in_pace = pace_s is not None and since_s >= 0.5 * pace_s
            if in_pace or arrival_s - self._gap_ended_s > CATCH_UP_S:
                self._gap_ended_s = None
            return in_pace
        return True


class DeviceClock:
    """Maps the stamps of a camera's own clock to this machine's, by the fastest of the last frames' ways.

    The way only adds to a stamp, and clocks drift by milliseconds a minute, so the shortest way of the last 5 to 10 s
    counts. A time is never later than the arrival.
    """

    def __init__(self) -> None:
        self._stamp_ns: int | None = None
        self._since_ns = 0
        self._ways_ns: tuple[int, int] | None = None

    def captured_ns(self, stamp_ns: int | None, arrived_ns: int) -> int | None:
        """When a frame was stamped, on the clock of `arrived_ns`; None for a clock that stands still or is reset."""
        last_ns, self._stamp_ns = self._stamp_ns, stamp_ns
        if stamp_ns is None or (last_ns is not None and stamp_ns <= last_ns):
            self._ways_ns = None
            return None
        way_ns = arrived_ns - stamp_ns
        before_ns, now_ns = self._ways_ns or (way_ns, way_ns)
        if self._ways_ns is None or arrived_ns - self._since_ns > CLOCK_WINDOW_NS:
            self._since_ns, before_ns, now_ns = arrived_ns, now_ns, way_ns
        self._ways_ns = before_ns, min(now_ns, way_ns)
        return stamp_ns + min(self._ways_ns)


@dataclass(slots=True, kw_only=True)
class Backoff:
    """How long to wait before the next try: doubling with jitter, for ever.

    `most_s` is short, because a line stands still until its camera is back; only a camera that refuses the password is
    not asked each second for ever.
    """

    first_s: float = 0.1
    most_s: float = 1.0
    refused_s: float = 60.0
    rng: random.Random = field(default_factory=random.Random)
    _tries: int = 0

    def next_s(self, *, refused: bool = False) -> float:
        """The pause before the next try: a random share, from a half up, of the doubled pause."""
        pause_s = min(self.refused_s if refused else self.most_s, self.first_s * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return pause_s * self.rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Frames flow again."""
        self._tries = 0
