"""What a benchmark needs of the detector: random weights, the machine's own limits, and the parts of a frame's time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inspectd.detect.architecture import Architecture
from inspectd.detect.cache import EmbeddingCache
from inspectd.detect.clip import Beat, TextTower, VisionTower, products_in
from inspectd.detect.cost import gflop_per_frame
from inspectd.detect.gemm import COMPUTE_DTYPE, Precision, linear
from inspectd.detect.identity import Facts
from inspectd.detect.options import Mode, WinclipConfig
from inspectd.detect.preprocess import prepare
from inspectd.detect.prompts import compose
from inspectd.detect.reuse import ReuseRule, WindowMemory
from inspectd.detect.scoring import References
from inspectd.detect.text import TextAverage, embed_prompts
from inspectd.detect.winclip import Detector
from inspectd.detect.windows import covering, with_ring

_RATE_SHAPES = {"cpu": (1024, 2048, 2048), "cuda": (8192, 8192, 8192)}
"""Rows, inputs and outputs of the product by which a device's limit is measured. A GPU does the CPU's in the time that
its launch takes, and the share of such a limit would flatter."""

_CALLS = 3


class RandomWeights:
    """Weights that no training has seen: the same times as real ones, and scores that mean nothing."""

    def __init__(self, seed: int = 0) -> None:
        self._random = torch.Generator().manual_seed(seed)

    def take(self, name: str, *shape: int) -> Tensor:
        """A draw of the size that training begins with."""
        noise = torch.randn(shape, generator=self._random)
        if len(shape) > 1:
            return noise.mul_(float(shape[-1]) ** -0.5)
        return noise.mul_(0.02).add_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)

    def require_all_taken(self, prefix: str) -> None:
        """Nothing is left over of what is drawn as it is asked for."""


def random_detector(
    architecture: Architecture,
    config: WinclipConfig,
    *,
    device: torch.device,
    precision: Precision,
    beat: Beat = lambda: None,
) -> Detector:
    """A detector on random weights and random text, the same at each call."""
    tower = VisionTower(RandomWeights(), architecture.vision, device=device, precision=precision)
    text = torch.randn(2, architecture.vision.embedding, generator=torch.Generator().manual_seed(1))
    facts = _random_facts(architecture.name, precision, config)
    return Detector(tower, text, config, facts=facts, beat=beat)


def _random_facts(backbone: str, precision: Precision, config: WinclipConfig) -> Facts:
    return Facts(
        detector="winclip",
        backbone=backbone,
        weights_sha256="random",
        precision=precision,
        architecture={},
        config=asdict(config),
        prompts={},
        view={},
    )


def spreading_text(groups: Sequence[Tensor], temperature: float) -> Tensor:
    """A pair of text directions `(2, E)` under which the rows `(R, E)` of each group score all over (0, 1).

    What random weights see hardly differs, and under random prompts every score is a half: nothing to compare. The pair
    lies on both sides of the rows' mean, along the direction in which the rows of one group (the images, the windows of
    one scale) differ most, so far apart that the softmax of step 6 has logits of standard deviation 1.
    """
    unit = [functional.normalize(rows.float(), dim=-1) for rows in groups]
    means = torch.stack([rows.mean(dim=0) for rows in unit])
    within = torch.cat([rows - rows.mean(dim=0) for rows in unit])
    basis = torch.linalg.qr(means.T).Q  # between groups nothing shall differ
    within = within - within @ basis @ basis.T
    direction = torch.linalg.svd(within, full_matrices=False).Vh[0]
    share = min(0.99, temperature / (2 * float((within @ direction).std())))
    middle = functional.normalize(means.mean(dim=0), dim=-1) * (1 - share**2) ** 0.5
    return torch.stack([middle - share * direction, middle + share * direction])


def spread(detector: Detector, crops_rgb: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Text under which the scores of these crops spread (`spreading_text`)."""
    with torch.inference_mode():
        pixels = prepare(crops_rgb, detector.shape, detector.config.resize, detector.device)
        features = detector.features(pixels)
        return spreading_text([features.image, *features.windows], detector.config.temperature)


def told(detector: Detector, text: Tensor) -> Detector:
    """The same zero-shot detector, on the same tower, with another text `(2, E)`."""
    return Detector(detector.tower, text, detector.config, facts=_facts(detector))


