"""The batcher fills batches without letting a frame wait too long."""

from __future__ import annotations

from tests_records import a_row, a_shot

from inspectd.stages.batching import BEHIND_NS, Batcher, Ticket

WAIT_NS = 100


def a_batcher(max_batch: int = 3) -> Batcher:
    return Batcher(max_batch=max_batch, max_wait_ns=WAIT_NS, reserve_ns=20)


def a_ticket(seq: int, *, arrived_ns: int = 0, deadline_ns: int = 0, group: int = 0, frames: int = 1) -> Ticket:
    row = a_row(seq, deadline_ns=deadline_ns, shots=(a_shot(),) * (frames - 1))
    return Ticket(camera=0, group=group, row=row, arrived_ns=arrived_ns)


def seqs(tickets: list[Ticket]) -> list[int]:
    return [ticket.row.seq for ticket in tickets]


def test_full_batch_goes_at_once() -> None:
    """A batch that is full does not wait."""
    batcher = a_batcher()
    for seq in (1, 2, 3, 4):
        batcher.add(a_ticket(seq))
    assert seqs(batcher.take(0)) == [1, 2, 3]
    assert seqs(batcher.take(0)) == []


def test_oldest_frame_waits_at_most_so_long() -> None:
    """A lone frame goes when it has waited long enough for company."""
    batcher = a_batcher()
    batcher.add(a_ticket(1, arrived_ns=50))
    assert batcher.take(50 + WAIT_NS - 1) == []
    assert batcher.wake_ns() == 50 + WAIT_NS
    assert seqs(batcher.take(50 + WAIT_NS)) == [1]


def test_deadline_without_slack_sends_the_batch() -> None:
    """A frame whose deadline leaves no time for waiting goes at once."""
    batcher = a_batcher()
    batcher.measured(1, 40)
    batcher.add(a_ticket(1, deadline_ns=130))
    assert batcher.take(29) == []
    assert seqs(batcher.take(30)) == [1]


def test_batch_is_capped_by_the_time_it_takes() -> None:
    """No more frames go together than should be done in half of what is left to the first one's deadline."""
    batcher = a_batcher(max_batch=8)
    batcher.measured(1, 40)
    for seq in range(1, 9):
        batcher.add(a_ticket(seq, deadline_ns=200))
    assert seqs(batcher.take(0)) == [1, 2]


def test_hopeless_estimate_still_runs_one_frame() -> None:
    """One slow measurement never stops the worker for good: one frame always goes and measures again."""
    batcher = a_batcher()
    batcher.measured(1, 10_000)
    batcher.add(a_ticket(1, deadline_ns=500))
    assert seqs(batcher.take(0)) == [1]


def test_recipes_never_share_a_batch() -> None:
    """Frames of different models are batched apart, the longest waiting first."""
    batcher = a_batcher(max_batch=2)
    batcher.add(a_ticket(1, group=0, arrived_ns=5))
    batcher.add(a_ticket(2, group=1, arrived_ns=1))
    batcher.add(a_ticket(3, group=0, arrived_ns=6))
    assert seqs(batcher.take(500)) == [2]
    assert seqs(batcher.take(500)) == [1, 3]


def test_expired_frames_leave_without_being_run() -> None:
    """A frame whose answer would come too late costs the model nothing."""
    batcher = a_batcher()
    batcher.add(a_ticket(1, deadline_ns=100))
    batcher.add(a_ticket(2, deadline_ns=900))
    assert seqs(batcher.hopeless(80)) == [1]
    assert len(batcher) == 1


def test_frames_that_cannot_be_done_in_time_make_room() -> None:
    """Under overload the old frames, which would be late, are given up, so that the new ones are on time."""
    batcher = a_batcher()
    batcher.measured(1, 400)
    for seq in (1, 2, 3):
        batcher.add(a_ticket(seq, deadline_ns=200 + seq * 100))
    assert seqs(batcher.hopeless(0)) == [1, 2]
    assert seqs(batcher.take(100)) == [3]


def captured(seq: int, captured_ns: int) -> Ticket:
    """A frame that is due a thousand nanoseconds after it was taken, less the reserve."""
    row = a_row(seq, captured_ns=captured_ns, capture_ms=0.0, deadline_ns=captured_ns + 1020)
    return Ticket(camera=0, group=0, row=row, arrived_ns=captured_ns)


def test_worker_that_is_behind_gives_up_the_stale_ones_too() -> None:
    """After a frame was lost, those that have waited over a quarter of their time go with it, but the newest."""
    batcher = a_batcher()
    batcher.measured(1, 100)
    for seq, captured_ns in enumerate([0, 400, 700, 850], start=1):
        batcher.add(captured(seq, captured_ns))
    assert seqs(batcher.hopeless(950)) == [1]
    assert seqs(batcher.hopeless(960)) == [2, 3]
    assert seqs(batcher.hopeless(1300)) == []


def test_burst_that_can_be_done_is_done() -> None:
    """Nothing is given up for its age alone, unless the worker was behind within the last second."""
    batcher = a_batcher()
    batcher.measured(1, 100)
    batcher.add(captured(1, 0))
    assert seqs(batcher.hopeless(1000)) == [1]
    for since_ns, gone in [(BEHIND_NS - 600, [2, 3]), (BEHIND_NS * 3, [])]:
        for seq in (2, 3, 4):
            batcher.add(captured(seq, 1000 + since_ns))
        assert seqs(batcher.hopeless(1000 + since_ns + 500)) == gone
        while len(batcher):
            batcher.take(1000 + since_ns + 600)


def test_one_slow_batch_never_stops_the_worker() -> None:
    """Where every frame seems hopeless, the one with the most time left is run, and measures anew."""
    batcher = a_batcher()
    batcher.measured(1, 10_000)
    for seq in (1, 2):
        batcher.add(a_ticket(seq, deadline_ns=500 + seq))
    assert seqs(batcher.hopeless(0)) == [1]
    assert seqs(batcher.take(0)) == [2]
    batcher.add(a_ticket(3, deadline_ns=900))
    assert seqs(batcher.hopeless(10)) == [3]
    batcher.add(a_ticket(4, deadline_ns=2 * BEHIND_NS))
    assert seqs(batcher.hopeless(2 * BEHIND_NS - 500)) == []


def test_frames_of_a_part_count_each_and_stay_together() -> None:
    """A part of three frames fills a batch of three, and is never cut where it no longer fits."""
    batcher = a_batcher(max_batch=4)
    for seq, frames in ((1, 3), (2, 2), (3, 2)):
        batcher.add(a_ticket(seq, frames=frames))
    assert seqs(batcher.take(0)) == [1]
    assert seqs(batcher.take(0)) == [2, 3]


def test_part_that_its_deadline_has_no_time_for_is_hopeless() -> None:
    """Time is reckoned for all its frames."""
    batcher = a_batcher()
    batcher.measured(1, 40)
    batcher.add(a_ticket(1, deadline_ns=120, frames=3))
    batcher.add(a_ticket(2, deadline_ns=150, frames=3))
    assert seqs(batcher.hopeless(0)) == [1]
    assert seqs(batcher.take(0)) == [2]
