"""Follows parts through the zone, from view to view, so that each one fires once. Pure: blobs in, tracks out.

On a belt all parts share one displacement, so it is found first, from all of them together: then even parts that move
by more than their own size between two frames keep their names. Coordinates are pixels of the view, steps are frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from inspectd.sources.foreground import Blob

Boxes = NDArray[np.float64]
"""`(N, 4)`: x, y, width, height."""
Vector = tuple[float, float]
Box = tuple[int, int, int, int]

SAME_OVERLAP = 0.3
"""A blob is a track's when they overlap by this share of the smaller of their boxes, once the belt's way is added."""
ALIKE_BONUS = 0.2
"""Of two tracks that lie within a blob the one that is as large is it."""
FRAGMENT_OVERLAP = 0.5
STILL_PX = 0.75
"""Less than this from one frame to the next is standing."""
MOST_MISSES = 2
"""Frames that a part may hide within the zone."""
STEADY_STEPS = 5
STEADY_SHARE = 0.1
"""Over so many views, or so large a share of the zone's longer side, a camera that shakes has no way of its own."""
PACE_BONUS = 0.75
CRUISE_BONUS = 0.5
FAR_COST = 0.5


@dataclass(slots=True, kw_only=True, eq=False)
class Track:
    """One part on its way. `seen` counts the views that showed it, `misses` those since the last one."""

    name: int
    blob: Blob
    centre_xy: Vector
    begun_xy: Vector
    """Where its centre was first seen."""
    nearest: float
    """How near to the zone's centre its own has been."""
    velocity_xy: Vector | None = None
    velocities_xy: deque[Vector] = field(default_factory=lambda: deque(maxlen=STEADY_STEPS))
    """The last ones that were measured on the whole part."""
    seen: int = 1
    misses: int = 0
    travelled: float = 0.0
    still_since_s: float | None = None
    parent: Track | None = None
    """The part that it was one blob with in the last view."""
    last_bbox_xywh: Box = (0, 0, 0, 0)

    def covers(self, blob: Blob) -> bool:
        """Whether most of a blob lies within this track's box."""
        return _share_within(blob.bbox_xywh, self.blob.bbox_xywh) > FRAGMENT_OVERLAP


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one view changed: tracks seen in it, and tracks that are over."""

    seen: list[Track]
    gone: list[Track]


class Tracker:
    """Names the blobs of successive views."""

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self._size_wh = size_wh
        self._diagonal = float(np.hypot(*size_wh))
        self._names = count(1)
        self.tracks: list[Track] = []
        self.pace_xy: Vector | None = None
        """The belt's displacement by frame, None until two views showed the same part."""
        self._paces_xy: deque[Vector] = deque(maxlen=STEADY_STEPS)
        self._cruises_xy: deque[Vector] = deque(maxlen=STEADY_STEPS)
        self._cruise_xy: Vector | None = None
        """The median of the last paces that were not standing: a belt that stopped goes on with it."""
        self.way_xy: Vector = (0.0, 0.0)
        """How far the belt has come since the first view."""

    def feed(self, blobs: Sequence[Blob], steps: int, time_s: float, *, stands: bool = False) -> Changes:
        """Takes the blobs of the view `steps` frames after the last one.

        Args:
            stands: what lies in the zone looks just as it did; needed of what is longer than the zone.
        """
        shift = self._shift(blobs, steps)
        pairs = self._pairs(blobs, shift, steps)
        ways = [(self._update(track, blob, steps, time_s), blob.cut) for track, blob in pairs]
        moved = [way for way, _ in ways if way is not None]
        self._set_pace(moved, sure=any(way is not None and not cut for way, cut in ways))
        self._go_on(shift, steps, known=bool(moved), stands=stands)
        matched, taken = {track.name for track, _ in pairs}, {blob.number for _, blob in pairs}
        over = [t for t in self.tracks if t.name not in matched and not self._survives(t, blobs, shift, steps)]
        free = [b for b in blobs if b.number not in taken]
        rest = [b for b in free if not any(track.covers(b) for track, _ in pairs)]  # else a piece or a shadow of it
        new = [self._track(blob, [t for t, _ in pairs], shift, time_s) for blob in rest]
        self.tracks = [t for t in self.tracks if t not in over] + new
        return Changes(seen=[t for t, _ in pairs] + new, gone=over)

    def drop(self, track: Track) -> None:
        """Forgets a track that was no part."""
        self.tracks.remove(track)

    def leaves_soon(self, track: Track) -> bool:
        """Whether the next frame will show a track further from the centre; False where that is not known.

        A part of which only some was seen so far has no way of its own. It goes the belt's, once it has passed
        the centre; and what begins at an edge may be one that had left, while the camera shakes.
        """
        own = self._steady(track.velocities_xy)
        velocity = own or self._steady(self._paces_xy)
        if velocity is None:
            return False
        now, (x, y) = self.off_centre(track.centre_xy), track.centre_xy
        if own is None and (track.blob.clipped if track.seen == 1 else not self._has_passed(track)):
            return False
        return self.off_centre((x + velocity[0], y + velocity[1])) > now + 1e-6

    def _has_passed(self, track: Track) -> bool:
        """Whether a part that is never seen whole is further away than it was first, or clearly than it was since."""
        now = self.off_centre(track.centre_xy)
        return now > self.off_centre(track.begun_xy) or now > track.nearest + STEADY_SHARE * max(self._size_wh)

    def _steady(self, velocities_xy: Sequence[Vector]) -> Vector | None:
        """The way of several steps, by step; None where it may be the camera's that shakes."""
        if not velocities_xy:
            return None
        x, y = np.sum(velocities_xy, axis=0).tolist()
        steps = len(velocities_xy)
        far = np.hypot(x, y) >= STEADY_SHARE * max(self._size_wh)
        return (x / steps, y / steps) if far or steps >= STEADY_STEPS else None

    def off_centre(self, point_xy: Vector) -> float:
        """Distance from the centre of the zone."""
        return float(np.hypot(point_xy[0] - self._size_wh[0] / 2, point_xy[1] - self._size_wh[1] / 2))

    def _shift(self, blobs: Sequence[Blob], steps: int) -> Vector:
        """How far the belt went since the last view: the displacement that explains most tracks."""
        if not self.tracks or not blobs:
            pace = self.pace_xy or (0.0, 0.0)
            return pace[0] * steps, pace[1] * steps
        known = [(v, bonus) for v, bonus in ((self.pace_xy, PACE_BONUS), (self._cruise_xy, CRUISE_BONUS)) if v]
        candidates = [(0.0, 0.0), *((v[0] * steps, v[1] * steps) for v, _ in known)]
        bonus = [0.0, *(b for _, b in known)]
        for track in self.tracks:
            for blob in blobs:
                if 0.5 < blob.area / track.blob.area < 2:
                    x, y = track.centre_xy
                    candidates.append((blob.centroid_xy[0] - x, blob.centroid_xy[1] - y))
                    bonus.append(0.0)
        shifts = np.asarray(candidates)
        support = self._support(shifts, _boxes(blobs)) + np.asarray(bonus)
        support -= FAR_COST * np.hypot(shifts[:, 0], shifts[:, 1]) / self._diagonal
        best = shifts[int(support.argmax())]
        return float(best[0]), float(best[1])

    def _support(self, shifts: NDArray[np.float64], boxes: Boxes) -> NDArray[np.float64]:
        """`(C,)`: for each displacement the overlap of the moved tracks with blobs; one that leaves counts half."""
        tracks = _boxes([track.blob for track in self.tracks])
        moved = np.repeat(tracks[None], len(shifts), axis=0)
        moved[..., :2] += shifts[:, None]
        best = _overlap(moved.reshape(-1, 4), boxes).max(axis=1).reshape(len(shifts), -1)
        centres = moved[..., :2] + moved[..., 2:] / 2
        inside = ((centres >= 0) & (centres <= np.asarray(self._size_wh))).all(axis=2)
        return np.asarray(np.where(inside, best, np.maximum(best, 0.5)).sum(axis=1))

    def _pairs(self, blobs: Sequence[Blob], shift: Vector, steps: int) -> list[tuple[Track, Blob]]:
        """Tracks and their blobs, the surest first; each is used once."""
        if not self.tracks or not blobs:
            return []
        score = np.zeros((len(self.tracks), len(blobs)))
        for row, track in enumerate(self.tracks):
            own = track.velocity_xy
            ways = [shift, (0.0, 0.0)] if own is None else [shift, (own[0] * steps, own[1] * steps), (0.0, 0.0)]
            moved = np.repeat(_boxes([track.blob]), len(ways), axis=0)
            moved[:, :2] += np.asarray(ways)
            alike = _overlap(moved, _boxes(blobs)) + ALIKE_BONUS * _common(moved, _boxes(blobs))
            score[row] = (alike - 0.05 * np.arange(len(ways))[:, None]).max(axis=0)
        pairs = []
        while score.max() > SAME_OVERLAP:
            row, column = divmod(int(score.argmax()), len(blobs))
            pairs.append((self.tracks[row], blobs[column]))
            score[row, :] = score[:, column] = 0.0
        return pairs

    def _update(self, track: Track, blob: Blob, steps: int, time_s: float) -> Vector | None:
        """Moves a track; returns its velocity where both views showed the whole part."""
        (x0, y0), (x1, y1) = track.centre_xy, blob.centroid_xy
        steps += track.misses
        velocity = (x1 - x0) / steps, (y1 - y0) / steps
        whole = not any(each.clipped or self.fills(each) for each in (blob, track.blob))
        distance = float(np.hypot(x1 - x0, y1 - y0))
        if distance > STILL_PX:
            track.still_since_s = None
        elif track.still_since_s is None:
            track.still_since_s = time_s
        track.travelled += distance
        track.velocity_xy = velocity if whole else (track.velocity_xy or self.pace_xy or velocity)
        track.velocities_xy.extend([velocity] if whole else ())
        track.last_bbox_xywh = track.blob.bbox_xywh
        track.blob, track.centre_xy = blob, blob.centroid_xy
        track.nearest = min(track.nearest, self.off_centre(track.centre_xy))
        track.seen, track.misses = track.seen + 1, 0
        return velocity if whole else None

    def _set_pace(self, velocities: list[Vector], *, sure: bool) -> None:
        """`sure`: not only of pieces of heaps, whose borders jump now and then."""
        if not velocities:
            return
        pace = _median(velocities)
        self._paces_xy.append(pace)
        self.pace_xy = pace if sure else _median(self._paces_xy)
        if np.hypot(*self.pace_xy) > STILL_PX:
            self._cruises_xy.append(self.pace_xy)
            self._cruise_xy = _median(self._cruises_xy)

    def _go_on(self, shift: Vector, steps: int, *, known: bool, stands: bool) -> None:
        """Counts the belt's way: by the parts that were seen whole, else by what is most likely."""
        if known and self.pace_xy is not None:
            shift = self.pace_xy[0] * steps, self.pace_xy[1] * steps
        elif stands:
            shift = 0.0, 0.0
        elif self._cruise_xy is not None:
            shift = self._cruise_xy[0] * steps, self._cruise_xy[1] * steps
        self.way_xy = self.way_xy[0] + shift[0], self.way_xy[1] + shift[1]

    def may_have_passed(self, frames: float) -> bool | None:
        """Whether a part may come and go, seen in fewer than two views, in so many frames; None for an unknown pace."""
        if self._cruise_xy is None:
            return None
        axis = self._axis()
        return (frames + 2) * abs(self._cruise_xy[axis]) > self._size_wh[axis]

    def fills(self, blob: Blob) -> bool:
        """Whether a blob is longer than the zone in the direction of the belt, so that its ends are not seen."""
        return self._cruise_xy is not None and blob.spans_xy[self._axis()]

    def shows_its_front(self, blob: Blob) -> bool:
        """Whether it is the last view of the front of what will fill the zone by the next frame, or fills it now."""
        if self._cruise_xy is None or self.fills(blob):
            return self.fills(blob)
        axis = self._axis()
        step, side = self._cruise_xy[axis], self._size_wh[axis]
        start, end = blob.bbox_xywh[axis], blob.bbox_xywh[axis] + blob.bbox_xywh[2 + axis]
        return (start <= 0 and end + step > side) if step > 0 else (end >= side and start + step < 0)

    def _axis(self) -> int:
        """Along which the belt runs: 0 across, 1 down."""
        x, y = self._cruise_xy or (0.0, 0.0)
        return int(abs(x) < abs(y))

    def share_seen(self, blob: Blob, way_xy: Vector) -> float:
        """How much of what a blob shows now lay in the zone when the belt had come so far."""
        x, y, width, height = blob.bbox_xywh
        before = x + way_xy[0] - self.way_xy[0], y + way_xy[1] - self.way_xy[1], width, height
        return overlap_share(before, (0, 0, *self._size_wh))

    def _survives(self, track: Track, blobs: Sequence[Blob], shift: Vector, steps: int) -> bool:
        """Moves a track that was not seen along with the belt; False once it is out of the zone or hides too long."""
        track.misses += steps
        x, y, width, height = track.blob.bbox_xywh
        x, y = round(x + shift[0]), round(y + shift[1])
        track.centre_xy = track.centre_xy[0] + shift[0], track.centre_xy[1] + shift[1]
        box = np.asarray([[x, y, width, height]], np.float64)
        merged = bool(len(blobs) and _overlap(box, _boxes(blobs)).max() > FRAGMENT_OVERLAP)
        track.blob = Blob(
            number=-1, bbox_xywh=(x, y, width, height), centroid_xy=track.centre_xy, area=track.blob.area, clipped=True
        )
        return self._is_inside(track.centre_xy) and (merged or track.misses <= MOST_MISSES)

    def _track(self, blob: Blob, tracks: list[Track], shift: Vector, time_s: float) -> Track:
        """A new track. A piece of another moves as that one did: where it is, the other had been, moved by the belt."""
        x, y, width, height = blob.bbox_xywh
        before = round(x - shift[0]), round(y - shift[1]), width, height
        parents = (t for t in tracks if _share_within(before, t.last_bbox_xywh) > FRAGMENT_OVERLAP)
        return Track(
            name=next(self._names),
            blob=blob,
            centre_xy=blob.centroid_xy,
            begun_xy=blob.centroid_xy,
            nearest=self.off_centre(blob.centroid_xy),
            still_since_s=time_s,
            parent=next(parents, None),
        )

    def _is_inside(self, point_xy: Vector) -> bool:
        return 0 <= point_xy[0] <= self._size_wh[0] and 0 <= point_xy[1] <= self._size_wh[1]


