"""The journal: every verdict, byte for byte as it was published, in SQLite. The only place that knows SQLite.

`Journal` is the file: append, since, mask, prune. `JournalWriter` is the thread through which the publisher appends, so
that its loop never calls fsync. WAL with `synchronous=FULL`: what a commit returned for survives a power cut.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inspectd.errors import JournalError
from inspectd.log import get_logger

BUSY_S = 0.5
RETRY_S = 0.5
MOST_BACKLOG = 20_000
MOST_BACKLOG_BYTES = 256 * 1024 * 1024
PRUNE_EVERY_S = 3600.0
PRUNE_ROWS = 2000
SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    session TEXT NOT NULL,
    camera TEXT NOT NULL,
    seq INTEGER NOT NULL,
    decision TEXT NOT NULL,
    topic TEXT NOT NULL,
    trigger_id TEXT,
    journaled_utc_s REAL NOT NULL,
    body BLOB NOT NULL,
    mask BLOB,
    PRIMARY KEY (session, camera, seq)
);
CREATE INDEX IF NOT EXISTS verdicts_by_trigger ON verdicts (session, camera, trigger_id)
    WHERE trigger_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS verdicts_by_time ON verdicts (journaled_utc_s);
"""
COLUMNS = "session, camera, seq, decision, topic, trigger_id, body, mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One verdict as it was, or is to be, published."""

    session: str
    camera: str
    seq: int
    decision: str
    topic: str
    body: bytes
    mask: bytes | None = None
    trigger_id: str | None = None

    @property
    def size_bytes(self) -> int:
        """What it costs in memory, roughly."""
        return len(self.body) + len(self.mask or b"") + 256


