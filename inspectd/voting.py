"""What a score and regions mean, and how several frames of one part vote. Pure; for the worker and replay alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum

from inspectd.records import Decision, FailOn, Inspection, Reason, VoteRule, Votes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ballot:
    """The word on a part: `inspection` is that of the frame that decides, `index` says which one it is.

    `votes` is None where only one frame was there.
    """

    inspection: Inspection
    index: int
    votes: Votes | None


def decide(score: float, threshold: float, region_count: int, fail_on: FailOn) -> tuple[Decision, Reason]:
    """The verdict. Only a finite score can pass.

    >>> decide(0.7, 0.7, 0, FailOn.SCORE)
    (<Decision.FAIL: 'fail'>, <Reason.ANOMALY: 'anomaly'>)
    """
    if not (math.isfinite(score) and math.isfinite(threshold)):
        return Decision.ERROR, Reason.NOT_FINITE
    match fail_on:
        case FailOn.SCORE:
            bad = score >= threshold
        case FailOn.REGIONS:
            bad = region_count > 0
        case FailOn.EITHER:
            bad = score >= threshold or region_count > 0
    return (Decision.FAIL, Reason.ANOMALY) if bad else (Decision.PASS, Reason.OK)


def vote(inspections: Sequence[Inspection], rule: VoteRule) -> Ballot:
    """The word of a part's frames, at least one.

    A frame that is an error makes the part that error: nothing is known of what it showed, so it can never help a
    pass. With `mean` the frame that is shown is the one with the largest score; the score is the mean.
    """
    failed = sum(each.decision is Decision.FAIL for each in inspections)
    votes = Votes(rule=rule, frames=len(inspections), failed=failed) if len(inspections) > 1 else None
    for index, each in enumerate(inspections):
        if each.decision is Decision.ERROR or each.score is None:
            return Ballot(inspection=each, index=index, votes=votes)
    worst_first = sorted(range(len(inspections)), key=lambda index: _badness(inspections[index]), reverse=True)
    match rule:
        case VoteRule.WORST | VoteRule.MEAN:
            index = worst_first[0]
        case VoteRule.MAJORITY:
            index = worst_first[(len(inspections) - 1) // 2]  # it fails if and only if at least half of them do
    found = inspections[index]
    if rule is VoteRule.MEAN:
        found = _with_score(found, voted_score([each.score or 0.0 for each in inspections], rule))
    return Ballot(inspection=found, index=index, votes=votes)


def voted_score(scores: Sequence[float], rule: VoteRule) -> float:
    """The score of a part whose frames have these: it reaches a threshold if and only if `vote` says that it fails.

    >>> [voted_score([0.1, 0.4, 0.2, 0.3], rule) for rule in VoteRule]
    [0.4, 0.3, 0.25]
    """
    match rule:
        case VoteRule.WORST:
            return max(scores)
        case VoteRule.MAJORITY:
            return sorted(scores, reverse=True)[(len(scores) - 1) // 2]
        case VoteRule.MEAN:
            return fsum(scores) / len(scores)


def _badness(inspection: Inspection) -> tuple[bool, float]:
    return inspection.decision is Decision.FAIL, inspection.score or 0.0


def _with_score(inspection: Inspection, score: float) -> Inspection:
    """The same findings, decided by another score (`fail_on` is `score`)."""
    bad = score >= inspection.threshold
    decision, reason = (Decision.FAIL, Reason.ANOMALY) if bad else (Decision.PASS, Reason.OK)
    return replace(inspection, decision=decision, reason=reason, score=score)
