"""What travels between the parts: immutable records and the closed sets of the public contract.

Letters: H, W frame height and width; G grid side of the model. Pixels are `(H, W, 3) uint8` BGR unless a name says
otherwise. Times that decide are `monotonic_ns`; `*_utc_ns` are wall-clock labels (ns since the epoch).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

PixelsU8 = NDArray[np.uint8]
MapF32 = NDArray[np.float32]


class Decision(StrEnum):
    """The verdict on one part (contract §3)."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    ERROR = "error"


class Reason(StrEnum):
    """Why a verdict is what it is (contract §3). All but `OK` and `ANOMALY` belong to `Decision.ERROR`."""

    OK = "ok"
    ANOMALY = "anomaly"
    LATE = "late"
    OVERLOAD = "overload"
    WORKER_LOST = "worker_lost"
    CAMERA_LOST = "camera_lost"
    FRAME_FROZEN = "frame_frozen"
    FRAME_CORRUPT = "frame_corrupt"
    FRAME_QUALITY = "frame_quality"
    NOT_FINITE = "not_finite"
    RECIPE_CHANGING = "recipe_changing"
    NOT_READY = "not_ready"
    INTERNAL = "internal"


class TriggerKind(StrEnum):
    """What makes a frame one to inspect (contract §4)."""

    CONTINUOUS = "continuous"
    PRESENCE = "presence"
    EXTERNAL = "external"


class TimeKind(StrEnum):
    """How the moment of a frame's exposure is known, best first. All are on this machine's monotonic clock."""

    HARDWARE = "hardware"
    """The camera or its driver stamped the frame, and how long after the exposure is configured."""
    RTCP = "rtcp"
    """The camera's own clock, by RTCP sender reports."""
    ARRIVAL = "arrival"
    """When the frame arrived (or was stamped, so long after its exposure as nobody knows), less the lag that is
    configured."""
    FILE = "file"
    """A recording: when the frame was played."""


class DaemonState(StrEnum):
    """The daemon as a whole, in every heartbeat."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"


class CameraState(StrEnum):
    """One camera, in every heartbeat."""

    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    PAUSED = "paused"
    ENDED = "ended"


class VoteRule(StrEnum):
    """How several frames of one part become one verdict: the worst frame's word, that of at least half, or the mean."""

    WORST = "worst"
    MAJORITY = "majority"
    MEAN = "mean"


class FailOn(StrEnum):
    """What makes a part bad: the image score, any region left after the filters, or either."""

    SCORE = "score"
    REGIONS = "regions"
    EITHER = "either"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One frame as a source gives it.

    `index` counts the source's frames from 0 and goes on over reconnects; `pts_s` is the stream's own time, None where
    there is none. `captured_ns` is the best that is known of the moment of exposure, `time_kind` says how; the frame
    arrived `lag_ns` later. `damage` names decode damage (the frame must become `error/frame_corrupt`), None for a sound
    frame. `lost_ns` is when the last frame was exposed that was dropped before this one, 0 where none was. `frozen` is
    the gates' word: its picture has stood too long.
    """

    index: int
    pixels_bgr: PixelsU8
    captured_ns: int
    captured_utc_ns: int
    time_kind: TimeKind = TimeKind.ARRIVAL
    lag_ns: int = 0
    pts_s: float | None = None
    damage: str | None = None
    lost_ns: int = 0
    frozen: bool = False

    @property
    def arrived_ns(self) -> int:
        """When the frame arrived: what its deadline counts from."""
        return self.captured_ns + self.lag_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Where a part lay in the frame that was taken of it, how it moved from frame to frame, and how long one lasts."""

    bbox_xywh_px: tuple[int, int, int, int]
    step_xy_px: tuple[float, float]
    frame_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """Why a frame is inspected. `id` and `part_id` come with external triggers only."""

    kind: TriggerKind
    id: str | None = None
    part_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One anomalous region in full-frame pixels, origin at the top left, x before y. `id` is its label in the mask.

    `defect` is the kind that the recipe's prompts call nearest, None where it names no kinds; it decides nothing.
    """

    id: int
    bbox_xywh_px: tuple[int, int, int, int]
    area_px: int
    centroid_xy_px: tuple[float, float]
    score_max: float
    score_mean: float
    defect: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelMask:
    """Labels of all regions: `labels` (h, w) uint8, 0 background, k the region with `id` k, at `origin_xy_px`."""

    labels: PixelsU8
    origin_xy_px: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model a score comes from. `sha256` covers all that can change a score (contract I2)."""

    detector: str
    backbone: str
    weights_sha256: str
    precision: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What the model and the recipe say about one frame: the result of `Inspector.inspect`.

    `score` is None where no finite score exists (then `decision` is `error`). `anomaly_map` is the map over the
    bounding box of the region of interest at `map_origin_xy_px`, `(h, w) float32`, kept only where it was asked for.
    `infer_ms` is the time of the batch that the frame was in; `crop_ms` and `post_ms` are the frame's own. `detail` is
    for people: more on an `error` than its reason says.
    """

    decision: Decision
    reason: Reason
    score: float | None
    threshold: float
    regions: tuple[Region, ...] = ()
    regions_truncated: bool = False
    mask: LabelMask | None = None
    anomaly_map: MapF32 | None = None
    map_origin_xy_px: tuple[int, int] = (0, 0)
    crop_ms: float = 0.0
    infer_ms: float = 0.0
    post_ms: float = 0.0
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds of a frame's way, each None where the step did not happen."""

    capture: float | None = None
    queue: float | None = None
    infer: float | None = None
    post: float | None = None
    publish: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameInfo:
    """Which frame a verdict is about, and how the time of its capture is known."""

    index: int
    size_wh_px: tuple[int, int]
    pts_s: float | None
    time_kind: TimeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """How many frames of the part voted, how many of them by themselves would have failed, and by which rule."""

    rule: VoteRule
    frames: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What one camera of a station said of the part; `seq` is None where it said nothing."""

    camera: str
    seq: int | None = None
    decision: Decision | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeInfo:
    """Which recipe a verdict was made by; `sha256` is over the recipe's files."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPlace:
    """Where the verdict's mask lies in the frame."""

    origin_xy_px: tuple[int, int]
    size_wh_px: tuple[int, int]
    encoding: str = "png-label8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The terminal answer for one accepted frame or trigger (contract §3)."""

    session: str
    camera: str
    seq: int
    trigger: Trigger
    decision: Decision
    reason: Reason
    recipe: RecipeInfo
    deadline_ms: float | None
    journaled: bool
    simulated: bool
    score: float | None = None
    threshold: float | None = None
    regions: tuple[Region, ...] = ()
    regions_truncated: bool = False
    mask: MaskPlace | None = None
    frame: FrameInfo | None = None
    model: ModelIdentity | None = None
    captured_utc_ns: int | None = None
    votes: Votes | None = None
    members: tuple[Member, ...] | None = None
    latency_ms: Latency = field(default_factory=Latency)
