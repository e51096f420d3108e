"""The ledger answers every accepted row exactly once, in order, whatever comes when."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests_records import a_result, a_row

from inspectd.records import Reason
from inspectd.stages.ledger import Answer, Ledger

RESERVE_NS = 20


def a_ledger(rows: int, deadline_ns: int = 1000) -> Ledger:
    ledger = Ledger(reserve_ns=RESERVE_NS)
    for seq in range(1, rows + 1):
        ledger.accept(a_row(seq, deadline_ns=deadline_ns + seq))
    return ledger


def outcomes(answers: list[Answer]) -> list[tuple[int, str]]:
    return [(each.row.seq, each.outcome if isinstance(each.outcome, Reason) else "result") for each in answers]


def test_results_leave_in_order_of_seq() -> None:
    """A result that overtakes an earlier frame waits for it."""
    ledger = a_ledger(3)
    ledger.resolve(a_result(2), None)
    assert ledger.collect(0, Reason.LATE) == []
    ledger.resolve(a_result(1), None)
    assert outcomes(ledger.collect(0, Reason.LATE)) == [(1, "result"), (2, "result")]
    assert len(ledger) == 1


def test_row_falls_due_before_its_deadline() -> None:
    """A row is answered as late one reserve before its deadline, not after it."""
    ledger = a_ledger(1)
    assert ledger.collect(1001 - RESERVE_NS - 1, Reason.LATE) == []
    assert outcomes(ledger.collect(1001 - RESERVE_NS, Reason.LATE)) == [(1, Reason.LATE)]


def test_earlier_rows_fall_due_with_a_later_one() -> None:
    """When n falls due, every earlier unanswered number is answered late at that moment (I3)."""
    ledger = Ledger(reserve_ns=RESERVE_NS)
    ledger.accept(a_row(1, deadline_ns=0))
    ledger.accept(a_row(2, deadline_ns=9000))
    ledger.accept(a_row(3, deadline_ns=100))
    ledger.resolve(a_result(3), b"png")
    assert outcomes(ledger.collect(90, Reason.LATE)) == [(1, Reason.LATE), (2, Reason.LATE), (3, "result")]


def test_late_result_is_dropped_and_counted() -> None:
    """A result for a row that was answered never becomes a second verdict."""
    ledger = a_ledger(1)
    ledger.collect(5000, Reason.LATE)
    assert not ledger.resolve(a_result(1), None)
    assert ledger.late_results == 1
    assert ledger.collect(6000, Reason.LATE) == []


def test_second_result_is_dropped() -> None:
    """The first result of a row stands."""
    ledger = a_ledger(1)
    assert ledger.resolve(a_result(1, score=0.1), None)
    assert not ledger.resolve(a_result(1, score=0.9), None)
    (answer,) = ledger.collect(0, Reason.LATE)
    assert not isinstance(answer.outcome, Reason)
    assert answer.outcome.score == 0.1


def test_gate_decides_before_the_model() -> None:
    """A row that a gate decided is answered with that reason, and a result for it is dropped."""
    ledger = Ledger(reserve_ns=RESERVE_NS)
    ledger.accept(a_row(1, gate=Reason.FRAME_CORRUPT))
    assert not ledger.resolve(a_result(1), None)
    assert outcomes(ledger.collect(0, Reason.LATE)) == [(1, Reason.FRAME_CORRUPT)]


def test_gap_in_rows_is_refused() -> None:
    """The ledger would rather stop than skip a number."""
    ledger = a_ledger(1)
    with pytest.raises(ValueError, match="one by one"):
        ledger.accept(a_row(3))


def test_give_up_spares_what_has_a_result() -> None:
    """What a dead worker had finished and sent is still its result."""
    ledger = a_ledger(3)
    ledger.resolve(a_result(2), None)
    assert ledger.give_up(Reason.WORKER_LOST) == 2
    assert outcomes(ledger.collect(0, Reason.LATE)) == [
        (1, Reason.WORKER_LOST),
        (2, "result"),
        (3, Reason.WORKER_LOST),
    ]


def test_one_row_can_fail_alone() -> None:
    """`fail` decides one open row; unknown and answered numbers are no error."""
    ledger = a_ledger(2)
    ledger.fail(2, Reason.INTERNAL)
    ledger.fail(7, Reason.INTERNAL)
    ledger.resolve(a_result(1), None)
    assert outcomes(ledger.collect(0, Reason.LATE)) == [(1, "result"), (2, Reason.INTERNAL)]


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 40))
def test_every_row_is_answered_exactly_once_in_order(seed: int, rows: int) -> None:
    """Whatever the order of results, losses, repeats and time: 1..N, each once."""
    rng = random.Random(seed)
    ledger = Ledger(reserve_ns=RESERVE_NS)
    accepted, answered, now_ns = 0, [], 0
    while len(answered) < rows:
        match rng.choice(["accept", "resolve", "time", "collect", "lose"]):
            case "accept" if accepted < rows:
                accepted += 1
                gate = rng.choice([None, None, None, Reason.FRAME_CORRUPT])
                ledger.accept(a_row(accepted, deadline_ns=now_ns + rng.randrange(1, 500), gate=gate))
            case "resolve":
                ledger.resolve(a_result(rng.randrange(1, rows + 1)), None)
            case "time":
                now_ns += rng.randrange(200)
            case "lose" if rng.random() < 0.1:
                ledger.give_up(Reason.WORKER_LOST)
            case _:
                answered += [answer.row.seq for answer in ledger.collect(now_ns, Reason.LATE)]
    assert answered == list(range(1, rows + 1))


def test_result_that_is_read_behind_its_deadline_is_late() -> None:
    """A publisher that stood still finds results in its inbox: what has fallen due meanwhile does not pass (I2)."""
    ledger = Ledger(reserve_ns=RESERVE_NS)
    for seq in (1, 2):
        ledger.accept(a_row(seq, deadline_ns=1000 * seq))
    ledger.resolve(a_result(1), b"png")
    ledger.resolve(a_result(2), None)
    answers = ledger.collect(1001, Reason.LATE)
    assert outcomes(answers) == [(1, Reason.LATE), (2, "result")]
    assert answers[0].mask_png is None
    assert ledger.late_results == 1


@pytest.mark.parametrize(("left_ns", "outcome"), [(RESERVE_NS // 4, Reason.LATE), (RESERVE_NS // 4 + 1, "result")])
def test_result_that_leaves_the_journal_no_time_is_late(left_ns: int, outcome: str) -> None:
    """Just before its deadline a commit would hold it up until it is no longer in time."""
    ledger = a_ledger(1)
    ledger.resolve(a_result(1), None)
    assert outcomes(ledger.collect(1001 - left_ns, Reason.LATE)) == [(1, outcome)]
