"""What `bench model` is told, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    """Frames to score, or folders of them; without any, noise."""
    threshold: float | None = None
    """Where decisions flip; default: amid the exact scores."""
    banks: tuple[int, ...] = (1, 4, 32, 128)
    """Numbers of references whose cost is measured."""
    frame_size_wh_px: tuple[int, int] = (1920, 1080)
    """Of the frame whose stages are timed."""
    trace: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One variant: quantiles over the rounds, of the time of one frame of a batch."""

    name: str
    precision: str
    batch: int
    p50_ms: float
    p99_ms: float
    gflop: float
    rate_gflops: float
    limit_gflops: float
    """The machine's best product of that precision, measured in the same rounds."""
    against_full: float
    """How many times as fast as all windows of one frame, in the same rounds."""

    @property
    def frames_per_s(self) -> float:
        """How many frames a second the median is."""
        return 1e3 / self.p50_ms

    @property
    def latency_ms(self) -> tuple[float, float]:
        """How long a whole batch takes, p50 and p99: so long its first frame waits for its score."""
        return self.p50_ms * self.batch, self.p99_ms * self.batch

    @property
    def share(self) -> float:
        """The share of the machine's own matrix rate, end to end."""
        return self.rate_gflops / self.limit_gflops


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far a precision moves scores from fp32 on the given frames, and whose side of the threshold changes."""

    precision: str
    frames: int
    score_low: float
    score_high: float
    """The span of the exact scores: drift says little where they hardly differ."""
    score_max: float
    score_mean: float
    map_max: float
    threshold: float
    nearest: float
    """How near to the threshold the nearest exact score lies."""
    within_reach: int
    """Frames whose exact score lies no farther from the threshold than scores move: those that could flip."""
    not_finite: int
    """Frames to which this precision gives no score at all."""
    flipped: tuple[str, ...]
    """The frames whose decision changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """What references cost: memory of the bank, and the time that a frame takes with it."""

    references: int
    megabytes: float
    frame_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """What the cheaper ways change: largest differences of maps where computed, and of scores; 0 is the same bits."""

    region_map: float
    reuse_map: float
    localise_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBench:
    """All that `bench model` found."""

    backbone: str
    device: str
    machine: str
    versions: str
    threads: int
    load_average: tuple[float, float]
    """Of the last minute, before and after: what else ran meanwhile."""
    rounds: int
    timings: tuple[Timing, ...]
    exactness: Exactness
    drifts: tuple[Drift, ...]
    banks: tuple[Bank, ...]
    stages_ms: dict[str, float]
    """Of one frame in the first precision."""
    text_cold_s: float
    text_warm_s: float
    memory_mb: float
    """Resident memory after the first variant's build and first frame."""
    gpu_memory_mb: float | None
    """The most that the first precision took of the GPU's memory up to the largest batch; None on a CPU."""
