"""What outlives a daemon: its lock, its session's name, and the rows that a dead one left unanswered."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import Self

from inspectd.errors import ConfigError, TransportError
from inspectd.journal import Entry, Journal
from inspectd.log import get_logger
from inspectd.recipe import Recipe
from inspectd.records import Reason, RecipeInfo
from inspectd.stages.answers import entry_of, freeze, verdict_of
from inspectd.stages.ledger import Answer
from inspectd.transport.memory import names
from inspectd.transport.tickets import Table

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
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._file, 0)
        os.close(self._file)


def new_session() -> str:
    """A session's name: 32 hex digits that sort by time (as UUID version 7 does)."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def segment_prefix(state_dir: Path) -> str:
    """How the names of this state folder's shared-memory segments begin."""
    return f"inspectd-{hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:8]}-"


def answer_left_rows(state_dir: Path, recipes: dict[str, Recipe]) -> int:
    """Journals `error/internal`, under the old session, for every frame that a dead daemon left (contract I1).

    Returns:
        how many there were.

    Raises:
        JournalError: the journal cannot be written; then nothing is swept and the rows are there at the next start.
    """
    tables = [name for name in names(segment_prefix(state_dir)) if name.endswith("-table") and _has_left_rows(name)]
    if not tables:
        return 0
    journal = Journal.open(state_dir / "journal.sqlite")
    try:
        count = sum(_answer_table(name, journal, recipes) for name in tables)
    finally:
        journal.close()
    get_logger().warning("left_frames_answered", count=count)
    return count


def _has_left_rows(name: str) -> bool:
    try:
        table = Table.attach(name)
    except TransportError as error:  # killed before the table was whole: nothing was accepted
        get_logger().warning("left_table_unreadable", error=str(error))
        return False
    left = any(next(table.camera(index).unanswered(), None) is not None for index in range(len(table.cameras)))
    table.close()
    return left


def _answer_table(name: str, journal: Journal, recipes: dict[str, Recipe]) -> int:
    table = Table.attach(name)
    entries: list[Entry] = []
    for index, camera in enumerate(table.cameras):
        recipe = recipes[camera].info if camera in recipes else UNKNOWN_RECIPE
        journaled = journal.last_seq(table.session, camera) or 0
        for row in table.camera(index).unanswered():
            if row.seq <= journaled:
                continue
            verdict = verdict_of(
                Answer(row=row, outcome=Reason.INTERNAL),
                session=table.session,
                camera=camera,
                recipe=recipe,
                now_ns=time.monotonic_ns(),
            )
            entries.append(entry_of(freeze(verdict, None)))
    journal.append(entries)
    table.close()
    return len(entries)
