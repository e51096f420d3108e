"""The journal's writer thread over real files: slow, locked, full, missing and damaged ones, and a disk that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from disks import hanging_disk

from inspectd.journal.verdicts import Entry, Journal
from inspectd.records import Decision
from inspectd.stages import journaling
from inspectd.stages.journaling import CommitState, JournalWriter
from inspectd.stages.spill import Spill
from inspectd.transport.memory import sweep

PATIENCE_S = 60.0
HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""
ABANDON_WHILE_SYNCING = """
import sqlite3, sys, time
from pathlib import Path
from inspectd.journal.verdicts import Entry
from inspectd.records import Decision
from inspectd.stages.journaling import JournalWriter

path, flag = Path(sys.argv[1]), Path(sys.argv[2])
def entry(seq, body):
    return Entry(session="s", camera="c", seq=seq, decision=Decision.PASS, topic="t", body=body)
writer = JournalWriter(path, keep_days=1)
assert writer.submit([entry(1, b"one")]).wait(30)
flag.touch()
slow = writer.submit([entry(2, b"two")])
while slow.state != "writing":
    time.sleep(0.001)
later = writer.submit([entry(3, b"three")])
print(slow.wait(0.02), writer.healthy, slow.abandon([entry(2, b"two instead")]), writer.healthy, writer.backlog)
flag.unlink()
print(later.wait(30), slow.wait(30))
rows = sqlite3.connect(path).execute("SELECT body FROM verdicts ORDER BY rowid").fetchall()
print([row[0].decode() for row in rows])
print(slow.abandon([entry(2, b"too late")]))
flag.touch()
stuck = writer.submit([entry(4, b"four")])
print(writer.close(0.1))
"""
DIE_WHILE_SYNCING = """
import os, signal, sys, time
from pathlib import Path
from inspectd.journal.verdicts import Entry
from inspectd.records import Decision
from inspectd.stages.journaling import JournalWriter
from inspectd.stages.spill import Spill

path, flag, spill = Path(sys.argv[1]), Path(sys.argv[2]), Spill.create(sys.argv[3], 100_000)
def entry(seq, body):
    return Entry(session="s", camera="cam1", seq=seq, decision=Decision.PASS, topic="t", body=body)
writer = JournalWriter(path, keep_days=1, spill=spill)
assert writer.submit([entry(1, b"one")]).wait(30)
assert writer.submit([entry(1, b"one instead")], promised=True).wait(30)
assert spill.entries() == []
flag.touch()
slow = writer.submit([entry(2, b"two"), entry(3, b"three")])
while slow.state != "writing":
    time.sleep(0.001)
