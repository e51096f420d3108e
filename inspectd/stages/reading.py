"""The thread that reads the journal for the publisher: a disk that hangs keeps nobody waiting longer than he can."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from inspectd.errors import JournalError
from inspectd.journal.verdicts import Journal

T = TypeVar("T")
MOST_ASKED = 128
"""So many questions may wait: each client asks for what it missed when a publisher is new."""


class JournalReader:
    """Reads a journal, one question after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[Future[Any]] = []
        self._asked: SimpleQueue[tuple[Future[Any], Callable[[Journal], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="journal-reader", daemon=True).start()

    def ask(self, query: Callable[[Journal], T]) -> Future[T]:
        """Has something read, behind all that was asked before; the future gives it or raises JournalError.

        Raises:
            JournalError: too much waits already.
        """
        if self._waiting() >= MOST_ASKED:
            raise JournalError(f"{self._path}: {MOST_ASKED} questions wait already")
        found: Future[T] = Future()
        self._open.append(found)
        self._asked.put((found, query))
        return found

    def read(self, query: Callable[[Journal], T], patience_s: float) -> T:
        """What is read within that time; where an earlier question waits for the disk still, nobody waits once more.

        Raises:
            JournalError: the journal cannot be read, or not in time.
        """
        if self._waiting():
            raise self._silence()
        return self.result(self.ask(query), patience_s)

    def result(self, found: Future[T], patience_s: float) -> T:
        """What was asked for, within that time; what comes later is thrown away.

        Raises:
            JournalError: the journal cannot be read, or not in time.
        """
        try:
            return found.result(patience_s)
        except TimeoutError:
            found.cancel()
            raise self._silence() from None

    def close(self) -> None:
        """Ends the thread, now or when the disk lets it go."""
        self._asked.put(None)

    def _waiting(self) -> int:
        self._open = [found for found in self._open if not found.done()]
        return len(self._open)

    def _silence(self) -> JournalError:
        return JournalError(f"{self._path}: its disk does not answer")

    def _run(self) -> None:
        journal = Journal.open(self._path, read_only=True)
        while (asked := self._asked.get()) is not None:
            found, query = asked
            if not found.set_running_or_notify_cancel():
                continue
            try:
                found.set_result(query(journal))
            except Exception as error:  # noqa: BLE001 - raised where it was asked for
                found.set_exception(error)
        journal.close()