def _facts(detector: Detector) -> Facts:
    return _random_facts(detector.identity.backbone, detector.tower.precision, detector.config)


def versions(device: torch.device) -> str:
    """What a figure depends on beside the machine: torch, what its CPU kernels use, and the GPU's name."""
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}{gpu}"


def gpu_memory_mb(device: torch.device) -> float | None:
    """The most that torch has taken of a GPU's memory (the driver's own context is besides); None for a CPU."""
    return None if device.type != "cuda" else torch.cuda.max_memory_reserved(device) / 1e6


def random_references(detector: Detector, count: int) -> float:
    """Gives the detector the bank of so many random references; returns its size in MB."""
    shape = detector.shape

    def unit(rows: int, width: int) -> Tensor:
        return functional.normalize(torch.randn(rows, width), dim=-1).to(detector.device)

    windows = tuple(unit(count * windows, shape.embedding) for windows in detector.window_counts)
    bank = References(unit(count * shape.patch_count, shape.width), windows)
    detector.use_references(bank)
    return sum(rows.numel() * rows.element_size() for rows in (bank.patches, *bank.windows)) / 1e6


def matrix_rate(precision: Precision, device: torch.device) -> Callable[..., float]:
    """A probe of the machine's own limit: each call runs one large product of that precision and gives GFLOP/s.

    A call takes a clock, `perf_counter` by default.
    """
    rows, inputs, outputs = _RATE_SHAPES[device.type]
    weight = torch.randn(outputs, inputs, device=device) / 50
    product = linear(weight, torch.zeros(outputs, device=device), precision)
    x = torch.randn(rows, inputs, device=device).to(COMPUTE_DTYPE[precision])
    del weight

    def probe(clock: Callable[[], float] = perf_counter) -> float:
        with products_in(precision):
            best = min(_timed(lambda: product(x), device, clock) for _ in range(5))
        return 2.0 * rows * inputs * outputs / best / 1e9

    return probe


