"""`presence` (contract §4): finds the parts on a belt, each once, at its best moment. Pure: frames in, parts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inspectd.log import get_logger
from inspectd.recipe import Recipe
from inspectd.records import Frame, Sighting, TriggerKind
from inspectd.settings import Settings, TriggerSettings
from inspectd.sources.foreground import Foreground
from inspectd.sources.gaps import Gap, Gaps
from inspectd.sources.gates import Light
from inspectd.sources.moments import SHARP_REACH, Box, Moment, Moments
from inspectd.sources.tracking import Track, Tracker, Vector, overlap_share
from inspectd.viewport import box_of

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
UNSEEN_AGAIN_S = 1.0
KNOWN_S = 5.0
"""For so long the parts that an earlier process has taken are looked for."""
KNOWN_STANDING_S = 1.5
"""And those that stood: what comes there later is another one."""
KNOWN_OVERLAP = 0.5
SEEN_SHARE = 0.5
"""A blob of which more was seen than this brings nothing new."""
NEW_PARTS = 0.3
"""Nor does one with less than so much of a part that was not seen."""
NEW_SHARE = 0.2
"""The same as a share of the zone, where it is not known how large a part is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A part to inspect: its frames, the best first, and where it lies in that one. Or an unseen frame to report."""

    frames: tuple[Frame, ...]
    sighting: Sighting | None = None

    @property
    def best(self) -> Frame:
        """The frame that is shown."""
        return self.frames[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A part that an earlier process has taken: where it was, in which frame."""

    sighting: Sighting
    frame_index: int
    captured_ns: int

    def bbox_at(self, frame: Frame, *, recorded: bool) -> tuple[float, float, float, float]:
        """Where it must be by now if the belt ran on as it did: by frames of a recording, by time otherwise."""
        steps = float(frame.index - self.frame_index)
        if not recorded:
            steps = (frame.captured_ns - self.captured_ns) / 1e9 / max(self.sighting.frame_s, 1e-3)
        (x, y, width, height), (dx, dy) = self.sighting.bbox_xywh_px, self.sighting.step_xy_px
        return x + steps * dx, y + steps * dy, width, height


def presence_error(settings: Settings, name: str, recipe: Recipe, size_wh_px: tuple[int, int]) -> str | None:
    """Why a camera's zone and its recipe's votes cannot be had with frames of that size, in one line; or None."""
    camera, frames = settings.cameras[name], recipe.vote.frames
    zone = camera.trigger.zone_xywh_px
    if zone is not None and not _lies_in(zone, size_wh_px):
        width, height = size_wh_px
        return f"cameras.{name}.trigger.zone_xywh_px: {list(zone)} does not lie in the frame of {width}x{height}"
    if frames == 1:
        return None
    if TriggerKind(camera.trigger.kind) is not TriggerKind.PRESENCE:
        kind = camera.trigger.kind
        return f'{recipe.path}: vote.frames: {frames} needs trigger.kind = "presence"; cameras.{name} has "{kind}"'
    most = min(camera.slots, settings.worker.max_batch)
    if frames > most:
        key = f"cameras.{name}.slots" if most == camera.slots else "worker.max_batch"
        return f"{recipe.path}: vote.frames: {frames} frames of a part need {key} = {frames} or more (it is {most})"
    return None


def _lies_in(zone_xywh_px: Box, size_wh_px: tuple[int, int]) -> bool:
    x, y, width, height = zone_xywh_px
    return min(x, y) >= 0 and min(width, height) > 0 and x + width <= size_wh_px[0] and y + height <= size_wh_px[1]


