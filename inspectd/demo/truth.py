"""The ground truth of the sample clip, and how verdicts compare with it. Pure, but for reading the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspectd.errors import ConfigError

RIGHT_SHARE = 0.95
Verdict = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the clip: when it is centred in the zone, in which frames it touches the zone, and what is wrong."""

    id: int
    frame_centred: int
    frames_in_zone: tuple[int, int]
    defects: tuple[str, ...]

    @property
    def bad(self) -> bool:
        """Whether it must fail."""
        return bool(self.defects)

    def is_right(self, verdict: Verdict) -> bool:
        """Whether a verdict says what is so."""
        return bool(verdict["decision"] == ("fail" if self.bad else "pass"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The clip: its parts in their order, and the box of the zone."""

    parts: tuple[Part, ...]
    zone_xywh_px: tuple[int, int, int, int]

    def part_of(self, verdict: Verdict) -> Part | None:
        """The part that a verdict is about: nearest to its centred frame, and in the zone then. None: no part was."""
        if verdict["frame"] is None:
            return None
        index = verdict["frame"]["index"]
        nearest = min(self.parts, key=lambda part: abs(part.frame_centred - index))
        first, last = nearest.frames_in_zone
        return nearest if first <= index <= last else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How verdicts compare with the truth. `stray` verdicts are about no part, `repeated` about one that has one."""

    parts: int
    right: int
    missed: int
    false_rejects: int
    errors: int
    unjudged: int
    repeated: int
    stray: int
    latency_p50_ms: float | None
    latency_p99_ms: float | None

    @property
    def good_enough(self) -> bool:
        """Whether the demo shows what it promises: every part exactly one verdict, and 95 % of them right."""
        return not (self.unjudged or self.repeated or self.stray) and self.right >= RIGHT_SHARE * self.parts


def compare(truth: Truth, verdicts: Sequence[Verdict]) -> Score:
    """Holds verdicts, in their order, against the truth; of several on one part the first counts."""
    judged: dict[int, Verdict] = {}
    stray = repeated = 0
    for verdict in verdicts:
        part = truth.part_of(verdict)
        stray += part is None
        if part is not None:
            repeated += part.id in judged
            judged.setdefault(part.id, verdict)
    found = [(part, judged[part.id]) for part in truth.parts if part.id in judged]
    totals_ms = sorted(v["latency_ms"]["total"] for v in verdicts if v["latency_ms"]["total"] is not None)
    return Score(
        parts=len(truth.parts),
        right=sum(part.is_right(verdict) for part, verdict in found),
        missed=sum(part.bad and verdict["decision"] == "pass" for part, verdict in found),
        false_rejects=sum(not part.bad and verdict["decision"] == "fail" for part, verdict in found),
        errors=sum(verdict["decision"] == "error" for _, verdict in found),
        unjudged=len(truth.parts) - len(found),
        repeated=repeated,
        stray=stray,
        latency_p50_ms=_quantile(totals_ms, 0.5),
        latency_p99_ms=_quantile(totals_ms, 0.99),
    )


def read_truth(path: Path) -> Truth:
    """The ground truth that stands beside a rendered clip.

    Raises:
        ConfigError: it is missing or not a ground truth.
    """
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        xs, ys = zip(*written["zone_polygon_xy_px"], strict=True)
        parts = tuple(
            Part(
                id=part["id"],
                frame_centred=part["frame_centred"],
                frames_in_zone=tuple(part["frames_in_zone"]),
                defects=tuple(defect["kind"] for defect in part["defects"]),
            )
            for part in written["parts"]
        )
        return Truth(parts=parts, zone_xywh_px=(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a ground truth of a rendered clip: {error!r}") from error


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile of sorted values.

    >>> _quantile([1.0, 2.0, 3.0], 0.5), _quantile([], 0.5)
    (2.0, None)
    """
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
