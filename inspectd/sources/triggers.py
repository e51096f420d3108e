"""Which frames of a `continuous` camera become verdicts (contract §4). Pure: frames in, decisions out."""

from __future__ import annotations

from inspectd.records import Frame


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
