"""`bench drift`: a recipe on the user's own frames, in fp32 against other precisions and reuse: what moves or flips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inspectd.bench.drift import drift_of
from inspectd.bench.findings import Drift
from inspectd.detect.build import build_detector, choose_device, choose_precision, precisions_of
from inspectd.detect.gemm import Precision
from inspectd.errors import ConfigError
from inspectd.evaluation.recordings import parts_of
from inspectd.inspection import Inspector, Moment
from inspectd.recipe import Recipe
from inspectd.records import Inspection, PixelsU8
from inspectd.sources.folders import image_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPlan:
    """What `bench drift` runs. `paths`: images, folders of images, videos, every frame of them."""

    recipe: Recipe
    paths: tuple[Path, ...]
    weights_dir: Path
    precisions: tuple[str, ...] = ()
    """Against fp32; none: all that the device has. With reuse in the recipe it is compared too, with its tolerance."""
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeDrift:
    """What `bench drift` found. `unscored`: frames without a score in fp32: not fit to judge, or not finite."""

    recipe: str
    device: str
    unscored: int
    drifts: tuple[Drift, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One way to inspect frames; with reuse, each as the one that follows the last."""

    name: str
    inspector: Inspector
    reuses: bool = False

    def inspect(self, pixels_bgr: PixelsU8, moment: Moment) -> Inspection:
        return self.inspector.inspect_crops([self.inspector.crop(pixels_bgr, moment if self.reuses else None)])[0]


@dataclass(slots=True)
class _Movement:
    """One way beside fp32 without reuse, frame by frame."""

    names: list[str] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    flipped: list[str] = field(default_factory=list)
    map_max: float = 0.0

    def add(self, name: str, score: float, exact: Inspection, moved: Inspection) -> None:
        self.names.append(name)
        self.exact.append(score)
        self.moved.append(np.nan if moved.score is None else moved.score)
        if moved.decision is not exact.decision:
            self.flipped.append(name)
        if exact.anomaly_map is not None and moved.anomaly_map is not None:
            self.map_max = max(self.map_max, float(np.abs(exact.anomaly_map - moved.anomaly_map).max()))


def bench_drift(plan: DriftPlan, progress: Callable[[str], None] = lambda _: None) -> RecipeDrift:
    """Inspects every frame in fp32 and in each precision, as the daemon would by itself, and with reuse in fp32.

    Raises:
        ConfigError: a precision that the device has not, a recipe without thresholds, no frame to judge.
        SourceError: frames that cannot be read or are not of the recipe's size.
    """
    device = choose_device(plan.device)
    precisions = [choose_precision(name, device) for name in plan.precisions or _possible(plan, precisions_of(device))]
    exactly, *ways = _ways(plan, precisions, progress)
    movements = {way.name: _Movement() for way in ways}
    unscored = 0
    for name, pixels_bgr, moment in _frames(plan.paths, plan.recipe):
        progress(name)
        exact = exactly.inspect(pixels_bgr, moment)
        if exact.score is None:
            unscored += 1
            continue
        for way in ways:
            movements[way.name].add(name, exact.score, exact, way.inspect(pixels_bgr, moment))
    if not all(movement.names for movement in movements.values()):
        raise ConfigError(
            f"{plan.paths[0]}: none of the {unscored} frames has a score in fp32; `inspectd replay` says why"
        )
    drifts = tuple(_drift(name, movement, plan.recipe.threshold) for name, movement in movements.items())
    return RecipeDrift(recipe=plan.recipe.name, device=str(device), unscored=unscored, drifts=drifts)


def _possible(plan: DriftPlan, precisions: Iterable[Precision]) -> list[Precision]:
    """What the recipe allows of a device's precisions."""
    return [one for one in precisions if not (plan.recipe.detector.reuse and one is Precision.INT8)]


def _ways(plan: DriftPlan, precisions: Iterable[Precision], progress: Callable[[str], None]) -> list[_Way]:
    """fp32, then what is compared with it."""
    detector = plan.recipe.detector
    others = [one for one in dict.fromkeys(precisions) if one is not Precision.FP32]
    if not others and not detector.reuse:
        raise ConfigError(f"precision {Precision.FP32}: it is what others are compared with; name another")
    ways = []
    for precision in (Precision.FP32, *others):
        progress(f"building the model in {precision}")
        ways.append(_Way(name=precision, inspector=_inspector(plan, precision)))
    if detector.reuse:
        name = f"fp32 with reuse, tolerance {detector.reuse_tolerance_levels}"
        ways.append(_Way(name=name, inspector=_inspector(plan, Precision.FP32), reuses=True))
    return ways


def _inspector(plan: DriftPlan, precision: Precision) -> Inspector:
    detector = build_detector(
        plan.recipe, weights_dir=plan.weights_dir, device=plan.device, precision=precision, threads=plan.threads
    )
    return Inspector(plan.recipe, detector, keep_maps=True)


def _drift(name: str, movement: _Movement, threshold: float) -> Drift:
    return drift_of(
        name,
        np.array(movement.exact),
        np.array(movement.moved),
        map_max=movement.map_max,
        threshold=threshold,
        flipped=movement.flipped,
    )


def _frames(paths: Sequence[Path], recipe: Recipe) -> Iterator[tuple[str, PixelsU8, Moment]]:
    """The name of each frame, its pixels, and its place in its recording."""
    for path in paths:
        names = [each.name for each in image_paths(path)] if path.is_dir() else []
        for frames in parts_of(path, recipe):
            for frame in frames:
                name = names[frame.index] if names else f"{path.name}[{frame.index}]"
                yield name, frame.pixels_bgr, Moment(camera=str(path), generation=0, seq=frame.index)
