"""Every message follows its schema, and nothing that is not a number leaves the process."""

from __future__ import annotations

import json
import math

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests_records import a_result, a_verdict

from inspectd.errors import TransportError
from inspectd.records import Decision, Latency, MaskPlace, Reason, Region, Trigger, TriggerKind, Verdict
from inspectd.transport import wire

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
REGION = Region(id=1, bbox_xywh_px=(4, 5, 6, 7), area_px=30, centroid_xy_px=(6.5, 8.0), score_max=0.9, score_mean=0.75)


def validated(body: bytes) -> dict[str, object]:
    fields = json.loads(body)
    jsonschema.Draft202012Validator(wire.schema(wire.Schema.VERDICT)).validate(fields)
    return dict(fields)


@pytest.mark.parametrize("name", list(wire.Schema))
def test_schemas_are_sound(name: wire.Schema) -> None:
    """Each published schema is a valid one and refuses an empty object."""
    published = wire.schema(name)
    jsonschema.Draft202012Validator.check_schema(published)
    assert not jsonschema.Draft202012Validator(published).is_valid({})


def test_pass_and_fail_validate() -> None:
    """Verdicts with and without regions follow the schema; regions keep their order and numbers."""
    validated(wire.verdict_body(a_verdict()))
    failed = a_verdict(
        decision=Decision.FAIL,
        reason=Reason.ANOMALY,
        regions=(REGION,),
        mask=MaskPlace(origin_xy_px=(4, 5), size_wh_px=(6, 7)),
    )
    assert validated(wire.verdict_body(failed))["regions"] == [
        {
            "id": 1,
            "bbox_xywh_px": [4, 5, 6, 7],
            "area_px": 30,
            "centroid_xy_px": [6.5, 8.0],
            "score_max": 0.9,
            "score_mean": 0.75,
            "defect": None,
        }
    ]


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in (Reason.OK, Reason.ANOMALY)])
def test_errors_validate(reason: Reason) -> None:
    """An error vouches for nothing: no frame, score, model or latency is needed."""
    nothing = {"score": None, "threshold": None, "frame": None, "model": None, "captured_utc_ns": None}
    error = a_verdict(decision=Decision.ERROR, reason=reason, latency_ms=Latency(), **nothing)
    assert validated(wire.verdict_body(error))["reason"] == reason


@pytest.mark.parametrize(
    "wrong", [{"score": None}, {"frame": None}, {"reason": Reason.LATE}, {"model": None}, {"threshold": None}]
)
def test_schema_refuses_a_pass_that_vouches_for_nothing(wrong: dict[str, object]) -> None:
    """A `pass` without score, frame, model or threshold is no pass for a subscriber either."""
    with pytest.raises(jsonschema.ValidationError):
        validated(wire.verdict_body(a_verdict(**wrong)))


@given(value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_never_leaves(value: float) -> None:
    """NaN and infinities raise instead of being written."""
    with pytest.raises(ValueError, match="JSON"):
        wire.verdict_body(a_verdict(score=value))
    with pytest.raises(ValueError, match="JSON"):
        wire.result_bytes(a_result(1, threshold=value))


def test_result_comes_back_as_it_was_sent() -> None:
    """A worker's result survives its way to the publisher in full."""
    place = MaskPlace(origin_xy_px=(4, 5), size_wh_px=(6, 7))
    sent = a_result(7, decision=Decision.FAIL, reason=Reason.ANOMALY, regions=(REGION,), mask=place)
    assert wire.result_from_bytes(wire.result_bytes(sent)) == sent


@given(junk=st.one_of(st.binary(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
    lambda value: json.dumps(value).encode()
)))  # fmt: skip
def test_junk_is_no_result(junk: bytes) -> None:
    """Bytes that are no result raise one kind of error."""
    with pytest.raises(TransportError):
        wire.result_from_bytes(junk)


def test_nest_too_deep_to_read_is_no_result() -> None:
    """JSON that exhausts Python's stack is refused like any other junk (found by tools/faults.py)."""
    with pytest.raises(TransportError):
        wire.result_from_bytes(b"[" * 20_000)


@pytest.mark.parametrize("head", [b"", b"[" * 20_000, b"{}", b'{"what": "preview", "camera": -1, "seq": 1}'])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_junk_is_no_picture(head: bytes, count: int) -> None:
    """Parts that are no picture of a worker's raise one kind of error (found by tools/faults.py)."""
    with pytest.raises(TransportError):
        wire.picture_from_parts([b"", head, *[b""] * 7][:count])


def test_picture_comes_back_as_it_was_sent() -> None:
    """What is told of a picture survives its way to the publisher."""
    told = b'{"what": "evidence", "camera": 1, "seq": 7, "shed": 2}'
    head, picture = wire.picture_from_parts([b"", told, b"jpeg"])
    assert (head.what, head.camera, head.seq, head.shed) == (wire.Extra.EVIDENCE, 1, 7, 2)
    assert picture == b"jpeg"


def test_topics_are_those_of_the_contract() -> None:
    """Verdicts by camera and decision, previews by camera, heartbeats, events by kind; each ends in a slash."""
    found = wire.topics(["cam1", "cam2"])
    assert {b"verdict/cam1/fail/", b"verdict/cam2/pass/", b"preview/cam1/", b"heartbeat/", b"event/camera_lost/"} < set(
        found
    )
    assert all(topic.endswith(b"/") for topic in found)
    assert len(found) == len(set(found)) == 1 + len(wire.EventKind) + 2 * 4


VERDICTS = st.builds(
    a_verdict,
    regions=st.lists(
        st.builds(
            Region,
            id=st.integers(1, 255),
            bbox_xywh_px=st.tuples(*[st.integers(0, 9999)] * 4),
            area_px=st.integers(1),
            centroid_xy_px=st.tuples(NUMBERS, NUMBERS),
            score_max=NUMBERS,
            score_mean=NUMBERS,
        ),
        max_size=3,
    ).map(tuple),
    score=st.none() | NUMBERS,
    latency_ms=st.builds(Latency, total=st.none() | NUMBERS),
    captured_utc_ns=st.none() | st.integers(0, 4 * 10**18),
    mask=st.none() | st.just(MaskPlace(origin_xy_px=(1, 2), size_wh_px=(3, 4))),
    trigger=st.builds(Trigger, kind=st.sampled_from(TriggerKind), id=st.text(max_size=20)),
)


@given(verdict=VERDICTS)
def test_a_verdict_that_is_read_again_is_the_same_bytes(verdict: Verdict) -> None:
    """Whatever a verdict says, its body read and written again is the same, byte for byte."""
    body = wire.verdict_body(verdict)
    assert wire.verdict_body(wire.verdict_from_bytes(body)) == body


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"captured_utc": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_verdict_and_no_result_is_refused(body: bytes) -> None:
    """Any bytes are an error that says so, never another."""
    for read in (wire.verdict_from_bytes, wire.result_from_bytes):
        with pytest.raises(TransportError, match=r"^not a "):
            read(body)
