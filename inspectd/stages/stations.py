"""Stations: several cameras look at one part. Each camera answers for itself; the station says one word on the part.

Pure but for its own rows of the ticket table, which nobody else writes: a station is a camera without a capture. A row
is accepted when the first of its cameras has accepted the part (or the trigger has come), and names the rows of the
others as they join. So a new publisher finds every part as the dead one left it.

How rows meet:
- `trigger`, `part_id`: by that id. It names the part, so a missing camera can shift nothing.
- `time`: frames of one part are at most `window` apart, once each camera's offset is taken away. Never by order: one
  missing part would shift every later pair. If parts follow each other at more than twice the window, a frame within it
  belongs to that part and to no other. If they do not, it shows: two parts of one camera, or two parts to choose from,
  are too near; all that are concerned become `error/internal`, and no word is said before it would have shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from inspectd.log import get_logger
from inspectd.recipe import Recipe
from inspectd.records import CameraState, Decision, Member, Reason, RecipeInfo, TriggerKind, Verdict
from inspectd.settings import Settings
from inspectd.stages.answers import verdict_of
from inspectd.stages.ledger import Answer
from inspectd.stages.station_rules import NS_PER_MS, Match, StationRule, recipe_of, state_of, stations_of
from inspectd.transport.rows import NewRow, Row
from inspectd.transport.tickets import CameraView

KEPT = 1024
"""Parts whose rows are remembered: what comes late for one of them starts no other."""
_RANKS = {Decision.PASS: 0, Decision.FAIL: 1, Decision.ERROR: 2}


class StationRows(Protocol):
    """The station's rows in the ticket table; `CameraView` is one."""

    answered_through: int
    high_water: int
    frames_skipped: int

    def accept(self, row: NewRow) -> int | None: ...
    def row(self, seq: int) -> Row | None: ...
    def join(self, seq: int, member: int, member_seq: int) -> None: ...
    def decide(self, seq: int, gate: Reason) -> bool: ...


@dataclass(slots=True, kw_only=True)
class _Part:
    """One part at the station. `rows` and `said` are by the number of the camera."""

    seq: int
    key: str | None
    time_ns: int
    rows: dict[int, int] = field(default_factory=dict)
    times_ns: dict[int, int] = field(default_factory=dict)
    said: dict[int, tuple[Verdict, bytes | None]] = field(default_factory=dict)


