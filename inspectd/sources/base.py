"""What every frame source offers to capture, and the words that they share.

A source is read by one thread. It never answers for a frame: it hands out what it has, says what is damaged and what
it lost, and leaves decisions to capture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inspectd.errors import SourceError
from inspectd.records import Frame


class EndOfSource(SourceError):  # noqa: N818 - the contract's own word: the camera has ended
    """A file or folder is through. Caught by capture, which reports `camera_ended`; not a loss, never retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What can be said of a source before frames flow.

    `size_wh_px` is the largest frame to be expected, rotation applied. `fps` and `frames` (in one pass) are what the
    container says, None where it says nothing.
    """

    size_wh_px: tuple[int, int]
    fps: float | None = None
    frames: int | None = None


class FrameSource(Protocol):
    """An open source of frames."""

    @property
    def simulated(self) -> bool:
        """True for files and folders: a bridge never actuates on their verdicts."""

    @property
    def live(self) -> bool:
        """True for cameras: there is no end, and frames that nobody reads are lost."""

    @property
    def is_there(self) -> bool:
        """Whether the source is known to be there though it may give no frame for long. A camera that never pauses
        shows it by its frames."""

    @property
    def size_wh_px(self) -> tuple[int, int]:
        """The largest frame to be expected, rotation applied. No frame handed out is larger."""

    @property
    def next_index(self) -> int:
        """The index after the last frame that this source has seen, handed out or not: go on from here."""

    @property
    def frames_missed(self) -> int:
        """Frames that were there and were not handed out, because they were not read in time or had become stale."""

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, or None when there is none within `timeout_s`: beat, and call again.

        Raises:
            SourceLost: the source is gone; close it and open it anew.
            SourceTimeout: the source is silent beyond its limit; close it and open it anew.
            EndOfSource: a file or folder is through.
        """

    def acknowledge(self) -> None:
        """The frame read last was accepted, or is not one to inspect. A drop folder gives again what never was that."""

    def close(self) -> None:
        """Lets go of everything. Harmless when called twice."""
