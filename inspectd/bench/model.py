"""Benchmarks on the machine at hand: variants run in turn, so that whatever else runs there slows all of them alike."""

from __future__ import annotations

import json
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from inspectd.detect import measure
from inspectd.detect.architecture import Architecture, read_architecture
from inspectd.detect.build import choose_device, choose_precision, set_threads
from inspectd.detect.gemm import Precision
from inspectd.detect.winclip import Detector, Mode, Scored, WinclipConfig
from inspectd.errors import ConfigError
from inspectd.images import bgr_to_rgb, read_image_bgr
from inspectd.records import PixelsU8

_LOCALISED_OF = 50
"""`localise_on_fail` is timed on so many frames, one of which fails: 2 %."""
_BANKS = (1, 4, 32, 128)
_REGION_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One variant: medians over the rounds, of the time of one frame."""

    name: str
    precision: str
    batch: int
    p50_ms: float
    p99_ms: float
    gflop: float
    rate_gflops: float
    limit_gflops: float
    """The machine's best product of that precision, measured in the same rounds."""

    @property
    def frames_per_s(self) -> float:
        """How many frames a second the median is."""
        return 1e3 / self.p50_ms

    @property
    def share(self) -> float:
        """The share of the machine's own matrix rate, end to end."""
        return self.rate_gflops / self.limit_gflops


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far a precision moves scores from fp32 on the given frames, and whose side of the threshold changes."""

    precision: str
    frames: int
    score_max: float
    map_max: float
    threshold: float
    flipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """What references cost: memory of the bank, and the time that a frame takes with it."""

    references: int
    megabytes: float
    frame_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBench:
    """All that `bench model` found."""

    backbone: str
    device: str
    threads: int
    load_average: tuple[float, float]
    """Of the last minute, before and after: what else ran meanwhile."""
    rounds: int
    timings: tuple[Timing, ...]
    drifts: tuple[Drift, ...]
    banks: tuple[Bank, ...]
    stages_ms: dict[str, float]
    text_cold_s: float
    text_warm_s: float
    memory_mb: float
    """Resident memory after the first variant's build and first frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What `bench model` runs."""

    backbone: str = "ViT-B-16-plus-240"
    config: Path | None = None
    scales: tuple[int, ...] = (2, 3)
    device: str = "auto"
    threads: int | None = None
    precisions: tuple[str, ...] = ("auto",)
    batches: tuple[int, ...] = (1,)
    rounds: int = 5
    images: tuple[Path, ...] = ()
    """Frames to score; without any, noise."""
    threshold: float | None = None
    """Where decisions flip; default: the median score."""
    trace: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    name: str
    precision: str
    batch: int
    frames: int
    gflop: float
    run: Callable[[], object]


def bench_model(plan: ModelPlan, progress: Callable[[str], None] = lambda _: None) -> ModelBench:
    """Measures the detector on random weights: times, shares, drift, memory.

    Raises:
        ConfigError: a backbone, device, precision or image that cannot be had.
    """
    architecture, device = read_architecture(plan.backbone, plan.config), choose_device(plan.device)
    threads = set_threads(plan.threads)
    precisions = tuple(dict.fromkeys(choose_precision(name, device) for name in plan.precisions))
    crops = _crops(plan, architecture)
    before = os.getloadavg()[0]
    detectors: dict[Precision, Detector] = {}
    memory_mb = 0.0
    for precision in precisions:
        progress(f"building {architecture.name} in {precision}")
        config = WinclipConfig(scales=plan.scales)
        detectors[precision] = measure.random_detector(architecture, config, device=device, precision=precision)
        detectors[precision].score(crops[:1])
        memory_mb = memory_mb or _resident_mb()
    limits = {precision: measure.matrix_rate(precision, device) for precision in precisions}
    variants = [one for precision in precisions for one in _variants(detectors[precision], crops, plan)]
    timings = _rounds(variants, limits, plan.rounds, progress)
    progress("measuring drift, references and text")
    first = detectors[precisions[0]]
    with tempfile.TemporaryDirectory() as folder:
        cold_s, warm_s = measure.text_times_s(architecture, Path(folder), device)
    if plan.trace is not None:
        measure.trace(first, crops[:1], plan.trace)
    return ModelBench(
        backbone=architecture.name,
        device=str(device),
        threads=threads,
        rounds=plan.rounds,
        timings=timings,
        drifts=_drifts(architecture, detectors, crops, plan) if plan.images else (),
        stages_ms=measure.stage_times_ms(first, crops[:1]),
        banks=_banks(first, crops[0]),
        text_cold_s=cold_s,
        text_warm_s=warm_s,
        memory_mb=memory_mb,
        load_average=(before, os.getloadavg()[0]),
    )