class Station:
    """The parts of one station.

    Args:
        rows: its rows in the ticket table.
    """

    def __init__(self, rule: StationRule, rows: StationRows) -> None:
        self.rule = rule
        self._rows = rows
        self._parts: dict[int, _Part] = {}
        self._cursors = dict.fromkeys(range(len(rule.cameras)), 0)
        for seq in range(max(1, rows.high_water - KEPT + 1), rows.high_water + 1):
            row = rows.row(seq)
            if row is not None:
                self._restore(row)

    # -- rows -------------------------------------------------------------------------------------------------------

    def take(self, camera: str, row: Row) -> None:
        """Takes the next row of one of its cameras: it joins a part, or opens one. What was taken before is left."""
        number = self.rule.cameras.index(camera)
        if row.seq <= self._cursors[number]:
            return
        self._cursors[number] = row.seq
        time_ns = self._time_ns(number, row)
        near = self._near(row, time_ns)
        waiting = [part for part in near if number not in part.rows]
        rivals = self._rivals(number, time_ns, near)
        if rivals or len(waiting) > 1:
            get_logger().error("station_parts_too_near", station=self.rule.name, camera=camera, seq=row.seq)
            for part in (*rivals, *waiting):
                self._refuse(part)
        if waiting:
            self._join(min(waiting, key=lambda part: abs(part.time_ns - time_ns)), number, row.seq, time_ns)
        else:
            self._open(number, row, time_ns, gate=Reason.INTERNAL if rivals else None)

    def request(self, trigger_id: str, part_id: str | None, arrived_ns: int, deadline_ms: float | None) -> int | None:
        """Accepts a trigger for all of its cameras; the seq, None where the table is full."""
        row = Row(
            seq=0,
            trigger_kind=TriggerKind.EXTERNAL,
            trigger_id=trigger_id,
            part_id=part_id,
            accepted_ns=arrived_ns,
            deadline_ns=0 if deadline_ms is None else arrived_ns + round(deadline_ms * NS_PER_MS),
            simulated=False,
        )
        return self._open(None, row, arrived_ns)

    # -- words ------------------------------------------------------------------------------------------------------

    def heard(self, verdict: Verdict, mask_png: bytes | None) -> None:
        """One of its cameras has answered."""
        number = self.rule.cameras.index(verdict.camera)
        for part in self._unanswered():
            if part.rows.get(number) == verdict.seq:
                part.said[number] = verdict, mask_png

    def unheard(self) -> list[tuple[str, int]]:
        """The rows, by camera and seq, that belong to parts without a word yet and have not been heard of."""
        return [
            (self.rule.cameras[number], seq)
            for part in self._unanswered()
            for number, seq in part.rows.items()
            if number not in part.said
        ]

    def decided(self, now_ns: int) -> list[tuple[Verdict, bytes | None]]:
        """Of the parts that every camera has answered for the verdict that counts for all, by the part's seq."""
        decided = []
        for part in self._unanswered():
            if len(part.said) == len(self.rule.cameras) and now_ns >= part.time_ns + self.rule.settle_ns:
                found, mask_png = max(part.said.values(), key=lambda said: _badness(said[0]))
                decided.append((replace(found, seq=part.seq), mask_png))
        return decided

    def wake_ns(self) -> int | None:
        """When a part that every camera has answered for may be spoken of; None where none waits for that."""
        whole = (part for part in self._unanswered() if len(part.said) == len(self.rule.cameras))
        return min((part.time_ns + self.rule.settle_ns for part in whole), default=None)

    def members(self, seq: int) -> tuple[Member, ...]:
        """What each camera said of a part, so far."""
        part = self._parts.get(seq)
        return tuple(
            Member(camera=camera) if part is None or number not in part.said else _member(part.said[number][0])
            for number, camera in enumerate(self.rule.cameras)
        )

    # -- parts ------------------------------------------------------------------------------------------------------

    def _restore(self, row: Row) -> None:
        part = _Part(seq=row.seq, key=self._key(row), time_ns=row.captured_ns or row.accepted_ns)
        for number, member_seq in enumerate(row.members[: len(self.rule.cameras)]):
            if member_seq:
                part.rows[number] = member_seq
                part.times_ns[number] = part.time_ns
                self._cursors[number] = max(self._cursors[number], member_seq)
        self._parts[row.seq] = part

    def _unanswered(self) -> list[_Part]:
        first = self._rows.answered_through + 1
        return [part for seq in range(first, self._rows.high_water + 1) if (part := self._parts.get(seq)) is not None]

    def _key(self, row: NewRow) -> str | None:
        return row.part_id if self.rule.match is Match.PART_ID else row.trigger_id

    def _time_ns(self, number: int, row: Row) -> int:
        """When the part was where the first camera sees it."""
        return (row.captured_ns or row.accepted_ns) - self.rule.offsets_ns[number]

    def _near(self, row: Row, time_ns: int) -> list[_Part]:
        """The parts that a row may be about, the latest of those that are answered only if there is no other."""
        if self.rule.match is Match.TIME:
            near = [part for part in self._parts.values() if abs(part.time_ns - time_ns) <= self.rule.window_ns]
        else:
            key = self._key(row)
            near = [part for part in self._parts.values() if key is not None and part.key == key]
        unanswered = [part for part in near if part.seq > self._rows.answered_through]
        return unanswered or near[-1:]

    def _rivals(self, number: int, time_ns: int, near: list[_Part]) -> list[_Part]:
        """The parts that this camera has shown already and that could be mixed up with the one it shows now."""
        if self.rule.match is not Match.TIME:  # an id may be used again once its part is spoken of
            return [part for part in near if number in part.rows and part.seq > self._rows.answered_through]
        seen = (part for part in self._parts.values() if number in part.times_ns)
        return [part for part in seen if abs(part.times_ns[number] - time_ns) <= 2 * self.rule.window_ns]

    def _refuse(self, part: _Part) -> None:
        if part.seq > self._rows.answered_through:
            self._rows.decide(part.seq, Reason.INTERNAL)

    def _join(self, part: _Part, number: int, seq: int, time_ns: int) -> None:
        part.rows[number], part.times_ns[number] = seq, time_ns
        self._rows.join(part.seq, number, seq)

    def _open(self, number: int | None, row: Row, time_ns: int, gate: Reason | None = None) -> int | None:
        members = () if number is None else (*(0,) * number, row.seq)
        new = NewRow(
            trigger_kind=row.trigger_kind,
            trigger_id=row.trigger_id,
            part_id=row.part_id,
            accepted_ns=row.accepted_ns,
            captured_ns=time_ns,
            deadline_ns=self._deadline_ns(row, time_ns),
            simulated=self.rule.simulated,
            gate=gate,
            members=members,
        )
        seq = self._rows.accept(new)
        if seq is None:
            self._rows.frames_skipped += 1
            get_logger().error("station_part_skipped", station=self.rule.name, trigger_id=row.trigger_id)
            return None
        part = self._parts[seq] = _Part(seq=seq, key=self._key(row), time_ns=time_ns)
        if number is not None:
            part.rows[number], part.times_ns[number] = row.seq, time_ns
        while len(self._parts) > KEPT:
            del self._parts[next(iter(self._parts))]
        return seq

    def _deadline_ns(self, row: Row, time_ns: int) -> int:
        """By then every camera's own deadline for this part is over."""
        longest = max(self.rule.deadlines_ns)
        if self.rule.match is not Match.TIME:
            return row.deadline_ns or row.accepted_ns + longest
        ends = zip(self.rule.offsets_ns, self.rule.deadlines_ns, strict=True)
        lag_ns = max(0, row.accepted_ns - (row.captured_ns or row.accepted_ns))
        return time_ns + lag_ns + self.rule.window_ns + max(offset + deadline for offset, deadline in ends)


