"""The thread that commits verdicts for the publisher (contract I4): it may stall or fail for as long as it likes.

The publisher submits, waits on the `Commit` no longer than it can afford, and otherwise abandons it for what it
publishes instead. What cannot be written waits here, in order, within bounds, and is tried again. Words that go out
before they are durable are noted in the `Spill` first, and stay there until they are: whoever comes after the death of
this process begins with them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from inspectd.errors import JournalError
from inspectd.journal.verdicts import PRUNE_ROWS, Entry, Journal
from inspectd.log import get_logger
from inspectd.stages.spill import Spill

OPEN_S = 1.0
"""How long the first look at the journal is waited for; a disk that takes longer must not keep the line waiting."""
MAX_ENTRIES = 20_000
MAX_BYTES = 64 << 20
BATCH_ENTRIES = 256
CHECKPOINT_COMMITS = 256
CHECKPOINT_BYTES = 4 << 20
FIRST_PRUNE_S = 60.0
PRUNE_EVERY_S = 3600.0
PRUNE_AGAIN_S = 0.1
FIRST_RETRY_S = 0.05
SLOWEST_RETRY_S = 2.0
SICK_S = 1.0
"""So long after trouble the journal still counts as unhealthy, so that its state does not flicker."""
NS_PER_DAY = 86_400_000_000_000


class CommitState(StrEnum):
    """Where a batch is. `WAITING` and `WRITING` can be abandoned; `LOST` was given up when the buffer was full."""

    WAITING = "waiting"
    WRITING = "writing"
    DURABLE = "durable"
    LOST = "lost"


class Commit:
    """One batch on its way to the disk. The publisher calls `wait` and `abandon`; the rest is the writer's."""

    def __init__(self, writer: JournalWriter, entries: list[Entry]) -> None:
        self._writer = writer
        self.entries = entries
        self.replacement: list[Entry] | None = None
        self.state = CommitState.WAITING
        self.refused = False
        self.noted_through = 0

    def wait(self, timeout_s: float) -> bool:
        """Waits until the batch is durable. False at the timeout, or as soon as an attempt to write it has failed."""
        changed = self._writer.changed
        with changed:
            changed.wait_for(lambda: self.refused or self.state in (CommitState.DURABLE, CommitState.LOST), timeout_s)
            return self.state is CommitState.DURABLE

    def abandon(self, replacement: Sequence[Entry]) -> bool:
        """Replaces a batch that was too slow by what is published instead.

        Where it was not yet being written, the replacement is committed in its place; where it was, right after it. A
        death between those two commits leaves the first words in the journal and the replacement in the spill.

        Returns:
            False where the batch is durable already: then nothing changed, and its words are what must be published.
        """
        return self._writer.abandon(self, list(replacement))

    @property
    def mask_bytes(self) -> int:
        """The size of its masks."""
        return sum(len(entry.mask or b"") for entry in self.entries)

    @property
    def body_bytes(self) -> int:
        """The size of its bodies."""
        return sum(len(entry.body) for entry in self.entries)


