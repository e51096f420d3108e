"""The client: messages parsed, gaps, silence and new sessions noticed, requests answered or refused by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from daemons import PATIENCE_S, Daemon, running
from hypothesis import given
from hypothesis import strategies as st

from inspectd.client import (
    Alarm,
    AlarmKind,
    Client,
    Continuity,
    Kind,
    Message,
    Refused,
    Subscriber,
    parse_message,
    subscribe,
)
from inspectd.errors import TransportError
from inspectd.transport.endpoints import VerdictSocket
from inspectd.transport.wire import topics

EVERYTHING = ("verdict/", "event/")


def a_verdict(seq: int, *, camera: str = "cam1", session: str = "s1") -> list[bytes]:
    body = {"session": session, "camera": camera, "seq": seq, "decision": "pass"}
    return [f"verdict/{camera}/pass/".encode(), json.dumps(body).encode()]


def a_heartbeat(last_seq: int, *, session: str = "s1") -> list[bytes]:
    body = {"session": session, "state": "ready", "cameras": {"cam1": {"state": "ready", "last_seq": last_seq}}}
    return [b"heartbeat/", json.dumps(body).encode()]


def alarms_of(topics: tuple[str, ...], *messages: list[bytes]) -> list[Alarm]:
    continuity = Continuity(topics=topics, born_s=0.0)
    return [alarm for parts in messages for alarm in continuity.hear(parse_message(parts), 0.0)]


def test_gap_between_verdicts_names_what_is_missing() -> None:
    """A number that is passed over is a gap, with the camera and the numbers that never came."""
    (alarm,) = alarms_of(EVERYTHING, a_verdict(1), a_verdict(2), a_verdict(5))
    assert (alarm.kind, alarm.camera, list(alarm.missing)) == (AlarmKind.GAP, "cam1", [3, 4])


def test_heartbeat_ahead_of_verdicts_is_a_gap() -> None:
    """The last verdict of a line that stands still is missed too: the heartbeat's `last_seq` tells."""
    (alarm,) = alarms_of(EVERYTHING, a_heartbeat(3), a_verdict(4), a_heartbeat(6), a_heartbeat(6))
    assert list(alarm.missing) == [5, 6]


def test_late_joiner_starts_where_it_joined() -> None:
    """What was before the first message is no gap."""
    assert alarms_of(EVERYTHING, a_verdict(41), a_heartbeat(41), a_verdict(42)) == []


@pytest.mark.parametrize("topics", [("verdict/cam1/fail/",), ("verdict/cam2/",), ("event/",)])
def test_who_takes_some_verdicts_sees_no_gaps(topics: tuple[str, ...]) -> None:
    """Gaps mean nothing where a camera's verdicts are not all subscribed to."""
    assert alarms_of(topics, a_heartbeat(3), a_verdict(9), a_heartbeat(12)) == []


def test_new_session_is_an_alarm_and_starts_anew() -> None:
    """A daemon that starts anew is told, and its numbers from 1 are no gap."""
    alarms = alarms_of(EVERYTHING, a_verdict(7), a_heartbeat(0, session="s2"), a_verdict(1, session="s2"))
    assert [alarm.kind for alarm in alarms] == [AlarmKind.SESSION]


def test_silence_is_told_once_and_again_after_a_heartbeat() -> None:
    """600 ms without a heartbeat is one alarm; heartbeats end it, the next silence is another one."""
    continuity = Continuity(topics=EVERYTHING, born_s=0.0)
    beat = parse_message(a_heartbeat(0))
    continuity.hear(beat, 10.0)
    assert continuity.silence(10.6) == []
    assert [alarm.kind for alarm in continuity.silence(10.61)] == [AlarmKind.SILENCE]
    assert continuity.silence(11.0) == []
    assert continuity.is_silent
    continuity.hear(beat, 12.0)
    assert not continuity.is_silent
    assert len(continuity.silence(13.0)) == 1


def test_verdicts_do_not_replace_heartbeats() -> None:
    """A daemon that sends verdicts but no heartbeat is silent all the same."""
    continuity = Continuity(topics=EVERYTHING, born_s=0.0)
    continuity.hear(parse_message(a_heartbeat(0)), 0.0)
    continuity.hear(parse_message(a_verdict(1)), 0.9)
    assert len(continuity.silence(0.9)) == 1


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_every_lost_verdict_is_named_once(arrives: list[bool]) -> None:
    """Whatever is lost on the way, the gaps name exactly the lost numbers, each once."""
    sent = list(enumerate(arrives, start=1))
    messages = [a_heartbeat(0), *(a_verdict(seq) for seq, comes in sent if comes), a_heartbeat(len(sent))]
    missing = [seq for alarm in alarms_of(EVERYTHING, *messages) for seq in alarm.missing]
    assert missing == [seq for seq, comes in sent if not comes]


@pytest.mark.parametrize(
    "parts", [[b"verdict/cam1/pass/"], [b"\xff/", b"{}"], [b"heartbeat/", b"[]"], [b"heartbeat/", b"{"], [b"x/", b"{}"]]
)
def test_what_is_no_message_is_refused(parts: list[bytes]) -> None:
    """Bytes that are no message of the contract are an error of transport, never a crash."""
    with pytest.raises(TransportError):
        parse_message(parts)


