"""Which waiting frames make the next batch. Pure: time comes in, nothing is imported that computes.

A batch goes when it is full, when its oldest frame has waited long enough for company, or when its nearest deadline
leaves no slack. Frames of different recipes never share a batch, for they have different models.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate, takewhile

from inspectd.transport.rows import Row

EWMA_WEIGHT = 0.2
FRESH_SHARE = 0.25
"""While the worker is behind, a frame may have waited for so much of its time; older ones make room for newer."""
BEHIND_NS = 1_000_000_000
"""So long after the last frame that was given up the worker counts as behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One accepted frame on its way to the model. `group` tells which model."""

    camera: int
    group: int
    row: Row
    arrived_ns: int

    @property
    def frames(self) -> int:
        """What it costs the model: a part whose frames vote is so many frames of work, and never cut in two."""
        return 1 + len(self.row.shots)


class Batcher:
    """The waiting tickets of one worker.

    Args:
        max_batch: frames in a batch at most.
        max_wait_ns: how long the oldest frame waits for others.
        reserve_ns: what the publisher needs before the deadline.
    """

    def __init__(self, *, max_batch: int, max_wait_ns: int, reserve_ns: int = 0) -> None:
        self._max_batch = max_batch
        self._max_wait_ns = max_wait_ns
        self._reserve_ns = reserve_ns
        self._queues: dict[int, deque[Ticket]] = {}
        self._frame_ns = 0.0
        self._behind_until_ns = 0
        self._ran_ns = -BEHIND_NS - 1

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def frame_ns(self) -> float:
        """What one frame costs the model at present, as measured."""
        return self._frame_ns

    def add(self, ticket: Ticket) -> None:
        """Takes one more ticket; those of one camera come in order."""
        self._queues.setdefault(ticket.group, deque()).append(ticket)

    def measured(self, frames: int, spent_ns: int) -> None:
        """Learns from a batch that has run."""
        sample = spent_ns / frames
        self._frame_ns = sample if not self._frame_ns else self._frame_ns + EWMA_WEIGHT * (sample - self._frame_ns)

    def hopeless(self, now_ns: int) -> list[Ticket]:
        """Takes out the tickets that cannot be done by their deadline, so that under overload the others still can.

        Where nothing has run for a while, of each group the one with the most time left stays, unless it has expired:
        running it measures anew, and a single slow batch never stops the worker for good. Once any had to be given up,
        those that have waited long go too, for a while: else every frame would be run at the last moment, and be late
        when it takes a little longer.
        """
        behind, idle = now_ns < self._behind_until_ns, now_ns - self._ran_ns > BEHIND_NS
        gone: list[Ticket] = []
        for group, queue in self._queues.items():
            last = max((due for ticket in queue if (due := self._due_ns(ticket)) is not None), default=0)
            kept: deque[Ticket] = deque()
            for ticket in queue:
                due = self._due_ns(ticket)
                cost_ns = self._frame_ns * ticket.frames
                feasible = due is None or due > now_ns + cost_ns or (idle and now_ns < due == last)
                stale = behind and ticket is not queue[-1] and self._is_stale(ticket, now_ns)
                (kept if feasible and not stale else gone).append(ticket)
            self._queues[group] = kept
        if gone:
            self._behind_until_ns = now_ns + BEHIND_NS
        return gone

    def take(self, now_ns: int) -> list[Ticket]:
        """The batch to run now: of the group that waits longest; empty where nothing should run yet."""
        ready = [queue for queue in self._queues.values() if queue and self._goes_ns(queue) <= now_ns]
        if not ready:
            return []
        self._ran_ns = now_ns
        queue = min(ready, key=lambda each: each[0].arrived_ns)
        return [queue.popleft() for _ in range(self._size(queue, now_ns))]

    def wake_ns(self) -> int | None:
        """When `take` should be asked again if nothing arrives, None where nothing waits."""
        return min((self._goes_ns(queue) for queue in self._queues.values() if queue), default=None)

    def _goes_ns(self, queue: deque[Ticket]) -> int:
        oldest = queue[0].arrived_ns
        frames = sum(ticket.frames for ticket in queue)
        if frames >= self._max_batch:
            return oldest
        waits_until = oldest + self._max_wait_ns
        dues = [due for ticket in queue if (due := self._due_ns(ticket)) is not None]
        slack_ends = min(dues) - round(self._frame_ns * (frames + 1)) if dues else waits_until
        return min(waits_until, slack_ends)

    def _size(self, queue: deque[Ticket], now_ns: int) -> int:
        """As many tickets as fit, frame by frame, the batch and half the time to the nearest deadline; at least one.

        The other half is for what the measured time does not know: a machine that does something else, too.
        """
        most = float(self._max_batch)
        due = self._due_ns(queue[0])
        if due is not None and self._frame_ns:
            most = min(most, (due - now_ns) / 2 / self._frame_ns)
        sizes = accumulate(ticket.frames for ticket in queue)
        return max(1, sum(1 for _ in takewhile(lambda frames: frames <= most, sizes)))

    def _is_stale(self, ticket: Ticket, now_ns: int) -> bool:
        """Whether a frame has waited long: since its acceptance, for that is when the worker could have begun."""
        due, begun_ns = self._due_ns(ticket), ticket.row.captured_ns + ticket.row.capture_ms * 1e6
        return due is not None and now_ns - begun_ns > FRESH_SHARE * (due - begun_ns)

    def _due_ns(self, ticket: Ticket) -> int | None:
        return ticket.row.deadline_ns - self._reserve_ns if ticket.row.deadline_ns else None