def _median(vectors: Sequence[Vector]) -> Vector:
    x, y = np.median(np.asarray(vectors), axis=0).tolist()
    return x, y


def _boxes(blobs: Sequence[Blob]) -> Boxes:
    return np.asarray([blob.bbox_xywh for blob in blobs], np.float64).reshape(-1, 4)


def _share_within(inner_xywh: Box, outer_xywh: Box) -> float:
    """How much of one box lies within another."""
    (x, y, width, height), (x0, y0, width0, height0) = inner_xywh, outer_xywh
    shared_x = min(x + width, x0 + width0) - max(x, x0)
    shared_y = min(y + height, y0 + height0) - max(y, y0)
    return max(0, shared_x) * max(0, shared_y) / (width * height)


def overlap_share(left_xywh: Sequence[float], right_xywh: Sequence[float]) -> float:
    """The intersection of two boxes as a share of the smaller one.

    >>> overlap_share((0, 0, 4, 4), (2, 0, 4, 2))
    0.5
    """
    return float(_overlap(np.asarray([left_xywh], np.float64), np.asarray([right_xywh], np.float64))[0, 0])


def _overlap(left: Boxes, right: Boxes) -> NDArray[np.float64]:
    """`(N, M)`: the intersection of boxes as a share of the smaller of the two.

    >>> _overlap(np.array([[0.0, 0, 4, 4]]), np.array([[2.0, 0, 4, 2]])).tolist()
    [[0.5]]
    """
    shared, left_area, right_area = _areas(left, right)
    return np.asarray(shared / np.maximum(np.minimum(left_area, right_area), 1e-9))


def _common(left: Boxes, right: Boxes) -> NDArray[np.float64]:
    """`(N, M)`: the intersection of boxes as a share of their union.

    >>> _common(np.array([[0.0, 0, 4, 4]]), np.array([[2.0, 0, 2, 4]])).tolist()
    [[0.5]]
    """
    shared, left_area, right_area = _areas(left, right)
    return np.asarray(shared / np.maximum(left_area + right_area - shared, 1e-9))


def _areas(left: Boxes, right: Boxes) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The intersections `(N, M)` of boxes, and the areas of the boxes themselves, `(N, 1)` and `(1, M)`."""
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, :2] + left[:, None, 2:], right[None, :, :2] + right[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    return shared, left[:, 2:].prod(axis=1)[:, None], right[:, 2:].prod(axis=1)[None]