def _timed(step: Callable[[], object], device: torch.device, clock: Callable[[], float] = perf_counter) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    with torch.inference_mode():
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def stage_times_ms(detector: Detector, crops_rgb: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Where one call of `score` spends its time, in ms: `preprocess`, `tokens`, `whole`, `windows K`, `scoring` …

    All groups of tokens go through the blocks together; `whole` and each scale's windows are what the blocks take with
    them alone (less the whole image), so they add up to the merged pass but for what merging saves. Each is the best of
    a few calls: the first ones find nothing ready.
    """
    detector, device = _with(detector), detector.device  # one without recordings: what is replayed cannot be clocked
    prepared = min(
        _timed(lambda: prepare(crops_rgb, detector.shape, detector.config.resize, device), device)
        for _ in range(_CALLS)
    )
    spent = _clocked_score(detector, crops_rgb)
    whole = _clocked_score(detector.in_mode(Mode.IMAGE_ONLY), crops_rgb)["encode"]
    found = {"preprocess": prepared, "tokens": spent["tokens"], "whole": whole}
    for scale in detector.config.scales:
        alone = _clocked_score(_with(detector, scales=(scale,)), crops_rgb)["encode"]
        found[f"windows {scale}"] = alone - whole
    found["scoring"] = spent["total"] - prepared - spent["tokens"] - spent["encode"]
    found["total"] = spent["total"]
    return {name: seconds * 1e3 for name, seconds in found.items()}


def _clocked_score(detector: Detector, crops_rgb: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Seconds of the fastest of a few calls: `tokens`, `encode` and `total`."""
    calls = []
    for _ in range(_CALLS):
        spent: dict[str, float] = defaultdict(float)
        with _clocked(detector.tower, "tokens", spent), _clocked(detector.tower, "encode", spent):
            spent["total"] = _timed(lambda: detector.score(crops_rgb), detector.device)
        calls.append(spent)
    return min(calls, key=lambda spent: spent["total"])


def _with(detector: Detector, **config: Any) -> Detector:
    """The same zero-shot detector, on the same tower, configured in another way."""
    return Detector(detector.tower, detector.text, replace(detector.config, **config), facts=_facts(detector))


@contextmanager
def _clocked(tower: VisionTower, name: str, spent: dict[str, float]) -> Iterator[None]:
    method = getattr(tower, name)

    def clocked(*arguments: object) -> object:
        results: list[object] = []
        spent[name] += _timed(lambda: results.append(method(*arguments)), tower.device)
        return results[0]

    setattr(tower, name, clocked)
    try:
        yield
    finally:
        delattr(tower, name)


def region_of_share(detector: Detector, share: float, *, ring: bool = True) -> tuple[NDArray[np.bool_], float]:
    """A centred region that needs about `share` of all windows, and the share that it does need.

    Args:
        ring: whether the region's neighbours count, as for a region of interest; else only its own patches.
    """
    height, width = detector.grid_hw
    found = []
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            region = np.zeros((height, width), dtype=np.bool_)
            top, left = (height - rows) // 2, (width - columns) // 2
            region[top : top + rows, left : left + columns] = True
            needed = window_counts(detector, region, ring=ring)
            found.append((abs(sum(needed) / sum(detector.window_counts) - share), region, needed))
    _, region, needed = min(found, key=lambda one: one[0])
    return region, sum(needed) / sum(detector.window_counts)


def window_counts(detector: Detector, region: NDArray[np.bool_], *, ring: bool = True) -> list[int]:
    """How many windows of each scale a region `(G, G)` needs, its ring counted or not."""
    needed = torch.from_numpy(with_ring(region) if ring else region).flatten()[None].to(detector.device)
    return [int(covering(needed, patches).sum()) for patches in detector.window_patches]


class Changing:
    """Two frames of noise that differ in one place, in turn, through one memory: most windows need no computing.

    Attributes:
        changed: the share of windows that differ.
        counts: how many of each scale.
    """

    def __init__(self, detector: Detector, changed: float) -> None:
        region, self.changed = region_of_share(detector, changed, ring=False)
        self.counts = window_counts(detector, region, ring=False)
        height, width = detector.input_size_hw_px
        random = np.random.default_rng(0)
        first, other = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        patch = height // region.shape[0], width // region.shape[1]
        mask = np.kron(region, np.ones(patch, dtype=bool))[..., None]
        self._frames = cycle([np.where(mask, other, first), first])
        self._detector = detector
        self._memory = WindowMemory(ReuseRule(refresh_every=1 << 30))
        detector.score([first], memories=[self._memory])

    def score(self) -> float:
        """Scores the next frame; how far its map is from one that was computed in full is told by `error`."""
        return self._detector.score([next(self._frames)], memories=[self._memory])[0].score

    def error(self) -> float:
        """The largest difference of the next frame's map from that of the same frame computed in full."""
        frame = next(self._frames)
        kept, whole = self._detector.score([frame], memories=[self._memory])[0], self._detector.score([frame])[0]
        return largest_difference(kept.map, whole.map)


def largest_difference(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> float:
    """Between two maps; infinite where one is missing."""
    return math.inf if a is None or b is None else float(np.abs(a - b).max())


def gflop(detector: Detector, counts: Sequence[int] | None = None, *, windows: bool = True) -> float:
    """GFLOP of one frame of this detector, of so many windows of each scale, or of the image pass alone."""
    if not windows:
        return gflop_per_frame(detector.shape, ())
    few_shot = detector.few_shot
    return gflop_per_frame(
        detector.shape, detector.config.scales, stride=detector.config.stride, few_shot=few_shot, windows=counts
    )


def text_times_s(architecture: Architecture, folder: Path, device: torch.device) -> tuple[float, float]:
    """Seconds to have the two text embeddings with a cold and with a warm cache (random weights, full ensemble)."""

    def compute() -> dict[str, Tensor]:
        tower = TextTower(RandomWeights(), architecture.text, device=device)
        return {"text": embed_prompts(tower, compose(["part"]), TextAverage.NORMALISED, lambda: None)}

    return tuple(_timed(lambda: EmbeddingCache(folder).get("0" * 64, compute), device) for _ in range(2))  # type: ignore[return-value]


def trace(detector: Detector, crops_rgb: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Writes a trace of one call of `score` that a browser opens (chrome://tracing, ui.perfetto.dev)."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if detector.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        detector.score(crops_rgb)
    profiler.export_chrome_trace(str(path))
