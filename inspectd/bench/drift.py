"""How far a precision moves the scores of given frames, and which decisions it would flip."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
    """How far the scores and maps of the same frames are apart; `threshold` None: amid the exact scores."""
    scores, others = np.array([one.score for one in exact]), np.array([one.score for one in moved])
    if threshold is None:
        threshold = _amid(scores)
    flips = ((others >= threshold) != (scores >= threshold)) | (np.isfinite(others) != np.isfinite(scores))
    maps = [(a.map, b.map) for a, b in zip(exact, moved, strict=True) if a.map is not None]
    return drift_of(
        precision,
        scores,
        others,
        map_max=max((measure.largest_difference(*pair) for pair in maps), default=0.0),
        threshold=threshold,
        flipped=[name for name, flip in zip(names, flips, strict=True) if flip],
    )


def _amid(scores: NDArray[np.float64]) -> float:
    """A threshold between the two middle scores: one that is itself a frame's score flips for nothing.

    >>> _amid(np.array([0.9, 0.2, 0.1]))
    0.55
    """
    ordered = sorted(scores.tolist())
    return float(statistics.mean(ordered[(len(ordered) - 1) // 2 :][:2]))


def drift_of(
    precision: str,
    scores: NDArray[np.float64],
    others: NDArray[np.float64],
    *,
    map_max: float,
    threshold: float,
    flipped: Sequence[str],
) -> Drift:
    """The finding of scores `(N,)` in fp32 and in another precision; NaN where that precision has none."""
    moves, distances = np.abs(others - scores), np.abs(scores - threshold)
    finite = moves[np.isfinite(moves)]
    score_max = float(finite.max(initial=0.0))
    return Drift(
        precision=precision,
        frames=len(scores),
        score_low=float(scores.min()),
        score_high=float(scores.max()),
        score_max=score_max,
        score_mean=float(finite.mean()) if len(finite) else 0.0,
        map_max=map_max,
        threshold=threshold,
        nearest=float(distances.min()),
        within_reach=int((distances <= score_max).sum()),
        not_finite=len(moves) - len(finite),
        flipped=tuple(flipped),
    )