class Parts:
    """The parts in a stream whose frames may change their size, and need not be of the size that the zone was set for.

    A frame that the zone does not lie in is handed on as damaged, so that it is answered and never taken for an empty
    belt; a blind one, in which no part could be seen, is given for what it is. Where the stream's own times begin or
    end on the way, all begins anew, and one unseen frame is given: the silence before it cannot be measured.

    Args:
        taken: parts that an earlier process has taken and that may still lie in the zone.
        recorded: the stream is a recording, which goes on at the frame where the earlier process left it.
    """

    def __init__(
        self, trigger: TriggerSettings, recipe: Recipe, *, taken: Sequence[Taken] = (), recorded: bool = True
    ) -> None:
        self._trigger, self._recipe = trigger, recipe
        self._taken, self._recorded = taken, recorded
        self._light = Light(recipe)
        self._size_wh_px: tuple[int, int] | None = None
        self._has_times = False
        self._misfit: str | None = None
        self._presence: Presence

    def feed(self, frame: Frame, *, blind: bool = False) -> list[Part]:
        """Takes every frame of the source, in order; returns the parts to inspect, oldest first.

        Args:
            blind: no part could be seen in it, for a reason that it does not show (its picture stands still).
        """
        size = (frame.pixels_bgr.shape[1], frame.pixels_bgr.shape[0])
        ended: list[Part] = []
        if frame.damage is None and self._is_another_stream(frame, size):
            ended = self.flush()
            if size == self._size_wh_px:  # how long it took from one clock to the other, nobody can say
                ended.append(Part(frames=(replace(frame, damage="the stream's own times began or ended"),)))
            self._begin(size, has_times=frame.pts_s is not None)
        if self._size_wh_px is None:
            return [Part(frames=(frame,))]  # damaged before anything was seen
        if self._misfit is not None:
            frame = replace(frame, damage=frame.damage or self._misfit)
        return ended + self._presence.feed(frame, blind=blind or self._light.fails(frame.pixels_bgr))

    def flush(self) -> list[Part]:
        """The source has ended or was interrupted: parts that are still in the zone give their best moments."""
        return [] if self._size_wh_px is None else self._presence.flush()

    def _is_another_stream(self, frame: Frame, size_wh_px: tuple[int, int]) -> bool:
        """Whether what is known of the frames before does not hold for a sound one: another size, or another clock."""
        return size_wh_px != self._size_wh_px or self._has_times != (frame.pts_s is not None)

    def _begin(self, size_wh_px: tuple[int, int], *, has_times: bool) -> None:
        self._has_times = has_times
        width, height = self._size_wh_px = size_wh_px
        zone = self._trigger.zone_xywh_px or box_of(self._recipe, size_wh_px)
        inside = _lies_in(zone, size_wh_px)
        self._misfit = None if inside else f"the zone {list(zone)} does not lie in a frame of {width}x{height}"
        if self._misfit is not None:
            get_logger().error("zone_outside_frame", zone_xywh_px=list(zone), size_wh_px=[width, height])
        self._presence = Presence(
            zone if inside else (0, 0, width, height),
            min_part_share=self._trigger.min_part_share,
            contrast_levels=self._trigger.contrast_levels,
            votes=self._recipe.vote.frames,
            taken=self._taken,
            recorded=self._recorded,
        )
        self._taken = ()


@dataclass(frozen=True, slots=True)
class _Fired:
    """A track of which nothing more is wanted: what lay in the zone when the belt had come so far is in a verdict."""

    way_xy: Vector


