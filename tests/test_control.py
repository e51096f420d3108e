"""Requests of contract §5: checked at the border, refused by the field's name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspectd import control
from inspectd.control import RequestError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def request(**fields: object) -> bytes:
    return json.dumps({"id": "1"} | fields).encode()


def test_trigger_is_read_in_full() -> None:
    """Every field of a trigger arrives as it was sent."""
    parsed = control.parse(
        request(op="trigger", camera="cam1", trigger_id="t", part_id="p", deadline_ms=100.5, wait=True)
    )
    assert isinstance(parsed, control.TriggerRequest)
    assert (parsed.camera, parsed.trigger_id, parsed.part_id, parsed.deadline_ms) == ("cam1", "t", "p", 100.5)
    assert parsed.wait


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"op": "trigger", "camera": "cam1"}, "trigger_id"),
        ({"op": "trigger", "camera": "CAM", "trigger_id": "t"}, "camera"),
        ({"op": "trigger", "camera": "cam1", "trigger_id": "t", "deadline_ms": -1}, "deadline_ms"),
        ({"op": "trigger", "camera": "cam1", "trigger_id": "t", "wait": "yes"}, "wait"),
        ({"op": "history", "camera": "cam1", "since_seq": 0, "limit": 100000}, "limit"),
        ({"op": "history", "camera": "cam1", "since_seq": 0, "speed": 1}, "speed"),
        ({"op": "nonsense"}, "op"),
        ({}, "op"),
    ],
)
def test_wrong_requests_name_the_field(fields: dict[str, object], named: str) -> None:
    """A missing, unknown or mistyped field is named, and the reply carries the request's id."""
    with pytest.raises(RequestError, match=named) as caught:
        control.parse(request(**fields))
    reply = json.loads(control.refused(caught.value))
    assert (reply["id"], reply["ok"], reply["error"]["code"]) == ("1", False, "bad_request")


@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_nothing_a_client_sends_breaks_the_parser(body: bytes) -> None:
    """Any bytes are a request or a RequestError, nothing else."""
    try:
        parsed = control.parse(body)
    except RequestError as error:
        reply = json.loads(control.refused(error))
    else:
        reply = json.loads(control.accepted(parsed.id))
    assert reply["ok"] is ("error" not in reply)


def test_deep_nesting_is_refused() -> None:
    """JSON nested thousands of levels deep is a bad request, not the end of the publisher."""
    with pytest.raises(RequestError, match="JSON"):
        control.parse(b"[" * 60_000)


def test_half_a_character_in_an_id_is_refused_like_any_mistake() -> None:
    """JSON can spell a lone surrogate, UTF-8 cannot: the refusal can still be sent, without that id."""
    with pytest.raises(RequestError) as refusal:
        control.parse(rb'{"id": "\ud800", "op": "status"}')
    assert json.loads(control.refused(refusal.value))["id"] is None


def test_history_gives_the_bytes_that_were_published() -> None:
    """The bodies are not read again: they stand in the reply byte for byte, and the reply is JSON."""
    bodies = [b'{"seq":1,"score":0.10000000000000001}', b'{"seq":2}']
    reply = control.verdicts('"1', bodies, {"2": "s/cam1/2.jpg"})
    assert all(body in reply for body in bodies)
    assert json.loads(reply)["verdicts"] == [{"seq": 1, "score": 0.1}, {"seq": 2}]
    assert json.loads(reply)["evidence"] == {"2": "s/cam1/2.jpg"}
    assert json.loads(control.verdicts("1", [], {}))["verdicts"] == []
