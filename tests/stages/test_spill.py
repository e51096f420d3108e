"""The spill in real shared memory: what was noted and not settled comes back, whoever is killed when."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from victims import ended, note_for_ever, started, until

from inspectd.errors import TransportError
from inspectd.journal.verdicts import Entry
from inspectd.records import Decision
from inspectd.stages.spill import Spill
from inspectd.transport.memory import Segment, sweep

NAME = f"inspectd-test{os.getpid()}-spill"
ENTRY = Entry(session="s", camera="cam1", seq=1, decision=Decision.FAIL, topic="t", body=b"{}", trigger_id="t\0ä")


@pytest.fixture
def spill() -> Iterator[Spill]:
    """A spill of 4000 bytes."""
    yield Spill.create(NAME, 4000)
    sweep(NAME)


def test_what_was_noted_comes_back_byte_for_byte(spill: Spill) -> None:
    """Another process finds every word, with masks, empty masks and without."""
    entries = [replace(ENTRY, seq=seq, body=os.urandom(99), mask=[None, b"", b"png"][seq % 3]) for seq in range(9)]
    assert all(map(spill.note, entries))
    assert Spill.attach(NAME).entries() == entries


def test_a_spill_is_a_queue_within_its_room(spill: Spill) -> None:
    """Thousands of notes of all sizes go through it: what does not fit is refused, the rest is in order and whole."""
    dice = random.Random(5)
    owed: list[tuple[Entry, int]] = []
    refused = 0
    for seq in range(1, 3000):
        entry = replace(ENTRY, seq=seq, body=dice.randbytes(dice.randrange(700)))
        if spill.note(entry):
            owed.append((entry, spill.noted))
        else:
            refused += 1
            count = dice.randrange(1, len(owed) + 1)
            spill.settle(owed[count - 1][1])
            del owed[:count]
        assert spill.entries() == [each for each, _ in owed]
    assert 0 < refused < 2000


def test_masks_go_first(spill: Spill) -> None:
    """Beyond half the room verdicts are noted without their masks."""
    assert all(spill.note(replace(ENTRY, seq=seq, mask=bytes(1200))) for seq in (1, 2, 3))
    assert [each.mask for each in spill.entries()] == [bytes(1200), None, None]


def test_a_note_that_was_cut_short_is_not_there() -> None:
    """A publisher that is killed while it notes leaves whole notes, in order, and nothing else."""
    Spill.create(NAME, 1 << 20)
    try:
        victim = started(note_for_ever, NAME)
        assert until(lambda: Spill.attach(NAME).noted > 100_000)
        os.kill(victim.pid, signal.SIGKILL)
        assert ended(victim) == -signal.SIGKILL
        entries = Spill.attach(NAME).entries()
        assert [each.seq for each in entries] == list(range(entries[0].seq, entries[0].seq + len(entries)))
        assert all(each.body == b"%d" % each.seq * 50 for each in entries)
    finally:
        sweep(NAME)


def test_scribbled_memory_is_no_verdict(spill: Spill) -> None:
    """The notes end where their checksums do not hold; what is no spill is refused."""
    for seq in (1, 2, 3):
        spill.note(replace(ENTRY, seq=seq))
    segment = Segment.attach(NAME)
    segment.bytes[8 * 8 + spill.noted // 2] ^= 1
    assert [each.seq for each in spill.entries()] == [1]
    segment.words[0] = 0
    with pytest.raises(TransportError, match="not a spill of this version"):
        Spill.attach(NAME)