class Presence:
    """Finds parts: each one that enters the zone is taken once, when it is nearest to the zone's centre.

    It must be seen in two frames at least. Of what is longer than the zone, as parts that touch may be, so many frames
    are taken that all of it is in one. A damaged or blind frame is given too, once at the beginning of the trouble
    and then every second, and one after a pause of the stream: what passed meanwhile was not seen.
    """

    def __init__(
        self,
        zone_xywh_px: Box,
        *,
        min_part_share: float = 0.03,
        contrast_levels: float = 18.0,
        votes: int = 1,
        taken: Sequence[Taken] = (),
        recorded: bool = True,
    ) -> None:
        """The zone in full-frame pixels; it must lie in the frame. The others as for `Parts`."""
        self._zone = zone_xywh_px
        self._foreground = Foreground(zone_xywh_px, contrast_levels=contrast_levels, min_part_share=min_part_share)
        self._tracker = Tracker(self._foreground.size_wh)
        self._votes = votes
        self._near = NEAR_SHARE * max(self._foreground.size_wh)
        self._px_per_view_px = zone_xywh_px[2] / self._foreground.size_wh[0]
        self._waiting: dict[int, Moments | _Fired] = {}
        """The moments of each track by its name, until it is taken."""
        self._gaps = Gaps()
        self._unseen_s: float | None = None
        self._laid: Track | None = None
        self._laid_view = 0
        self._views = 0
        self._taken, self._recorded = list(taken), recorded
        self._begun_s = 0.0
        self.parts_dismissed = 0
        """Patches that came and went like no part does."""

    @property
    def relearned(self) -> int:
        """How often the picture of the empty belt was given up and learnt anew."""
        return self._foreground.relearned

    def feed(self, frame: Frame, *, blind: bool = False) -> list[Part]:
        """Takes every frame of the source, in order; returns the parts to inspect, oldest first."""
        time_s = frame.captured_ns / 1e9 if frame.pts_s is None else frame.pts_s
        if frame.damage is not None or blind:
            self._gaps.skip(time_s)
            return self._unseen(frame, time_s)
        self._unseen_s = None
        self._views += 1
        self._begun_s = time_s if self._views == 1 else self._begun_s
        gap = self._gaps.feed(frame, time_s)
        missed = self._missed(gap)
        fired = self.flush() if gap.parted or missed else []
        if missed:
            fired.append(Part(frames=(replace(frame, damage=f"no frame for {gap.seconds:.1f} s"),)))
        blobs = self._foreground.look(frame.pixels_bgr, time_s)
        changes = self._tracker.feed(blobs, gap.steps, time_s, stands=self._foreground.stands)
        fired += [part for track in changes.gone if (part := self._left(track)) is not None]
        seen = [track for track in changes.seen if not self._lay_ghost(track, time_s)]
        fired += [part for track in seen if (part := self._seen(track, frame, time_s)) is not None]
        return _oldest_first(fired)

    def flush(self) -> list[Part]:
        """The source has ended or was interrupted: parts that are still in the zone give their best moments."""
        fired = [part for track in self._tracker.tracks if (part := self._left(track)) is not None]
        self._tracker.tracks = []
        self._waiting = {}
        return _oldest_first(fired)

    def _missed(self, gap: Gap) -> bool:
        """Whether a part may have passed between two views of the belt, which goes on as it did or, halted, will."""
        passed = self._tracker.may_have_passed(gap.frames)
        return gap.is_pause if passed is None else passed and gap.is_one

    def _unseen(self, frame: Frame, time_s: float) -> list[Part]:
        if self._unseen_s is not None and 0 <= time_s - self._unseen_s < UNSEEN_AGAIN_S:
            return []
        self._unseen_s = time_s
        return [Part(frames=(frame,))]

    def _seen(self, track: Track, frame: Frame, time_s: float) -> Part | None:
        """A part in this frame: remembers its best moments; returns it once they are over."""
        off_centre = self._tracker.off_centre(track.centre_xy)
        moments = self._waiting.get(track.name) or self._fired_as(track, frame, time_s) or self._nothing_yet()
        if isinstance(moments, _Fired) and self._brings_more(track, moments):
            moments = self._nothing_yet()
        self._waiting[track.name] = moments
        if isinstance(moments, _Fired):
            return None
        moments.offer(
            Moment(
                frame=frame,
                clipped=track.blob.clipped,
                off_centre=off_centre,
                way_xy=self._tracker.way_xy,
                bbox_xywh_px=self._in_frame(track.blob.bbox_xywh),
            )
        )
        if self._tracker.shows_its_front(track.blob):
            return self._take(track, moments)
        still_s = 0.0 if track.still_since_s is None else time_s - track.still_since_s
        if not track.blob.clipped and still_s >= (SETTLE_S if off_centre < self._near else SETTLE_ASIDE_S):
            return self._take(track, moments, standing=True)
        moving = track.travelled > 0 or self._tracker.pace_xy is not None
        return self._take(track, moments) if moving and self._tracker.leaves_soon(track) else None

    def _nothing_yet(self) -> Moments:
        return Moments(votes=self._votes, reach=SHARP_REACH * max(self._foreground.size_wh))

    def _brings_more(self, track: Track, fired: _Fired) -> bool:
        """Whether parts have come up behind one that has fired, and are one blob with it: most of what it shows is new.

        Not those that were seen apart before: they wait as tracks of their own.
        """
        unseen = 1 - self._tracker.share_seen(track.blob, fired.way_xy)
        single, (width, height) = self._foreground.single_area, self._foreground.size_wh
        least = NEW_SHARE * width * height if single is None else NEW_PARTS * single
        if unseen < 1 - SEEN_SHARE or unseen * track.blob.area < least:
            return False
        hidden = (other for other in self._tracker.tracks if other.misses and track.covers(other.blob))
        return not any(isinstance(self._waiting.get(other.name), Moments) for other in hidden)

    def _fired_as(self, track: Track, frame: Frame, time_s: float) -> _Fired | None:
        """What a new track is known from, if it is: an earlier process, or a track that has fired."""
        known = self._was_taken(track, frame, time_s) or self._lies_on_ghost(track)
        return _Fired(self._tracker.way_xy) if known else self._came_off_fired(track)

    def _lies_on_ghost(self, track: Track) -> bool:
        """Whether a new track is at the place of a ghost that had fired."""
        return self._laid is not None and self._views - self._laid_view <= LAID_VIEWS and self._laid.covers(track.blob)

    def _came_off_fired(self, track: Track) -> _Fired | None:
        """What has fired and had been one blob with a new track, which was seen then."""
        fired = None if track.parent is None or track.blob.cut else self._waiting.get(track.parent.name)
        if not isinstance(fired, _Fired) or self._tracker.share_seen(track.blob, fired.way_xy) < SEEN_SHARE:
            return None
        return fired

    def _was_taken(self, track: Track, frame: Frame, time_s: float) -> bool:
        """Whether a new track lies where a part must be by now that an earlier process has taken a moment ago."""
        age_s = time_s - self._begun_s
        known = [
            each for each in self._taken if age_s <= (KNOWN_S if any(each.sighting.step_xy_px) else KNOWN_STANDING_S)
        ]
        box = self._in_frame(track.blob.bbox_xywh)
        return any(overlap_share(box, each.bbox_at(frame, recorded=self._recorded)) > KNOWN_OVERLAP for each in known)

    def _lay_ghost(self, track: Track, time_s: float) -> bool:
        """Whether a track is where a part lay when the belt was learnt; if so it is belt from now on."""
        still = track.still_since_s is not None and time_s - track.still_since_s >= GHOST_S
        if not (still or self._views <= GHOST_VIEWS) or not self._foreground.is_ghost(track.blob):
            return False
        self._foreground.absorb(track.blob)
        self._tracker.drop(track)
        if isinstance(self._waiting.pop(track.name, None), _Fired):
            self._laid, self._laid_view = track, self._views
        self.parts_dismissed += 1
        return True

    def _left(self, track: Track) -> Part | None:
        """A part that is gone fires now if it has not; a flicker does not."""
        moments = self._waiting.pop(track.name, None)
        if not isinstance(moments, Moments):
            return None
        if track.seen < 2 or track.travelled < MOVED_PX:
            self.parts_dismissed += 1
            return None
        part = self._take(track, moments)
        del self._waiting[track.name]
        return part

    def _take(self, track: Track, moments: Moments, *, standing: bool = False) -> Part:
        taken = moments.taken(standing=standing)
        self._waiting[track.name] = _Fired(taken[0].way_xy)
        if not track.blob.clipped and not any(track.blob.spans_xy) and track.blob.number > 0:
            self._foreground.learn_single(track.blob)
        dx, dy = (0.0, 0.0) if standing else track.velocity_xy or self._tracker.pace_xy or (0.0, 0.0)
        step_xy_px = dx * self._px_per_view_px, dy * self._px_per_view_px
        sighting = Sighting(bbox_xywh_px=taken[0].bbox_xywh_px, step_xy_px=step_xy_px, frame_s=self._gaps.frame_s)
        return Part(frames=tuple(moment.frame for moment in taken), sighting=sighting)

    def _in_frame(self, bbox_xywh: Box) -> Box:
        """A box of the view in pixels of the frame."""
        scale = self._px_per_view_px
        x, y, width, height = (round(side * scale) for side in bbox_xywh)
        return self._zone[0] + x, self._zone[1] + y, max(1, width), max(1, height)


def _oldest_first(parts: list[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: part.best.index)
