"""Frames of one part vote: by the worst, by half of them, or by their mean; an error among them never helps a pass."""

from __future__ import annotations

import itertools

import pytest

from inspectd.records import Decision, Inspection, Reason, VoteRule
from inspectd.voting import vote, voted_score

THRESHOLD = 0.5


def frame(score: float | None) -> Inspection:
    """The word on one frame; None is an error."""
    if score is None:
        return Inspection(decision=Decision.ERROR, reason=Reason.FRAME_CORRUPT, score=None, threshold=THRESHOLD)
    bad = score >= THRESHOLD
    decision, reason = (Decision.FAIL, Reason.ANOMALY) if bad else (Decision.PASS, Reason.OK)
    return Inspection(decision=decision, reason=reason, score=score, threshold=THRESHOLD)


@pytest.mark.parametrize(
    ("rule", "scores", "decision", "shown", "score"),
    [
        (VoteRule.WORST, [0.1, 0.6, 0.2], Decision.FAIL, 1, 0.6),
        (VoteRule.WORST, [0.1, 0.3, 0.2], Decision.PASS, 1, 0.3),
        (VoteRule.MAJORITY, [0.1, 0.6, 0.2], Decision.PASS, 2, 0.2),
        (VoteRule.MAJORITY, [0.7, 0.6, 0.2], Decision.FAIL, 1, 0.6),
        (VoteRule.MAJORITY, [0.1, 0.6], Decision.FAIL, 1, 0.6),
        (VoteRule.MEAN, [0.1, 0.6, 0.2], Decision.PASS, 1, 0.3),
        (VoteRule.MEAN, [0.9, 0.6, 0.0], Decision.FAIL, 0, 0.5),
    ],
)
def test_rule_decides_and_shows_its_frame(
    rule: VoteRule, scores: list[float], decision: Decision, shown: int, score: float
) -> None:
    """The verdict is that of the frame that decides; the mean is shown on the worst frame."""
    ballot = vote([frame(each) for each in scores], rule)
    assert (ballot.inspection.decision, ballot.index) == (decision, shown)
    assert ballot.inspection.score == pytest.approx(score)
    assert ballot.votes is not None
    assert (ballot.votes.frames, ballot.votes.failed) == (len(scores), sum(each >= THRESHOLD for each in scores))


@pytest.mark.parametrize("rule", VoteRule)
@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("others", [0.0, 0.9])
def test_frame_that_is_an_error_makes_the_part_one(rule: VoteRule, at: int, others: float) -> None:
    """Whatever the other frames say: nothing is known of what that one showed."""
    frames = [frame(others), frame(others), frame(others)]
    frames[at] = frame(None)
    ballot = vote(frames, rule)
    assert (ballot.inspection.decision, ballot.inspection.reason) == (Decision.ERROR, Reason.FRAME_CORRUPT)
    assert ballot.index == at


@pytest.mark.parametrize("rule", VoteRule)
def test_lone_frame_speaks_for_itself(rule: VoteRule) -> None:
    """One frame is no vote."""
    only = frame(0.3)
    ballot = vote([only], rule)
    assert (ballot.index, ballot.votes) == (0, None)
    assert ballot.inspection.score == only.score


@pytest.mark.parametrize("rule", VoteRule)
def test_calibration_scores_a_part_as_the_vote_decides_it(rule: VoteRule) -> None:
    """Up to five frames, every mixture: the part's score reaches the threshold if and only if the part fails."""
    for count in range(1, 6):
        for scores in itertools.product((0.2, 0.45, 0.55, 0.9), repeat=count):
            decision = vote([frame(each) for each in scores], rule).inspection.decision
            assert (decision is Decision.FAIL) == (voted_score(scores, rule) >= THRESHOLD)
