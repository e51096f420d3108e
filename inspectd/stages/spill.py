"""The spill: what was sent before it was durable in the journal, kept in shared memory until it is.

The journal's promise is that each of its rows is what was published, byte for byte (contract I4). A verdict that goes
out first, since the disk hangs or refuses, is noted here before it is sent, so that the death of the publisher takes
nothing of it away: the next publisher, or the next daemon, journals what the dead one owed, in order. To journal a note
twice changes nothing. A power cut takes the spill; so it takes whatever was sent unjournaled, and no more.

One ring of bytes behind four words. `noted` and `settled` count bytes for ever and have one writer each at a time, the
publisher's loop and its journal thread; a note beyond `noted` is not there, so one that was cut short never is.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from inspectd.errors import TransportError
from inspectd.journal.verdicts import Entry
from inspectd.records import Decision
from inspectd.transport.memory import WORD_BYTES, Segment, fence

MAGIC = 0x494E_5350_5350_494C
VERSION = 1
HEAD_WORDS = 8
MASKS_SHARE = 0.5
"""Beyond this share of the room verdicts are noted without their masks, so that many more of them find place."""
_LENGTHS = struct.Struct("<IIII")
"""Of a note: the CRC-32 of the rest, then the bytes of its head, body and mask; no mask is `_NO_MASK`."""
_NO_MASK = 0xFFFF_FFFF
_MAGIC, _VERSION, _NOTED, _SETTLED = range(4)


class Spill:
    """One daemon's spill."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._words = segment.words[:HEAD_WORDS]
        if len(segment.words) <= HEAD_WORDS or list(self._words[:_NOTED]) != [MAGIC, VERSION]:
            raise TransportError(f"{segment.name}: not a spill of this version")
        self._room = segment.bytes[HEAD_WORDS * WORD_BYTES :]

    @classmethod
    def create(cls, name: str, size_bytes: int) -> Spill:
        """Makes an empty one.

        Raises:
            TransportError: shared memory cannot be had.
        """
        segment = Segment.create(name, HEAD_WORDS * WORD_BYTES + size_bytes)
        segment.words[_VERSION] = VERSION
        fence()
        segment.words[_MAGIC] = MAGIC
        return cls(segment)

    @classmethod
    def attach(cls, name: str) -> Spill:
        """Maps one that exists.

        Raises:
            TransportError: there is none, or it is of another version.
        """
        return cls(Segment.attach(name))

    @property
    def noted(self) -> int:
        """Where the next note begins, in bytes since the spill was made."""
        return self._words[_NOTED]

    def note(self, entry: Entry) -> bool:
        """Keeps a verdict that is about to be sent. False where there is no room for it."""
        settled, room = self._words[_SETTLED], len(self._room)
        note = _packed(entry)
        if entry.mask is not None and self.noted + len(note) - settled > room * MASKS_SHARE:
            note = _packed(entry, with_mask=False)
        end = self.noted + len(note)
        if end - settled > room:
            return False
        self._write(self.noted, note)
        fence()
        self._words[_NOTED] = end
        return True

    def settle(self, through: int) -> None:
        """Forgets the notes that end at `through` or before: the journal has them, or they are given up."""
        self._words[_SETTLED] = max(self._words[_SETTLED], through)

    def entries(self) -> list[Entry]:
        """What is owed to the journal, in the order in which it was sent."""
        return list(self._owed())

    def close(self) -> None:
        """Lets go of the mapping."""
        self._words = memoryview(b"").cast("q")
        self._room = self._room[:0]
        self._segment.close()

    def _owed(self) -> Iterator[Entry]:
        """Yields the notes; stops at one that no process of ours wrote so."""
        at, end = self._words[_SETTLED], self._words[_NOTED]
        while at < end <= at + len(self._room):
            crc, *lengths = _LENGTHS.unpack(self._read(at, _LENGTHS.size))
            size = sum(length for length in lengths if length != _NO_MASK)
            if at + _LENGTHS.size + size > end:
                return
            rest = self._read(at + _LENGTHS.size, size)
            if zlib.crc32(rest, zlib.crc32(_LENGTHS.pack(0, *lengths))) != crc:
                return
            yield _unpacked(rest, lengths)
            at += _LENGTHS.size + size

    def _write(self, at: int, note: bytes) -> None:
        at %= len(self._room)
        first = min(len(note), len(self._room) - at)
        self._room[at : at + first] = np.frombuffer(note[:first], np.uint8)
        self._room[: len(note) - first] = np.frombuffer(note[first:], np.uint8)

    def _read(self, at: int, size: int) -> bytes:
        at %= len(self._room)
        first = min(size, len(self._room) - at)
        return self._room[at : at + first].tobytes() + self._room[: size - first].tobytes()


def _packed(entry: Entry, *, with_mask: bool = True) -> bytes:
    names = ("session", "camera", "seq", "decision", "topic", "trigger_id")
    head = json.dumps([getattr(entry, name) for name in names]).encode()
    mask = entry.mask if with_mask else None
    lengths = len(head), len(entry.body), _NO_MASK if mask is None else len(mask)
    rest = head + entry.body + (mask or b"")
    return _LENGTHS.pack(zlib.crc32(rest, zlib.crc32(_LENGTHS.pack(0, *lengths))), *lengths) + rest


def _unpacked(rest: bytes, lengths: list[int]) -> Entry:
    head, body, mask = lengths
    session, camera, seq, decision, topic, trigger_id = json.loads(rest[:head])
    return Entry(
        session=session,
        camera=camera,
        seq=seq,
        decision=Decision(decision),
        topic=topic,
        trigger_id=trigger_id,
        body=rest[head : head + body],
        mask=None if mask == _NO_MASK else rest[head + body :],
    )
