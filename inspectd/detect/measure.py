"""What a benchmark needs of the detector: random weights, the machine's own limits, and the parts of a frame's time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inspectd.detect.architecture import Architecture
from inspectd.detect.cache import EmbeddingCache
from inspectd.detect.clip import Beat, TextTower, VisionTower
from inspectd.detect.cost import gflop_per_frame
from inspectd.detect.gemm import COMPUTE_DTYPE, Precision, linear
from inspectd.detect.identity import Facts
from inspectd.detect.preprocess import prepare
from inspectd.detect.prompts import compose
from inspectd.detect.scoring import References
from inspectd.detect.text import TextAverage, embed_prompts
from inspectd.detect.winclip import Detector, WinclipConfig
from inspectd.detect.windows import covering, with_ring

_RATE_ROWS, _RATE_INPUTS, _RATE_OUTPUTS = 1024, 2048, 2048


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
    facts = Facts(
        detector="winclip",
        backbone=architecture.name,
        weights_sha256="random",
        precision=precision,
        architecture=asdict(architecture),
        config=asdict(config),
        prompts={},
        view={},
    )
    return Detector(tower, text, config, facts=facts, beat=beat)


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
    weight = torch.randn(_RATE_OUTPUTS, _RATE_INPUTS, device=device) / 50
    product = linear(weight, torch.zeros(_RATE_OUTPUTS, device=device), precision)
    x = torch.randn(_RATE_ROWS, _RATE_INPUTS, device=device).to(COMPUTE_DTYPE[precision])

    def probe(clock: Callable[[], float] = perf_counter) -> float:
        best = min(_timed(lambda: product(x), device, clock) for _ in range(5))
        return 2.0 * _RATE_ROWS * _RATE_INPUTS * _RATE_OUTPUTS / best / 1e9

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
    """Where one call of `score` spends its time, in milliseconds: `prepare`, `tokens`, `encode`, `rest`, `total`."""
    spent: dict[str, float] = defaultdict(float)
    with _clocked(detector.tower, "tokens", spent), _clocked(detector.tower, "encode", spent):
        total = _timed(lambda: detector.score(crops_rgb), detector.device)
    prepared = _timed(
        lambda: prepare(crops_rgb, detector.shape, detector.config.resize, detector.device), detector.device
    )
    spent = {"prepare": prepared, **spent}
    spent["rest"] = total - sum(spent.values())
    spent["total"] = total
    return {name: seconds * 1e3 for name, seconds in spent.items()}


@contextmanager
def _clocked(tower: VisionTower, name: str, spent: dict[str, float]) -> Iterator[None]:
    method = getattr(tower, name)

    def clocked(*arguments: object) -> object:
        start = perf_counter()
        result = method(*arguments)
        spent[name] += perf_counter() - start
        return result

    setattr(tower, name, clocked)
    try:
        yield
    finally:
        delattr(tower, name)


def region_of_share(detector: Detector, share: float) -> tuple[NDArray[np.bool_], float]:
    """A centred region that needs about `share` of all windows, and the share that it does need."""
    height, width = detector.grid_hw
    found = []
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            region = np.zeros((height, width), dtype=np.bool_)
            top, left = (height - rows) // 2, (width - columns) // 2
            region[top : top + rows, left : left + columns] = True
            needed = window_counts(detector, region)
            found.append((abs(sum(needed) / sum(detector.window_counts) - share), region, needed))
    _, region, needed = min(found, key=lambda one: one[0])
    return region, sum(needed) / sum(detector.window_counts)


def window_counts(detector: Detector, region: NDArray[np.bool_]) -> list[int]:
    """How many windows of each scale a region `(G, G)` needs, its ring counted."""
    needed = torch.from_numpy(with_ring(region)).flatten()[None].to(detector.device)
    return [int(covering(needed, patches).sum()) for patches in detector.window_patches]


def gflop(detector: Detector, region: NDArray[np.bool_] | None = None, *, windows: bool = True) -> float:
    """GFLOP of one frame of this detector, of a region, or of the image pass alone."""
    if not windows:
        return gflop_per_frame(detector.shape, ())
    counts = None if region is None else window_counts(detector, region)
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
