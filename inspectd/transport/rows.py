"""One row of the ticket table: an accepted frame or trigger, as a record and as words in shared memory.

A row is its words, further shots at the part, and two texts. The order of the words matters in one place: `slot`
stands before whatever `fill` gives, words are read in their order, and `fill` stores `slot` last. So a reader that
sees the slot sees its frame.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from inspectd.records import Reason, Sighting, TimeKind, TriggerKind
from inspectd.transport.memory import WORD_BYTES, fence

MOST_SHOTS = 7
"""Frames of the same part that a row can name besides its own."""
MOST_MEMBERS = 8
"""Cameras of a station."""
_SIGHTING = ("part_x", "part_y", "part_width", "part_height", "part_step_x", "part_step_y", "part_frame_s")
_MEMBERS = tuple(f"member_{number}" for number in range(MOST_MEMBERS))
CAPTURED = (
    "seq",
    "slot",
    "slot_generation",
    "frame_index",
    "width_px",
    "height_px",
    "pts_s",
    "captured_ns",
    "captured_utc_ns",
    "capture_ms",
    "time_kind",
    "trigger_kind",
    "accepted_ns",
    "deadline_ns",
    "gate",
    "simulated",
    "trigger_id_bytes",
    "part_id_bytes",
    "shots",
    *_SIGHTING,
    *_MEMBERS,
)
"""The words that capture writes."""
FOUND = ("result_ns", "result_publisher", "result_seq")
"""The words that the worker writes; they count where `result_seq` is the row's own, for a row is used again."""
AT: Mapping[str, int] = {name: index for index, name in enumerate((*CAPTURED, *FOUND))}
WORDS = 48
_SHOT = struct.Struct("<5qd2qdq")
_SHOTS = slice(WORDS, WORDS + MOST_SHOTS * _SHOT.size // WORD_BYTES)
TEXT_BYTES = 512
"""128 characters (as `control` allows) of four bytes."""
_TEXTS = slice(_SHOTS.stop, _SHOTS.stop + 2 * TEXT_BYTES // WORD_BYTES)
ROW_WORDS = _TEXTS.stop
FILLED = CAPTURED[CAPTURED.index("slot") + 1 : CAPTURED.index("trigger_kind")]

_KINDS = tuple(TriggerKind)
_TIME_KINDS = tuple(TimeKind)
_GATES: tuple[Reason | None, ...] = (None, *Reason)

Words = memoryview  # of signed 8-byte words: one row, or one row's place


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A further frame of the part that a row is about, for the vote: where its pixels are, and what it is."""

    slot: int
    slot_generation: int
    frame_index: int
    width_px: int
    height_px: int
    pts_s: float | None
    captured_ns: int
    captured_utc_ns: int
    capture_ms: float
    time_kind: TimeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """What capture knows of a frame or trigger that it is about to accept.

    `accepted_ns` is what the deadline counts from; `deadline_ns` is absolute, 0 for none. `slot` is -1 where there are
    no pixels: a trigger whose frame is still to come, or a row that `gate` has decided already. `shots` are further
    frames of the same part. `members` is for the row of a station: the seq of each of its cameras' rows on the part, 0
    where there is none yet.
    """

    trigger_kind: TriggerKind
    accepted_ns: int
    deadline_ns: int
    simulated: bool
    trigger_id: str | None = None
    part_id: str | None = None
    slot: int = -1
    slot_generation: int = 0
    frame_index: int = -1
    width_px: int = 0
    height_px: int = 0
    pts_s: float | None = None
    captured_ns: int = 0
    captured_utc_ns: int = 0
    capture_ms: float = 0.0
    time_kind: TimeKind = TimeKind.ARRIVAL
    gate: Reason | None = None
    shots: tuple[Shot, ...] = ()
    sighting: Sighting | None = None
    members: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(NewRow):
    """An accepted frame or trigger. `result_publisher` is the publisher that a result was sent to, 0 for none yet."""

    seq: int
    result_publisher: int = 0
    result_ns: int = 0

    def seen_in(self, shot: int) -> Row:
        """The same row with another of its frames as its own: 0 is the one it has, 1 the first of `shots`."""
        if not 0 < shot <= len(self.shots):
            return self
        return replace(self, **asdict(self.shots[shot - 1]))


def encode(row: NewRow) -> tuple[dict[str, int], bytes]:
    """The words that capture writes for a row, without `seq`, and its two texts.

    Raises:
        ValueError: an id is too long, or there are too many shots or members.
    """
    if len(row.shots) > MOST_SHOTS or len(row.members) > MOST_MEMBERS:
        raise ValueError(f"{len(row.shots)} shots, {len(row.members)} members: {MOST_SHOTS}, {MOST_MEMBERS} at most")
    trigger_id, part_id = _text_bytes("trigger_id", row.trigger_id), _text_bytes("part_id", row.part_id)
    words = {name: int(getattr(row, name)) for name in ("slot", "accepted_ns", "deadline_ns", "simulated")}
    words |= _frame_words(row)
    words["trigger_kind"] = _KINDS.index(row.trigger_kind)
    words["gate"] = gate_code(row.gate)
    words["trigger_id_bytes"] = -1 if row.trigger_id is None else len(trigger_id)
    words["part_id_bytes"] = -1 if row.part_id is None else len(part_id)
    words["shots"] = len(row.shots)
    words |= _sighting_words(row.sighting)
    words |= dict(zip(_MEMBERS, (*row.members, *(MOST_MEMBERS - len(row.members)) * (0,)), strict=True))
    return words, trigger_id.ljust(TEXT_BYTES, b"\0") + part_id.ljust(TEXT_BYTES, b"\0")


def store(place: Words, row: NewRow, after_step: Callable[[str], None]) -> None:
    """Writes a row to its place, word by word, but for its `seq`.

    Raises:
        ValueError: an id is too long; nothing was written.
    """
    words, texts = encode(row)
    for name, word in words.items():
        place[AT[name]] = word
        after_step(name)
    if row.shots:
        shots = b"".join(map(_shot_bytes, row.shots)).ljust(MOST_SHOTS * _SHOT.size, b"\0")
        place[_SHOTS] = memoryview(shots).cast("q")
    after_step("shot_words")
    place[_TEXTS] = memoryview(texts).cast("q")
    after_step("texts")


def fill(place: Words, row: NewRow) -> None:
    """Gives an accepted row its frame; the store of `slot`, the last, shows it."""
    for name, word in _frame_words(row).items():
        place[AT[name]] = word
    fence()
    place[AT["slot"]] = row.slot


def load(place: Words, seq: int) -> Row | None:
    """The row at a place, None where the place holds (or came to hold, while it was read) another."""
    if place[AT["seq"]] != seq:
        return None
    fence()
    slot = place[AT["slot"]]
    fence()
    words = place[:WORDS].tolist()
    shots = place[_SHOTS].tobytes() if words[AT["shots"]] else b""
    texts = place[_TEXTS].tobytes()
    fence()
    if place[AT["seq"]] != seq:
        return None
    return _row(seq, slot, words, shots, texts)


def join(place: Words, member: int, seq: int) -> None:
    """Names the row of one more camera in a station's row: one store."""
    place[AT[_MEMBERS[member]]] = seq


def gate_code(gate: Reason | None) -> int:
    """The word that stands for a gate's reason."""
    return _GATES.index(gate)


def unreadable(seq: int) -> Row:
    """What stands for a row that was accepted and cannot be read: decided, as an internal error."""
    return Row(
        seq=seq,
        trigger_kind=TriggerKind.CONTINUOUS,
        accepted_ns=0,
        deadline_ns=0,
        simulated=False,
        gate=Reason.INTERNAL,
    )


def _frame_words(row: NewRow) -> dict[str, int]:
    return {
        "slot_generation": row.slot_generation,
        "frame_index": row.frame_index,
        "width_px": row.width_px,
        "height_px": row.height_px,
        "pts_s": _float_word(math.nan if row.pts_s is None else row.pts_s),
        "captured_ns": row.captured_ns,
        "captured_utc_ns": row.captured_utc_ns,
        "capture_ms": _float_word(row.capture_ms),
        "time_kind": _TIME_KINDS.index(row.time_kind),
    }


def _row(seq: int, slot: int, words: list[int], shots: bytes, texts: bytes) -> Row:
    def word(name: str) -> int:
        return words[AT[name]]

    kind, gate, pts_s = word("trigger_kind"), word("gate"), _word_float(word("pts_s"))
    has_result = word("result_seq") == seq
    return Row(
        seq=seq,
        slot=slot,
        slot_generation=word("slot_generation"),
        frame_index=word("frame_index"),
        width_px=word("width_px"),
        height_px=word("height_px"),
        pts_s=pts_s if math.isfinite(pts_s) else None,
        captured_ns=word("captured_ns"),
        captured_utc_ns=word("captured_utc_ns"),
        capture_ms=_word_float(word("capture_ms")),
        time_kind=_time_kind(word("time_kind")),
        trigger_kind=_KINDS[kind] if 0 <= kind < len(_KINDS) else TriggerKind.CONTINUOUS,
        accepted_ns=word("accepted_ns"),
        deadline_ns=word("deadline_ns"),
        gate=_GATES[gate] if 0 <= gate < len(_GATES) else Reason.INTERNAL,
        simulated=bool(word("simulated")),
        trigger_id=_text(texts[:TEXT_BYTES], word("trigger_id_bytes")),
        part_id=_text(texts[TEXT_BYTES:], word("part_id_bytes")),
        shots=_shots(shots, word("shots")),
        sighting=_sighting(words),
        members=_without_end([words[AT[name]] for name in _MEMBERS]),
        result_publisher=word("result_publisher") if has_result else 0,
        result_ns=word("result_ns") if has_result else 0,
    )


def _shot_bytes(shot: Shot) -> bytes:
    return _SHOT.pack(
        shot.slot,
        shot.slot_generation,
        shot.frame_index,
        shot.width_px,
        shot.height_px,
        math.nan if shot.pts_s is None else shot.pts_s,
        shot.captured_ns,
        shot.captured_utc_ns,
        shot.capture_ms,
        _TIME_KINDS.index(shot.time_kind),
    )


def _shots(packed: bytes, count: int) -> tuple[Shot, ...]:
    return tuple(map(_shot, _SHOT.iter_unpack(packed[: max(0, count) * _SHOT.size])))


def _shot(values: tuple[Any, ...]) -> Shot:
    fields = dict(zip(Shot.__dataclass_fields__, values, strict=True))
    pts_s, kind = fields["pts_s"], fields["time_kind"]
    fields["pts_s"] = pts_s if math.isfinite(pts_s) else None
    fields["time_kind"] = _time_kind(kind)
    return Shot(**fields)


def _time_kind(word: int) -> TimeKind:
    return _TIME_KINDS[word] if 0 <= word < len(_TIME_KINDS) else TimeKind.ARRIVAL


def _sighting_words(sighting: Sighting | None) -> dict[str, int]:
    if sighting is None:
        return dict.fromkeys(_SIGHTING, 0)
    floats = map(_float_word, (*sighting.step_xy_px, sighting.frame_s))
    return dict(zip(_SIGHTING, (*sighting.bbox_xywh_px, *floats), strict=True))


def _sighting(words: list[int]) -> Sighting | None:
    x, y, width, height, *floats = (words[AT[name]] for name in _SIGHTING)
    step_x, step_y, frame_s = map(_word_float, floats)
    if width <= 0 or height <= 0:
        return None
    return Sighting(bbox_xywh_px=(x, y, width, height), step_xy_px=(step_x, step_y), frame_s=frame_s)


def _without_end(members: list[int]) -> tuple[int, ...]:
    """The members without the zeros at their end.

    >>> _without_end([0, 7, 0, 0])
    (0, 7)
    """
    while members and members[-1] == 0:
        members.pop()
    return tuple(members)


def _text_bytes(name: str, text: str | None) -> bytes:
    encoded = b"" if text is None else text.encode()
    if len(encoded) > TEXT_BYTES:
        raise ValueError(f"{name}: {len(encoded)} bytes in UTF-8, at most {TEXT_BYTES} are allowed")
    return encoded


def _text(encoded: bytes, count: int) -> str | None:
    return encoded[:count].decode("utf-8", "replace") if count >= 0 else None


def _float_word(value: float) -> int:
    """The word with the bits of a float.

    >>> _word_float(_float_word(0.25))
    0.25
    """
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _word_float(word: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", word))[0])
