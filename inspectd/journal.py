"""The journal: every verdict byte for byte as it is published, in SQLite. The only place of `sqlite3`.

WAL with `synchronous=FULL`: what a commit returned for survives a power cut; what was not committed is gone as a whole.
A `Journal` is one connection, for one thread at a time; `stages.journaling` is the thread that commits for the
publisher.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from inspectd import __version__
from inspectd.errors import JournalError
from inspectd.log import get_logger
from inspectd.records import Decision

APPLICATION = 0x494E5350
VERSION = 1
WRITER_BUSY_S = 0.1
READER_BUSY_S = 0.05
"""How long a lock of another program is waited for; readers sit in the publisher's loop."""
CHECK_S = 0.5
WAL_KEPT_BYTES = 64 << 20
PRUNE_ROWS = 100
FULL_BYTES = 1 << 20

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, first_utc_ns INTEGER NOT NULL, daemon_version TEXT NOT NULL
);
CREATE TABLE verdicts (
    session TEXT NOT NULL, camera TEXT NOT NULL, seq INTEGER NOT NULL, decision TEXT NOT NULL, topic TEXT NOT NULL,
    trigger_id TEXT, journaled_utc_ns INTEGER NOT NULL, body BLOB NOT NULL, mask BLOB,
    PRIMARY KEY (session, camera, seq)
);
CREATE INDEX verdicts_by_trigger ON verdicts (session, camera, trigger_id) WHERE trigger_id IS NOT NULL;
CREATE INDEX verdicts_by_age ON verdicts (journaled_utc_ns);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""
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
T = TypeVar("T")
_BEGINNING = b"SQLite format 3\0"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)


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


class _DamagedError(JournalError):
    """The file is no database, or its pages contradict each other."""


class Journal:
    """One connection to the journal. It opens the path again when another file has taken its place there.

    Attributes:
        damaged: where a damaged journal was moved to, the last time that one was found; None where none was.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.damaged: Path | None = None
        self._read_only = read_only
        self._checked = read_only
        self._connection: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Journal:
        """Opens a journal, makes it where there is none, and moves a damaged one aside, never deleting it.

        A reader opens at its first query, so that it may be made before the journal is there, or while it cannot be
        read: then the query raises.

        Raises:
            JournalError: it cannot be opened, nor a new one made; one line that names the file.
        """
        journal = cls(path, read_only=read_only)
        if not read_only:
            journal._connected()
        return journal

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
            raise _DamagedError(f"{self.path}: a row is no verdict: {error}") from error

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
                    raise _DamagedError(f"{self.path}: a row is no verdict: seq {seq!r} of {camera!r}")
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

    def probe(self) -> None:
        """Commits a change that changes nothing, to see whether the journal can be written.

        Raises:
            JournalError: it cannot.
        """
        with self._transaction() as connection:
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def checkpoint(self) -> None:
        """Moves committed pages from the write-ahead log into the database, as far as readers allow.

        Raises:
            JournalError: it failed; nothing committed is lost by that.
        """
        with self._explained():
            self._connected().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Closes the connection; a last checkpoint is tried."""
        if self._connection is not None and not self._read_only:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._drop()

    # -- the connection ---------------------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        """The connection; a new one where the path names another file than it did (or none): somebody moved it."""
        if self._connection is not None:
            if self._file_id == _file_id(self.path):
                return self._connection
            self._drop()
        try:
            return self._connect()
        except _DamagedError as error:
            if self._read_only:
                raise
            self._set_aside(error)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        _require_database(self.path)
        with self._explained():
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}",
                uri=True,
                timeout=READER_BUSY_S if self._read_only else WRITER_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                if not self._read_only:
                    self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        self._connection, self._file_id = connection, _file_id(self.path)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if not self._checked:
            _check(connection, self.path)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise JournalError(f"{self.path}: its file system has no shared memory, which a write-ahead log needs")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it when nobody waits
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            connection.executescript(_SCHEMA)
        made_by = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if made_by != [APPLICATION, VERSION]:
            raise JournalError(f"{self.path}: a database, but no journal of version {VERSION}; move it elsewhere")
        self._checked = True

    def _set_aside(self, error: JournalError) -> None:
        """Moves a damaged journal and its log away, under one name, for a person to look at."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        self._drop()
        try:
            self.path.rename(aside)
            for end in ("-wal", "-shm", "-journal"):  # a log left behind would be replayed into the new journal
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + end).rename(aside.with_name(aside.name + end))
        except OSError as refused:
            raise JournalError(f"{self.path}: damaged, and cannot be moved: {refused.strerror or refused}") from error
        self.damaged = aside
        get_logger().error("journal_set_aside", error=str(error), aside=str(aside))

    def _drop(self) -> None:
        """Forgets the connection without another write of ours."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, committed at the end."""
        connection = self._connected()
        try:
            with self._explained():
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except _DamagedError as error:
            self._set_aside(error)
            raise
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            if _code(error.__cause__) not in _PASSING:
                self._drop()  # after a failed write or sync nothing that it has cached is to be trusted
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            kind = _DamagedError if _code(error) in _DAMAGE else JournalError
            raise kind(f"{self.path}: {error}{_advice(error, self.path)}") from error

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._connected().execute(query, values).fetchall()

    def _one(self, kind: type[T], query: str, *values: object) -> T | None:
        rows = self._all(query, *values)
        found = rows[0][0] if rows else None
        if not isinstance(found, kind | None):
            raise _DamagedError(f"{self.path}: {found!r} where {kind.__name__} should be")
        return found


def _require_database(path: Path) -> None:
    """Refuses what is no database before SQLite sees it, which would write a log that lies beside into it."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_BEGINNING))
    except OSError:
        return  # SQLite's own words on that are good enough
    if begins not in (b"", _BEGINNING):
        raise _DamagedError(f"{path}: file is not a database")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """SQLite's own check, for as long as a restart can afford; what it does not reach is noticed when it is used."""
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        connection.interrupt()

    timer = threading.Timer(CHECK_S, stop)
    timer.start()
    try:
        found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        if not expired.is_set():
            raise
    else:
        if found != "ok" and not expired.is_set():
            raise _DamagedError(f"{path}: {found.strip().splitlines()[-1]}")
    finally:
        timer.cancel()
        timer.join()  # an interrupt must not come to a later statement


def _advice(error: sqlite3.Error, path: Path) -> str:
    """What SQLite does not say of its own accord: it calls a full disk an I/O error where its log finds no room."""
    if _code(error) == sqlite3.SQLITE_CANTOPEN:
        return "; expected in a folder that can be written"
    with contextlib.suppress(OSError):
        free_bytes = shutil.disk_usage(path.parent).free
        if _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) and free_bytes < FULL_BYTES:
            return f"; its disk has {free_bytes} bytes free"
    return ""


def _code(error: BaseException | None) -> int:
    """SQLite's primary result code, 0 for what is not an error of SQLite."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
