"""What is timed: all windows at each batch size, and every way to compute less. All run in turn, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from inspectd.bench.findings import Exactness, Timing
from inspectd.detect import measure
from inspectd.detect.gemm import Precision
from inspectd.detect.options import Mode
from inspectd.detect.winclip import Detector
from inspectd.records import PixelsU8

FULL = "all windows"
_LOCALISED_OF = 50
"""`localise_on_fail` is timed on so many frames, one of which fails: 2 %."""
_REGION_SHARE = 0.3
_CHANGED_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to score frames. `gflop` is that of one of its `frames`."""

    name: str
    precision: str
    frames: int
    gflop: float
    run: Callable[[], object]


def variants_of(detector: Detector, crops: Sequence[PixelsU8], batches: Sequence[int]) -> list[Variant]:
    """Zero-shot, a region and the image alone at every batch size, then reuse and `localise_on_fail`."""
    precision, whole = str(detector.tower.precision), measure.gflop(detector)
    image = measure.gflop(detector, windows=False)
    many = many_of(crops, _LOCALISED_OF)
    localising, image_only = detector.in_mode(Mode.LOCALISE_ON_FAIL), detector.in_mode(Mode.IMAGE_ONLY)
    for count in (1, _LOCALISED_OF - 1):
        localising.rehearse(many[:count])

    def variant(name: str, frames: int, gflop: float, run: Callable[[], object]) -> Variant:
        return Variant(name=name, precision=precision, frames=frames, gflop=gflop, run=run)

    def full(batch: int) -> Variant:
        given = many_of(crops, batch)
        detector.rehearse(given)
        return variant(FULL, batch, whole, lambda: detector.score(given))

    region, share = measure.region_of_share(detector, _REGION_SHARE)

    def part(batch: int) -> Variant:
        given, regions = many_of(crops, batch), [region] * batch
        detector.rehearse(given, regions=regions)
        cost = measure.gflop(detector, measure.window_counts(detector, region))
        return variant(f"region, {share:.0%} of windows", batch, cost, lambda: detector.score(given, regions=regions))

    def whole_image(batch: int) -> Variant:
        given = many_of(crops, batch)
        image_only.rehearse(given)
        return variant("image only", batch, image, lambda: image_only.score(given))

    found = [make(batch) for make in (full, part, whole_image) for batch in batches]
    if detector.tower.precision is not Precision.INT8:  # where a row's numbers depend on the rows beside it
        changing = measure.Changing(detector, _CHANGED_SHARE)
        cost = measure.gflop(detector, changing.counts)
        found.append(variant(f"reuse, {changing.changed:.0%} changed", 1, cost, changing.score))
    cost = image + whole / _LOCALISED_OF
    found.append(variant("localise on fail, 2 %", _LOCALISED_OF, cost, lambda: _localise_one(localising, many)))
    return found


def exactness_of(detector: Detector, crop: PixelsU8) -> Exactness:
    """What a region, reuse and `localise_on_fail` change of a frame's map and score."""
    whole = detector.score([crop])[0]
    region, _ = measure.region_of_share(detector, _REGION_SHARE)
    part = detector.score([crop], regions=[region])[0]
    localised = detector.in_mode(Mode.LOCALISE_ON_FAIL).score([crop], localise_from=2.0)[0]
    return Exactness(
        region_map=measure.largest_difference(_inside(part.map, region), _inside(whole.map, region)),
        reuse_map=measure.Changing(detector, _CHANGED_SHARE).error(),
        localise_score=abs(localised.score - whole.score),
    )


def _inside(grid_map: NDArray[np.float32] | None, region: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    return None if grid_map is None else grid_map[region]


def many_of(crops: Sequence[PixelsU8], count: int) -> list[PixelsU8]:
    """So many frames, the given ones again and again."""
    return [crops[at % len(crops)] for at in range(count)]


def _localise_one(detector: Detector, crops: list[PixelsU8]) -> None:
    """The first frame fails, all others pass; scores are not known before, so each is asked for with its own bar."""
    detector.score(crops[:1], localise_from=-1.0)
    detector.score(crops[1:], localise_from=2.0)


def timed(
    variants: Sequence[Variant],
    limits: dict[Precision, Callable[[], float]],
    rounds: int,
    progress: Callable[[str], None],
) -> tuple[Timing, ...]:
    """Runs all variants in turn, so that whatever else runs on the machine slows all of them alike."""
    times: dict[int, list[float]] = {index: [] for index in range(len(variants))}
    best: dict[Precision, list[float]] = {precision: [] for precision in limits}
    for turn in range(rounds + 1):
        progress(f"round {turn} of {rounds}" if turn else "warming up")
        for precision, probe in limits.items():
            best[precision].append(probe())
        for index, variant in enumerate(variants):
            start = perf_counter()
            variant.run()
            if turn:
                times[index].append((perf_counter() - start) / variant.frames * 1e3)
    full = {one.precision: times[index] for index, one in reversed(list(enumerate(variants))) if one.name == FULL}
    return tuple(
        _timing(one, times[index], best[Precision(one.precision)], statistics.median(full[one.precision]))
        for index, one in enumerate(variants)
    )


def _timing(variant: Variant, times_ms: list[float], limits_gflops: list[float], full_ms: float) -> Timing:
    p50_ms = statistics.median(times_ms)
    return Timing(
        name=variant.name,
        precision=variant.precision,
        batch=variant.frames,
        p50_ms=p50_ms,
        p99_ms=float(np.percentile(times_ms, 99)),
        gflop=variant.gflop,
        rate_gflops=variant.gflop / p50_ms * 1e3,
        limit_gflops=statistics.median(limits_gflops),
        against_full=full_ms / p50_ms,
    )
