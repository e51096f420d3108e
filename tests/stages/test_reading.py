"""The journal's reader over real files: one that answers, one that cannot be read, and a disk that hangs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
from disks import hanging_reads

from inspectd.errors import JournalError
from inspectd.journal.verdicts import Entry, Journal
from inspectd.records import Decision
from inspectd.stages.reading import MOST_ASKED, JournalReader

PATIENCE_S = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with one verdict."""
    journal = Journal.open(tmp_path / "journal.sqlite")
    journal.append([Entry(session="s", camera="c", seq=7, decision=Decision.PASS, topic="t", body=b"7")])
    journal.close()
    return tmp_path / "journal.sqlite"


def last_seq(journal: Journal) -> int | None:
    return journal.last_seq("s", "c")


def test_what_is_asked_is_read_in_order(path: Path, tmp_path: Path) -> None:
    """At once where that is wanted; a journal that cannot be read says why."""
    reader = JournalReader(path)
    assert reader.read(last_seq, PATIENCE_S) == 7
    asked = [reader.ask(lambda journal, n=n: (n, last_seq(journal))) for n in range(3)]
    assert [reader.result(each, PATIENCE_S) for each in asked] == [(0, 7), (1, 7), (2, 7)]
    reader.close()
    absent = JournalReader(tmp_path / "none.sqlite")
    with pytest.raises(JournalError, match=r"none\.sqlite: "):
        absent.read(last_seq, PATIENCE_S)
    absent.close()


def test_a_disk_that_hangs_is_waited_for_once(path: Path, tmp_path: Path) -> None:
    """Then nobody waits before it has answered; questions are bounded, and those that were given up are not read."""
    with hanging_reads(tmp_path, path) as (hung_path, flag):
        flag.touch()
        reader = JournalReader(hung_path)
        started_s = time.monotonic()
        for _ in range(3):
            with pytest.raises(JournalError, match="its disk does not answer"):
                reader.read(last_seq, 0.2)
        assert 0.2 <= time.monotonic() - started_s < 0.5
        read: list[int] = []
        given_up, *kept = [reader.ask(lambda _, n=n: read.append(n)) for n in range(MOST_ASKED - 1)]
        with pytest.raises(JournalError, match=f"{MOST_ASKED} questions wait"):
            reader.ask(last_seq)
        with pytest.raises(JournalError, match="does not answer"):
            reader.result(given_up, 0)
        flag.unlink()
        wait(kept, PATIENCE_S)
        assert read == list(range(1, MOST_ASKED - 1))
    reader.close()


def test_a_closed_reader_ends(path: Path) -> None:
    """What was asked before is read still."""
    before = set(threading.enumerate())
    reader = JournalReader(path)
    (thread,) = set(threading.enumerate()) - before
    found = reader.ask(last_seq)
    reader.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert found.result(0) == 7
