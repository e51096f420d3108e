"""The figures of `status` (contract §5): what was decided, how fast, how late, and by which processes. Pure but for
the processes' memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from inspectd.records import Verdict
    from inspectd.transport.tickets import ChildView

REMEMBERED = 512
LOOK_NS = 1_000_000_000
LOOKS = 10
"""Rates are of so many seconds."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Tally:
    """What is counted of one camera.

    Attributes:
        after_seq: the last number that another publisher answered: its decisions are not counted here.
    """

    after_seq: int
    totals_ms: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    decisions: dict[str, int] = field(default_factory=lambda: {"pass": 0, "fail": 0, "error": 0})
    looks: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=LOOKS))

    def count(self, verdict: Verdict) -> None:
        """Takes a verdict in."""
        self.decisions[verdict.decision] += 1
        if verdict.latency_ms.total is not None:
            self.totals_ms.append(verdict.latency_ms.total)

    def look(self, now_ns: int, frames: int, verdicts: int) -> None:
        """Remembers once a second how many frames were read and verdicts given."""
        if not self.looks or now_ns - self.looks[-1][0] >= LOOK_NS:
            self.looks.append((now_ns, frames, verdicts))

    def rates(self, now_ns: int, frames: int, verdicts: int) -> dict[str, float | None]:
        """Frames and verdicts a second, over the last seconds; None before there is one.

        >>> tally = Tally(after_seq=0)
        >>> tally.look(0, 100, 4)
        >>> tally.rates(2_000_000_000, 150, 7)
        {'frames': 25.0, 'verdicts': 1.5}
        """
        then_ns, *before = self.looks[0] if self.looks else (now_ns, frames, verdicts)
        spent_s = (now_ns - then_ns) / 1e9
        counts = zip(("frames", "verdicts"), (frames, verdicts), before, strict=True)
        return {name: round((now - then) / spent_s, 2) if spent_s >= 1 else None for name, now, then in counts}


def process_figures(child: ChildView, now_ns: int) -> dict[str, Any]:
    """What is said of a process."""
    return {
        "name": child.name,
        "pid": child.pid,
        "restarts": child.restarts,
        "beat_age_ms": round((now_ns - child.beat_ns) / 1e6, 1) if child.beat_ns else None,
        "memory_mb": _memory_mb(child.pid),
    }


def resident_bytes(pid: int | Literal["self"] = "self") -> int:
    """The memory of a process.

    Raises:
        OSError: it has gone.
    """
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def _memory_mb(pid: int) -> float | None:
    try:
        return round(resident_bytes(pid) / 1e6, 1)
    except (OSError, IndexError, ValueError):
        return None


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """The median, the 99th percentile and the largest, by nearest rank; None of no values.

    >>> quantiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p99': 3.0, 'most': 3.0}
    """
    ordered = sorted(values)
    ranks = {"p50": 0.5, "p99": 0.99, "most": 1.0}.items()
    last = len(ordered) - 1
    return {name: round(ordered[min(last, int(rank * len(ordered)))], 3) if ordered else None for name, rank in ranks}
