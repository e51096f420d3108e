"""Which frames become verdicts: `continuous` and `presence` (contract §4). Pure: frames in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass

from inspectd.records import Frame
from inspectd.sources.foreground import Foreground
from inspectd.sources.tracking import Track, Tracker

SETTLE_S = 0.3
"""A part that stands so long near the centre is taken there."""
SETTLE_ASIDE_S = 1.5
"""A part that stands so long elsewhere, wholly in the zone, is taken there: nobody brings it nearer."""
GHOST_S = 0.12
"""What stands so long may be the place of a part that was taken for belt."""
GHOST_VIEWS = 100
"""In the first views such a place is looked for without waiting: parts lie in the zone when the daemon starts."""
LAID_VIEWS = 2
"""What turns up so soon at the place of a ghost that had fired is the part that had lain there."""
NEAR_SHARE = 0.2
"""Near the centre: within so large a share of the zone's longer side."""
MOVED_PX = 2.0
"""What is gone without having moved so far in the view was a flicker, no part."""
GAP_FRAMES = 30
"""After so many lost frames nothing in the zone is known any more."""
GAP_S = 3.0
DAMAGE_AGAIN_S = 1.0


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


@dataclass(slots=True, kw_only=True, eq=False)
class _Candidate:
    """The best moment of one part so far; smaller keys are better. `frame` is dropped once it has fired."""

    frame: Frame | None
    key: tuple[bool, float]


class Presence:
    """Finds parts: each one that enters the zone gives one frame, taken when it is nearest to the zone's centre.

    It must be seen in two frames at least. Parts that touch are taken for one. A damaged frame is given too, once at
    the beginning of the damage and then every second: what passed meanwhile was not seen.
    """

    def __init__(
        self, zone_xywh_px: tuple[int, int, int, int], *, min_part_share: float = 0.03, contrast_levels: float = 18.0
    ) -> None:
        """The zone in full-frame pixels; it must lie in the frame."""
        self._foreground = Foreground(zone_xywh_px, contrast_levels=contrast_levels, min_part_share=min_part_share)
        self._tracker = Tracker(self._foreground.size_wh)
        self._near = NEAR_SHARE * max(self._foreground.size_wh)
        self._candidates: dict[int, _Candidate] = {}
        self._last_index: int | None = None
        self._last_pts_s: float | None = None
        self._damaged_s: float | None = None
        self._laid: Track | None = None
        self._laid_view = 0
        self._views = 0
        self.parts_dismissed = 0
        """Patches that came and went like no part does."""

    @property
    def relearned(self) -> int:
        """How often the picture of the empty belt was given up and learnt anew."""
        return self._foreground.relearned

    def feed(self, frame: Frame) -> list[Frame]:
        """Takes every frame of the source, in order; returns the frames to inspect, one per part, oldest first."""
        time_s = frame.captured_ns / 1e9 if frame.pts_s is None else frame.pts_s
        if frame.damage is not None:
            return self._damaged(frame, time_s)
        self._damaged_s = None
        self._views += 1
        steps = 1 if self._last_index is None else max(1, frame.index - self._last_index)
        fired = self.flush() if steps > GAP_FRAMES or self._jumped(frame) else []
        self._last_index, self._last_pts_s = frame.index, frame.pts_s
        changes = self._tracker.feed(self._foreground.look(frame.pixels_bgr, time_s), steps, time_s)
        fired += [best for track in changes.gone if (best := self._left(track)) is not None]
        seen = [track for track in changes.seen if not self._lay_ghost(track, time_s)]
        fired += [best for track in seen if (best := self._seen(track, frame, time_s)) is not None]
        return sorted(fired, key=lambda best: best.index)

    def flush(self) -> list[Frame]:
        """The source has ended or was interrupted: parts that are still in the zone give their best moments."""
        fired = [best for track in self._tracker.tracks if (best := self._left(track)) is not None]
        self._tracker.tracks = []
        self._candidates = {}
        return sorted(fired, key=lambda best: best.index)

    def _jumped(self, frame: Frame) -> bool:
        """Whether the stream's own time says that this is another connection, or much later."""
        if frame.pts_s is None or self._last_pts_s is None:
            return False
        return not 0 <= frame.pts_s - self._last_pts_s <= GAP_S

    def _damaged(self, frame: Frame, time_s: float) -> list[Frame]:
        if self._damaged_s is not None and 0 <= time_s - self._damaged_s < DAMAGE_AGAIN_S:
            return []
        self._damaged_s = time_s
        return [frame]

    def _seen(self, track: Track, frame: Frame, time_s: float) -> Frame | None:
        """A part in this frame: remembers its best moment; returns it once it is over."""
        key = track.blob.clipped, self._tracker.off_centre(track.centre_xy)
        candidate = self._candidates.get(track.name)
        if candidate is None:
            came_off = self._came_off_fired(track)
            candidate = self._candidates[track.name] = _Candidate(frame=None if came_off else frame, key=key)
        if candidate.frame is None:
            return None
        if key < candidate.key:
            candidate.frame, candidate.key = frame, key
        still_s = 0.0 if track.still_since_s is None else time_s - track.still_since_s
        if not track.blob.clipped and still_s >= (SETTLE_S if key[1] < self._near else SETTLE_ASIDE_S):
            candidate.frame = frame
            return self._fire(candidate)
        moving = track.travelled > 0 or self._tracker.pace_xy is not None
        return self._fire(candidate) if moving and self._tracker.leaves_soon(track) else None

    def _came_off_fired(self, track: Track) -> bool:
        """Whether a new track is a piece of one that has fired: it had been one blob with it, or with its ghost."""
        if self._laid is not None and self._views - self._laid_view <= LAID_VIEWS and self._laid.covers(track.blob):
            return True
        parent = None if track.parent is None else self._candidates.get(track.parent.name)
        return parent is not None and parent.frame is None

    def _lay_ghost(self, track: Track, time_s: float) -> bool:
        """Whether a track is where a part lay when the belt was learnt; if so it is belt from now on."""
        still = track.still_since_s is not None and time_s - track.still_since_s >= GHOST_S
        if not (still or self._views <= GHOST_VIEWS) or not self._foreground.is_ghost(track.blob):
            return False
        self._foreground.absorb(track.blob)
        self._tracker.drop(track)
        candidate = self._candidates.pop(track.name, None)
        if candidate is not None and candidate.frame is None:
            self._laid, self._laid_view = track, self._views
        self.parts_dismissed += 1
        return True

    def _left(self, track: Track) -> Frame | None:
        """A part that is gone fires now if it has not; a flicker does not."""
        candidate = self._candidates.pop(track.name, None)
        if candidate is None or candidate.frame is None:
            return None
        if track.seen < 2 or track.travelled < MOVED_PX:
            self.parts_dismissed += 1
            return None
        return self._fire(candidate)

    def _fire(self, candidate: _Candidate) -> Frame | None:
        frame, candidate.frame = candidate.frame, None
        return frame
