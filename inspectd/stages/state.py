"""What outlives a daemon: its lock, its session's name, and the rows that a dead one left unanswered."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Self, TypeVar

from inspectd.errors import ConfigError, JournalError, TransportError
from inspectd.journal.verdicts import Entry, Journal
from inspectd.log import get_logger
from inspectd.records import Reason, RecipeInfo
from inspectd.stages.answers import entry_of, freeze, verdict_of
from inspectd.stages.ledger import Answer
from inspectd.stages.spill import Spill
from inspectd.transport import wire
from inspectd.transport.memory import names
from inspectd.transport.rows import Row
from inspectd.transport.tickets import Table

T = TypeVar("T")
OPEN_S = 5.0
UNKNOWN_RECIPE = RecipeInfo(name="unknown", sha256="0" * 64)


class StateLock:
    """The lock of a state folder: one daemon at a time. Held by the kernel, so that death releases it.

    Raises:
        ConfigError: the folder cannot be written, or a live daemon holds it, named by its pid.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"state_dir {state_dir}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(self._file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise ConfigError(f"state_dir {state_dir}: in use by a running inspectd with pid {pid}") from error

    def __enter__(self) -> Self:
        os.ftruncate(self._file, 0)
        with contextlib.suppress(OSError):  # a full disk: whoever comes second is told no pid, and that is all
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a disk that went read-only: a pid without a lock is no daemon's
            os.ftruncate(self._file, 0)
        os.close(self._file)


def new_session() -> str:
    """A session's name: 32 hex digits that sort by time (as UUID version 7 does)."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def segment_prefix(state_dir: Path) -> str:
    """How the names of this state folder's shared-memory segments begin."""
    return f"inspectd-{hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:8]}-"


def open_journal(state_dir: Path) -> None:
    """Makes sure at the start that verdicts can be journaled, those that a dead daemon left before all others.

    Raises:
        JournalError: they cannot; then nothing is swept and what was left is there at the next start.
    """
    answer_left_rows(state_dir)
    _in_time(state_dir, Journal.probe, OPEN_S)


def answer_left_rows(state_dir: Path, *, limit_s: float = OPEN_S) -> int:
    """Journals what a dead daemon left: the words that it had sent before they were durable, and, under its session,
    `error/internal` for every frame that it never answered (contract I1).

    Returns:
        how many it had not answered.

    Raises:
        JournalError: the journal cannot be written in time; then nothing is swept and the rows are there at the next
            start.
    """
    tables = [name for name in names(segment_prefix(state_dir)) if name.endswith("-table") and _has_left_rows(name)]
    if not tables:
        return 0
    count = _in_time(state_dir, lambda journal: sum(_answer_table(name, journal) for name in tables), limit_s)
    get_logger().warning("left_frames_answered", count=count)
    return count


def _in_time(state_dir: Path, work: Callable[[Journal], T], limit_s: float) -> T:
    """Does something with the journal in a thread, which is left behind where the disk hangs."""
    path, done = state_dir / "journal.sqlite", SimpleQueue[T | JournalError]()

    def attempt() -> None:
        try:
            journal = Journal.open(path)
            try:
                done.put(work(journal))
            finally:
                journal.close()
        except JournalError as error:
            done.put(error)

    threading.Thread(target=attempt, name="journal", daemon=True).start()
    try:
        result = done.get(timeout=limit_s)
    except Empty:
        raise JournalError(f"{path}: its disk does not answer (tried {limit_s:g} s)") from None
    if isinstance(result, JournalError):
        raise result
    return result


def _has_left_rows(name: str) -> bool:
    try:
        table = Table.attach(name, any_version=True)
    except TransportError as error:  # killed before the table was whole: nothing was accepted
        get_logger().warning("left_table_unreadable", error=str(error))
        return False
    if not table.readable:
        get_logger().warning("left_table_of_another_version", session=table.session, cameras=list(table.cameras))
    left = any(next(table.camera(index).unanswered(), None) is not None for index in range(len(table.cameras)))
    left = left or bool(_spilled(table))
    table.close()
    return left


def _answer_table(name: str, journal: Journal) -> int:
    """Journals what one dead daemon owed: the words that it had sent, and an error for what it never answered.

    A verdict that was committed and never sent is an error too: nobody has heard it. In a table of another version it
    cannot be seen what was sent, so that what is journaled stands: somebody may have heard it.
    """
    table = Table.attach(name, any_version=True)
    owed = _spilled(table)
    known = {(entry.camera, entry.seq) for entry in owed}
    left: list[Entry] = []
    for index, camera in enumerate(table.cameras):
        recipe = _recipe_of(journal, table.session, camera)
        journaled = journal.last_seq(table.session, camera) or 0
        view = table.camera(index)
        sent = view.sent_through if table.readable else view.high_water
        left += [
            _internal_error(row, table.session, camera, recipe)
            for row in view.unanswered()
            if row.seq > sent or (row.seq > journaled and (camera, row.seq) not in known)
        ]
    journal.append([*owed, *left])
    table.close()
    return len(left)


def _recipe_of(journal: Journal, session: str, camera: str) -> RecipeInfo:
    """The recipe that a session had for a camera, by its last verdict: the configuration may be another one by now."""
    try:
        last = journal.since(camera, (journal.last_seq(session, camera) or 0) - 1, session=session, limit=1)
        return wire.verdict_from_bytes(last[0].body).recipe if last else UNKNOWN_RECIPE
    except (JournalError, TransportError):  # a row of it is damaged
        return UNKNOWN_RECIPE


def _spilled(table: Table) -> list[Entry]:
    try:
        spill = Spill.attach(table.spill_name)
    except TransportError as error:  # killed before it was made, or another version's: nothing of it can be known
        get_logger().warning("left_spill_unreadable", error=str(error))
        return []
    entries = spill.entries()
    spill.close()
    return entries


def _internal_error(row: Row, session: str, camera: str, recipe: RecipeInfo) -> Entry:
    answer = Answer(row=row, outcome=Reason.INTERNAL)
    verdict = verdict_of(answer, session=session, camera=camera, recipe=recipe, now_ns=time.monotonic_ns())
    return entry_of(freeze(verdict, None))
