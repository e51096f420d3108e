"""What a program on the other side imports: verdicts as they come, and requests.

    for item in subscribe("tcp://127.0.0.1:5550"):
        match item:
            case Message(kind=Kind.VERDICT):
                act(item.body["decision"])
            case Alarm():
                reject()  # until the next heartbeat and verdict

The contract (§3): no heartbeat for 600 ms, a new `session`, or a gap in `seq` means: reject until resynchronised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from inspectd.errors import InspectdError, TransportError
from inspectd.transport.clients import Requester, Subscription

SILENCE_S = 0.6
START_PATIENCE_S = 3.0
LOOK_S = 0.1


class Refused(InspectdError):  # noqa: N818 - reads as what it is
    """The daemon answered a request with an error; `code` is the contract's word for it (§5)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Kind(StrEnum):
    """What a message on `verdicts` is: the first word of its topic."""

    VERDICT = "verdict"
    HEARTBEAT = "heartbeat"
    EVENT = "event"
    PREVIEW = "preview"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of contract §3.

    `raw` is the body as it was sent, `body` what it says. `attachment` is the mask's PNG or the preview's JPEG, None
    where there is none. Unknown fields of a body are to be ignored.
    """

    kind: Kind
    topic: str
    raw: bytes
    body: dict[str, Any]
    attachment: bytes | None = None


class AlarmKind(StrEnum):
    """Why whoever acts on verdicts must reject until resynchronised."""

    SILENCE = "silence"
    GAP = "gap"
    SESSION = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One reason to reject. `detail` is a line for people; a gap names its camera and the seqs that never came."""

    kind: AlarmKind
    detail: str
    camera: str | None = None
    missing: range = range(0)


@dataclass(slots=True)
class Continuity:
    """Follows sessions, sequence numbers and heartbeats, and says what is missing. Pure: the time is given.

    Args:
        topics: what is subscribed to; gaps mean nothing where a camera's verdicts are not all asked for.
        born_s: when listening began.
    """

    topics: Sequence[str]
    born_s: float
    session: str | None = None
    heard_s: float | None = None
    _silent: bool = False
    _seqs: dict[str, int] = field(default_factory=dict)

    def hear(self, message: Message, now_s: float) -> list[Alarm]:
        """What a message reveals."""
        alarms = self._new_session(message.body.get("session"))
        if message.kind is Kind.HEARTBEAT:
            self.heard_s, self._silent = now_s, False
            for camera, beat in message.body["cameras"].items():
                alarms += self._reached(camera, beat["last_seq"])
        elif message.kind is Kind.VERDICT:
            camera, seq = message.body["camera"], message.body["seq"]
            alarms += self._reached(camera, seq - 1) if camera in self._seqs else []
            self._seqs[camera] = max(seq, self._seqs.get(camera, 0))
        return alarms

    def silence(self, now_s: float) -> list[Alarm]:
        """One alarm when heartbeats cease; a daemon that was never heard has some time to connect."""
        limit_s = START_PATIENCE_S if self.heard_s is None else SILENCE_S
        since_s = self.born_s if self.heard_s is None else self.heard_s
        if self._silent or now_s - since_s <= limit_s:
            return []
        self._silent = True
        return [Alarm(kind=AlarmKind.SILENCE, detail=f"no heartbeat for {limit_s * 1000:.0f} ms")]

    @property
    def is_silent(self) -> bool:
        """Whether the last word was too long ago."""
        return self._silent

    def _new_session(self, session: object) -> list[Alarm]:
        before, self.session = self.session, str(session)
        if before in (None, self.session):
            return []
        self._seqs.clear()
        return [Alarm(kind=AlarmKind.SESSION, detail=f"the daemon has started anew (session {self.session})")]

    def _reached(self, camera: str, seq: int) -> list[Alarm]:
        """The camera's verdicts went out through `seq`: what of them never came?"""
        seen = self._seqs.get(camera)
        self._seqs[camera] = max(seq, seen or 0)
        prefix = f"verdict/{camera}/"
        if seen is None or seq <= seen or not any(prefix.startswith(topic) for topic in self.topics):
            return []
        detail = f"{camera}: verdicts {seen + 1} to {seq} never came; ask `history` for them"
        return [Alarm(kind=AlarmKind.GAP, detail=detail, camera=camera, missing=range(seen + 1, seq + 1))]


