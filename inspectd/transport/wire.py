"""Records as bytes: the public messages of contract §3, and what a worker tells its publisher.

Everything is UTF-8 JSON, one object, never NaN or Infinity: a value that is not finite raises here, so it can never
leave the process as something that a reader takes for a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import resources
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from inspectd.errors import TransportError
from inspectd.records import (
    CameraState,
    DaemonState,
    Decision,
    Latency,
    MaskPlace,
    ModelIdentity,
    Reason,
    RecipeInfo,
    Region,
    Verdict,
    Votes,
)


class Schema(StrEnum):
    """The public messages; `schema(name)` gives the JSON Schema of each."""

    VERDICT = "inspectd.verdict/1"
    HEARTBEAT = "inspectd.heartbeat/1"
    EVENT = "inspectd.event/1"
    PREVIEW = "inspectd.preview/1"


class EventKind(StrEnum):
    """`event/<kind>/` topics."""

    CAMERA_LOST = "camera_lost"
    CAMERA_BACK = "camera_back"
    CAMERA_ENDED = "camera_ended"
    CAPTURE_RESTARTED = "capture_restarted"
    WORKER_RESTARTED = "worker_restarted"
    PUBLISHER_RESTARTED = "publisher_restarted"
    RECIPE_CHANGED = "recipe_changed"
    FRAMES_SKIPPED = "frames_skipped"
    FRAMES_DAMAGED = "frames_damaged"
    JOURNAL_FAILED = "journal_failed"
    JOURNAL_BACK = "journal_back"


class Extra(StrEnum):
    """Pictures that a worker sends besides its results."""

    PREVIEW = "preview"
    EVIDENCE = "evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureHead:
    """What a picture is of. `size_wh_px` comes with a preview, `shed` (pictures given up before) with evidence."""

    what: Extra
    camera: Annotated[int, Field(ge=0)]
    seq: int
    size_wh_px: tuple[int, int] = (0, 0)
    shed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraBeat:
    """One camera in a heartbeat."""

    state: CameraState
    last_seq: int
    recipe_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a worker found for one accepted frame. `worker_generation` lets the publisher drop a dead worker's words.

    `reason` is `OK` or `ANOMALY` with a score, any other with `score` None. Milliseconds come from the worker's clock
    readings of the one monotonic clock. `shot` says which of the row's frames decided, and is shown.
    """

    camera: int
    seq: int
    worker_generation: int
    decision: Decision
    reason: Reason
    score: float | None
    threshold: float
    regions: tuple[Region, ...]
    regions_truncated: bool
    mask: MaskPlace | None
    recipe: RecipeInfo
    model: ModelIdentity
    queue_ms: float
    infer_ms: float
    post_ms: float
    shot: int = 0
    votes: Votes | None = None


def schema(name: Schema) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every message of that name validates against."""
    stem = name.value.removeprefix("inspectd.").removesuffix("/1")
    text = resources.files("inspectd.transport").joinpath(f"schemas/{stem}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def utc_text(utc_ns: int) -> str:
    """A wall-clock label: `2026-11-20T12:00:00.123456Z`.

    >>> utc_text(1_700_000_000_123_456_789)
    '2023-11-14T22:13:20.123456Z'
    """
    seconds, ns = divmod(utc_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{ns // 1000:06d}Z"


def verdict_topic(camera: str, decision: Decision) -> bytes:
    """The topic of a verdict; it ends in `/` because ZeroMQ matches prefixes."""
    return f"verdict/{camera}/{decision}/".encode()


def utc_ns(text: str) -> int:
    """The time of a label, in whole microseconds.

    >>> utc_ns("2023-11-14T22:13:20.123456Z")
    1700000000123456000

    Raises:
        ValueError: it is no such label.
    """
    since = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def event_topic(kind: EventKind) -> bytes:
    """The topic of an event."""
    return f"event/{kind}/".encode()


def preview_topic(camera: str) -> bytes:
    """The topic of a camera's preview pictures."""
    return PREVIEW_ROOT + camera.encode() + b"/"


HEARTBEAT_TOPIC = b"heartbeat/"
PREVIEW_ROOT = b"preview/"


def topics(cameras: Iterable[str]) -> list[bytes]:
    """Every topic of contract §3 that a daemon with these cameras can have."""
    found = [HEARTBEAT_TOPIC, *map(event_topic, EventKind)]
    for camera in cameras:
        found += [preview_topic(camera), *(verdict_topic(camera, decision) for decision in Decision)]
    return found