class Stations:
    """All stations of the daemon, each with its view of the ticket table; the publisher tells them what it sees."""

    def __init__(self, settings: Settings, recipes: Mapping[str, Recipe], views: Mapping[str, CameraView]) -> None:
        rules = stations_of(settings, recipes)
        self._views = views
        self.by_name = {name: Station(rule, views[name]) for name, rule in rules.items()}
        self.recipes = {name: recipe_of(rule, recipes) for name, rule in rules.items()}
        self._of_camera = {camera: self.by_name[name] for name, rule in rules.items() for camera in rule.cameras}

    def get(self, name: str) -> Station | None:
        """The station of that name; None for a camera."""
        return self.by_name.get(name)

    def take(self, name: str, row: Row) -> None:
        """A camera has accepted a row: its station's business, where it has one."""
        if (station := self._of_camera.get(name)) is not None:
            station.take(name, row)

    def heard(self, verdict: Verdict, mask_png: bytes | None) -> None:
        """A verdict went out: its station's business, where its camera has one."""
        if (station := self._of_camera.get(verdict.camera)) is not None:
            station.heard(verdict, mask_png)

    def look(self) -> None:
        """A station has no capture: what that would say of its state is said here."""
        for name, station in self.by_name.items():
            views = (self._views[camera] for camera in station.rule.cameras)
            self._views[name].state = state_of(CameraState.PAUSED if view.paused else view.state for view in views)

    def unheard(self) -> list[tuple[Station, str, int]]:
        """See `Station.unheard`."""
        return [(station, *row) for station in self.by_name.values() for row in station.unheard()]

    def wakes_ns(self) -> list[int]:
        """See `Station.wake_ns`."""
        return [due for station in self.by_name.values() if (due := station.wake_ns()) is not None]


def verdict_at(station: Station, answer: Answer, *, session: str, recipe: RecipeInfo, now_ns: int) -> Verdict:
    """The station's verdict on one of its rows: its own head on what the camera found that decides."""
    found, name = answer.outcome, station.rule.name
    if isinstance(found, Verdict) and found.camera == name:
        return found  # a dead publisher had it ready
    outcome = found if isinstance(found, Reason) else Reason.INTERNAL
    head = verdict_of(replace(answer, outcome=outcome), session=session, camera=name, recipe=recipe, now_ns=now_ns)
    head = replace(head, members=station.members(answer.row.seq))
    if not isinstance(found, Verdict):
        return head
    total = head.latency_ms.total
    steps = (found.latency_ms.capture, found.latency_ms.queue, found.latency_ms.infer, found.latency_ms.post)
    publish = None if total is None else max(0.0, total - sum(step or 0.0 for step in steps))
    return replace(
        found,
        camera=name,
        seq=head.seq,
        trigger=head.trigger,
        deadline_ms=head.deadline_ms,
        journaled=True,
        simulated=head.simulated or found.simulated,
        members=head.members,
        latency_ms=replace(found.latency_ms, publish=publish, total=total),
    )


def _badness(verdict: Verdict) -> tuple[int, float]:
    """Worst of all: an error before a fail before a pass, then by how far the score is above its threshold."""
    above = 0.0 if verdict.score is None or verdict.threshold is None else verdict.score - verdict.threshold
    return _RANKS[verdict.decision], above


def _member(verdict: Verdict) -> Member:
    return Member(camera=verdict.camera, seq=verdict.seq, decision=verdict.decision, reason=verdict.reason)