# -- real sockets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[VerdictSocket, str]]:
    endpoint = f"ipc:///tmp/inspectd-client-{abs(hash(tmp_path))}"
    with VerdictSocket(endpoint, topics(["cam1"])) as socket:
        yield socket, endpoint
    Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def until(ready: Callable[[], Any], what: str) -> Any:
    """What `ready` gives once it gives something."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := ready()):
        assert time.monotonic() < deadline_s, what
    return found


def test_subscriber_gives_alarms_before_the_message_that_reveals_them(publisher: tuple[VerdictSocket, str]) -> None:
    """Over a real socket: body and mask as they were sent, and a gap is told before what comes after it."""
    socket, endpoint = publisher
    with Subscriber(endpoint) as subscriber:
        admitted: list[bytes] = []
        until(lambda: admitted.extend(socket.serve_subscriptions()) or b"heartbeat/" in admitted, "no subscription")
        for parts in (a_verdict(1), [*a_verdict(3), b"png"]):
            socket.send(*parts)
        items = [until(lambda: subscriber.receive(0.1), "nothing came") for _ in range(3)]
    first, gap, third = (item for item in items if getattr(item, "kind", None) is not AlarmKind.SILENCE)
    assert isinstance(first, Message)
    assert first.raw == a_verdict(1)[1]
    assert isinstance(gap, Alarm)
    assert list(gap.missing) == [2]
    assert (third.kind, third.attachment) == (Kind.VERDICT, b"png")


def test_silence_of_nobody_is_told() -> None:
    """Where no daemon is, the subscriber says so instead of waiting for ever."""
    first = next(subscribe("ipc:///tmp/inspectd-client-nobody"))
    assert isinstance(first, Alarm)
    assert first.kind is AlarmKind.SILENCE


def test_not_an_endpoint_is_refused() -> None:
    """An address that ZeroMQ cannot connect to is named."""
    with pytest.raises(TransportError, match="carrier-pigeon"):
        Subscriber("carrier-pigeon://1")


def test_request_to_nobody_ends() -> None:
    """A request that nobody answers ends in time and names the endpoint."""
    nobody = "ipc:///tmp/inspectd-client-nobody"
    with Client(nobody, timeout_s=0.2) as client, pytest.raises(TransportError, match=nobody):
        client.status()


# -- a real daemon ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a folder of four images, of which each has a region, and a camera that waits for triggers."""
    folder = tmp_path_factory.mktemp("client")
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(1)
    for index in range(4):
        cv2.imwrite(str(images / f"{index}.png"), rng.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    table = f'source = {{ kind = "folder", path = "{images}", pace = "%s", loop = %s, rate_fps = 20 }}\n'
    cameras = {
        "cam1": table % ("fast", "false"),
        "cam2": table % ("realtime", "true") + 'trigger = { kind = "external" }\n',
    }
    made = Daemon(folder=folder, cameras=cameras, recipe="[decision]\nthreshold = 0.0\npixel_threshold = 0.0\n")
    with running(made) as seen:
        seen.until(lambda seen: seen.ended("cam1") is not None)
        yield made


def test_status_shows_processes_and_cameras(daemon: Daemon) -> None:
    """`status` gives what runs and what was decided."""
    with Client(daemon.control, timeout_s=PATIENCE_S) as client:
        status = client.status()
    assert {each["name"] for each in status["processes"]} == {"publisher", "worker", "capture-cam1", "capture-cam2"}
    assert status["cameras"]["cam1"]["decisions"]["fail"] == 4


def test_history_and_mask_come_from_the_journal(daemon: Daemon) -> None:
    """What a late joiner missed can be asked for, with its mask."""
    with Client(daemon.control, timeout_s=PATIENCE_S) as client:
        verdicts = client.history("cam1", 1, limit=2)
        png = client.mask("cam1", 2)
    assert [verdict["seq"] for verdict in verdicts] == [2, 3]
    assert list(verdicts[0]["mask"]["size_wh_px"]) == list(cv2.imdecode(np.frombuffer(png, np.uint8), 0).shape[::-1])


def test_trigger_is_accepted_once(daemon: Daemon) -> None:
    """A trigger gives a seq, again the same for the same id; with `wait_s` the verdict itself comes."""
    with Client(daemon.control, timeout_s=PATIENCE_S) as client:
        first = client.trigger("cam2", "t1", part_id="p1", wait_s=1.0)
        again = client.trigger("cam2", "t1")
    assert first["verdict"]["trigger"] == {"kind": "external", "id": "t1", "part_id": "p1"}
    assert again["seq"] == first["seq"]


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda client: client.trigger("cam9", "t"), "unknown_camera"),
        (lambda client: client.trigger("cam1", "t"), "bad_request"),
        (lambda client: client.mask("cam1", 99), "not_found"),
        (lambda client: client.history("cam1", -1), "bad_request"),
    ],
)
def test_refusals_carry_their_code(daemon: Daemon, ask: Callable[[Client], Any], code: str) -> None:
    """What the daemon refuses is raised with the contract's code."""
    with Client(daemon.control, timeout_s=PATIENCE_S) as client, pytest.raises(Refused) as refused:
        ask(client)
    assert refused.value.code == code


def test_pause_and_resume(daemon: Daemon) -> None:
    """A paused camera says so in its heartbeats until it is resumed."""
    with Client(daemon.control, timeout_s=PATIENCE_S) as client, Subscriber(daemon.verdicts) as subscriber:
        client.pause("cam2")
        until(lambda: _state(subscriber.receive(0.1)) == "paused", "never paused")
        client.resume("cam2")
        until(lambda: _state(subscriber.receive(0.1)) == "ready", "never resumed")


def _state(item: Message | Alarm | None) -> str | None:
    """The state of cam2 in a heartbeat."""
    if not isinstance(item, Message) or item.kind is not Kind.HEARTBEAT:
        return None
    return item.body["cameras"]["cam2"]["state"]
