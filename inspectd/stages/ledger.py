"""The ledger of one camera: which accepted frames are unanswered, and what to answer when. Pure: time comes in.

Every accepted row leaves exactly once, in order of `seq` (contract I1, I3): with the worker's result, with the verdict
that an earlier publisher had ready and never sent, with the reason that a gate gave, or with an `error` when it falls
due. When a row falls due, so does every earlier one still open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from inspectd.records import Reason, Verdict
from inspectd.transport.rows import Row
from inspectd.transport.wire import Result

COMMIT_SHARE = 4
"""A result that comes when only a fourth of the reserve is left comes too late."""
Outcome = Result | Verdict | Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one accepted row is to be answered: a result or verdict and its mask, or the reason of an `error`."""

    row: Row
    outcome: Outcome
    mask_png: bytes | None = None


@dataclass(slots=True)
class _Entry:
    row: Row
    outcome: Outcome | None
    mask_png: bytes | None = None


class Ledger:
    """The unanswered rows of one camera.

    Args:
        answered_through: the last `seq` that was answered before (0 for none).
        reserve_ns: a row falls due so long before its deadline.
    """

    def __init__(self, *, answered_through: int = 0, reserve_ns: int) -> None:
        self._entries: deque[_Entry] = deque()
        self._answered_through = answered_through
        self._reserve_ns = reserve_ns
        self.late_results = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def accepted_through(self) -> int:
        """The last `seq` that the ledger knows of."""
        return self._answered_through + len(self._entries)

    def accept(self, row: Row) -> None:
        """Takes over one accepted row; rows come in order, without a gap.

        Raises:
            ValueError: the row is not the next one.
        """
        if row.seq != self.accepted_through + 1:
            raise ValueError(f"row {row.seq} after {self.accepted_through}: rows come one by one")
        self._entries.append(_Entry(row, row.gate))

    def resolve(self, result: Result | Verdict, mask_png: bytes | None) -> bool:
        """Takes what was found. False where its row is answered, unknown or decided already: it is dropped."""
        index = result.seq - self._answered_through - 1
        if not 0 <= index < len(self._entries) or self._entries[index].outcome is not None:
            self.late_results += 1
            return False
        self._entries[index].outcome = result
        self._entries[index].mask_png = mask_png
        return True

    def give_up(self, reason: Reason, through: int | None = None) -> int:
        """Decides every open row up to `through` (default: all) as an error. How many there were."""
        count = 0
        for entry in self._entries:
            if through is not None and entry.row.seq > through:
                break
            if entry.outcome is None:
                entry.outcome = reason
                count += 1
        return count

    def fail(self, seq: int, reason: Reason) -> None:
        """Decides one open row as an error."""
        index = seq - self._answered_through - 1
        if 0 <= index < len(self._entries) and self._entries[index].outcome is None:
            self._entries[index].outcome = reason

    def next_due_ns(self) -> int | None:
        """When the next open row falls due, None where no open row has a deadline."""
        deadlines = (entry.row.deadline_ns for entry in self._entries if entry.row.deadline_ns)
        earliest = min(deadlines, default=None)
        return None if earliest is None else earliest - self._reserve_ns

    def collect(self, now_ns: int, overdue: Reason) -> list[Answer]:
        """Takes out, in order, the rows that can be answered at `now_ns`; those overdue become `error/overdue`.

        A result that is taken out when its commit has hardly time before the deadline is late, whatever it says
        (contract I2); `Audit` sees to it that a commit takes no longer.
        """
        for entry in self._entries:
            if 0 < entry.row.deadline_ns <= now_ns + self._reserve_ns // COMMIT_SHARE and isinstance(
                entry.outcome, Result | Verdict
            ):
                entry.outcome, entry.mask_png = Reason.LATE, None  # taken out of the inbox only now, behind a pause
                self.late_results += 1
        for entry in reversed(self._entries):
            if entry.row.deadline_ns and entry.row.deadline_ns - self._reserve_ns <= now_ns:
                self.give_up(overdue, through=entry.row.seq)
                break
        return list(self._take_decided())

    def open_rows(self) -> Iterator[Row]:
        """Yields the rows that wait for a result."""
        return (entry.row for entry in self._entries if entry.outcome is None)

    def _take_decided(self) -> Iterator[Answer]:
        while self._entries and (outcome := self._entries[0].outcome) is not None:
            entry = self._entries.popleft()
            self._answered_through = entry.row.seq
            yield Answer(row=entry.row, outcome=outcome, mask_png=entry.mask_png)