class Journal:
    """One connection to the journal's file, for one thread."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self.path = path

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, check: bool = False) -> Journal:
        """Opens the journal. A file that is no sound database is set aside, never deleted, and a new one begun.

        Args:
            read_only: for the reader of `history`, beside the writer.
            check: read all of it for damage, as after a crash.

        Raises:
            JournalError: it cannot be opened or written.
        """
        try:
            return cls(_connect(path, read_only=read_only, check=check), path)
        except sqlite3.DatabaseError as error:
            if read_only or isinstance(error, sqlite3.OperationalError):
                raise JournalError(f"{path}: {error}") from error
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        try:
            path.rename(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            get_logger().error("journal_set_aside", path=str(path), aside=str(aside))
            return cls(_connect(path, read_only=False, check=False), path)
        except (OSError, sqlite3.DatabaseError) as error:
            raise JournalError(f"{path}: {error}") from error

    def append(self, entries: Sequence[Entry]) -> None:
        """Writes verdicts in one transaction; one of the same number replaces the older.

        Raises:
            JournalError: nothing was written.
        """
        now_s = time.time()
        rows = [
            (
                each.session,
                each.camera,
                each.seq,
                each.decision,
                each.topic,
                each.trigger_id,
                each.body,
                each.mask,
                now_s,
            )
            for each in entries
        ]
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(
                    f"INSERT OR REPLACE INTO verdicts ({COLUMNS}, journaled_utc_s) VALUES (?,?,?,?,?,?,?,?,?)",  # noqa: S608
                    rows,
                )
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: {error}") from error

    def since(self, camera: str, since_seq: int, *, session: str, limit: int) -> list[Entry]:
        """The verdicts behind `since_seq`, in order, at most `limit`.

        Raises:
            JournalError: the journal cannot be read.
        """
        rows = self._query(
            f"SELECT {COLUMNS} FROM verdicts WHERE session = ? AND camera = ? AND seq > ? ORDER BY seq LIMIT ?",  # noqa: S608
            (session, camera, since_seq, limit),
        )
        names = COLUMNS.split(", ")
        return [Entry(**dict(zip(names, row, strict=True))) for row in rows]

    def mask(self, session: str, camera: str, seq: int) -> bytes | None:
        """The mask's PNG of one verdict, None where it has none."""
        rows = self._query(
            "SELECT mask FROM verdicts WHERE session = ? AND camera = ? AND seq = ?", (session, camera, seq)
        )
        return None if not rows or rows[0][0] is None else bytes(rows[0][0])

    def last_seq(self, session: str, camera: str) -> int | None:
        """The last number that is journaled, None where there is none."""
        rows = self._query("SELECT max(seq) FROM verdicts WHERE session = ? AND camera = ?", (session, camera))
        return None if rows[0][0] is None else int(rows[0][0])

    def seq_of_trigger(self, session: str, camera: str, trigger_id: str) -> int | None:
        """The number that a trigger was given, None where it is not journaled."""
        rows = self._query(
            "SELECT min(seq) FROM verdicts WHERE session = ? AND camera = ? AND trigger_id = ?",
            (session, camera, trigger_id),
        )
        return None if rows[0][0] is None else int(rows[0][0])

    def prune(self, before_utc_s: float) -> int:
        """Deletes verdicts older than that, a few thousand at a time. How many went.

        Raises:
            JournalError: nothing was deleted.
        """
        try:
            with self._connection:
                cursor = self._connection.execute(
                    "DELETE FROM verdicts WHERE rowid IN "
                    "(SELECT rowid FROM verdicts WHERE journaled_utc_s < ? ORDER BY journaled_utc_s LIMIT ?)",
                    (before_utc_s, PRUNE_ROWS),
                )
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: {error}") from error
        return cursor.rowcount

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _query(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: {error}") from error


def _connect(path: Path, *, read_only: bool, check: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            if check:
                _require_sound(connection)
            connection.executescript(SCHEMA)
        connection.execute("SELECT count(*) FROM verdicts WHERE session = ''").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _require_sound(connection: sqlite3.Connection) -> None:
    (word,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if word != "ok":
        raise sqlite3.DatabaseError(word)


class Commit:
    """The fate of one batch. The publisher waits for it briefly, or abandons it for other words."""

    def __init__(self, entries: list[Entry]) -> None:
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._entries = entries
        self._abandoned = False

    def wait(self, timeout_s: float) -> bool:
        """Whether the batch is durable, waiting no longer than that."""
        return self._done.wait(timeout_s)

    def abandon(self, replacement: list[Entry]) -> bool:
        """Replaces the words of a batch that is not durable yet. False where it has become so: then nothing changed."""
        with self._lock:
            if self._done.is_set():
                return False
            self._entries, self._abandoned = replacement, True
            return True

    @property
    def entries(self) -> list[Entry]:
        """What is to be written, as of now."""
        with self._lock:
            return self._entries

    def settle(self, written: list[Entry]) -> bool:
        """The writer has committed `written`. False where other words have taken their place: then it writes again."""
        with self._lock:
            if self._entries is not written:
                return False
            self._done.set()
            return True


class JournalWriter:
    """The thread that appends. Order is kept; what cannot be written waits in a bounded buffer and is tried again.

    Args:
        keep_days: older verdicts are pruned, in this thread.
        on_commit: told the seconds of each commit.
    """

    def __init__(self, path: Path, *, keep_days: float, on_commit: Callable[[float], None] = lambda _: None) -> None:
        self._path = path
        self._keep_s = keep_days * 86400
        self._on_commit = on_commit
        self._queue: deque[Commit] = deque()
        self._size_bytes = 0
        self._more = threading.Condition()
        self._closing = False
        self.healthy = True
        self.lost = 0
        self._journal: Journal | None = Journal.open(path)
        self._prune_due_s = time.monotonic() + 60.0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Batches that wait."""
        return len(self._queue)

    def submit(self, entries: list[Entry]) -> Commit:
        """Queues a batch. Never blocks; when the buffer is full the oldest masks go first, then the oldest batches."""
        commit = Commit(entries)
        with self._more:
            self._queue.append(commit)
            self._size_bytes += sum(each.size_bytes for each in entries)
            if self._size_bytes > MOST_BACKLOG_BYTES or len(self._queue) > MOST_BACKLOG:
                self._shed()
            self._more.notify()
        return commit

    def close(self, timeout_s: float) -> None:
        """Writes what waits, for no longer than that, and ends."""
        with self._more:
            self._closing = True
            self._more.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._queue or self._closing, timeout=PRUNE_EVERY_S / 60)
                if not self._queue and self._closing:
                    break
                commit = self._queue[0] if self._queue else None
            if commit is None:
                self._prune()
            elif self._write(commit):
                with self._more:
                    if self._queue and self._queue[0] is commit:
                        self._queue.popleft()
                    self._size_bytes -= sum(each.size_bytes for each in commit.entries)
            elif self._closing:
                break
            else:
                with self._more:
                    self._more.wait_for(lambda: self._closing, timeout=RETRY_S)
        if self._journal is not None:
            self._journal.close()

    def _write(self, commit: Commit) -> bool:
        """Whether the batch is durable, as it stands in the end."""
        while True:
            entries = commit.entries
            started_s = time.monotonic()
            try:
                if self._journal is None:
                    self._journal = Journal.open(self._path, check=True)
                self._journal.append(entries)
            except JournalError as error:
                self._fail(error)
                return False
            self._on_commit(time.monotonic() - started_s)
            self.healthy = True
            if commit.settle(entries):
                return True

    def _fail(self, error: JournalError) -> None:
        if self.healthy:
            get_logger().error("journal_failed", error=str(error), backlog=self.backlog)
        self.healthy = False
        if self._journal is not None:  # a disk that came back is met with a fresh connection
            with contextlib.suppress(sqlite3.Error):
                self._journal.close()
            self._journal = None

    def _shed(self) -> None:
        """Makes room; called with the lock held. The head may be in the writer's hands and is left alone."""
        for commit in list(self._queue)[1:]:
            entries = commit.entries
            masks = sum(len(each.mask or b"") for each in entries)
            if masks:
                commit.abandon([replace(each, mask=None) for each in entries])
                self._size_bytes -= masks
        while len(self._queue) > 2 and (self._size_bytes > MOST_BACKLOG_BYTES or len(self._queue) > MOST_BACKLOG):
            gone = self._queue[1]
            del self._queue[1]
            self._size_bytes -= sum(each.size_bytes for each in gone.entries)
            self.lost += len(gone.entries)

    def _prune(self) -> None:
        if time.monotonic() < self._prune_due_s or self._journal is None:
            return
        try:
            pruned = self._journal.prune(time.time() - self._keep_s)
        except JournalError as error:
            get_logger().warning("journal_unpruned", error=str(error))
            pruned = 0
        more = pruned == PRUNE_ROWS
        self._prune_due_s = time.monotonic() + (1.0 if more else PRUNE_EVERY_S)
