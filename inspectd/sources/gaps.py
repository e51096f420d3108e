"""What a stream leaves out between two frames: how many frames, how much time, and whether it is still the same one."""

from __future__ import annotations

from dataclasses import dataclass

from inspectd.records import Frame

GAP_FRAMES = 30
"""After so many lost frames nothing in the zone is known any more."""
GAP_S = 3.0
USUAL_FRAME_S = 0.04
SHORT_GAP_S = 0.3
"""So short a pause, or so few frames', is none."""
SHORT_GAP_FRAMES = 8
ADAPT = 0.1


@dataclass(frozen=True, slots=True)
class Gap:
    """From one sound frame to the next: `steps` by index, `frames` by the stream's time, which took `seconds`.

    `parted`: what lay in the zone before says nothing about now.
    """

    steps: int
    frames: float
    seconds: float
    parted: bool

    @property
    def is_one(self) -> bool:
        """Whether a frame is missing at all."""
        return self.frames > 1.5

    @property
    def is_pause(self) -> bool:
        """Whether it is longer than the jitter of a stream."""
        return self.seconds > SHORT_GAP_S and self.frames > SHORT_GAP_FRAMES


class Gaps:
    """Measures the time between frames.

    Attributes:
        frame_s: how long a frame usually lasts, by the clock of their arrival.
    """

    def __init__(self) -> None:
        self.frame_s = USUAL_FRAME_S
        self._stream_frame_s: float | None = None
        self._last: tuple[Frame, float] | None = None
        self._heard_s: float | None = None

    def skip(self, time_s: float) -> None:
        """A frame came in which nothing could be seen."""
        self._heard_s = time_s

    def feed(self, frame: Frame, time_s: float) -> Gap:
        """Takes a sound frame and its time by the stream's own clock."""
        (before, before_s), self._last = self._last or (frame, time_s), (frame, time_s)
        heard_s, self._heard_s = time_s if self._heard_s is None else self._heard_s, time_s
        steps = max(1, frame.index - before.index)
        seconds = max(0.0, time_s - heard_s)
        jumped = frame.pts_s is not None and before.pts_s is not None and not 0 <= time_s - before_s <= GAP_S
        frames = steps if self._stream_frame_s is None else seconds / self._stream_frame_s
        if frame.index > before.index and steps <= GAP_FRAMES:
            self.frame_s += ADAPT * (_usual((frame.captured_ns - before.captured_ns) / 1e9 / steps) - self.frame_s)
            usual_s = _usual((time_s - before_s) / steps)
            self._stream_frame_s = usual_s + (1 - ADAPT) * ((self._stream_frame_s or usual_s) - usual_s)
        return Gap(steps, frames, seconds, steps > GAP_FRAMES or jumped)


def _usual(frame_s: float) -> float:
    return min(max(frame_s, 1e-4), 1.0)
