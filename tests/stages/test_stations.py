"""How the rows of a station's cameras meet, and what is said of a part: pure, on rows in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests_records import RECIPE, a_row, a_verdict

from inspectd.records import CameraState, Decision, Reason, Trigger, TriggerKind, Verdict
from inspectd.stages.ledger import Answer
from inspectd.stages.station_rules import Match, StationRule, state_of
from inspectd.stages.stations import Station, verdict_at
from inspectd.transport.rows import NewRow, Row

MS = 1_000_000
START_NS = 10_000 * MS


@dataclass
class Rows:
    """The station's rows, without shared memory; its own code is tested with the table."""

    answered_through: int = 0
    frames_skipped: int = 0
    most: int = 1024
    rows: list[Row] = field(default_factory=list)

    @property
    def high_water(self) -> int:
        return len(self.rows)

    def accept(self, row: NewRow) -> int | None:
        if self.high_water - self.answered_through >= self.most:
            return None
        fields = {name: getattr(row, name) for name in NewRow.__dataclass_fields__}
        self.rows.append(Row(**fields | {"seq": len(self.rows) + 1}))
        return len(self.rows)

    def row(self, seq: int) -> Row | None:
        return self.rows[seq - 1] if 0 < seq <= len(self.rows) else None

    def join(self, seq: int, member: int, member_seq: int) -> None:
        members = [*self.rows[seq - 1].members, *(0,) * 8][:8]
        members[member] = member_seq
        self.rows[seq - 1] = replace(self.rows[seq - 1], members=tuple(members))

    def decide(self, seq: int, gate: Reason) -> bool:
        self.rows[seq - 1] = replace(self.rows[seq - 1], gate=gate)
        return True

    def members(self) -> list[tuple[int, ...]]:
        """Which rows make each part, camera by camera."""
        return [tuple([*row.members, 0, 0][:2]) for row in self.rows]

    def gates(self) -> list[Reason | None]:
        return [row.gate for row in self.rows]


def a_rule(match: Match, **fields: Any) -> StationRule:
    sound: dict[str, Any] = {
        "name": "side",
        "cameras": ("left", "right"),
        "match": match,
        "window_ns": 100 * MS,
        "offsets_ns": (0, 400 * MS),
        "deadlines_ns": (500 * MS, 700 * MS),
        "simulated": True,
    }
    return StationRule(**sound | fields)


def seen(seq: int, at_ms: float, **fields: Any) -> Row:
    """A part in front of a camera, so long after the start."""
    at_ns = START_NS + round(at_ms * MS)
    kind = TriggerKind.PRESENCE
    return a_row(seq, captured_ns=at_ns, accepted_ns=at_ns, deadline_ns=at_ns + 500 * MS, trigger_kind=kind, **fields)


def asked(seq: int, trigger_id: str | None, part_id: str | None = None) -> Row:
    return a_row(seq, trigger_kind=TriggerKind.EXTERNAL, trigger_id=trigger_id, part_id=part_id, deadline_ns=9_000)


def said(camera: str, seq: int, decision: Decision = Decision.PASS, score: float | None = 0.25) -> Verdict:
    reason = {Decision.PASS: Reason.OK, Decision.FAIL: Reason.ANOMALY, Decision.ERROR: Reason.LATE}[decision]
    trigger = Trigger(kind=TriggerKind.PRESENCE)
    return a_verdict(camera=camera, seq=seq, decision=decision, reason=reason, score=score, trigger=trigger)


def test_frames_of_one_part_meet_by_their_time() -> None:
    """Whichever camera's row comes first; the way between the cameras is taken away."""
    rows = Rows()
    station = Station(a_rule(Match.TIME), rows)
    station.take("left", seen(1, 0))
    station.take("left", seen(2, 300))
    station.take("right", seen(1, 330))
    station.take("right", seen(2, 790))
    station.take("right", seen(3, 1400))
    station.take("left", seen(3, 950))
    assert rows.members() == [(1, 1), (2, 2), (3, 3)]
    assert rows.gates() == [None] * 3