def _crops(plan: ModelPlan, architecture: Architecture) -> list[PixelsU8]:
    if plan.images:
        return [bgr_to_rgb(read_image_bgr(path)) for path in plan.images]
    random = np.random.default_rng(0)
    size = (*architecture.vision.image_hw_px, 3)
    return [random.integers(0, 256, size, dtype=np.uint8) for _ in range(max(plan.batches))]


def _variants(detector: Detector, crops: Sequence[PixelsU8], plan: ModelPlan) -> list[_Variant]:
    """Zero-shot at every batch size, then what costs less: a region, the image alone, `localise_on_fail`."""
    precision, whole = str(detector.tower.precision), measure.gflop(detector)
    image = measure.gflop(detector, windows=False)
    region, share = measure.region_of_share(detector, _REGION_SHARE)
    one = [crops[0]]
    variants = [
        _variant("full", precision, [crops[at % len(crops)] for at in range(batch)], whole, detector.score)
        for batch in plan.batches
    ]
    masked = _with_region(detector, region)
    name = f"region, {share:.0%} of windows"
    variants.append(_variant(name, precision, one, measure.gflop(detector, region), masked))
    variants.append(_variant("image only", precision, one, image, detector.in_mode(Mode.IMAGE_ONLY).score))
    localising = detector.in_mode(Mode.LOCALISE_ON_FAIL)
    many = [crops[at % len(crops)] for at in range(_LOCALISED_OF)]
    average = image + whole / _LOCALISED_OF
    variants.append(
        _variant("localise on fail, 2 %", precision, many, average, lambda batch: _localise_one(localising, batch))
    )
    return variants


def _variant(
    name: str, precision: str, crops: list[PixelsU8], gflop: float, score: Callable[[list[PixelsU8]], object]
) -> _Variant:
    return _Variant(
        name=name,
        precision=precision,
        batch=len(crops),
        frames=len(crops),
        gflop=gflop,
        run=lambda: score(crops),
    )


def _with_region(detector: Detector, region: NDArray[np.bool_]) -> Callable[[list[PixelsU8]], object]:
    return lambda crops: detector.score(crops, regions=[region] * len(crops))


def _localise_one(detector: Detector, crops: list[PixelsU8]) -> None:
    """The first frame fails, all others pass; scores are not known before, so each is asked for with its own bar."""
    detector.score(crops[:1], localise_from=-1.0)
    detector.score(crops[1:], localise_from=2.0)


def _rounds(
    variants: Sequence[_Variant],
    limits: dict[Precision, Callable[[], float]],
    rounds: int,
    progress: Callable[[str], None],
) -> tuple[Timing, ...]:
    times: dict[int, list[float]] = {index: [] for index in range(len(variants))}
    best: dict[Precision, list[float]] = {precision: [] for precision in limits}
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}")
        for precision, probe in limits.items():
            best[precision].append(probe())
        for index, variant in enumerate(variants):
            start = perf_counter()
            variant.run()
            times[index].append((perf_counter() - start) / variant.frames * 1e3)
    return tuple(
        _timing(variant, times[index], statistics.median(best[Precision(variant.precision)]))
        for index, variant in enumerate(variants)
    )


def _timing(variant: _Variant, times_ms: list[float], limit_gflops: float) -> Timing:
    p50_ms = statistics.median(times_ms)
    return Timing(
        name=variant.name,
        precision=variant.precision,
        batch=variant.batch,
        p50_ms=p50_ms,
        p99_ms=float(np.percentile(times_ms, 99)),
        gflop=variant.gflop,
        rate_gflops=variant.gflop / p50_ms * 1e3,
        limit_gflops=limit_gflops,
    )


