"""The count of what was owed and what came: pure, from what the witness saw, the journal told and the clip spells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from faults_clip import Kind
from faults_witness import Seen

Objection = Callable[[Seen], str | None]
"""Why a `pass` is a silent one, None for one that is right."""
SCORE_TOLERANCE = 1e-3


@dataclass(slots=True)
class Tally:
    """Verdicts of one row of the table. `silent` explains each silent pass."""

    expected: int = 0
    missing: int = 0
    double: int = 0
    late: int = 0
    after_outage: int = 0
    silent: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    """Where journal and wire, or order and contract, differ."""
    reasons: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Tally) -> Self:
        self.expected += other.expected
        self.missing += other.missing
        self.double += other.double
        self.late += other.late
        self.after_outage += other.after_outage
        self.silent += other.silent
        self.contradictions += other.contradictions
        self.reasons += other.reasons
        return self

    @property
    def clean(self) -> bool:
        """Whether nothing is missing, double, silently passed or contradictory."""
        return not (self.missing or self.double or self.silent or self.contradictions)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopTruth:
    """A clip that plays again and again: the frame's index tells its number, the clip its kind.

    Args:
        kinds: by number.
        scores: what the model gives each frame where nothing is wrong, by number.
        excused: numbers that the model misjudges where nothing is wrong.
    """

    kinds: Sequence[Kind]
    scores: Mapping[int, float]
    excused: frozenset[int] = frozenset()

    def objection(self, seen: Seen) -> str | None:
        """A pass on a bad part, or by a score that is not that frame's own."""
        if seen.index is None or seen.score is None:
            return "a pass without a frame or a score"
        number = seen.index % len(self.kinds)
        if self.kinds[number] is Kind.BAD and number not in self.excused:
            return f"frame {seen.index} (number {number}) is bad"
        own = self.scores.get(number)
        if own is not None and abs(own - seen.score) > SCORE_TOLERANCE:
            return f"frame {seen.index} scores {seen.score}, its own score is {own}"
        return None


def tally(
    published: Sequence[Seen],
    journaled: Iterable[Seen],
    owed: Mapping[tuple[str, str], int],
    objection: Objection,
    *,
    silences: Sequence[tuple[float, float]] = (),
    answered: Mapping[tuple[str, str], int] | None = None,
) -> Tally:
    """Counts.

    Args:
        published: in the order in which they came.
        journaled: what `history` told.
        owed: the last accepted seq of each `(session, camera)`.
        objection: the ground truth.
        silences: when the witness heard no heartbeat.
        answered: the last seq of each `(session, camera)` that was counted before.
    """
    found = Tally()
    by_key: dict[tuple[str, str, int], Seen] = {}
    for seen in published:
        key = seen.session, seen.camera, seen.seq
        found.double += key in by_key
        by_key.setdefault(key, seen)
    found.contradictions += _disorder(published)
    for entry in journaled:
        seen = by_key.setdefault((entry.session, entry.camera, entry.seq), entry)
        if seen.digest != entry.digest:
            found.contradictions.append(f"{entry.camera} {entry.seq}: published and journaled differ")
    for (session, camera), last in owed.items():
        first = (answered or {}).get((session, camera), 0) + 1
        found.expected += last + 1 - first
        found.missing += sum((session, camera, seq) not in by_key for seq in range(first, last + 1))
    passed = [seen for seen in by_key.values() if seen.decision == "pass"]
    found.silent += [f"{s.camera} {s.seq}: {why}" for s in passed if (why := objection(s)) is not None]
    found.silent += _stale(by_key.values())
    arrivals = _arrivals(published)
    for seen in by_key.values():
        found.reasons[seen.reason] += 1
        if seen.at_s is None:
            in_outage = _spans_outage(seen, arrivals, silences)
            found.after_outage += in_outage
            found.missing += not in_outage  # it was never sent to one who listened all the while
        elif seen.deadline_ms is not None and seen.total_ms is not None and seen.total_ms > seen.deadline_ms:
            in_outage = any(seen.at_s - seen.total_ms / 1000 < to_s and from_s < seen.at_s for from_s, to_s in silences)
            found.after_outage += in_outage
            found.late += not in_outage
    return found


def _disorder(published: Sequence[Seen]) -> list[str]:
    """Where verdicts of one camera did not come in the order of their numbers."""
    last: dict[tuple[str, str], int] = {}
    wrong = []
    for seen in published:
        key = seen.session, seen.camera
        if seen.seq < last.get(key, 0):
            wrong.append(f"{seen.camera} {seen.seq} came after {last[key]}")
        last[key] = max(seen.seq, last.get(key, 0))
    return wrong


def _stale(verdicts: Iterable[Seen]) -> list[str]:
    """Passes on a frame that an earlier number had been given already; requests may share one."""
    newest: dict[tuple[str, str], int] = {}
    wrong = []
    for seen in sorted(verdicts, key=lambda s: (s.session, s.camera, s.seq)):
        if seen.index is None:
            continue
        key = seen.session, seen.camera
        last = newest.get(key, -1)
        if seen.decision == "pass" and (seen.index < last or (seen.index == last and seen.trigger_id is None)):
            wrong.append(f"{seen.camera} {seen.seq}: frame {seen.index} again, after {last}")
        newest[key] = max(last, seen.index)
    return wrong


def _arrivals(published: Sequence[Seen]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """When each number of a camera came."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for seen in published:
        if seen.at_s is not None:
            found.setdefault((seen.session, seen.camera), []).append((seen.seq, seen.at_s))
    return found


def _spans_outage(
    seen: Seen, arrivals: Mapping[tuple[str, str], list[tuple[int, float]]], silences: Sequence[tuple[float, float]]
) -> bool:
    """Whether the heartbeat was missing at some time between the arrivals of the verdicts before and after this one."""
    others = arrivals.get((seen.session, seen.camera), [])
    before_s = max((at_s for seq, at_s in others if seq < seen.seq), default=-math.inf)
    after_s = min((at_s for seq, at_s in others if seq > seen.seq), default=math.inf)
    return any(before_s < to_s and from_s < after_s for from_s, to_s in silences)
