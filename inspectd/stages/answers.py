"""From an answered row to the frozen verdict: the last gates of contract I2 stand here. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from inspectd.journal.verdicts import Entry
from inspectd.records import (
    Decision,
    FailOn,
    FrameInfo,
    Latency,
    Reason,
    RecipeInfo,
    Trigger,
    TriggerKind,
    Verdict,
)
from inspectd.stages.ledger import Answer
from inspectd.transport.rows import Row
from inspectd.transport.wire import Result, verdict_body, verdict_topic
from inspectd.voting import decide

NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A verdict that is ready to be journaled and published; `body` never changes after this."""

    verdict: Verdict
    topic: bytes
    body: bytes
    mask_png: bytes | None

    @property
    def is_error(self) -> bool:
        """Whether it vouches for nothing."""
        return self.verdict.decision is Decision.ERROR


def verdict_of(
    answer: Answer,
    *,
    session: str,
    camera: str,
    recipe: RecipeInfo,
    now_ns: int,
    model_sha256: str | None = None,
    fail_on: FailOn | None = None,
) -> Verdict:
    """The verdict on one row. Anything that is not vouched for in full becomes an `error` here.

    Args:
        model_sha256: the only model that is believed; None: any.
        fail_on: what makes a part bad: a pass that its own numbers deny is not believed; None: they are not asked.
    """
    row, outcome = answer.row, answer.outcome
    if isinstance(outcome, Verdict):  # an earlier publisher's, which passed these gates and was never sent
        return replace(outcome, journaled=True)
    verdict = Verdict(
        session=session,
        camera=camera,
        seq=row.seq,
        trigger=Trigger(kind=TriggerKind(row.trigger_kind), id=row.trigger_id, part_id=row.part_id),
        decision=Decision.ERROR,
        reason=outcome if isinstance(outcome, Reason) else Reason.INTERNAL,
        recipe=recipe,
        deadline_ms=(row.deadline_ns - row.accepted_ns) / NS_PER_MS if row.deadline_ns else None,
        journaled=True,
        simulated=row.simulated,
        frame=_frame(row),
        captured_utc_ns=row.captured_utc_ns or None,
        latency_ms=_latency(row, None, now_ns),
    )
    if isinstance(outcome, Reason):
        return verdict
    found = _with_result(verdict, outcome, row, now_ns)
    if outcome.decision is Decision.ERROR:
        return as_error(found, outcome.reason)
    reason = _refusal(verdict, outcome, model_sha256, fail_on)
    return found if reason is None else as_error(found, reason)


def freeze(verdict: Verdict, mask_png: bytes | None) -> Frozen:
    """The bytes of a verdict. A number that is not finite turns it into `error/not_finite`, never into silence."""
    try:
        body = verdict_body(verdict)
    except ValueError:
        verdict = as_error(verdict, Reason.NOT_FINITE)
        body = verdict_body(verdict)
    keeps_mask = verdict.mask is not None
    return Frozen(
        verdict=verdict,
        topic=verdict_topic(verdict.camera, verdict.decision),
        body=body,
        mask_png=mask_png if keeps_mask else None,
    )


def entry_of(frozen: Frozen) -> Entry:
    """The journal's row of a frozen verdict."""
    verdict = frozen.verdict
    return Entry(
        session=verdict.session,
        camera=verdict.camera,
        seq=verdict.seq,
        decision=verdict.decision,
        topic=frozen.topic.decode(),
        body=frozen.body,
        mask=frozen.mask_png,
        trigger_id=verdict.trigger.id,
    )


def as_error(verdict: Verdict, reason: Reason) -> Verdict:
    """The same answer as an `error` that vouches for nothing."""
    return replace(
        verdict,
        decision=Decision.ERROR,
        reason=reason,
        score=None,
        regions=(),
        regions_truncated=False,
        mask=None,
    )


def _with_result(verdict: Verdict, result: Result, accepted: Row, now_ns: int) -> Verdict:
    row = accepted.seen_in(result.shot)
    return replace(
        verdict,
        decision=result.decision,
        reason=result.reason,
        score=result.score,
        threshold=result.threshold,
        regions=result.regions,
        regions_truncated=result.regions_truncated,
        mask=result.mask,
        model=result.model,
        frame=_frame(row),
        captured_utc_ns=row.captured_utc_ns or None,
        votes=result.votes,
        latency_ms=_latency(row, result, now_ns),
    )


def _refusal(verdict: Verdict, result: Result, model_sha256: str | None, fail_on: FailOn | None) -> Reason | None:
    """Why a result is not believed: the gates after the model (contract I2)."""
    if result.score is None or not math.isfinite(result.score) or not math.isfinite(result.threshold):
        return Reason.NOT_FINITE
    if result.recipe != verdict.recipe or model_sha256 not in (None, result.model.sha256):
        return Reason.RECIPE_CHANGING
    if verdict.frame is None:
        return Reason.INTERNAL
    if fail_on is not None and result.decision is Decision.PASS:
        by_numbers, _ = decide(result.score, result.threshold, len(result.regions), fail_on)
        if by_numbers is not Decision.PASS:
            return Reason.INTERNAL
    expected = Reason.OK if result.decision is Decision.PASS else Reason.ANOMALY
    return None if result.reason is expected else Reason.INTERNAL


def _frame(row: Row) -> FrameInfo | None:
    if row.frame_index < 0 or row.width_px <= 0 or row.height_px <= 0:
        return None
    pts_s = None if row.pts_s is None or not math.isfinite(row.pts_s) else row.pts_s
    return FrameInfo(
        index=row.frame_index, size_wh_px=(row.width_px, row.height_px), pts_s=pts_s, time_kind=row.time_kind
    )


def _latency(row: Row, result: Result | None, now_ns: int) -> Latency:
    """The parts of the way in ms; `publish` is what is left of `total`: the way to the publisher and its own turn."""
    if not row.captured_ns:
        return Latency()
    total = (now_ns - row.captured_ns) / NS_PER_MS
    if result is None:
        return Latency(capture=row.capture_ms, total=total)
    known = row.capture_ms + result.queue_ms + result.infer_ms + result.post_ms
    return Latency(
        capture=row.capture_ms,
        queue=result.queue_ms,
        infer=result.infer_ms,
        post=result.post_ms,
        publish=max(0.0, total - known),
        total=total,
    )
