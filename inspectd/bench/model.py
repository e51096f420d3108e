"""`bench model`: the detector on random weights: what a frame costs in every way there is to compute it."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from inspectd.bench.drift import drift_between
from inspectd.bench.findings import Bank, Drift, ModelBench, ModelPlan
from inspectd.bench.processes import memory_mb
from inspectd.bench.variants import exactness_of, many_of, timed, variants_of
from inspectd.detect import measure
from inspectd.detect.architecture import Architecture, read_architecture
from inspectd.detect.build import choose_device, choose_precision, set_threads
from inspectd.detect.gemm import Precision
from inspectd.detect.options import WinclipConfig
from inspectd.detect.winclip import Detector
from inspectd.errors import ConfigError
from inspectd.images import bgr_to_rgb, encode_label_png, read_image_bgr
from inspectd.recipe import Filters
from inspectd.records import PixelsU8
from inspectd.regions import find_regions
from inspectd.sources.folders import image_paths
from inspectd.viewport import upsample

_TEXT_FROM = 4
"""Frames from which the text of the drift report is made: such that their scores spread."""


def bench_model(plan: ModelPlan, progress: Callable[[str], None] = lambda _: None) -> ModelBench:
    """Measures the detector on random weights: times, shares, stages, drift, memory.

    Raises:
        ConfigError: a backbone, device, precision or image that cannot be had.
    """
    architecture, device = read_architecture(plan.backbone, plan.config), choose_device(plan.device)
    threads = set_threads(plan.threads)
    precisions = tuple(dict.fromkeys(choose_precision(name, device) for name in plan.precisions))
    names, crops = _crops(plan, architecture)
    before = os.getloadavg()[0]
    detectors: dict[Precision, Detector] = {}
    resident_mb, gpu_mb = 0.0, None
    for precision in precisions:
        progress(f"building {architecture.name} in {precision}")
        config = WinclipConfig(scales=plan.scales)
        detectors[precision] = measure.random_detector(architecture, config, device=device, precision=precision)
        detectors[precision].score(crops[:1])
        resident_mb = resident_mb or memory_mb()
        gpu_mb = gpu_mb or _gpu_memory_mb(detectors[precision], crops, plan.batches)
    limits = {precision: measure.matrix_rate(precision, device) for precision in precisions}
    variants = [one for precision in precisions for one in variants_of(detectors[precision], crops, plan.batches)]
    timings = timed(variants, limits, plan.rounds, progress)
    progress("measuring stages, references and text")
    first = detectors[precisions[0]]
    with tempfile.TemporaryDirectory() as folder:
        cold_s, warm_s = measure.text_times_s(architecture, Path(folder), device)
    if plan.trace is not None:
        _trace(first, crops, plan.trace)
    stages = _stages_ms(first, plan.frame_size_wh_px)
    exact = detectors.get(Precision.FP32)
    drifts: tuple[Drift, ...] = ()
    if plan.images:
        exact = exact or measure.random_detector(architecture, first.config, device=device, precision=Precision.FP32)
        drifts = _drifts(exact, detectors, (names, crops), plan.threshold, progress)
    return ModelBench(
        backbone=architecture.name,
        device=str(device),
        machine=_machine(),
        versions=measure.versions(device),
        threads=threads,
        rounds=plan.rounds,
        timings=timings,
        exactness=exactness_of(first, crops[0]),
        drifts=drifts,
        stages_ms=stages,
        banks=_banks(first, crops[0], plan.banks),
        text_cold_s=cold_s,
        text_warm_s=warm_s,
        memory_mb=resident_mb,
        gpu_memory_mb=gpu_mb,
        load_average=(before, os.getloadavg()[0]),
    )


def _gpu_memory_mb(detector: Detector, crops: Sequence[PixelsU8], batches: Sequence[int]) -> float | None:
    """What a worker with this detector alone takes of a GPU, its recordings included, at the largest batch."""
    if detector.device.type == "cpu":
        return None
    for batch in sorted(batches):
        given = many_of(crops, batch)
        detector.rehearse(given)
        detector.score(given)
    return measure.gpu_memory_mb(detector.device)


def _crops(plan: ModelPlan, architecture: Architecture) -> tuple[list[str], list[PixelsU8]]:
    """Frames and their names: of files and of folders, or noise of the model's size."""
    if plan.images:
        paths = [path for given in plan.images for path in (image_paths(given) if given.is_dir() else [given])]
        return [path.name for path in paths], [bgr_to_rgb(read_image_bgr(path)) for path in paths]
    random = np.random.default_rng(0)
    size, count = (*architecture.vision.image_hw_px, 3), max(plan.batches)
    return ["noise"] * count, [random.integers(0, 256, size, dtype=np.uint8) for _ in range(count)]


def _stages_ms(detector: Detector, size_wh_px: tuple[int, int]) -> dict[str, float]:
    """The parts of a whole frame's time, from its pixels to its regions and their mask, in ms."""
    width, height = size_wh_px
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = measure.stage_times_ms(detector, [frame])
    grid = np.full(detector.grid_hw, 0.1, np.float32)
    grid[tuple(side // 3 for side in grid.shape)] = 0.9
    found["upsample"] = _best_ms(lambda: upsample(grid, (height, width)))
    whole = upsample(grid, (height, width))
    found["regions"] = _best_ms(lambda: find_regions(whole, None, 0.5, Filters()))
    mask = find_regions(whole, None, 0.5, Filters()).mask
    if mask is not None:
        found["mask"] = _best_ms(lambda: encode_label_png(mask.labels))
    return found


def _best_ms(step: Callable[[], object], repeats: int = 3) -> float:
    return min(_once_ms(step) for _ in range(repeats))


def _once_ms(step: Callable[[], object]) -> float:
    start = perf_counter()
    step()
    return (perf_counter() - start) * 1e3


def _drifts(
    exact: Detector,
    detectors: dict[Precision, Detector],
    frames: tuple[Sequence[str], Sequence[PixelsU8]],
    threshold: float | None,
    progress: Callable[[str], None],
) -> tuple[Drift, ...]:
    """Every precision against fp32, under a text by which scores spread."""
    names, crops = frames
    text = measure.spread(exact, crops[:_TEXT_FROM])
    progress(f"scoring {len(crops)} frames in fp32")
    reference = measure.told(exact, text).score(crops)
    found = []
    for precision, detector in detectors.items():
        if precision is Precision.FP32:
            continue
        progress(f"scoring {len(crops)} frames in {precision}")
        moved = measure.told(detector, text).score(crops)
        found.append(drift_between(reference, moved, precision=precision, names=names, threshold=threshold))
    return tuple(found)


def _banks(detector: Detector, crop: PixelsU8, counts: Sequence[int]) -> tuple[Bank, ...]:
    """How cost and memory grow with the number of references."""
    found = []
    for count in counts:
        megabytes = measure.random_references(detector, count)
        found.append(Bank(references=count, megabytes=megabytes, frame_ms=_best_ms(lambda: detector.score([crop]))))
    detector.enroll([])
    return tuple(found)


def _trace(detector: Detector, crops: Sequence[PixelsU8], path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    measure.trace(detector, crops[:1], path)


def _machine() -> str:
    """The processor as the kernel names it, and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