def _drifts(
    architecture: Architecture, detectors: dict[Precision, Detector], crops: Sequence[PixelsU8], plan: ModelPlan
) -> tuple[Drift, ...]:
    """Every precision against fp32, which is built if it was not asked for."""
    known = next(iter(detectors.values()))
    exact = detectors.get(Precision.FP32) or measure.random_detector(
        architecture, known.config, device=known.device, precision=Precision.FP32
    )
    reference = exact.score(crops)
    median = statistics.median(one.score for one in reference)
    threshold = median if plan.threshold is None else plan.threshold
    return tuple(
        drift_between(reference, detector.score(crops), precision=precision, threshold=threshold)
        for precision, detector in detectors.items()
    )


def drift_between(exact: Sequence[Scored], moved: Sequence[Scored], *, precision: str, threshold: float) -> Drift:
    """How far the scores and maps of the same frames are apart."""
    scores, others = np.array([one.score for one in exact]), np.array([one.score for one in moved])
    maps = [(a.map, b.map) for a, b in zip(exact, moved, strict=True)]
    return Drift(
        precision=precision,
        frames=len(exact),
        score_max=float(np.abs(others - scores).max()),
        map_max=max((float(np.abs(a - b).max()) for a, b in maps if a is not None and b is not None), default=0.0),
        threshold=threshold,
        flipped=int(((others >= threshold) != (scores >= threshold)).sum()),
    )


def _banks(detector: Detector, crop: PixelsU8) -> tuple[Bank, ...]:
    """How cost and memory grow with the number of references."""
    found = []
    for count in _BANKS:
        megabytes = measure.random_references(detector, count)
        start = perf_counter()
        detector.score([crop])
        found.append(Bank(references=count, megabytes=megabytes, frame_ms=(perf_counter() - start) * 1e3))
    detector.enroll([])
    return tuple(found)


def _resident_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def as_json(found: ModelBench) -> str:
    """The findings as one JSON object, rates and shares included."""
    record = asdict(found)
    for row, timing in zip(record["timings"], found.timings, strict=True):
        row |= {"frames_per_s": timing.frames_per_s, "share": timing.share}
    return json.dumps(record, indent=1)


def write_json(found: ModelBench, path: Path) -> None:
    """Writes `as_json`.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_text(as_json(found) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def show(found: ModelBench, console: Console) -> None:
    """Prints the findings as tables."""
    before, after = found.load_average
    console.print(
        f"{found.backbone} on random weights, {found.device}, {found.threads} threads, {found.rounds} interleaved "
        f"rounds, load average {before:.1f} -> {after:.1f}"
    )
    console.print(_timing_table(found.timings))
    for drift in found.drifts:
        console.print(
            f"{drift.precision} against fp32 on {drift.frames} frames: scores move by at most {drift.score_max:.1e}, "
            f"maps by {drift.map_max:.1e}; {drift.flipped} decisions flip at {drift.threshold:.4f}"
        )
    stages = ", ".join(f"{name} {spent:.1f}" for name, spent in found.stages_ms.items())
    console.print(f"one frame in ms: {stages}")
    for bank in found.banks:
        console.print(f"{bank.references} references: {bank.megabytes:.1f} MB, {bank.frame_ms:.0f} ms a frame")
    console.print(
        f"text embeddings: cold {found.text_cold_s:.2f} s, warm {found.text_warm_s * 1e3:.1f} ms; "
        f"resident memory {found.memory_mb:.0f} MB"
    )


def _timing_table(timings: Sequence[Timing]) -> Table:
    table = Table("variant", "precision", "batch", "p50 ms", "p99 ms", "frames/s", "GFLOP", "GFLOP/s", "of limit")
    for column in table.columns[2:]:
        column.justify = "right"
    for one in timings:
        table.add_row(
            one.name,
            one.precision,
            str(one.batch),
            f"{one.p50_ms:.1f}",
            f"{one.p99_ms:.1f}",
            f"{one.frames_per_s:.2f}",
            f"{one.gflop:.1f}",
            f"{one.rate_gflops:.0f}",
            f"{one.share:.0%}",
        )
    return table
