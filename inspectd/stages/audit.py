"""Journal first (contract I4): which words of a verdict go out, by what the journal can hold in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from inspectd.journal.verdicts import Entry
from inspectd.records import Decision, Reason
from inspectd.stages.answers import Frozen, as_error, entry_of, freeze
from inspectd.stages.journaling import Commit, JournalWriter

COMMIT_NS = 150_000_000
"""A commit is waited for so long at most: heartbeats go on in time, and a journal that is slower has stalled."""

SEND_NS = 1_000_000
"""What a deadline leaves for the send, when a commit is waited for no longer."""
MEANWHILE_S = 0.002


class Audit:
    """Commits verdicts before they are sent, or changes their words to what is true of them.

    Args:
        strict: what cannot be committed in time becomes `error/internal`.
        reserve_ns: a commit is always waited for so long.

    Attributes:
        unjournaled: verdicts that went out before they were in the journal.
    """

    def __init__(self, writer: JournalWriter, *, strict: bool, reserve_ns: int) -> None:
        self.unjournaled = 0
        self._writer = writer
        self._strict = strict
        self._reserve_ns = reserve_ns
        self._owed: Commit | None = writer.inherited

    @property
    def owed(self) -> list[Entry]:
        """What was sent, or promised by a publisher that died, and is not known to be durable."""
        return [] if self._owed is None else self._owed.entries

    def keeps_up(self) -> bool:
        """Whether the journal takes verdicts and holds all that were sent before: neither failed nor stalled."""
        owed = self._owed
        if owed is not None and owed.wait(0) and owed is self._owed:
            self._owed = None
        return self._writer.healthy and self._owed is None

    def patience_ns(self, dues_ns: Iterable[int], deadlines_ns: Iterable[int], now_ns: int) -> int:
        """How long a commit may take: the reserve at least, longer where no verdict is pressed.

        What is sent before its commit is a debt, so a slow disk is waited for if possible; but never beyond a deadline
        of what is committed, for then it would not be true any more.
        """
        patience_ns = max(self._reserve_ns, min([now_ns + COMMIT_NS, *dues_ns]) - now_ns)
        return max(0, min([patience_ns, *(each - SEND_NS - now_ns for each in deadlines_ns)]))

    def commit(
        self, frozen: list[Frozen], patience_ns: int, meanwhile: Callable[[], None] = lambda: None
    ) -> list[Frozen]:
        """What is to be sent now: the same verdicts, or, where the journal does not hold them in time, others.

        Args:
            meanwhile: called every 2 ms of a slow commit.
        """
        if not self.keeps_up():
            replaced = [self._unjournaled(each) for each in frozen]
            self._owed = self._writer.submit([entry_of(each) for each in replaced], promised=True)
            self.unjournaled += len(replaced)
            return replaced
        commit = self._writer.submit([entry_of(each) for each in frozen])
        until_ns = time.monotonic_ns() + patience_ns
        while (left_ns := until_ns - time.monotonic_ns()) > 0 and not commit.wait(min(MEANWHILE_S, left_ns / 1e9)):
            meanwhile()
        if commit.wait(0):
            return frozen
        replaced = [self._unjournaled(each) for each in frozen]
        if not commit.abandon([entry_of(each) for each in replaced]):
            return frozen
        self._owed = commit
        self.unjournaled += len(replaced)
        return replaced

    def _unjournaled(self, each: Frozen) -> Frozen:
        verdict = replace(each.verdict, journaled=False)
        if self._strict and verdict.decision is not Decision.ERROR:
            verdict = as_error(verdict, Reason.INTERNAL)
        return freeze(verdict, each.mask_png)
