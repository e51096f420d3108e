"""Requests of contract §5: bytes in, a checked command out, replies as bytes. Pure; the publisher carries them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from inspectd.errors import InspectdError
from inspectd.settings import CameraName

SeqNumber = Annotated[int, Field(ge=0, lt=2**63)]
PartId = Annotated[str, Field(min_length=1, max_length=128)]


class ErrorCode(StrEnum):
    """Why a request was refused."""

    BAD_REQUEST = "bad_request"
    UNKNOWN_CAMERA = "unknown_camera"
    NOT_FOUND = "not_found"
    UNAVAILABLE = "unavailable"


class RequestError(InspectdError):
    """A request that is refused; its reply carries `code` and the message."""

    def __init__(self, code: ErrorCode, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    id: Annotated[str, Field(max_length=256)]


class Status(_Request):
    """Everything `inspectd status` shows."""

    op: Literal["status"]


class TriggerRequest(_Request):
    """Inspect the next frame exposed after this request's arrival."""

    op: Literal["trigger"]
    camera: CameraName
    trigger_id: PartId
    part_id: PartId | None = None
    deadline_ms: Annotated[float, Field(gt=0, le=600_000)] | None = None
    wait: bool = False


class History(_Request):
    """Verdicts from the journal, in order."""

    op: Literal["history"]
    camera: CameraName
    since_seq: SeqNumber
    session: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class MaskRequest(_Request):
    """The label mask of one verdict."""

    op: Literal["mask"]
    camera: CameraName
    seq: SeqNumber
    session: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class Pause(_Request):
    """Stop accepting frames of a camera."""

    op: Literal["pause"]
    camera: CameraName


class Resume(_Request):
    """Accept frames of a camera again."""

    op: Literal["resume"]
    camera: CameraName


class Reload(_Request):
    """Read configuration and recipes again."""

    op: Literal["reload"]


class RecipeRequest(_Request):
    """Switch one camera to another recipe."""

    op: Literal["recipe"]
    camera: CameraName
    recipe: Annotated[str, Field(min_length=1, max_length=64)]


Request = Status | TriggerRequest | History | MaskRequest | Pause | Resume | Reload | RecipeRequest
_ADAPTER: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


def parse(body: bytes) -> Request:
    """The checked request in `body`.

    Raises:
        RequestError: `bad_request` with a message that names the field.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(ErrorCode.BAD_REQUEST, "the request is not one UTF-8 JSON object") from error
    if not isinstance(fields, dict):
        raise RequestError(ErrorCode.BAD_REQUEST, "the request is not a JSON object")
    try:
        return _ADAPTER.validate_python(fields)
    except ValidationError as error:
        raise RequestError(ErrorCode.BAD_REQUEST, _mistake(error), _echo(fields.get("id"))) from error


def accepted(request_id: str, **fields: Any) -> bytes:
    """The reply to a request that was carried out."""
    return json.dumps({"id": request_id, "ok": True} | fields, allow_nan=False, ensure_ascii=False).encode()


def verdicts(request_id: str, bodies: Iterable[bytes], evidence: Mapping[str, str]) -> bytes:
    """The reply to `history`: the bodies as they were published, byte for byte, without reading them again.

    Args:
        evidence: where pictures lie in the evidence folder, by seq.
    """
    head = json.dumps({"id": request_id, "ok": True, "evidence": evidence}, ensure_ascii=False).encode()
    return head[:-1] + b', "verdicts": [' + b",".join(bodies) + b"]}"


def refused(error: RequestError) -> bytes:
    """The reply to a request that was not."""
    reply = {"id": error.request_id, "ok": False, "error": {"code": error.code, "message": str(error)}}
    return json.dumps(reply, ensure_ascii=False).encode()


def _echo(given: Any) -> str | None:
    """The id of a request that is refused, where it is one: JSON can spell half a character, UTF-8 cannot."""
    if not isinstance(given, str) or len(given) > 256:
        return None
    return given if given.isascii() or given.encode(errors="ignore").decode() == given else None


def _mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "union_tag_invalid":
        return f"op: expected one of {first['ctx']['expected_tags']}"
    if first["type"] == "union_tag_not_found":
        return "op: missing"
    field = ".".join(str(part) for part in first["loc"][1:]) or "request"
    message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
    return f"{field}: {message}"
