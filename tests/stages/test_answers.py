"""The last gates before a verdict: what is not vouched for in full is an error, never a pass."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tests_records import MODEL, RECIPE, a_result, a_row, a_shot

from inspectd.records import Decision, FailOn, MaskPlace, Reason, RecipeInfo, Region, TimeKind, Verdict, VoteRule, Votes
from inspectd.stages.answers import freeze, verdict_of
from inspectd.stages.ledger import Answer

REGION = Region(id=1, bbox_xywh_px=(0, 0, 2, 2), area_px=4, centroid_xy_px=(1, 1), score_max=0.9, score_mean=0.8)


def verdict_on(outcome: Any, **row: Any) -> Verdict:
    answer = Answer(row=a_row(1, **row), outcome=outcome)
    return verdict_of(answer, session="s", camera="cam1", recipe=RECIPE, now_ns=2_001_000)


def test_sound_result_becomes_its_verdict() -> None:
    """A result that vouches for itself is published as the worker said it."""
    verdict = verdict_on(a_result(1))
    assert (verdict.decision, verdict.reason, verdict.score, verdict.model) == (Decision.PASS, Reason.OK, 0.25, MODEL)
    assert verdict.latency_ms.total == pytest.approx(2.0)


@pytest.mark.parametrize("decision", [Decision.PASS, Decision.FAIL])
@pytest.mark.parametrize("field", ["score", "threshold"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_score_that_is_not_finite_is_an_error(decision: Decision, field: str, value: float) -> None:
    """NaN is not less than a threshold: a verdict on it is `error/not_finite`."""
    reason = Reason.OK if decision is Decision.PASS else Reason.ANOMALY
    verdict = verdict_on(a_result(1, decision=decision, reason=reason, **{field: value}))
    assert (verdict.decision, verdict.reason) == (Decision.ERROR, Reason.NOT_FINITE)


@pytest.mark.parametrize("kind", list(TimeKind))
def test_verdict_says_how_its_time_is_known(kind: TimeKind) -> None:
    """The kind of capture time comes from the frame's row, also into an error; latency counts from that time."""
    for outcome in (a_result(1), Reason.LATE):
        verdict = verdict_on(outcome, time_kind=kind, captured_ns=500)
        assert json.loads(freeze(verdict, None).body)["frame"]["time_kind"] == kind
        assert verdict.latency_ms.total == pytest.approx(2.0005)


def test_verdict_shows_the_frame_that_decided() -> None:
    """Of several frames of a part the worker says which one is shown; time and latency are that frame's."""
    shots = (a_shot(), a_shot(frame_index=3, captured_ns=1_500, pts_s=None))
    votes = Votes(rule=VoteRule.WORST, frames=3, failed=0)
    verdict = verdict_on(a_result(1, shot=2, votes=votes), shots=shots)
    assert verdict.frame is not None
    assert (verdict.frame.index, verdict.frame.pts_s, verdict.votes) == (3, None, votes)
    assert verdict.latency_ms.total == pytest.approx(1.9995)
    assert verdict_on(Reason.LATE, shots=shots).frame.index == 0
    assert json.loads(freeze(verdict, None).body)["votes"] == {"rule": "worst", "frames": 3, "failed": 0}


def test_missing_score_is_an_error() -> None:
    """A pass without a score vouches for nothing."""
    assert verdict_on(a_result(1, score=None)).reason is Reason.NOT_FINITE


def test_result_of_another_recipe_is_an_error() -> None:
    """A score made by another recipe than the one in force is not believed."""
    verdict = verdict_on(a_result(1, recipe=RecipeInfo(name="bottle", sha256="00" * 32)))
    assert (verdict.decision, verdict.reason) == (Decision.ERROR, Reason.RECIPE_CHANGING)


def test_result_of_another_model_is_an_error() -> None:
    """A score made with other weights, prompts or precision than the camera's is not believed."""
    answer = Answer(row=a_row(1), outcome=a_result(1))

    def decided(model_sha256: str | None) -> Verdict:
        more = {"session": "s", "camera": "cam1", "recipe": RECIPE, "now_ns": 2_001_000}
        return verdict_of(answer, model_sha256=model_sha256, **more)

    assert (decided("f" * 64).decision, decided("f" * 64).reason) == (Decision.ERROR, Reason.RECIPE_CHANGING)
    assert {decided(MODEL.sha256).decision, decided(None).decision} == {Decision.PASS}


@pytest.mark.parametrize(
    ("fail_on", "regions", "score", "decision"),
    [
        (FailOn.SCORE, (REGION,), 0.4, Decision.PASS),
        (FailOn.SCORE, (), 0.5, Decision.ERROR),
        (FailOn.REGIONS, (), 0.9, Decision.PASS),
        (FailOn.REGIONS, (REGION,), 0.1, Decision.ERROR),
        (FailOn.EITHER, (), 0.4, Decision.PASS),
        (FailOn.EITHER, (REGION,), 0.4, Decision.ERROR),
    ],
)
def test_pass_that_its_own_numbers_deny_is_an_error(
    fail_on: FailOn, regions: tuple[Region, ...], score: float, decision: Decision
) -> None:
    """The worker's word counts only with a score below the threshold, and whatever else the recipe asks (I2)."""
    answer = Answer(row=a_row(1), outcome=a_result(1, score=score, threshold=0.5, regions=regions))
    verdict = verdict_of(answer, session="s", camera="cam1", recipe=RECIPE, now_ns=2_001_000, fail_on=fail_on)
    assert verdict.decision is decision


def test_result_without_a_frame_is_an_error() -> None:
    """A pass for a trigger whose frame never came is impossible."""
    assert verdict_on(a_result(1), frame_index=-1).decision is Decision.ERROR


def test_pass_with_another_reason_is_an_error() -> None:
    """Decision and reason must agree."""
    assert verdict_on(a_result(1, reason=Reason.LATE)).decision is Decision.ERROR


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in (Reason.OK, Reason.ANOMALY)])
def test_error_keeps_nothing_of_a_result(reason: Reason) -> None:
    """An error carries no regions, no mask and no score."""
    place = MaskPlace(origin_xy_px=(0, 0), size_wh_px=(2, 2))
    verdict = verdict_on(a_result(1, decision=Decision.ERROR, reason=reason, regions=(REGION,), mask=place))
    assert (verdict.decision, verdict.reason, verdict.score) == (Decision.ERROR, reason, None)
    assert freeze(verdict, b"png").mask_png is None
    assert json.loads(freeze(verdict, b"png").body)["regions"] == []


def test_number_that_slips_through_is_caught_when_frozen() -> None:
    """A region's score that is not finite turns the whole verdict into an error instead of a broken message."""
    region = Region(
        id=1, bbox_xywh_px=(0, 0, 2, 2), area_px=4, centroid_xy_px=(1, 1), score_max=math.nan, score_mean=0.8
    )
    frozen = freeze(verdict_on(a_result(1, regions=(region,))), None)
    assert frozen.topic == b"verdict/cam1/error/"
    assert json.loads(frozen.body)["reason"] == "not_finite"
