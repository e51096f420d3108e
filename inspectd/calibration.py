"""From scores of good (and bad) parts to thresholds. Pure, but for `write_calibration`.

The image threshold keeps a promise that holds at any sample size, if later parts are like the good ones shown: among n
good scores the k-th smallest, k = ⌈(n + 1)(1 - r)⌉, is exceeded by a new good part with a chance of at most r (split
conformal prediction; Vovk et al. 2005, §2.3). It needs n ≥ 1/r - 1 good parts. Where bad parts are given and all of
them score above all good ones, the threshold moves up to the middle of the gap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import CalibrationError, ConfigError
from inspectd.quality import Look, fault, learn
from inspectd.recipe import Calibration, Recipe, calibration_path
from inspectd.records import FailOn, MapF32, ModelIdentity, PixelsU8, VoteRule
from inspectd.voting import voted_score

MARGIN = 1e-4
"""How far above a good score the threshold stands at least: what precision and batching may move a score by."""
PIXEL_SHARE = 0.005
"""The share of good pixels that may reach the pixel threshold, where regions do not decide."""
_SAMPLED_PX = 4096
_BATCH = 8


class Measured(Protocol):
    """One frame's scores before any threshold; `inspection.Measurement` is one."""

    @property
    def score(self) -> float: ...
    @property
    def finite(self) -> bool: ...
    @property
    def look(self) -> Look | None: ...
    @property
    def roi(self) -> NDArray[np.bool_] | None: ...
    def anomaly_map(self) -> MapF32 | None: ...