@pytest.mark.parametrize("missed_by", ["left", "right"])
def test_missing_part_shifts_no_pair(missed_by: str) -> None:
    """A part that one camera does not see stays alone; all others are whole."""
    rows = Rows()
    station = Station(a_rule(Match.TIME), rows)
    seqs = {"left": 0, "right": 0}
    for part in range(6):
        for camera, offset in (("left", 0), ("right", 400)):
            if not (part == 2 and camera == missed_by):
                seqs[camera] += 1
                station.take(camera, seen(seqs[camera], part * 500 + offset))
    lone = (3, 0) if missed_by == "right" else (0, 3)
    later = [(n, n - 1) if missed_by == "right" else (n - 1, n) for n in (4, 5, 6)]
    assert rows.members() == [(1, 1), (2, 2), lone, *later]
    assert rows.gates() == [None] * 6


def test_parts_that_follow_too_closely_are_errors_before_a_word_is_said() -> None:
    """Part 1 is missed by one camera and part 2 comes within two windows: neither is taken for the other."""
    rows = Rows()
    station = Station(a_rule(Match.TIME, offsets_ns=(0, 0)), rows)
    station.take("left", seen(1, 0))
    station.take("right", seen(1, 80))
    station.heard(said("left", 1), None)
    station.heard(said("right", 1), None)
    assert station.decided(START_NS + 200 * MS) == []
    station.take("left", seen(2, 80))
    assert rows.gates() == [Reason.INTERNAL, Reason.INTERNAL]
    assert len(station.decided(START_NS + 251 * MS)) == 1


def test_row_with_two_parts_to_choose_from_makes_errors_of_both() -> None:
    """Ambiguity is never resolved by guessing."""
    rows = Rows()
    station = Station(a_rule(Match.TIME, cameras=("a", "b", "c"), offsets_ns=(0, 0, 0), deadlines_ns=(1, 1, 1)), rows)
    station.take("a", seen(1, 0))
    station.take("b", seen(1, 150))
    station.take("c", seen(1, 75))
    assert rows.gates() == [Reason.INTERNAL, Reason.INTERNAL]


def test_row_that_comes_after_the_word_starts_no_other_part() -> None:
    """One part, one verdict: who comes too late has missed it."""
    rows = Rows()
    station = Station(a_rule(Match.TIME), rows)
    station.take("left", seen(1, 0))
    rows.answered_through = 1
    station.take("right", seen(1, 400))
    assert rows.members() == [(1, 1)]


@pytest.mark.parametrize(("match", "ids"), [(Match.TRIGGER, ("t1", None)), (Match.PART_ID, ("x", "p1"))])
def test_ids_pair_whatever_the_order(match: Match, ids: tuple[str, str | None]) -> None:
    """By the trigger's id, or by the part's where cameras are triggered one by one."""
    rows = Rows()
    station = Station(a_rule(match), rows)
    station.take("left", asked(1, "other", "other"))
    station.take("right", asked(1, *ids))
    station.take("left", asked(2, ids[0] if match is Match.TRIGGER else "y", ids[1]))
    assert rows.members() == [(1, 0), (2, 1)]


def test_part_id_given_twice_while_it_is_open_is_an_error() -> None:
    """Two parts of one name cannot be told apart; once the first is answered the name is free again."""
    rows = Rows()
    station = Station(a_rule(Match.PART_ID), rows)
    station.take("left", asked(1, "t1", "p"))
    station.take("left", asked(2, "t2", "p"))
    assert rows.gates() == [Reason.INTERNAL, Reason.INTERNAL]
    rows.answered_through = 2
    station.take("left", asked(3, "t3", "p"))
    assert rows.gates()[2:] == [None]


def test_request_opens_the_part_that_its_cameras_join() -> None:
    """A trigger to the station is a part at once, due as the request or the slowest recipe says."""
    rows = Rows()
    station = Station(a_rule(Match.TRIGGER), rows)
    assert station.request("t1", "p1", 5 * MS, 80.0) == 1
    assert station.request("t2", None, 6 * MS, None) == 2
    station.take("right", asked(1, "t2"))
    station.take("right", asked(2, "t1", "p1"))
    assert rows.members() == [(0, 2), (0, 1)]
    assert [row.deadline_ns for row in rows.rows] == [85 * MS, 706 * MS]
    assert (rows.rows[0].trigger_id, rows.rows[0].part_id, rows.rows[0].simulated) == ("t1", "p1", True)


