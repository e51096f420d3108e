"""The demo's truth: which part a verdict is about, and whether the demo showed what it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inspectd.demo.truth import Part, Truth, compare, read_truth
from inspectd.errors import ConfigError


def a_truth(parts: int = 20) -> Truth:
    """Parts centred in frames 10, 20, …; every fourth is bad."""
    return Truth(
        parts=tuple(
            Part(
                id=number,
                frame_centred=10 * number,
                frames_in_zone=(10 * number - 4, 10 * number + 4),
                defects=("dent",) if number % 4 == 0 else (),
            )
            for number in range(1, parts + 1)
        ),
        zone_xywh_px=(0, 0, 10, 10),
    )


def a_verdict(frame: int | None, decision: str, total_ms: float | None = 10.0) -> dict[str, Any]:
    return {
        "frame": None if frame is None else {"index": frame},
        "decision": decision,
        "latency_ms": {"total": total_ms},
    }


def right_verdicts(truth: Truth) -> list[dict[str, Any]]:
    return [a_verdict(part.frame_centred + 1, "fail" if part.bad else "pass") for part in truth.parts]


def test_right_verdicts_are_good_enough() -> None:
    """One right verdict for each part is what the demo promises."""
    score = compare(a_truth(), right_verdicts(a_truth()))
    assert (score.parts, score.right, score.missed, score.false_rejects) == (20, 20, 0, 0)
    assert score.good_enough


@pytest.mark.parametrize(("wrong", "enough"), [(1, True), (2, False)])
def test_at_least_95_percent_must_be_right(wrong: int, enough: bool) -> None:
    """Of twenty parts one may be wrong, not two."""
    verdicts = right_verdicts(a_truth())
    for verdict in verdicts[:wrong]:
        verdict["decision"] = "fail"
    score = compare(a_truth(), verdicts)
    assert score.false_rejects == wrong
    assert score.good_enough is enough


def test_missed_and_error_are_told_apart() -> None:
    """A bad part that passes is missed; one that got an error is not, but is not right either."""
    verdicts = right_verdicts(a_truth())
    verdicts[3]["decision"], verdicts[7]["decision"] = "pass", "error"
    score = compare(a_truth(), verdicts)
    assert (score.missed, score.errors, score.right) == (1, 1, 18)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda verdicts: verdicts.pop(), "unjudged"),
        (lambda verdicts: verdicts.append(a_verdict(11, "pass")), "repeated"),
        (lambda verdicts: verdicts.append(a_verdict(15, "pass")), "stray"),
        (lambda verdicts: verdicts.append(a_verdict(None, "error", None)), "stray"),
    ],
)
def test_anything_but_one_verdict_a_part_is_not_good_enough(change: Any, name: str) -> None:
    """A part without a verdict, with two, or a verdict on nothing: however right the others are."""
    verdicts = right_verdicts(a_truth())
    change(verdicts)
    score = compare(a_truth(), verdicts)
    assert getattr(score, name) == 1
    assert not score.good_enough


def test_latencies_are_those_of_the_verdicts() -> None:
    """p50 and p99 are nearest ranks; without any latency they are unknown."""
    verdicts = [a_verdict(10 * n, "pass", float(n)) for n in range(1, 101)]
    score = compare(a_truth(100), verdicts)
    assert (score.latency_p50_ms, score.latency_p99_ms) == (51.0, 100.0)
    assert compare(a_truth(), [a_verdict(10, "pass", None)]).latency_p50_ms is None


def test_truth_is_read_as_rendered(tmp_path: Path) -> None:
    """The file beside a rendered clip gives parts, defects and the zone."""
    path = tmp_path / "clip.json"
    part = {"id": 1, "frame_centred": 22, "frames_in_zone": [7, 38], "bad": True, "defects": [{"kind": "dent"}]}
    zone = [[300, 90], [660, 90], [660, 450], [300, 450]]
    path.write_text(json.dumps({"zone_polygon_xy_px": zone, "parts": [part]}))
    truth = read_truth(path)
    assert truth.zone_xywh_px == (300, 90, 360, 360)
    assert truth.parts[0].defects == ("dent",)
    assert truth.part_of(a_verdict(39, "pass")) is None


@pytest.mark.parametrize("text", [None, "", "[]", '{"parts": []}'])
def test_what_is_no_truth_is_named(tmp_path: Path, text: str | None) -> None:
    """A missing or damaged ground truth is one line with its path."""
    path = tmp_path / "clip.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"clip\.json"):
        read_truth(path)
