"""The ticket table, with real processes that are killed between any two stores, or race each other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from victims import (
    accept_and_die,
    accept_for_ever,
    create_accept_and_die,
    ended,
    flip_word_for_ever,
    frameless_row_of,
    row_of,
    started,
    until,
)

from inspectd.errors import TransportError
from inspectd.records import CameraState, Reason, Sighting, TimeKind, TriggerKind
from inspectd.transport.memory import FOLDER, Segment, sweep
from inspectd.transport.rows import FILLED, NewRow, Row, Shot, encode
from inspectd.transport.tickets import CameraView, Table

ROWS = 4
SHOT = Shot(
    slot=5,
    slot_generation=8,
    frame_index=2**40,
    width_px=640,
    height_px=480,
    pts_s=1.25,
    captured_ns=2**62,
    captured_utc_ns=3,
    capture_ms=0.1,
    time_kind=TimeKind.RTCP,
)
STEPS = ("opened", *encode(row_of(1))[0], "shot_words", "texts", "named", "accepted")


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a table of this test alone."""
    name = f"inspectd-test{os.getpid()}-table"
    yield name
    sweep(name)


@pytest.fixture
def table(name: str) -> Table:
    """Two cameras of four rows each."""
    return make(name)


@pytest.fixture
def view(table: Table) -> CameraView:
    """The first camera."""
    return table.camera(0)


def make(name: str, rows: int = ROWS) -> Table:
    """A table of two cameras and two children."""
    children = ["publisher", "capture-cam1"]
    return Table.create(
        name, session="0" * 31 + "a", cameras=["cam1", "c" * 32], children=children, started_ns=7, rows=rows
    )


def as_new(row: Row | None) -> NewRow:
    """What was accepted, without what the table added."""
    assert row is not None
    return NewRow(**{field.name: getattr(row, field.name) for field in fields(NewRow)})


@pytest.mark.usefixtures("table")
def test_the_head_says_who_and_what(name: str) -> None:
    """Names, session and counts come back as they were given, also the longest."""
    other = Table.attach(name)
    assert other.session == "0" * 31 + "a"
    assert other.cameras == ("cam1", "c" * 32)
    assert [child.name for child in other.children()] == ["publisher", "capture-cam1"]
    assert other.started_ns == 7
    assert other.ring_name(1) == name.removesuffix("-table") + "-ring-" + "c" * 32


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"trigger_id": None, "part_id": None},
        {"trigger_id": "", "part_id": "\0x\0"},
        {"trigger_id": "\U0001f529" * 128, "part_id": "ä" * 128},
        {"pts_s": None, "frame_index": -1, "slot": -1, "capture_ms": 0.1},
        {"trigger_kind": TriggerKind.PRESENCE, "deadline_ns": 0, "captured_utc_ns": 2**62},
        *({"gate": reason} for reason in Reason),
        *({"time_kind": kind} for kind in TimeKind),
        {"shots": (SHOT,), "members": (0, 2**40)},
        {"shots": (replace(SHOT, pts_s=None), *6 * (SHOT,)), "members": tuple(range(1, 9))},
        {"sighting": Sighting(bbox_xywh_px=(-3, 5, 70, 1), step_xy_px=(-0.5, 1e9), frame_s=0.04)},
    ],
)
def test_every_field_comes_back_as_it_was_accepted(view: CameraView, more: dict[str, Any]) -> None:
    """A row says after acceptance exactly what capture said."""
    row = row_of(3, **more)
    assert view.accept(row) == 1
    assert as_new(view.row(1)) == row
    assert (view.row(1).result_publisher, view.row(1).result_ns) == (0, 0)


def test_looks_of_an_earlier_row_at_the_same_place_are_not_read(view: CameraView) -> None:
    """A row without further frames names none, whatever stood there before."""
    for seq in range(1, 2 * ROWS + 1):
        view.accept(row_of(seq, shots=(SHOT,) if seq <= ROWS else ()))
        view.answered_through = seq
    assert view.row(2 * ROWS).shots == ()


def test_a_station_row_takes_in_its_cameras_one_by_one(view: CameraView) -> None:
    """Each camera's row is named by one store, and is there for whoever attaches later."""
    seq = view.accept(row_of(1, members=(7,)))
    view.join(seq, 2, 11)
    assert view.row(seq).members == (7, 0, 11)


