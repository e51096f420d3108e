"""The journal's file: opened so that commits survive, checked, set aside where it is damaged, found again when moved.

WAL with `synchronous=FULL`: what a commit returned for survives a power cut; what was not committed is gone as a whole.
What is written into its tables is the business of `verdicts`.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from inspectd.errors import JournalError
from inspectd.log import get_logger

APPLICATION = 0x494E5350
VERSION = 1
WRITER_BUSY_S = 0.1
READER_BUSY_S = 0.05
"""How long a lock of another program is waited for; a trigger waits for what a reader finds."""
CHECK_S = 0.5
WAL_KEPT_BYTES = 64 << 20
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
T = TypeVar("T")
_BEGINNING = b"SQLite format 3\0"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)


class DamagedError(JournalError):
    """The file is no database, or its pages contradict each other."""


class Database:
    """One connection, for one thread at a time. It opens the path again when another file has taken its place there.

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
    def open(cls, path: Path, *, read_only: bool = False) -> Self:
        """Opens a journal, makes it where there is none, and moves a damaged one aside, never deleting it.

        A reader opens at its first query, so that it may be made before the journal is there, or while it cannot be
        read: then the query raises.

        Raises:
            JournalError: it cannot be opened, nor a new one made; one line that names the file.
        """
        database = cls(path, read_only=read_only)
        if not read_only:
            database._connected()
        return database

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
        except DamagedError as error:
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
        except DamagedError as error:
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
            kind = DamagedError if _code(error) in _DAMAGE else JournalError
            raise kind(f"{self.path}: {error}{_advice(error, self.path)}") from error

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._connected().execute(query, values).fetchall()

    def _one(self, kind: type[T], query: str, *values: object) -> T | None:
        rows = self._all(query, *values)
        found = rows[0][0] if rows else None
        if not isinstance(found, kind | None):
            raise DamagedError(f"{self.path}: {found!r} where {kind.__name__} should be")
        return found


def _require_database(path: Path) -> None:
    """Refuses what is no database before SQLite sees it, which would write a log that lies beside into it."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_BEGINNING))
    except OSError:
        return  # SQLite's own words on that are good enough
    if begins not in (b"", _BEGINNING):
        raise DamagedError(f"{path}: file is not a database")


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
            raise DamagedError(f"{path}: {found.strip().splitlines()[-1]}")
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
