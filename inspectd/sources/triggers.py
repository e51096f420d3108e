"""Which frames become verdicts, `continuous` and `external` (contract §4). Pure: frames in, decisions out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from inspectd.records import Frame, Reason

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
    its way to this process is: frames are kept for that. Where the right one is lost (it is kept no longer, was dropped
    on its way here, or the camera was gone) the trigger gets none: the next frame may show the next part.
    """

    def __init__(self, left: Iterable[Request] = ()) -> None:
        """`left` are the triggers that an earlier process accepted and gave no frame."""
        self._waiting = deque(left)
        self._missed: list[tuple[Request, Reason]] = []
        self._recent: deque[Frame] = deque()
        self._forgotten_ns = 0
        """When the last frame was exposed that is kept no longer."""
        self._gone_ns = 0
        """What the camera showed until then, nobody saw."""

    def ask(self, request: Request) -> Frame | None:
        """Takes a trigger: the frame for it, None where it is still to come or `missed`."""
        found = next((frame for frame in self._recent if frame.captured_ns > request.arrived_ns), None)
        if self._misses(request, found):
            return None
        if found is None:
            self._waiting.append(request)
        return found

    def feed(self, frame: Frame) -> list[Request]:
        """Takes every frame, in order: the triggers that it is for."""
        asked_before = self._taken([each for each in self._waiting if frame.captured_ns > each.arrived_ns])
        given = [each for each in asked_before if not self._misses(each, frame)]
        self._keep(frame)
        return given

    def missed(self) -> list[tuple[Request, Reason]]:
        """The triggers whose frame is lost, and that get no other, each with the reason."""
        missed, self._missed = self._missed, []
        return missed

    def overdue(self, now_ns: int, reserve_ns: int) -> list[Request]:
        """The triggers whose deadline is so near that no frame helps them any more."""
        return self._taken([each for each in self._waiting if now_ns >= each.deadline_ns - reserve_ns])

    def give_up(self, now_ns: int, reason: Reason) -> None:
        """No frame comes: all that wait are `missed`, and what came until now and is still under way will be."""
        self._gone_ns = now_ns
        self._missed += [(each, reason) for each in self._taken(list(self._waiting))]

    def _misses(self, request: Request, frame: Frame | None) -> bool:
        """Whether the right frame is lost: one before this, which is the first that is here and was exposed later."""
        lost_ns = max(self._forgotten_ns, 0 if frame is None else frame.lost_ns)
        if request.arrived_ns >= max(lost_ns, self._gone_ns):
            return False
        self._missed.append((request, Reason.CAMERA_LOST if request.arrived_ns < self._gone_ns else Reason.OVERLOAD))
        return True

    def _keep(self, frame: Frame) -> None:
        self._recent.append(frame)
        kept_bytes = sum(each.pixels_bgr.nbytes for each in self._recent)
        while len(self._recent) > FEWEST_RECENT and (
            kept_bytes > RECENT_BYTES or frame.captured_ns - self._recent[0].captured_ns > RECENT_NS
        ):
            forgotten = self._recent.popleft()
            kept_bytes -= forgotten.pixels_bgr.nbytes
            self._forgotten_ns = max(self._forgotten_ns, forgotten.captured_ns)

    def _taken(self, requests: list[Request]) -> list[Request]:
        for request in requests:
            self._waiting.remove(request)
        return requests