def test_more_looks_than_a_row_holds_are_refused_and_nothing_is_accepted(view: CameraView) -> None:
    """No frame of a part is ever left out of its row."""
    with pytest.raises(ValueError, match="8 shots"):
        view.accept(row_of(1, shots=8 * (SHOT,)))
    assert view.high_water == 0


def test_cameras_do_not_share_rows(table: Table) -> None:
    """What one camera accepts another does not see."""
    table.camera(0).accept(row_of(1))
    assert table.camera(1).high_water == 0
    assert table.camera(1).row(1) is None


def test_a_pts_that_is_not_finite_reads_as_none(view: CameraView) -> None:
    """NaN and infinity never leave the table."""
    for value in (float("nan"), float("inf")):
        seq = view.accept(row_of(1, pts_s=value))
        assert view.row(seq).pts_s is None


def test_an_id_that_does_not_fit_is_refused_and_nothing_is_accepted(view: CameraView) -> None:
    """No id is ever cut: two different ones would become the same."""
    with pytest.raises(ValueError, match="trigger_id: 513 bytes in UTF-8, at most 512"):
        view.accept(row_of(1, trigger_id="x" * 513))
    assert view.high_water == 0
    assert view.accept(row_of(1)) == 1


def test_a_table_full_of_unanswered_rows_accepts_nothing(view: CameraView) -> None:
    """Nothing unanswered is ever overwritten; an answer makes room."""
    assert [view.accept(row_of(seq)) for seq in range(1, 6)] == [1, 2, 3, 4, None]
    assert view.high_water == 4
    view.answered_through = 1
    assert view.accept(row_of(5)) == 5
    assert view.row(1) is None
    assert [row.seq for row in view.unanswered()] == [2, 3, 4, 5]


@pytest.mark.parametrize("answered", [0, 2], ids=["fresh place", "place used before"])
@pytest.mark.parametrize("step", STEPS)
def test_a_capture_killed_between_any_two_stores_has_accepted_all_or_nothing(
    name: str, step: str, answered: int
) -> None:
    """The mark tells; what was accepted before is untouched; the next capture goes on without a gap."""
    view = make(name, rows=2 if answered else ROWS).camera(0)
    for seq in (1, 2):
        view.accept(row_of(seq))
    view.answered_through = answered
    assert ended(started(accept_and_die, name, 3, step)) == -signal.SIGKILL
    last = 3 if step == "accepted" else 2
    assert view.high_water == last
    assert view.accept(row_of(9)) == last + 1
    expected = [*range(answered + 1, last + 1), 9]
    assert [as_new(row) for row in view.unanswered()] == [row_of(value) for value in expected]


def test_what_a_killed_daemon_accepted_is_there_for_the_next(name: str) -> None:
    """The table outlives the processes that made it."""
    assert ended(started(create_accept_and_die, name, 5)) == -signal.SIGKILL
    table = Table.attach(name)
    assert table.session == "5e5510"
    assert [as_new(row) for row in table.camera(0).unanswered()] == [row_of(seq) for seq in range(1, 6)]


def test_a_word_is_never_seen_half(table: Table, name: str) -> None:
    """A racing reader sees the old word or the new one."""
    writer = started(flip_word_for_ever, name)
    view, seen = table.camera(0), {0: 0, -1: 0}

    def enough() -> bool:
        seen[view.frames_read] += 1  # a third value is a KeyError
        return min(seen.values()) > 10_000

    try:
        assert until(enough), seen
    finally:
        writer.kill()
        ended(writer)


def test_a_racing_reader_never_sees_a_mixed_row(name: str) -> None:
    """Rows are accepted, filled and overwritten while they are read: each is one row, and its frame is whole."""
    view = make(name, rows=2).camera(0)
    writer = started(accept_for_ever, name)
    seen = {"frameless": 0, "filled": 0, "overwritten": 0}

    def enough() -> bool:
        seq = view.high_water
        view.answered_through = seq
        for _ in range(4):
            row = view.row(seq) if seq else None
            if row is None:
                seen["overwritten"] += bool(seq)
            else:
                expected = row_of(seq) if row.slot >= 0 else without_frame(frameless_row_of(seq))
                assert (as_new(row) if row.slot >= 0 else without_frame(as_new(row))) == expected
                seen["filled" if row.slot >= 0 else "frameless"] += 1
        return min(seen.values()) >= 20

    try:
        assert until(enough), seen
    finally:
        writer.kill()
        ended(writer)


