"""What a dead daemon left in shared memory, answered under its own session by the next start."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests_records import RECIPE, a_verdict
from victims import row_of

from inspectd.journal.verdicts import Entry, Journal
from inspectd.stages.answers import entry_of, freeze
from inspectd.stages.spill import Spill
from inspectd.stages.state import UNKNOWN_RECIPE, StateLock, answer_left_rows, segment_prefix
from inspectd.transport.memory import sweep
from inspectd.transport.tickets import Table
from inspectd.transport.wire import verdict_from_bytes

SESSION = "5e5510"


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Table]:
    """The table of a dead daemon with six accepted frames."""
    prefix = segment_prefix(tmp_path)
    table = Table.create(f"{prefix}1-table", session=SESSION, cameras=["cam1"], children=["publisher"], started_ns=1)
    for seq in range(1, 7):
        table.camera(0).accept(replace(row_of(seq), trigger_id=None, part_id=None))
    yield table
    sweep(prefix)


def verdict(seq: int, **more: object) -> Entry:
    return entry_of(freeze(a_verdict(session=SESSION, seq=seq, **more), None))


def journaled(folder: Path) -> list[Entry]:
    journal = Journal.open(folder / "journal.sqlite")
    try:
        return journal.since("cam1", 0, session=SESSION)
    finally:
        journal.close()


def test_a_dead_daemons_words_stand_and_its_silence_is_an_error(left: Table, tmp_path: Path) -> None:
    """What was sent is journaled as it was sent; what was never sent is an error, whatever had been written of it."""
    view, spill = left.camera(0), Spill.create(left.spill_name, 10_000)
    view.answered_through, view.sent_through = 2, 3
    journal = Journal.open(tmp_path / "journal.sqlite")
    journal.append([verdict(1), verdict(2), verdict(4)])
    journal.close()
    sent = [verdict(seq, journaled=False) for seq in (2, 3)]
    for each in [*sent, verdict(5, journaled=False)]:
        spill.note(each)
    for _ in range(2):  # a start that dies before it sweeps leaves the same to the next one
        assert answer_left_rows(tmp_path) == 3
        found = journaled(tmp_path)
        assert [each.body for each in found[:3]] == [verdict(1).body, *(each.body for each in sent)]
        told = [verdict_from_bytes(each.body) for each in found[3:]]
        assert [(each.reason, each.recipe) for each in told] == [("internal", RECIPE)] * 3


def test_words_that_are_owed_are_journaled_though_every_row_is_answered(left: Table, tmp_path: Path) -> None:
    """A daemon that stopped in order, but could not write its journal, owes no answers and yet its words."""
    view, spill = left.camera(0), Spill.create(left.spill_name, 10_000)
    view.answered_through = view.sent_through = 6
    spill.note(verdict(6, journaled=False))
    assert answer_left_rows(tmp_path) == 0
    assert [each.seq for each in journaled(tmp_path)] == [6]


def test_a_table_of_another_version_is_answered_by_what_its_head_says(left: Table, tmp_path: Path) -> None:
    """Session, cameras and marks lie where they always did; the rows need not be understood. Which recipe it was nobody
    knows, whatever the configuration is by now."""
    left.camera(0).answered_through = 4
    left._head.version += 1
    assert answer_left_rows(tmp_path) == 2
    told = {each.seq: verdict_from_bytes(each.body) for each in journaled(tmp_path)}
    assert {seq: (each.reason, each.recipe) for seq, each in told.items()} == dict.fromkeys(
        (5, 6), ("internal", UNKNOWN_RECIPE)
    )


def test_words_of_another_version_stand_where_they_are_journaled(left: Table, tmp_path: Path) -> None:
    """Where it kept the mark of what it had sent is not known, so a committed verdict may have been heard."""
    view, spill = left.camera(0), Spill.create(left.spill_name, 10_000)
    view.answered_through, view.sent_through = 2, 0
    journal = Journal.open(tmp_path / "journal.sqlite")
    journal.append([verdict(seq) for seq in (1, 2, 3)])
    journal.close()
    spill.note(verdict(4, journaled=False))
    left._head.version -= 1
    for count in (2, 0):
        assert answer_left_rows(tmp_path) == count
        found = journaled(tmp_path)
        assert [each.body for each in found[:4]] == [
            *(verdict(seq).body for seq in (1, 2, 3)),
            verdict(4, journaled=False).body,
        ]
        assert [verdict_from_bytes(each.body).reason for each in found[4:]] == ["internal"] * 2


def test_a_lock_that_cannot_be_cleared_is_released(tmp_path: Path) -> None:
    """A disk that went read-only meanwhile makes no failure of an orderly end; the next daemon takes over."""
    with StateLock(tmp_path) as lock:
        sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
        os.write(sealed, b"1\n")
        fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        os.dup2(sealed, lock._file)
        os.close(sealed)
        with pytest.raises(PermissionError):
            os.ftruncate(lock._file, 0)
    with StateLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