class MeasuresFrames(Protocol):
    """What calibration asks of an Inspector."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def identity(self) -> ModelIdentity: ...
    def measure_frames(self, frames_bgr: Sequence[PixelsU8]) -> Sequence[Measured]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What calibration needs of one part.

    `region_peak` is the pixel threshold above which the part surely has no region; `pixels (n,) float32` is an even
    sample of the map inside the region of interest. Both are empty (None, no pixels) for a detector without maps.
    `looks` is how its pictures look, where the recipe wants to know.
    """

    score: float
    region_peak: float | None
    pixels: MapF32
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The outcome. Rates are shares of the samples given, decided as the recipe decides.

    `escape_bound` is the upper end of the escape rate's 95 % interval (Wilson); `auroc` is of the image scores. All
    three are None without bad parts.
    """

    threshold: float
    pixel_threshold: float
    good: int
    bad: int
    false_reject_rate: float
    escape_rate: float | None
    escape_bound: float | None
    auroc: float | None


def calibrate(
    inspector: MeasuresFrames,
    good_bgr: Iterable[Sequence[PixelsU8]],
    bad_bgr: Iterable[Sequence[PixelsU8]],
    target_false_reject_rate: float,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Calibration, Thresholds]:
    """Measures good and bad parts, each by the frames that vote, `(H, W, 3) uint8` BGR, and sets the thresholds.

    Args:
        progress: called with the number of parts measured so far.

    Raises:
        CalibrationError: too few or contradictory samples, or scores that are not finite.
        SourceError: frames of a size that the recipe cannot look at.
    """
    recipe = inspector.recipe
    good = list(_samples(inspector, good_bgr, "good", progress))
    bad = list(_samples(inspector, bad_bgr, "bad", lambda done: progress(len(good) + done)))
    rule = recipe.decision
    found = thresholds(good, bad, target_false_reject_rate, rule.fail_on, pixel_threshold=rule.pixel_threshold)
    calibration = Calibration(
        threshold=found.threshold,
        pixel_threshold=found.pixel_threshold,
        model_sha256=inspector.identity.sha256,
        good=found.good,
        bad=found.bad,
        target_false_reject_rate=target_false_reject_rate,
        vote=recipe.vote,
        measured_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        quality=learn([look for sample in good for look in sample.looks]) if recipe.quality.learn else None,
    )
    return calibration, found


def thresholds(
    good: Sequence[Sample],
    bad: Sequence[Sample],
    target_false_reject_rate: float,
    fail_on: FailOn,
    *,
    pixel_threshold: float | None = None,
) -> Thresholds:
    """The thresholds for a false reject rate, by what the recipe lets fail a part; `either` gives each half the rate.

    Args:
        pixel_threshold: one that the recipe states, and that stays.

    Raises:
        CalibrationError: too few or contradictory samples.
    """
    if not 0 < target_false_reject_rate <= 0.5:
        raise CalibrationError(f"target false reject rate {target_false_reject_rate}: expected above 0, at most 0.5")
    rate = target_false_reject_rate / 2 if fail_on is FailOn.EITHER else target_false_reject_rate
    threshold = threshold_for([sample.score for sample in good], [sample.score for sample in bad], rate)
    if pixel_threshold is None:
        pixel_threshold = _pixel_threshold(good, bad, rate, fail_on)

    def fails(sample: Sample) -> bool:
        by_score = fail_on is not FailOn.REGIONS and sample.score >= threshold
        by_region = fail_on is not FailOn.SCORE and sample.region_peak is not None
        return by_score or (by_region and _peak(sample) >= pixel_threshold)

    escapes = sum(not fails(sample) for sample in bad)
    if bad and escapes == len(bad):
        raise CalibrationError(
            f"none of {len(bad)} bad parts reaches the threshold {threshold:.4f} that {len(good)} good ones need: "
            f"the model cannot tell them apart (add references, other object words, or a region)"
        )
    return Thresholds(
        threshold=threshold,
        pixel_threshold=pixel_threshold,
        good=len(good),
        bad=len(bad),
        false_reject_rate=sum(fails(sample) for sample in good) / len(good),
        escape_rate=escapes / len(bad) if bad else None,
        escape_bound=wilson_upper(escapes, len(bad)) if bad else None,
        auroc=auroc([sample.score for sample in good], [sample.score for sample in bad]) if bad else None,
    )


def threshold_for(good: Sequence[float], bad: Sequence[float], rate: float) -> float:
    """The least threshold that a new good part reaches with a chance of at most `rate`; in the middle of the gap where
    all bad values lie above all good ones.

    >>> threshold_for([0.1] * 18 + [0.2], [], 0.05), threshold_for([0.1] * 19, [0.5], 0.05)
    (0.2001, 0.30005)

    Raises:
        CalibrationError: too few good values, one that is not finite, or good values at the top of the scale.
    """
    if not all(map(math.isfinite, [*good, *bad])):
        raise CalibrationError("a score is not finite")
    count = len(good)
    rank = count + 1 - math.floor((count + 1) * rate + 1e-9)
    if rank > count:
        raise CalibrationError(
            f"{count} good samples are too few for a false reject rate of {rate:g}: at least {needed(rate)} are needed"
        )
    ordered = sorted(good)
    threshold, clear = ordered[rank - 1] + MARGIN, ordered[-1] + MARGIN
    if bad and min(bad) > clear:
        threshold = max(threshold, min(1.0, (clear + min(bad)) / 2))  # few_shot_map = "sum" scores bad parts above 1
    if threshold > 1:
        raise CalibrationError(f"good parts score up to {ordered[rank - 1]:.4f}: no threshold up to 1 lies above them")
    return round(threshold, 6)


def needed(rate: float) -> int:
    """How many good samples a false reject rate needs.

    >>> needed(0.05), needed(0.01)
    (19, 99)
    """
    return math.ceil(1 / rate - 1 - 1e-9)


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The chance that a bad part scores above a good one; ties count half.

    >>> auroc([0.1, 0.2], [0.2, 0.9])
    0.875
    """
    ordered = np.sort(np.asarray(good))
    below = np.searchsorted(ordered, bad, side="left") + np.searchsorted(ordered, bad, side="right")
    return float(below.mean() / 2 / len(ordered))