def a_whole_part(*verdicts: Verdict) -> tuple[Station, Rows]:
    rows = Rows()
    station = Station(a_rule(Match.TIME), rows)
    station.take("left", seen(1, 0))
    station.take("right", seen(4, 400))
    for verdict in verdicts:
        station.heard(verdict, b"png" if verdict.decision is Decision.FAIL else None)
    return station, rows


@pytest.mark.parametrize(
    ("left", "right", "decision", "shown"),
    [
        ((Decision.PASS, 0.1), (Decision.PASS, 0.3), Decision.PASS, 0.3),
        ((Decision.FAIL, 0.6), (Decision.PASS, 0.3), Decision.FAIL, 0.6),
        ((Decision.FAIL, 0.6), (Decision.FAIL, 0.9), Decision.FAIL, 0.9),
        ((Decision.FAIL, 0.6), (Decision.ERROR, None), Decision.ERROR, None),
    ],
)
def test_worst_camera_speaks_for_the_part(left: Any, right: Any, decision: Decision, shown: float | None) -> None:
    """An error before a fail before a pass; of several the clearest; each camera's own word stands beside it."""
    station, rows = a_whole_part(said("left", 1, *left), said("right", 4, *right))
    ((found, mask_png),) = station.decided(START_NS + 1000 * MS)
    answer = Answer(row=rows.rows[0], outcome=found, mask_png=mask_png)
    verdict = verdict_at(station, answer, session="s", recipe=RECIPE, now_ns=START_NS + 1000 * MS)
    assert (verdict.camera, verdict.seq, verdict.decision, verdict.score) == ("side", 1, decision, shown)
    assert [(m.camera, m.seq, m.decision) for m in verdict.members] == [("left", 1, left[0]), ("right", 4, right[0])]
    assert (mask_png is not None) == (decision is Decision.FAIL)
    assert verdict.latency_ms.total == pytest.approx(1000)


def test_part_that_a_camera_did_not_see_is_an_error_that_names_it() -> None:
    """Nothing is decided for it before its deadline, which is later than every camera's own."""
    station, rows = a_whole_part(said("left", 1))
    assert station.decided(START_NS + 10_000 * MS) == []
    assert rows.rows[0].deadline_ns == START_NS + (100 + 400 + 700) * MS
    answer = Answer(row=rows.rows[0], outcome=Reason.CAMERA_LOST)
    verdict = verdict_at(station, answer, session="s", recipe=RECIPE, now_ns=START_NS + 1200 * MS)
    assert (verdict.decision, verdict.reason, verdict.deadline_ms) == (Decision.ERROR, Reason.CAMERA_LOST, 1200)
    assert [(m.camera, m.decision) for m in verdict.members] == [("left", Decision.PASS), ("right", None)]


def test_new_publisher_finds_the_parts_as_they_were() -> None:
    """From the rows alone: what has joined is not taken again, what is open goes on, what was said is asked for."""
    rows = Rows()
    station = Station(a_rule(Match.TIME), rows)
    station.take("left", seen(1, 0))
    station.take("right", seen(1, 400))
    station.take("left", seen(2, 1000))
    rows.answered_through = 1
    again = Station(a_rule(Match.TIME), rows)
    assert again.unheard() == [("left", 2)]
    for camera, seq, at_ms in (("left", 1, 0), ("left", 2, 1000), ("right", 1, 400), ("right", 2, 1400)):
        again.take(camera, seen(seq, at_ms))
    assert rows.members() == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ((CameraState.READY, CameraState.LOST), CameraState.LOST),
        ((CameraState.READY, CameraState.ENDED), CameraState.READY),
        ((CameraState.ENDED, CameraState.ENDED), CameraState.ENDED),
        ((CameraState.LOST, CameraState.STARTING), CameraState.STARTING),
    ],
)
def test_station_is_as_ready_as_its_least_ready_camera(states: tuple[CameraState, ...], state: CameraState) -> None:
    """A heartbeat says at once that a part cannot be whole."""
    assert state_of(states) is state


def test_part_that_finds_the_table_full_is_counted() -> None:
    """Nothing is said of it: it was skipped before it was accepted."""
    rows = Rows(most=1)
    station = Station(a_rule(Match.TRIGGER), rows)
    station.take("left", asked(1, "a"))
    station.take("left", asked(2, "b"))
    assert station.request("c", None, START_NS, None) is None
    assert (rows.high_water, rows.frames_skipped) == (1, 2)