def without_frame(row: NewRow) -> NewRow:
    """A row but for what `fill` gives, which counts only once the slot is there."""
    return replace(row, **dict.fromkeys(FILLED, 0))


def test_a_trigger_gets_its_frame_or_its_reason_later(view: CameraView) -> None:
    """An accepted trigger is filled or decided in place."""
    view.accept(frameless_row_of(1))
    view.accept(frameless_row_of(2))
    assert view.fill(1, row_of(1))
    assert view.decide(2, Reason.CAMERA_LOST)
    assert as_new(view.row(1)) == row_of(1)
    assert view.row(2).gate is Reason.CAMERA_LOST


def test_a_row_that_was_used_again_is_neither_filled_nor_decided(view: CameraView) -> None:
    """What was answered long ago does not change the row that stands there now."""
    for seq in range(1, 6):
        view.answered_through = seq - 1
        view.accept(row_of(seq))
    assert not view.fill(1, row_of(99))
    assert not view.decide(1, Reason.LATE)
    assert as_new(view.row(5)) == row_of(5)


def test_a_late_result_does_not_mark_the_row_that_took_its_place(view: CameraView) -> None:
    """The worker's mark counts for the row that it is about, and for no other."""
    view.accept(row_of(1))
    view.mark_result(1, 2, 77)
    assert (view.row(1).result_publisher, view.row(1).result_ns) == (2, 77)
    for seq in range(2, 6):
        view.answered_through = seq - 1
        view.accept(row_of(seq))
    assert view.row(5).result_publisher == 0
    view.mark_result(1, 2, 88)
    assert view.row(5).result_publisher == 0


def test_an_unreadable_row_is_still_there_to_be_answered(view: CameraView) -> None:
    """Memory that nobody of ours wrote costs a frame an error, never its verdict."""
    for seq in (1, 2, 3):
        view.accept(row_of(seq))
    view._place(2)[0] = 0
    rows = list(view.unanswered())
    assert [row.seq for row in rows] == [1, 2, 3]
    assert rows[1].gate is Reason.INTERNAL
    view.high_water = 2**62
    assert len(list(view.unanswered())) == ROWS


def test_absurd_codes_become_what_vouches_for_nothing(view: CameraView) -> None:
    """A gate, state or length that does not exist never stops a reader."""
    view.accept(row_of(1))
    place = view._place(1)
    place[1:20] = memoryview(b"\x7f" * 8 * 19).cast("q")
    assert view.row(1).gate is Reason.INTERNAL
    view.words[2] = 99
    assert view.state is CameraState.LOST


def test_states_flags_and_beats_are_kept(table: Table, name: str) -> None:
    """What one process sets another reads."""
    other = Table.attach(name)
    for state in CameraState:
        table.camera(1).state = state
        assert other.camera(1).state is state
    table.worker_generation = 3
    assert not other.worker_ready
    other.worker_is_ready(3)
    table.accepting = table.stopping = True
    assert (other.worker_ready, other.accepting, other.stopping) == (True, True, True)
    child = table.child(1)
    child.born(42, 2)
    child.limit(5)
    child.beat(1_000_000_000)
    seen = other.child(1)
    assert (seen.pid, seen.generation, seen.restarts, seen.beat_limit_ns) == (42, 2, 1, 5)
    assert seen.age_s(3_500_000_000) == 2.5


def test_only_a_whole_table_of_this_version_can_be_attached(table: Table, name: str) -> None:
    """Another file, an older layout, a table whose maker was killed, or a cut one is refused in one line."""
    Segment.create(f"{name}-tiny", 8)
    Segment.create(f"{name}-zeros", 8192)
    for other in ("tiny", "zeros"):
        with pytest.raises(TransportError, match=f"{name}-{other}: not a ticket table"):
            Table.attach(f"{name}-{other}")
    words = Segment.attach(name).words
    for at, value in ((1, 1), (2, 0), (2, 3), (4, 2**60)):
        kept, words[at] = words[at], value
        with pytest.raises(TransportError, match=r"not a (whole )?ticket table"):
            Table.attach(name)
        words[at] = kept
    assert Table.attach(name).cameras == table.cameras
    os.truncate(FOLDER / name, 4096)
    with pytest.raises(TransportError, match="not a whole ticket table"):
        Table.attach(name)


def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    """A camera's name is never cut."""
    with pytest.raises(ValueError, match="at most 32 bytes"):
        Table.create(name, session="s", cameras=["c" * 33], children=["publisher"], started_ns=0)