class Subscriber:
    """An open subscription. Heartbeats are always taken too: without them silence means nothing.

    Args:
        endpoint: the daemon's `verdicts` endpoint.
        topics: prefixes such as `verdict/cam1/`; the empty one takes everything.

    Raises:
        TransportError: not an endpoint.
    """

    def __init__(self, endpoint: str, topics: Sequence[str] = ("verdict/", "heartbeat/", "event/")) -> None:
        prefixes = [topic for topic in topics if topic != "heartbeat/"]
        heartbeat = [] if "" in prefixes else ["heartbeat/"]  # last: its seqs must not run ahead of what is heard
        self._subscription = Subscription(endpoint, [prefix.encode() for prefix in (*prefixes, *heartbeat)])
        self.continuity = Continuity(topics=tuple(prefixes), born_s=time.monotonic())
        self._alarms: list[Alarm] = []
        self._held: Message | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the subscription."""
        self._subscription.close()

    def receive(self, timeout_s: float) -> Message | Alarm | None:
        """The next message, or an alarm before the message that revealed it; None when there is nothing in time.

        Raises:
            TransportError: what came is not a message of the contract.
        """
        if not self._alarms and self._held is None:
            self._take(timeout_s)
        if self._alarms:
            return self._alarms.pop(0)
        message, self._held = self._held, None
        return message

    def _take(self, timeout_s: float) -> None:
        parts = self._subscription.receive(timeout_s)
        now_s = time.monotonic()
        if parts is not None:
            self._held = parse_message(parts)
            try:
                self._alarms += self.continuity.hear(self._held, now_s)
            except (KeyError, TypeError, AttributeError) as error:
                raise TransportError(f"{self._held.topic}: not a body of the contract: {error!r}") from error
        self._alarms += self.continuity.silence(now_s)


def subscribe(endpoint: str, topics: Sequence[str] = ("verdict/", "heartbeat/", "event/")) -> Iterator[Message | Alarm]:
    """Yields messages and alarms for ever.

    Raises:
        TransportError: not an endpoint, or what came is not a message of the contract.
    """
    with Subscriber(endpoint, topics) as subscriber:
        while True:
            item = subscriber.receive(LOOK_S)
            if item is not None:
                yield item


def parse_message(parts: Sequence[bytes]) -> Message:
    """The parts of a message as they came.

    Raises:
        TransportError: they are not a message of the contract.
    """
    try:
        topic, raw = parts[0].decode("ascii"), parts[1]
        body = json.loads(raw)
        if not isinstance(body, dict):
            raise TransportError(f"{topic}: the body is not a JSON object")
        attachment = parts[2] if len(parts) > 2 else None
        return Message(kind=Kind(topic.partition("/")[0]), topic=topic, raw=raw, body=body, attachment=attachment)
    except (ValueError, IndexError) as error:
        raise TransportError(f"not a message of inspectd: {error}") from error


class Client:
    """Requests to a running daemon (contract §5), one at a time.

    Args:
        endpoint: the daemon's `control` endpoint.
        timeout_s: how long an answer may take.

    Raises:
        TransportError: not an endpoint; from every method: no answer in time.
    """

    def __init__(self, endpoint: str, *, timeout_s: float = 3.0) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._count = 0
        self._requester = Requester(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._requester.close()

    def status(self) -> dict[str, Any]:
        """Processes, cameras, rates, latencies."""
        return self._ask("status", {})

    def trigger(
        self,
        camera: str,
        trigger_id: str,
        *,
        part_id: str | None = None,
        deadline_ms: float | None = None,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Inspects the next frame. The answer has the `seq`; with `wait_s`, also the `verdict` itself.

        Raises:
            Refused: no such camera, or it takes no triggers.
        """
        fields = {"camera": camera, "trigger_id": trigger_id, "part_id": part_id, "deadline_ms": deadline_ms}
        patience_s = self._timeout_s + (wait_s or 0.0)
        return self._ask("trigger", fields | {"wait": wait_s is not None}, patience_s)

    def history(
        self, camera: str, since_seq: int = 0, *, session: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Verdicts after `since_seq` from the journal, in order; of this session where none is named.

        At most `limit`, and fewer where they are long: who gets any asks again from the last one.
        """
        fields = {"camera": camera, "since_seq": since_seq, "session": session, "limit": limit}
        return list(self._ask("history", fields)["verdicts"])

    def mask(self, camera: str, seq: int, *, session: str | None = None) -> bytes:
        """The label mask of a verdict, as a PNG.

        Raises:
            Refused: there is none.
        """
        _, *pngs = self._exchange("mask", {"camera": camera, "seq": seq, "session": session}, self._timeout_s)
        if len(pngs) != 1:
            raise TransportError(f"{self._endpoint}: the answer to `mask` carries no picture")
        return pngs[0]

    def pause(self, camera: str) -> None:
        """No more frames of the camera are accepted."""
        self._ask("pause", {"camera": camera})

    def resume(self, camera: str) -> None:
        """Frames of the camera are accepted again."""
        self._ask("resume", {"camera": camera})

    def _ask(self, op: str, fields: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        body, *_ = self._exchange(op, fields, self._timeout_s if timeout_s is None else timeout_s)
        reply: dict[str, Any] = json.loads(body)
        return {key: value for key, value in reply.items() if key not in ("id", "ok")}

    def _exchange(self, op: str, fields: dict[str, Any], timeout_s: float) -> list[bytes]:
        """Sends a request and returns the parts of its answer, which is `ok`; fields that are None are left out."""
        self._count += 1
        request = {"id": f"{op}-{self._count}", "op": op}
        request |= {key: value for key, value in fields.items() if value is not None}
        came = self._requester.ask(json.dumps(request).encode(), timeout_s)
        if came is None:  # the answer may still come, and must not be taken for the next one's
            self._requester.close()
            self._requester = Requester(self._endpoint)
            raise TransportError(f"{self._endpoint}: no answer within {timeout_s:g} s; is inspectd running there?")
        reply = _reply(came[0], self._endpoint)
        if not reply.get("ok"):
            error = reply.get("error") or {}
            raise Refused(str(error.get("code", "unknown")), str(error.get("message", reply)))
        if reply.get("id") != request["id"]:
            raise TransportError(f"{self._endpoint}: the answer is not one to this request")
        return came


def _reply(body: bytes, endpoint: str) -> dict[str, Any]:
    try:
        reply = json.loads(body)
    except ValueError as error:
        raise TransportError(f"{endpoint}: the answer is not JSON: {error}") from error
    if not isinstance(reply, dict):
        raise TransportError(f"{endpoint}: the answer is not a JSON object")
    return reply