assert not slow.wait(0.2)
assert slow.abandon([entry(2, b"two instead"), entry(3, b"three instead")])
writer.submit([entry(4, b"four")], promised=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def entry(seq: int, **more: object) -> Entry:
    """A verdict of cam1."""
    first = Entry(session="s", camera="cam1", seq=seq, decision=Decision.PASS, topic="t", body=b"body %d" % seq)
    return replace(first, **more)


def read(path: Path) -> list[Entry]:
    """What is in the journal."""
    reader = Journal.open(path, read_only=True)
    try:
        return reader.since("cam1", 0, session="s", limit=100_000)
    finally:
        reader.close()


def until(happened: Callable[[], bool]) -> None:
    """Waits for something."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.005)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the write lock: no commit succeeds."""
    command = [sys.executable, "-c", HOLD_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait(PATIENCE_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "journal.sqlite"


@pytest.fixture
def spill_name() -> Iterator[str]:
    """The name of a spill of this test alone."""
    name = f"inspectd-test{os.getpid()}-spill"
    yield name
    sweep(name)


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., JournalWriter]]:
    """Makes writers on `path` and closes them."""
    made: list[JournalWriter] = []

    def start(**more: object) -> JournalWriter:
        made.append(JournalWriter(path, **{"keep_days": 90.0, **more}))
        return made[-1]

    yield start
    for writer in made:
        writer.close(PATIENCE_S)


def test_what_was_waited_for_is_durable(make: Callable[..., JournalWriter], path: Path) -> None:
    """After a wait that said so, another connection reads the very bytes; each commit's time is told."""
    times: list[float] = []
    writer = make(on_commit=times.append)
    entries = [entry(1, mask=b"png"), entry(2)]
    assert writer.submit(entries).wait(PATIENCE_S)
    assert read(path) == entries
    assert (writer.healthy, writer.backlog, writer.error, writer.damaged) == (True, 0, None, None)
    until(lambda: len(times) == 1)
    assert times[0] > 0


def test_what_piled_up_goes_in_few_commits_and_in_order(make: Callable[..., JournalWriter], path: Path) -> None:
    """Batches that wait share a transaction, and never overtake each other."""
    times: list[float] = []
    writer = make(on_commit=times.append)
    with locked(path):
        commits = [writer.submit([entry(1, body=b"%d" % number), entry(number)]) for number in range(2, 600)]
        assert not commits[0].wait(PATIENCE_S)
    until(lambda: writer.backlog == 0)
    assert [each.seq for each in read(path)] == list(range(1, 600))
    assert read(path)[0].body == b"599"
    until(lambda: len(times) > 0)
    assert len(times) <= 8


def test_a_batch_that_was_too_slow_is_replaced(make: Callable[..., JournalWriter], path: Path) -> None:
    """Abandoned while the journal is locked: the replacement is what the journal holds, byte for byte, and only it."""
    writer = make()
    assert writer.submit([entry(1)]).wait(PATIENCE_S)
    other = entry(2, body=b'{"journaled": false}', decision=Decision.ERROR)
    with locked(path):
        slow = writer.submit([entry(2, mask=b"png")])
        assert not slow.wait(0.02)
        assert slow.abandon([other])
        assert not writer.healthy
        writer.submit([entry(3)])
        for _ in range(100):  # nothing is taken up before it can be written, so that all of it can be replaced
            assert slow.state is CommitState.WAITING
            threading.Event().wait(0.005)
        assert writer.backlog == 2
    until(lambda: writer.healthy)
    assert read(path) == [entry(1), other, entry(3)]
    assert (writer.backlog, writer.error) == (0, None)


def test_a_durable_batch_cannot_be_abandoned(make: Callable[..., JournalWriter], path: Path) -> None:
    """The publisher is told so, and publishes what stands in the journal."""
    writer = make()
    commit = writer.submit([entry(1)])
    assert commit.wait(PATIENCE_S)
    assert not commit.abandon([entry(1, body=b"other")])
    assert writer.healthy
    assert writer.submit([entry(2)]).wait(PATIENCE_S)
    assert read(path) == [entry(1), entry(2)]


def test_nobody_waits_for_a_journal_that_has_failed(make: Callable[..., JournalWriter], path: Path) -> None:
    """A failed attempt wakes who waits, long before the timeout."""
    writer = make()
    started_s = time.monotonic()
    with locked(path):
        assert not writer.submit([entry(1)]).wait(10 * PATIENCE_S)
    assert time.monotonic() - started_s < 5 * PATIENCE_S
    assert writer.error is None or "locked" in writer.error


def test_a_disk_that_hangs_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    """The publisher waits no longer than it said; the replacement stands in the end; a close gives up in time."""
    environment, flag = hanging_disk(tmp_path)
    command = [sys.executable, "-c", ABANDON_WHILE_SYNCING, str(tmp_path / "journal.sqlite"), str(flag)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines() == [
        "False True True False 2",
        "True True",
        "['one', 'two instead', 'three']",
        "False",
        "False",
    ]


def test_what_a_killed_writer_owed_is_committed_by_the_next_one(tmp_path: Path, spill_name: str) -> None:
    """Killed while its disk hangs: the first words stand in the journal until the next writer puts what was sent."""
    environment, flag = hanging_disk(tmp_path)
    path = tmp_path / "journal.sqlite"
    command = [sys.executable, "-c", DIE_WHILE_SYNCING, str(path), str(flag), spill_name]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = Journal.open(path)
    assert [each.body for each in before.since("cam1", 0, session="s")] == [b"one instead", b"two", b"three"]
    before.close()
    for _ in range(2):  # a writer that finds it all done changes nothing
        writer = JournalWriter(path, keep_days=1, spill=Spill.attach(spill_name))
        assert writer.close(PATIENCE_S)
        assert [each.body for each in read(path)] == [b"one instead", b"two instead", b"three instead", b"four"]
        assert Spill.attach(spill_name).entries() == []


def test_notes_are_kept_until_all_before_them_are_durable(path: Path, spill_name: str) -> None:
    """What the buffer gives up and what finds no room in the spill is counted; what is noted stays in order."""
    spill = Spill.create(spill_name, 1000)
    writer = JournalWriter(path, keep_days=1, spill=spill, max_entries=5)
    assert writer.submit([entry(1)]).wait(PATIENCE_S)
    with locked(path):
        for seq in range(2, 12):
            writer.submit([entry(seq, body=bytes(100))], promised=True)
        assert (writer.lost, writer.unnoted) == (5, 0)
        assert [each.seq for each in spill.entries()] == list(range(7, 12))
        writer.submit([entry(12, body=bytes(900))], promised=True)
        assert (writer.lost, writer.unnoted) == (6, 1)
    assert writer.close(PATIENCE_S)
    assert spill.entries() == []


def test_a_journal_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    """Verdicts wait in order until the folder is there; the daemon lives meanwhile."""
    path = tmp_path / "later" / "journal.sqlite"
    writer = JournalWriter(path, keep_days=90.0)
    assert not writer.healthy
    assert "unable to open database file" in writer.error
    for seq in range(1, 30):
        writer.submit([entry(seq)])
    assert writer.backlog == 29
    path.parent.mkdir()
    until(lambda: writer.healthy)
    assert [each.seq for each in read(path)] == list(range(1, 30))
    assert writer.close(PATIENCE_S)


def test_a_sick_journal_recovers_without_anything_to_write(tmp_path: Path) -> None:
    """A line that stands still learns too that the journal is back."""
    path = tmp_path / "later" / "journal.sqlite"
    writer = JournalWriter(path, keep_days=90.0)
    assert not writer.healthy
    path.parent.mkdir()
    until(lambda: writer.healthy)
    assert writer.close(PATIENCE_S)


def test_a_damaged_journal_is_reported(make: Callable[..., JournalWriter], path: Path) -> None:
    """The writer goes on with a new one and says where the old one is."""
    path.write_bytes(b"garbage" * 1000)
    writer = make()
    assert writer.submit([entry(1)]).wait(PATIENCE_S)
    assert writer.damaged.read_bytes() == b"garbage" * 1000
    assert read(path) == [entry(1)]


def test_a_full_buffer_gives_up_masks_first_and_then_the_oldest(make: Callable[..., JournalWriter], path: Path) -> None:
    """Bounded by bytes: every verdict is kept as long as dropping masks is enough."""
    writer = make(max_bytes=1000)
    with locked(path):
        first = writer.submit([entry(1, body=bytes(300), mask=bytes(300))])
        writer.submit([entry(2, body=bytes(300), mask=bytes(300))])
        assert (writer.masks_dropped, writer.lost) == (1, 0)
        writer.submit([entry(3, body=bytes(300))])
        assert (writer.masks_dropped, writer.lost) == (2, 0)
        writer.submit([entry(4, body=bytes(300))])
        assert (writer.masks_dropped, writer.lost, writer.backlog) == (2, 1, 3)
        assert not first.wait(PATIENCE_S)
        assert first.abandon([entry(1)])
    until(lambda: writer.backlog == 0)
    assert [(each.seq, each.mask) for each in read(path)] == [(2, None), (3, None), (4, None)]


def test_a_full_buffer_is_bounded_by_count_too(make: Callable[..., JournalWriter], path: Path) -> None:
    """The newest verdicts are kept."""
    writer = make(max_entries=10)
    with locked(path):
        for seq in range(1, 101):
            writer.submit([entry(seq)])
            assert writer.backlog <= 10
        assert writer.lost == 90
    until(lambda: writer.backlog == 0)
    assert [each.seq for each in read(path)] == list(range(91, 101))


def test_closing_commits_what_waits(path: Path) -> None:
    """An orderly end loses nothing."""
    writer = JournalWriter(path, keep_days=90.0)
    for seq in range(1, 400):
        writer.submit([entry(seq)])
    assert writer.close(PATIENCE_S)
    assert len(read(path)) == 399


def test_closing_gives_up_in_time(path: Path) -> None:
    """A journal that cannot be written does not hold up the end, which says that something is lost."""
    writer = JournalWriter(path, keep_days=90.0)
    with locked(path):
        writer.submit([entry(1)])
        assert not writer.close(0.3)
    assert not writer.submit([entry(2)]).wait(0.05)


def test_old_verdicts_are_pruned_while_nothing_else_is_to_do(
    make: Callable[..., JournalWriter], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one portion, and never what is younger."""
    journal = Journal.open(path)
    journal.append([entry(seq) for seq in range(1, 2 * journaling.PRUNE_ROWS + 3)])
    long_ago = time.time_ns() - 3 * journaling.NS_PER_DAY
    journal._connection.execute("UPDATE verdicts SET journaled_utc_ns = ? WHERE seq <> 7", (long_ago,))
    journal.close()
    monkeypatch.setattr(journaling, "FIRST_PRUNE_S", 0.0)
    writer = make(keep_days=2.0)
    until(lambda: [each.seq for each in read(path)] == [7])
    assert writer.submit([entry(8)]).wait(PATIENCE_S)
    assert [each.seq for each in read(path)] == [7, 8]


def test_an_error_that_nobody_foresaw_is_a_failure_and_not_the_end(
    make: Callable[..., JournalWriter], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time that SQLite cannot count raises where old verdicts are pruned: told, tried again, and verdicts go on."""
    monkeypatch.setattr(journaling, "FIRST_PRUNE_S", 0.0)
    monkeypatch.setattr(journaling, "FIRST_RETRY_S", 1.0)
    writer = make(keep_days=200_000)
    until(lambda: writer.error is not None)
    assert writer.error.startswith("unexpected OverflowError: ")
    assert not writer.healthy
    until(lambda: writer.error is None and writer.healthy)
    assert writer.submit([entry(1)]).wait(PATIENCE_S)
    assert [each.seq for each in read(path)] == [1]


def test_a_clock_that_is_set_deletes_nothing(
    make: Callable[..., JournalWriter], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A century ahead for a moment, while verdicts are due to be pruned: they stay."""
    monkeypatch.setattr(journaling, "FIRST_PRUNE_S", 0.3)
    pruned: list[int] = []
    prune = Journal.prune
    monkeypatch.setattr(Journal, "prune", lambda *given, **more: pruned.append(prune(*given, **more)) or pruned[-1])
    writer = make(keep_days=2.0)
    assert writer.submit([entry(1)]).wait(PATIENCE_S)
    ahead_ns = time.time_ns() + 36_500 * journaling.NS_PER_DAY
    monkeypatch.setattr(time, "time_ns", lambda: ahead_ns)
    until(lambda: pruned == [0])
    assert [each.seq for each in read(path)] == [1]


def test_the_log_does_not_grow_for_ever(
    make: Callable[..., JournalWriter], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages are moved into the database now and then, and its room is used again."""
    monkeypatch.setattr(journaling, "CHECKPOINT_COMMITS", 8)
    writer = make()
    for seq in range(1, 161):
        assert writer.submit([entry(seq, body=bytes(5000))]).wait(PATIENCE_S)
    log_bytes = path.with_name("journal.sqlite-wal").stat().st_size
    assert log_bytes < 160 * 5000 / 2
    assert len(read(path)) == 160
