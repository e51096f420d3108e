"""How far a precision moves the scores of given frames, and which decisions it would flip."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from inspectd.bench.findings import Drift
from inspectd.detect import measure
from inspectd.detect.judging import Scored


def drift_between(
    exact: Sequence[Scored],
    moved: Sequence[Scored],
    *,
    precision: str,
    names: Sequence[str],
    threshold: float | None = None,
) -> Drift:
    """How far the scores and maps of the same frames are apart; `threshold` None: the median of the exact scores."""
    scores, others = np.array([one.score for one in exact]), np.array([one.score for one in moved])
    if threshold is None:
        threshold = statistics.median(scores.tolist())
    moves, flips = np.abs(others - scores), (others >= threshold) != (scores >= threshold)
    maps = [(a.map, b.map) for a, b in zip(exact, moved, strict=True) if a.map is not None]
    return Drift(
        precision=precision,
        frames=len(exact),
        score_low=float(scores.min()),
        score_high=float(scores.max()),
        score_max=float(moves.max()),
        score_mean=float(moves.mean()),
        map_max=max((measure.largest_difference(*pair) for pair in maps), default=0.0),
        threshold=threshold,
        nearest=float(np.abs(scores - threshold).min()),
        flipped=tuple(name for name, flip in zip(names, flips, strict=True) if flip),
    )