def wilson_upper(hits: int, count: int, z: float = 1.96) -> float:
    """The upper end of the interval for a rate of `hits` in `count` (Wilson 1927).

    >>> round(wilson_upper(0, 20), 3)
    0.161
    """
    share = hits / count
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return min(1.0, (share + z * z / (2 * count) + spread) / (1 + z * z / count))


def write_calibration(recipe: Recipe, calibration: Calibration) -> Path:
    """Writes `NAME.calibration.json` beside the recipe, whole or not at all.

    Raises:
        ConfigError: the recipe states a threshold of its own, or the folder cannot be written.
    """
    path = calibration_path(recipe.path)
    if recipe.decision.threshold is not None:
        raise ConfigError(f"{recipe.path}: decision.threshold: stands here; delete it to use {path.name}")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(calibration.model_dump(mode="json"), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def _samples(
    inspector: MeasuresFrames, parts_bgr: Iterable[Sequence[PixelsU8]], kind: str, progress: Callable[[int], None]
) -> Iterator[Sample]:
    parts, done, recipe = iter(parts_bgr), 0, inspector.recipe
    while batch := list(islice(parts, _BATCH)):
        measured = iter(inspector.measure_frames([frame for part in batch for frame in part]))
        for part in batch:
            done += 1
            own = [next(measured) for _ in part]
            if not all(frame.finite for frame in own):
                raise CalibrationError(f"{kind} sample {done}: its score is not finite")
            for frame in own:
                wrong = None if frame.look is None else fault(frame.look, recipe.quality)
                if wrong is not None:
                    message = f"{kind} sample {done}: {wrong} (beyond the recipe's [quality]); leave it out"
                    raise CalibrationError(message)
            yield voted([sample_of(frame, recipe) for frame in own], recipe.vote.rule)
        progress(done)


def voted(samples: Sequence[Sample], rule: VoteRule) -> Sample:
    """The frames of one part as one sample, by the rule of the recipe; `voting.vote` decides alike."""
    peaks = [sample.region_peak for sample in samples if sample.region_peak is not None]
    return Sample(
        score=voted_score([sample.score for sample in samples], rule),
        region_peak=voted_score(peaks, rule) if len(peaks) == len(samples) else None,
        pixels=np.concatenate([sample.pixels for sample in samples]),
        looks=tuple(look for sample in samples for look in sample.looks),
    )


def sample_of(measured: Measured, recipe: Recipe) -> Sample:
    """One measured frame as a sample.

    A region has at least `min_area_px` pixels: with the pixel threshold above the `min_area_px`-th largest there is
    none. Closing adds pixels, so with it the largest counts.
    """
    anomaly_map = measured.anomaly_map()
    looks = () if measured.look is None else (measured.look,)
    if anomaly_map is None:
        return Sample(score=measured.score, region_peak=None, pixels=np.empty(0, np.float32), looks=looks)
    inside = anomaly_map.ravel() if measured.roi is None else anomaly_map[measured.roi]
    area = 1 if recipe.filters.close_px > 1 else min(recipe.filters.min_area_px, inside.size)
    peak = float(np.partition(inside, inside.size - area)[inside.size - area])
    pixels = inside[:: max(1, inside.size // _SAMPLED_PX)].copy()
    return Sample(score=measured.score, region_peak=peak, pixels=pixels, looks=looks)


def _pixel_threshold(good: Sequence[Sample], bad: Sequence[Sample], rate: float, fail_on: FailOn) -> float:
    if any(sample.region_peak is None for sample in [*good, *bad]):
        if fail_on is not FailOn.SCORE:
            raise CalibrationError(f'decision.fail_on = "{fail_on}" needs anomaly maps, and the detector gives none')
        return 1.0
    if fail_on is not FailOn.SCORE:
        return threshold_for([_peak(sample) for sample in good], [_peak(sample) for sample in bad], rate)
    pixels = np.concatenate([sample.pixels for sample in good])
    return min(1.0, round(float(np.quantile(pixels, 1 - PIXEL_SHARE)) + MARGIN, 6))


def _peak(sample: Sample) -> float:
    return -math.inf if sample.region_peak is None else sample.region_peak
