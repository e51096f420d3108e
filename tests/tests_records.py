"""Records that tests make: sound ones, with what matters to the test replaced."""

from __future__ import annotations

from typing import Any

from inspectd.records import (
    Decision,
    FrameInfo,
    Latency,
    ModelIdentity,
    Reason,
    RecipeInfo,
    TimeKind,
    Trigger,
    TriggerKind,
    Verdict,
)
from inspectd.transport.rows import Row, Shot
from inspectd.transport.wire import Result

RECIPE = RecipeInfo(name="bottle", sha256="ab" * 32)
MODEL = ModelIdentity(detector="winclip", backbone="tiny", weights_sha256="cd" * 32, precision="fp32", sha256="ef" * 32)


def a_row(seq: int, **fields: Any) -> Row:
    """An accepted frame."""
    sound: dict[str, Any] = {
        "seq": seq,
        "trigger_kind": TriggerKind.CONTINUOUS,
        "trigger_id": None,
        "part_id": None,
        "accepted_ns": 1_000,
        "deadline_ns": 0,
        "slot": 0,
        "slot_generation": 2,
        "frame_index": seq - 1,
        "width_px": 64,
        "height_px": 48,
        "pts_s": 0.04 * seq,
        "captured_ns": 1_000,
        "captured_utc_ns": 1_700_000_000_000_000_000,
        "capture_ms": 0.5,
        "gate": None,
        "simulated": True,
        "result_publisher": 0,
        "result_ns": 0,
    }
    return Row(**sound | fields)


def a_shot(**fields: Any) -> Shot:
    """A further frame of a part."""
    sound: dict[str, Any] = {
        "slot": 1,
        "slot_generation": 2,
        "frame_index": 7,
        "width_px": 64,
        "height_px": 48,
        "pts_s": 0.28,
        "captured_ns": 2_000,
        "captured_utc_ns": 1_700_000_000_040_000_000,
        "capture_ms": 0.5,
        "time_kind": TimeKind.FILE,
    }
    return Shot(**sound | fields)


def a_result(seq: int, **fields: Any) -> Result:
    """A worker's word that the part is good."""
    sound: dict[str, Any] = {
        "camera": 0,
        "seq": seq,
        "worker_generation": 1,
        "decision": Decision.PASS,
        "reason": Reason.OK,
        "score": 0.25,
        "threshold": 0.5,
        "regions": (),
        "regions_truncated": False,
        "mask": None,
        "recipe": RECIPE,
        "model": MODEL,
        "queue_ms": 1.0,
        "infer_ms": 10.0,
        "post_ms": 1.0,
    }
    return Result(**sound | fields)


def a_verdict(**fields: Any) -> Verdict:
    """The verdict on a good part."""
    sound: dict[str, Any] = {
        "session": "0192f3",
        "camera": "cam1",
        "seq": 1,
        "trigger": Trigger(kind=TriggerKind.CONTINUOUS),
        "decision": Decision.PASS,
        "reason": Reason.OK,
        "recipe": RECIPE,
        "deadline_ms": 500.0,
        "journaled": True,
        "simulated": True,
        "score": 0.25,
        "threshold": 0.5,
        "frame": FrameInfo(index=0, size_wh_px=(64, 48), pts_s=0.0, time_kind=TimeKind.FILE),
        "model": MODEL,
        "captured_utc_ns": 1_700_000_000_000_000_000,
        "latency_ms": Latency(capture=0.1, queue=1.0, infer=10.0, post=1.0, publish=0.2, total=12.3),
    }
    return Verdict(**sound | fields)