class JournalWriter:
    """The writer's thread and its buffer.

    A journal that cannot be opened or written is tried again with back-off, for ever. When the buffer is full, masks
    go first, the oldest before the others, then the oldest verdicts.

    Args:
        keep_days: older verdicts are pruned when there is nothing else to do.
        spill: where promised words are noted; what a dead writer left there is committed before anything else.
        on_commit: told the seconds of each commit, in the writer's thread.
        max_entries: verdicts that may wait.
        max_bytes: bytes of bodies and masks that may wait.

    Attributes:
        changed: guards what both sides touch.
        masks_dropped: masks that were given up, their verdicts kept.
        lost: verdicts that were given up.
        unnoted: verdicts that found no room in the spill: only this process knows their words.
        inherited: the batch that a dead writer left in the spill, None where it left none.
        error: why the last attempt failed, one line; None where it did not.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_days: float,
        spill: Spill | None = None,
        on_commit: Callable[[float], None] = lambda _: None,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.changed = threading.Condition()
        self.masks_dropped = self.lost = self.unnoted = 0
        self.inherited: Commit | None = None
        self.error: str | None = None
        self._journal = Journal(path, read_only=False)
        self._keep_ns = round(keep_days * NS_PER_DAY)
        self._calendar_ns = time.time_ns() - time.monotonic_ns()  # read once: a clock that is set must delete nothing
        self._on_commit = on_commit
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._spill = spill
        self._waiting: deque[Commit] = deque()
        self._noted: deque[Commit] = deque()
        self._count = self._body_bytes = self._mask_bytes = self._writing = 0
        self._sick_until_s = -math.inf
        self._retry_s = 0.0
        self._backoff_s = FIRST_RETRY_S
        self._prune_s = time.monotonic() + FIRST_PRUNE_S
        self._log_commits = self._log_bytes = 0
        self._closing = self._given_up = False
        self._inherit()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        self._opened.wait(OPEN_S)

    @property
    def healthy(self) -> bool:
        """Whether a verdict that is submitted now can be expected to be durable soon."""
        return self._thread.is_alive() and time.monotonic() >= self._sick_until_s

    @property
    def damaged(self) -> Path | None:
        """Where a damaged journal was moved to, None where none was found."""
        return self._journal.damaged

    @property
    def backlog(self) -> int:
        """How many verdicts are not durable yet."""
        with self.changed:
            return self._count + self._writing

    def submit(self, entries: Sequence[Entry], *, promised: bool = False) -> Commit:
        """Hands over verdicts to be committed, behind all that were submitted before. Never waits for the disk.

        Args:
            promised: they will be sent whatever becomes of the commit, and so are noted in the spill first.
        """
        commit = Commit(self, list(entries))
        with self.changed:
            if promised:
                self._note(commit, commit.entries)
            self._waiting.append(commit)
            self._weigh(commit, 1)
            self._shed()
            self.changed.notify_all()
        return commit

    def abandon(self, commit: Commit, replacement: list[Entry]) -> bool:
        """See `Commit.abandon`."""
        with self.changed:
            if commit.state is CommitState.DURABLE:
                return False
            self._sick_until_s = math.inf
            if commit.state is not CommitState.LOST:
                self._note(commit, replacement)
            if commit.state is CommitState.WRITING:
                commit.replacement = replacement
            elif commit.state is CommitState.WAITING:
                self._weigh(commit, -1)
                commit.entries = replacement
                self._weigh(commit, 1)
                self._shed()
            return True

    def close(self, timeout_s: float) -> bool:
        """Commits what waits and ends the thread. False where that took longer: then it waits on in the spill."""
        with self.changed:
            self._closing = True
            self.changed.notify_all()
        self._thread.join(timeout_s)
        with self.changed:
            self._given_up = True
            self.changed.notify_all()
        return not self._thread.is_alive() and self.backlog == 0

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._attempt(self._journal.probe)
        self._opened.set()
        while self._has_work():
            if self._waiting:
                self._write()
            elif self.error is not None:
                self._attempt(self._journal.probe)
            else:
                self._attempt(self._prune)
        self._journal.close()

    def _has_work(self) -> bool:
        """Waits until there is something to do. False when the thread is to end."""
        with self.changed:
            while not self._given_up:
                now_s = time.monotonic()
                due_s = self._prune_s if self.error is None else self._retry_s
                if now_s >= due_s or (self._waiting and self.error is None):
                    return True
                if self._closing and not self._waiting:
                    return False
                self.changed.wait(due_s - now_s)
        return False

    def _write(self) -> None:
        """One transaction with what waits."""
        taken: list[Commit] = []
        started_s = time.monotonic()
        written = self._attempt(lambda: self._journal.append_late(lambda: self._take(taken)))
        spent_s = time.monotonic() - started_s
        with self.changed:
            self._writing = 0
            for commit in reversed(taken):
                self._settle(commit, written=written)
            self._forget_notes()
            self._shed()
            if written and not self._waiting:
                self._sick_until_s = min(self._sick_until_s, time.monotonic() + SICK_S)
            self.changed.notify_all()
        if written and taken:
            self._on_commit(spent_s)
            self._tend_log(taken)

    def _take(self, taken: list[Commit]) -> list[Entry]:
        """Takes the oldest batches; called when the write lock is held, so that until then they can be abandoned."""
        with self.changed:
            while self._waiting and (not taken or self._writing < BATCH_ENTRIES):
                commit = self._waiting.popleft()
                self._weigh(commit, -1)
                commit.state = CommitState.WRITING
                self._writing += len(commit.entries)
                taken.append(commit)
        return [entry for commit in taken for entry in commit.entries]

    def _settle(self, commit: Commit, *, written: bool) -> None:
        """Decides what becomes of a batch that was tried: done, or waiting again at its place in the order."""
        if written and commit.replacement is None:
            commit.state = CommitState.DURABLE
            return
        if commit.replacement is not None:
            commit.entries, commit.replacement = commit.replacement, None
        commit.state, commit.refused = CommitState.WAITING, True
        self._waiting.appendleft(commit)
        self._weigh(commit, 1)

    def _tend_log(self, taken: list[Commit]) -> None:
        """Right after a commit the next one is farthest away: the time to move pages from log to database."""
        self._log_commits += 1
        self._log_bytes += sum(commit.body_bytes + commit.mask_bytes for commit in taken)
        if self._log_commits >= CHECKPOINT_COMMITS or self._log_bytes >= CHECKPOINT_BYTES:
            self._log_commits = self._log_bytes = 0
            self._attempt(self._journal.checkpoint)

    def _prune(self) -> None:
        self._prune_s = time.monotonic() + PRUNE_EVERY_S
        if self._journal.prune(self._calendar_ns + time.monotonic_ns() - self._keep_ns) >= PRUNE_ROWS:
            self._prune_s = time.monotonic() + PRUNE_AGAIN_S

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Does something with the journal. A failure makes it sick and says when to try again."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a thread that died of a defect would journal nothing for ever
            self._fail(error)
            return False
        with self.changed:
            if self.error is not None:
                get_logger().warning("journal_recovered", backlog=self._count + self._writing)
                self.error = None
                self._sick_until_s = math.inf if self._waiting else time.monotonic() + SICK_S
            self._backoff_s = FIRST_RETRY_S
        return True

    def _fail(self, error: Exception) -> None:
        foreseen = isinstance(error, JournalError)
        message = str(error) if foreseen else f"unexpected {type(error).__name__}: {error}"
        with self.changed:
            if self.error is None:
                backlog = self._count + self._writing
                get_logger().error("journal_failed", error=message, backlog=backlog, exc_info=not foreseen)
            self.error = message
            self._sick_until_s = math.inf
            self._retry_s = time.monotonic() + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, SLOWEST_RETRY_S)
            for commit in self._waiting:
                commit.refused = True
            self.changed.notify_all()

    # -- the buffer, guarded by `changed` -----------------------------------------------------------------------------

    def _weigh(self, commit: Commit, sign: int) -> None:
        self._count += sign * len(commit.entries)
        self._body_bytes += sign * commit.body_bytes
        self._mask_bytes += sign * commit.mask_bytes

    def _is_heavy(self) -> bool:
        return self._body_bytes + self._mask_bytes > self._max_bytes

    def _shed(self) -> None:
        """Keeps the buffer within its bounds."""
        if self._is_heavy() and self._mask_bytes:
            for commit in self._waiting:
                self._shed_masks(commit)
                if not self._is_heavy():
                    break
        while self._waiting and (self._is_heavy() or self._count > self._max_entries):
            commit = self._waiting.popleft()
            self._weigh(commit, -1)
            commit.state = CommitState.LOST
            self.lost += len(commit.entries)
        self._forget_notes()

    def _shed_masks(self, commit: Commit) -> None:
        self._weigh(commit, -1)
        self.masks_dropped += sum(entry.mask is not None for entry in commit.entries)
        commit.entries = [replace(entry, mask=None) for entry in commit.entries]
        self._weigh(commit, 1)

    # -- the spill, guarded by `changed` ------------------------------------------------------------------------------

    def _inherit(self) -> None:
        """Puts what a dead writer owed before anything of ours."""
        entries = self._spill.entries() if self._spill else []
        if self._spill and entries:
            self.inherited = Commit(self, entries)
            self.inherited.noted_through = self._spill.noted
            self._noted.append(self.inherited)
            self._waiting.append(self.inherited)
            self._weigh(self.inherited, 1)
            get_logger().warning("journal_owed", count=len(entries))

    def _note(self, commit: Commit, entries: Sequence[Entry]) -> None:
        if self._spill is None:
            return
        self.unnoted += sum(not self._spill.note(entry) for entry in entries)
        commit.noted_through = self._spill.noted
        self._noted.append(commit)

    def _forget_notes(self) -> None:
        """Settles the oldest notes up to the first that is not durable: a death in between repeats some, loses none."""
        while self._spill and self._noted and self._noted[0].state in (CommitState.DURABLE, CommitState.LOST):
            self._spill.settle(self._noted.popleft().noted_through)
