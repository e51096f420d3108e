"""The verdicts in the journal: appended, read again and pruned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inspectd import __version__
from inspectd.journal.database import DamagedError, Database
from inspectd.records import Decision

PRUNE_ROWS = 100

_INSERT = """
INSERT OR REPLACE INTO verdicts (session, camera, seq, decision, topic, trigger_id, body, mask, journaled_utc_ns)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_SESSION = "INSERT OR IGNORE INTO sessions (session, first_utc_ns, daemon_version) VALUES (?, ?, ?)"
_SINCE = """
SELECT session, camera, seq, decision, topic, trigger_id, body, mask FROM verdicts
WHERE session = ? AND camera = ? AND seq > ? ORDER BY seq LIMIT ?
"""
_BODIES = "SELECT seq, body FROM verdicts WHERE session = ? AND camera = ? AND seq > ? ORDER BY seq LIMIT ?"
_MASK = "SELECT mask FROM verdicts WHERE session = ? AND camera = ? AND seq = ?"
_LAST_SEQ = "SELECT max(seq) FROM verdicts WHERE session = ? AND camera = ?"
_LAST_SESSION = """
SELECT session FROM sessions WHERE EXISTS (
    SELECT 1 FROM verdicts WHERE verdicts.session = sessions.session AND camera = ?
) ORDER BY id DESC LIMIT 1
"""
_SESSIONS = "SELECT session, first_utc_ns, daemon_version FROM sessions ORDER BY id"
_SEQ_OF_TRIGGER = "SELECT min(seq) FROM verdicts WHERE session = ? AND camera = ? AND trigger_id = ?"
_PRUNE = """
DELETE FROM verdicts WHERE rowid IN (
    SELECT rowid FROM verdicts WHERE journaled_utc_ns < ? ORDER BY journaled_utc_ns LIMIT ?
)
"""
_PRUNE_SESSIONS = """
DELETE FROM sessions WHERE id < (SELECT max(id) FROM sessions) AND NOT EXISTS (
    SELECT 1 FROM verdicts WHERE verdicts.session = sessions.session
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One verdict as it is, or is to be, published: `body` is the JSON, `mask` the PNG, if there is one."""

    session: str
    camera: str
    seq: int
    decision: Decision
    topic: str
    body: bytes
    mask: bytes | None = None
    trigger_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """One run of the daemon that left verdicts; `first_utc_ns` is when its first one was journaled."""

    session: str
    first_utc_ns: int
    daemon_version: str


class Journal(Database):
    """The journal with its verdicts."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Commits entries in one transaction; an older one of the same session, camera and seq is replaced.

        Raises:
            JournalError: nothing was committed.
        """
        if entries:
            self.append_late(lambda: entries)

    def append_late(self, take: Callable[[], Sequence[Entry]]) -> None:
        """Commits what `take` gives once the write lock is held: waiting for the lock binds nobody's decision.

        Raises:
            JournalError: nothing was committed.
        """
        with self._transaction() as connection:
            entries, now_ns = take(), time.time_ns()
            sessions = {entry.session: (entry.session, now_ns, __version__) for entry in entries}
            connection.executemany(_INSERT_SESSION, sessions.values())
            connection.executemany(_INSERT, (_values(entry, now_ns) for entry in entries))

    def since(self, camera: str, since_seq: int, *, session: str | None = None, limit: int = 1000) -> list[Entry]:
        """The verdicts of a camera after `since_seq`, in order, at most `limit`.

        Args:
            session: None for the newest in which the camera has verdicts.

        Raises:
            JournalError: the journal cannot be read.
        """
        session = session or self._one(str, _LAST_SESSION, camera)
        rows = self._all(_SINCE, session, camera, since_seq, limit)
        try:
            return [_entry(row) for row in rows]
        except ValueError as error:
            raise DamagedError(f"{self.path}: a row is no verdict: {error}") from error

    def bodies(
        self, camera: str, since_seq: int, *, session: str, limit: int, max_bytes: int
    ) -> list[tuple[int, bytes]]:
        """The seqs and bodies of a camera's verdicts after `since_seq`, in order: at most `limit`, and no more than
        fit into `max_bytes`, but for the first.

        Raises:
            JournalError: the journal cannot be read.
        """
        found: list[tuple[int, bytes]] = []
        with self._explained():
            for seq, body in self._connected().execute(_BODIES, (session, camera, since_seq, limit)):
                if not isinstance(body, bytes):
                    raise DamagedError(f"{self.path}: a row is no verdict: seq {seq!r} of {camera!r}")
                max_bytes -= len(body)
                if found and max_bytes < 0:
                    break
                found.append((seq, body))
        return found

    def mask(self, session: str, camera: str, seq: int) -> bytes | None:
        """The label mask PNG of a verdict, None where it has none.

        Raises:
            JournalError: the journal cannot be read.
        """
        return self._one(bytes, _MASK, session, camera, seq)

    def last_seq(self, session: str, camera: str) -> int | None:
        """The highest seq of a camera in a session, None where it has no verdict.

        Raises:
            JournalError: the journal cannot be read.
        """
        return self._one(int, _LAST_SEQ, session, camera)

    def seq_of_trigger(self, session: str, camera: str, trigger_id: str) -> int | None:
        """The seq that a trigger was given, None where no verdict has that trigger id.

        Raises:
            JournalError: the journal cannot be read.
        """
        return self._one(int, _SEQ_OF_TRIGGER, session, camera, trigger_id)

    def sessions(self) -> list[SessionInfo]:
        """The sessions that are in the journal, oldest first.

        Raises:
            JournalError: the journal cannot be read.
        """
        rows = self._all(_SESSIONS)
        return [SessionInfo(session=row[0], first_utc_ns=row[1], daemon_version=row[2]) for row in rows]

    def prune(self, before_utc_ns: int, *, limit: int = PRUNE_ROWS) -> int:
        """Deletes verdicts journaled before a time, oldest first, in one transaction. How many, at most `limit`.

        Raises:
            JournalError: nothing was deleted.
        """
        with self._transaction() as connection:
            count = connection.execute(_PRUNE, (before_utc_ns, limit)).rowcount
            if 0 < count < limit:
                connection.execute(_PRUNE_SESSIONS)
        return count


def _values(entry: Entry, now_ns: int) -> tuple[object, ...]:
    return (
        entry.session,
        entry.camera,
        entry.seq,
        entry.decision.value,
        entry.topic,
        entry.trigger_id,
        entry.body,
        entry.mask,
        now_ns,
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    """The verdict in a row.

    Raises:
        ValueError: it is none: the page that it stood on was scribbled over.
    """
    session, camera, seq, decision, topic, trigger_id, body, mask = row
    if not (isinstance(seq, int) and isinstance(body, bytes)):
        raise ValueError(f"seq {seq!r} of {camera!r}")  # noqa: TRY004 - a value that was read, not an argument
    return Entry(
        session=session,
        camera=camera,
        seq=seq,
        decision=Decision(decision),
        topic=topic,
        trigger_id=trigger_id,
        body=body,
        mask=mask,
    )
