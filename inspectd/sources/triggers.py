"""Which frames become verdicts, `continuous` and `external` (contract §4). Pure: frames in, decisions out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from inspectd.records import Frame, TimeKind

RECENT_NS = 500_000_000
"""A trigger's way to its camera is shorter: commits that a slow disk holds up, 150 ms each, and some turns."""
RECENT_BYTES = 64 << 20
"""No more is kept for triggers that are under way: ten frames of 1920x1080."""
FEWEST_RECENT = 4
"""But for so many frames, however large."""


class Continuous:
    """Every n-th frame, or at most `max_fps` of them, by the times they were captured.

    Where both are given both hold. Counting is by the source's index, so a lost frame does not shift the rhythm.
    """

    def __init__(self, *, every_nth: int = 1, max_fps: float | None = None) -> None:
        self._every_nth = every_nth
        self._period_ns = 0 if max_fps is None else round(1e9 / max_fps)
        self._last_ns: int | None = None
        self._due_ns = 0

    def wants(self, frame: Frame) -> bool:
        """Whether this frame is one to inspect; call once per frame, in order."""
        spacing_ns = 0 if self._last_ns is None else frame.captured_ns - self._last_ns
        if self._last_ns is None:
            self._due_ns = frame.captured_ns
        self._last_ns = frame.captured_ns
        # The frame nearest to its time is taken: of two that jitter around it, waiting for the later halves the rate.
        slack_ns = min(spacing_ns, self._period_ns) // 2
        if frame.index % self._every_nth != 0 or frame.captured_ns < self._due_ns - slack_ns:
            return False
        late_ns = frame.captured_ns - self._due_ns
        # The schedule keeps its mean rate while frames come, and starts again after a pause instead of catching up.
        self._due_ns += self._period_ns if late_ns < self._period_ns else late_ns + self._period_ns
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An external trigger that was accepted and waits for its frame."""

    seq: int
    arrived_ns: int
    deadline_ns: int


class External:
    """Which frame an external trigger gets: the first that was exposed after it came, by the frame's own time.

    A frame that was exposed earlier is never given, however late it comes. One that came while the trigger was still on
    its way to this process is: frames are kept for that. Where the right one may be lost (it is kept no longer, or was
    lost on its way here) the trigger gets none: the next frame may show the next part.
    """

    def __init__(self, left: Iterable[Request] = ()) -> None:
        """`left` are the triggers that an earlier process accepted and gave no frame."""
        self._waiting = deque(left)
        self._missed: list[Request] = []
        self._recent: deque[Frame] = deque()
        self._next_index: int | None = None
        self._lost_ns = 0
        """A frame that is not to be had any more may have been exposed as late as this."""

    def ask(self, request: Request) -> Frame | None:
        """Takes a trigger: the frame for it, None where it is still to come or `missed`."""
        if request.arrived_ns < self._lost_ns:
            self._missed.append(request)
            return None
        found = next((frame for frame in self._recent if frame.captured_ns > request.arrived_ns), None)
        if found is None:
            self._waiting.append(request)
        return found

    def feed(self, frame: Frame) -> list[Request]:
        """Takes every frame, in order: the triggers that it is for."""
        if self._has_lost_some_before(frame):
            self._lose_until(frame.captured_ns)
        self._next_index = frame.index + 1
        self._keep(frame)
        return self._taken([each for each in self._waiting if frame.captured_ns > each.arrived_ns])

    def missed(self) -> list[Request]:
        """The triggers whose frame may have been lost, and that get no other."""
        missed, self._missed = self._missed, []
        return missed

    def overdue(self, now_ns: int, reserve_ns: int) -> list[Request]:
        """The triggers whose deadline is so near that no frame helps them any more."""
        return self._taken([each for each in self._waiting if now_ns >= each.deadline_ns - reserve_ns])

    def give_up(self, now_ns: int) -> list[Request]:
        """All that wait: no frame comes. What is exposed until now is lost; a new count of frames may begin."""
        self._lose_until(now_ns)
        self._next_index = None
        return self.missed() + self._taken(list(self._waiting))

    def _has_lost_some_before(self, frame: Frame) -> bool:
        """Whether frames came to nothing between the last one and this; what a recording leaves out was never shown."""
        follows = self._next_index is None or frame.index <= self._next_index
        return not follows and frame.time_kind is not TimeKind.FILE

    def _lose_until(self, time_ns: int) -> None:
        self._lost_ns = max(self._lost_ns, time_ns)
        self._missed += self._taken([each for each in self._waiting if each.arrived_ns < self._lost_ns])

    def _keep(self, frame: Frame) -> None:
        self._recent.append(frame)
        kept_bytes = sum(each.pixels_bgr.nbytes for each in self._recent)
        while len(self._recent) > FEWEST_RECENT and (
            kept_bytes > RECENT_BYTES or frame.captured_ns - self._recent[0].captured_ns > RECENT_NS
        ):
            dropped = self._recent.popleft()
            kept_bytes -= dropped.pixels_bgr.nbytes
            self._lost_ns = max(self._lost_ns, dropped.captured_ns)

    def _taken(self, requests: list[Request]) -> list[Request]:
        for request in requests:
            self._waiting.remove(request)
        return requests