def verdict_body(verdict: Verdict) -> bytes:
    """The verdict as the public body.

    Raises:
        ValueError: a number is not finite.
    """
    return _dumps(
        {
            "schema": Schema.VERDICT.value,
            "session": verdict.session,
            "camera": verdict.camera,
            "seq": verdict.seq,
            "trigger": verdict.trigger,
            "decision": verdict.decision,
            "reason": verdict.reason,
            "score": verdict.score,
            "threshold": verdict.threshold,
            "regions": verdict.regions,
            "regions_truncated": verdict.regions_truncated,
            "mask": verdict.mask,
            "frame": verdict.frame,
            "recipe": verdict.recipe,
            "model": verdict.model,
            "captured_utc": None if verdict.captured_utc_ns is None else utc_text(verdict.captured_utc_ns),
            "votes": verdict.votes,
            "members": verdict.members,
            "deadline_ms": verdict.deadline_ms,
            "journaled": verdict.journaled,
            "latency_ms": _latency_body(verdict.latency_ms),
            "simulated": verdict.simulated,
        }
    )


def verdict_from_bytes(body: bytes) -> Verdict:
    """The verdict that `verdict_body` wrote: given back to it, it gives the same bytes again.

    Raises:
        TransportError: the bytes are not a verdict.
    """
    try:
        fields = json.loads(body)
        at_utc = fields["captured_utc"]
        return _VERDICT.validate_python(fields | {"captured_utc_ns": None if at_utc is None else utc_ns(at_utc)})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise TransportError(f"not a verdict: {error}") from error


_VERDICT = TypeAdapter(Verdict)


def heartbeat_body(session: str, state: DaemonState, uptime_s: float, cameras: dict[str, CameraBeat]) -> bytes:
    """One heartbeat as the public body."""
    return _dumps(
        {
            "schema": Schema.HEARTBEAT.value,
            "session": session,
            "state": state,
            "uptime_s": round(uptime_s, 3),
            "cameras": cameras,
        }
    )


def event_body(session: str, kind: EventKind, camera: str | None, utc_ns: int, **details: int | str) -> bytes:
    """One event as the public body; `details` are `last_seq`, `count` and `detail`."""
    head = {
        "schema": Schema.EVENT.value,
        "session": session,
        "kind": kind,
        "camera": camera,
        "at_utc": utc_text(utc_ns),
    }
    return _dumps(head | details)


def preview_body(session: str, camera: str, seq: int, size_wh_px: tuple[int, int]) -> bytes:
    """The JSON part of one preview picture."""
    return _dumps(
        {"schema": Schema.PREVIEW.value, "session": session, "camera": camera, "seq": seq, "size_wh_px": size_wh_px}
    )


def result_bytes(result: Result) -> bytes:
    """A worker's result, for `result_from_bytes`.

    Raises:
        ValueError: a number is not finite.
    """
    return _dumps(_fields(result))


def result_from_bytes(body: bytes) -> Result:
    """The result that a worker sent.

    Raises:
        TransportError: the bytes are not a result.
    """
    return _read(_RESULT, body, "a worker's result")


def picture_parts(head: PictureHead, picture: bytes) -> list[bytes]:
    """A picture as a message: no result begins with an empty part."""
    return [b"", _dumps(_fields(head)), picture]


def _read(adapter: TypeAdapter[T], body: bytes, what: str) -> T:
    try:
        return adapter.validate_json(body)
    except ValueError as error:
        raise TransportError(f"not {what}: {' '.join(str(error).split())[:200]}") from error


def picture_from_parts(parts: Sequence[bytes]) -> tuple[PictureHead, bytes]:
    """The picture that a worker sent beside its results.

    Raises:
        TransportError: the parts are not a picture.
    """
    if len(parts) != 3:
        raise TransportError(f"not a worker's picture: {len(parts)} parts")
    return _read(_PICTURE_HEAD, parts[1], "a worker's picture"), parts[2]


T = TypeVar("T")
_RESULT = TypeAdapter(Result)
_PICTURE_HEAD = TypeAdapter(PictureHead)


def _latency_body(latency: Latency) -> dict[str, float | None]:
    return {key: None if value is None else round(value, 3) for key, value in _fields(latency).items()}


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a record; those that are records themselves, the encoder asks for. (`asdict` copies in depth.)"""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_fields)


def _dumps(fields: dict[str, Any]) -> bytes:
    return _ENCODER.encode(fields).encode()
