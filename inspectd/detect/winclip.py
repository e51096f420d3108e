"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023, arXiv 2303.14814): crops -> anomaly scores and maps.

Letters: N frames, P patches of the grid, G the grid's sides, W windows of one scale, S windows that are computed,
D width, E embedding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inspectd.detect.architecture import VisionShape
from inspectd.detect.cache import EmbeddingCache
from inspectd.detect.clip import Beat, Group, VisionTower
from inspectd.detect.defects import defect_maps
from inspectd.detect.gemm import Precision
from inspectd.detect.identity import Facts, hash_pixels
from inspectd.detect.preprocess import Resize, normalised, prepare, squashed
from inspectd.detect.reuse import Recall, ReuseRule, WindowMemory, distinct
from inspectd.detect.scoring import (
    FewShotMap,
    References,
    anomalous_share,
    association,
    few_shot_map,
    zero_shot_map,
)
from inspectd.detect.text import TextAverage
from inspectd.detect.windows import covering, harmonic, window_patches, with_ring
from inspectd.errors import DetectorError, OutOfMemory
from inspectd.log import get_logger

_FLOATS_PER_PASS_CPU = 1 << 22
"""Token floats of one pass on a CPU: larger batches gain nothing there and fall out of the cache."""
_FRAMES_PER_PASS_GPU = 32
LEAST_SCORE = 1e-12


class PatchFeature(StrEnum):
    """Which hidden state of a patch few-shot compares. All but the default are other implementations' choices."""

    LN_POST = "ln_post"
    RAW = "raw"
    PROJECTED = "projected"
    PENULTIMATE = "penultimate"


class Mode(StrEnum):
    """What is computed of a zero-shot frame, whose score needs the image pass alone."""

    FULL = "full"
    LOCALISE_ON_FAIL = "localise_on_fail"
    """Windows, and so a map, only for frames whose score reaches the threshold; scores and decisions are exact."""
    IMAGE_ONLY = "image_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class WinclipConfig:
    """Everything that WinCLIP's sources disagree on. The defaults follow the paper (see the README's table)."""

    scales: tuple[int, ...] = (2, 3)
    """Sides of the windows in patches; none makes CLIP-AC, the baseline that sees the whole image alone."""
    stride: int = 1
    """Patches from one window to the next."""
    mode: Mode = Mode.FULL
    temperature: float = 0.07
    """τ of step 6. CLIP's own 0.01 saturates the scores and lets the few-shot part dominate."""
    text_average: TextAverage = TextAverage.NORMALISED
    """RAW: anomalib, zqhang and caoyunkang average prompts of any length."""
    patch_feature: PatchFeature = PatchFeature.LN_POST
    """RAW: zqhang, mala-lab. PENULTIMATE: perhaps the paper's."""
    few_shot_map: FewShotMap = FewShotMap.MEAN
    """SUM: zqhang."""
    resize: Resize = Resize.UINT8
    """FLOAT: anomalib."""
    least_score: float = LEAST_SCORE
    """Window scores are raised to it before their harmonic mean; 0: never (anomalib)."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The model's word on one crop.

    `score` is the image score, larger is more anomalous; it may be NaN or infinite, and the caller must gate that.
    `map (G, G) float32` is the anomaly map at the grid's resolution, 0 where no window was asked for; None where none
    was computed (`upsample_map` brings it to pixels). `defects (K, G, G)` says how near each patch is to each kind of
    defect, where the recipe names some and there is a map.
    """

    score: float
    map: NDArray[np.float32] | None
    defects: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the tower says of N frames, none normalised: `image (N, E)`, for each scale `windows[i] (S, E)` in the order
    of the chosen windows, and `patches (N, P, D)` where references need them."""

    image: Tensor
    windows: tuple[Tensor, ...]
    patches: Tensor | None


class Detector:
    """WinCLIP for one recipe. Built by `build_detector`; not for use by several threads at once."""

    def __init__(
        self,
        tower: VisionTower,
        text: Tensor,
        config: WinclipConfig,
        *,
        facts: Facts,
        cache: EmbeddingCache | None = None,
        defects: Tensor | None = None,
        reuse: ReuseRule | None = None,
        beat: Beat = lambda: None,
    ) -> None:
        """`text (2, E)`: the directions of t- and t+; `defects (K, E)`: those of the kinds of defects; `beat` is
        called between blocks, several times a second."""
        self.identity = facts.identity()
        self.config = config
        self._facts, self._cache, self._beat = facts, cache or EmbeddingCache(None), beat
        self.tower, self._text = tower, functional.normalize(text.to(tower.device), dim=-1)
        self._references: References | None = None
        self._defects = None if defects is None else functional.normalize(defects.to(tower.device), dim=-1)
        self._reuse = reuse
        grid_hw = tower.shape.grid_hw
        self._windows = [window_patches(grid_hw, scale, config.stride) for scale in config.scales]
        self.window_patches = [patches.to(tower.device) for patches in self._windows]
        tokens = 1 + tower.shape.patch_count + sum(rows.numel() + len(rows) for rows in self.window_patches)
        self._halved = False
        self._frames_per_pass = max(1, _FLOATS_PER_PASS_CPU // (tokens * tower.shape.width))
        if tower.device.type != "cpu":
            self._frames_per_pass = _FRAMES_PER_PASS_GPU
        if tower.precision is Precision.INT8:
            self._frames_per_pass = 1  # frames that shared a range would change each other's scores

    @property
    def shape(self) -> VisionShape:
        """The image tower's shape."""
        return self.tower.shape

    @property
    def text(self) -> Tensor:
        """The directions of t- and t+, `(2, E)`, unit vectors."""
        return self._text

    @property
    def device(self) -> torch.device:
        """Where the detector computes."""
        return self.tower.device

    @property
    def window_counts(self) -> list[int]:
        """How many windows each scale has."""
        return [len(patches) for patches in self.window_patches]

    @property
    def few_shot(self) -> bool:
        """Whether there are references."""
        return self._references is not None

    @property
    def input_size_hw_px(self) -> tuple[int, int]:
        """The size that each crop is squashed to, height and width."""
        return self.shape.image_hw_px

    @property
    def input_size_px(self) -> int:
        """The longer side of that size: crops with fewer pixels are enlarged, with more are shrunk."""
        return max(self.input_size_hw_px)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """The resolution of maps: patches down and across."""
        return self.shape.grid_hw

    @torch.inference_mode()
    def score(
        self,
        crops_rgb: Sequence[NDArray[np.uint8]],
        *,
        regions: Sequence[NDArray[np.bool_] | None] | None = None,
        localise_from: float | None = None,
        memories: Sequence[WindowMemory | None] | None = None,
    ) -> list[Scored]:
        """Scores crops `(h, w, 3) uint8` RGB of any sizes, in their order, alike at any batch size.

        Args:
            regions: for each crop the patches `(G, G)` that its region of interest touches, or None for all of them.
                Windows that hold none of them and none of their neighbours are not computed, and the few-shot
                image score takes its maximum inside. The whole crop is still seen by the image pass.
            localise_from: in the mode `localise_on_fail` the score from which a frame gets a map; None: all do.
            memories: for each crop what `memory` gave for its camera and tile, or None. Windows whose pixels are those
                that it holds are not computed. Crops with the same one follow each other in time.

        Raises:
            DetectorError: a crop or a region of another shape, or a failure of the device.
            OutOfMemory: the device has no room, although passes were halved once.
        """
        if regions is not None and len(regions) != len(crops_rgb):
            raise DetectorError(f"{len(crops_rgb)} crops came with {len(regions)} regions")
        held = memories or [None] * len(crops_rgb)
        scored: list[Scored] = []
        while len(scored) < len(crops_rgb):
            part = slice(len(scored), len(scored) + self._frames_per_pass)
            part = slice(part.start, part.start + distinct(held[part]))
            inside = self._inside(regions[part] if regions is not None else [None] * len(crops_rgb[part]))
            try:
                grey = squashed(crops_rgb[part], self.shape, self.config.resize, self.device)
                scored += self._score_pass(grey, inside, held[part], localise_from)
            except torch.OutOfMemoryError as error:
                self._halve_passes(len(crops_rgb[part]), error)
            except torch.AcceleratorError as error:  # the device's context is lost for this process
                raise DetectorError(f"{self.device}: {_first_line(error)}") from error
        return scored

    def _halve_passes(self, frames: int, error: torch.OutOfMemoryError) -> None:
        """Makes room once in a detector's life: what is short of memory again wants a new process."""
        if self._halved or frames < 2:
            raise OutOfMemory(f"{self.device}: {frames} frames in a pass: {_first_line(error)}") from error
        self._halved, self._frames_per_pass = True, frames // 2
        get_logger().warning("passes_halved", frames=self._frames_per_pass, error=_first_line(error))

    def memory(self) -> WindowMemory | None:
        """A new memory for one tile of one camera; None where the recipe reuses nothing."""
        return None if self._reuse is None else WindowMemory(self._reuse)

    @torch.inference_mode()
    def enroll(self, references_rgb: Sequence[NDArray[np.uint8]]) -> None:
        """Makes the detector few-shot (WinCLIP+) with crops of good parts, `(h, w, 3) uint8` RGB; none: zero-shot.

        The identity changes with them. Their embeddings come from the cache where it has them.

        Raises:
            DetectorError: the mode or the kind of detector has no use for references.
        """
        if not references_rgb:
            self._references, self.identity = None, self._facts.identity()
            return
        if self.config.mode is not Mode.FULL or not self.window_patches:
            raise DetectorError("references need the detector winclip in its mode full")
        pixels_sha256 = hash_pixels(references_rgb)
        rows = self._cache.get(
            self._facts.references_key(pixels_sha256), lambda: self._embed_references(references_rgb)
        )
        windows = tuple(rows[f"windows_{scale}"].to(self.device) for scale in self.config.scales)
        self.use_references(References(rows["patches"].to(self.device), windows))
        self.identity = self._facts.identity(pixels_sha256)

    def in_mode(self, mode: Mode) -> Detector:
        """The same zero-shot detector, on the same tower, in another mode."""
        config = replace(self.config, mode=mode)
        facts = replace(self._facts, config={**self._facts.config, "mode": mode})
        return Detector(self.tower, self._text, config, facts=facts, cache=self._cache, beat=self._beat)

    def use_references(self, references: References) -> None:
        """Compares with a bank made elsewhere. For benchmarks: the identity knows nothing of it."""
        self._references = references

    def _embed_references(self, references_rgb: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """Unit vectors of every patch and every window of the references, `(R, D)` and `(R, E)` for each scale."""
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for start in range(0, len(references_rgb), self._frames_per_pass):
            part = references_rgb[start : start + self._frames_per_pass]
            features = self.features(prepare(part, self.shape, self.config.resize, self.device))
            for scale, windows in zip(self.config.scales, features.windows, strict=True):
                rows[f"windows_{scale}"].append(functional.normalize(windows, dim=-1))
            if features.patches is not None:
                rows["patches"].append(functional.normalize(features.patches.flatten(0, 1), dim=-1))
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def features(self, pixels: Tensor) -> Features:
        """Everything of `(N, 3, H, W)` normalised pixels: the image, all windows of all scales, all patches."""
        every = [torch.ones(len(pixels), count, dtype=torch.bool) for count in self.window_counts]
        return self._features(self.tower.tokens(pixels), every, with_patches=bool(every))

    def _score_pass(
        self, grey: Tensor, inside: Tensor, memories: Sequence[WindowMemory | None], localise_from: float | None
    ) -> list[Scored]:
        tokens = self.tower.tokens(normalised(grey, self.shape))
        if self.config.mode is Mode.FULL and self.window_patches:
            return self._full(tokens, inside, grey, memories)
        image = self._features(tokens, [], with_patches=False).image
        scores = anomalous_share(image, self._text, self.config.temperature)
        chosen = self._to_localise(scores, localise_from)
        found = [Scored(score, None) for score in scores.tolist()]
        if chosen:
            full = self._full(tokens[chosen], inside[chosen], grey[chosen], [memories[at] for at in chosen])
            for index, one in zip(chosen, full, strict=True):
                found[index] = replace(one, score=found[index].score)
        return found

    def _to_localise(self, scores: Tensor, localise_from: float | None) -> list[int]:
        if self.config.mode is not Mode.LOCALISE_ON_FAIL or not self.window_patches:
            return []
        return [at for at, score in enumerate(scores.tolist()) if localise_from is None or not score < localise_from]

    def _full(
        self, tokens: Tensor, inside: Tensor, grey: Tensor, memories: Sequence[WindowMemory | None]
    ) -> list[Scored]:
        """Image scores and maps, of all windows that the patches inside need."""
        needed = self._needed(inside)
        chosen = [covering(needed, patches) for patches in self._windows]
        recall = Recall(memories, grey, chosen, self.shape, self.window_patches)
        features = self._features(tokens, recall.fresh, with_patches=self._references is not None)
        features = replace(features, windows=recall.complete(features.windows))
        scores = anomalous_share(features.image, self._text, self.config.temperature)
        shares = [anomalous_share(scale, self._text, self.config.temperature) for scale in features.windows]
        maps = zero_shot_map(scores, self._scale_maps(shares, chosen))
        if self._references is not None:
            few_shot = self._few_shot(features, chosen, self._references)
            scores = (scores + few_shot.masked_fill(~inside.to(self.device), -torch.inf).amax(dim=1)) / 2
            maps = (maps + few_shot) / 2
        defects = self._defect_grids(features.windows, chosen)
        found = torch.cat([scores[:, None], maps], dim=1).cpu()  # the one wait for the device
        grids = self._grid(found[:, 1:].masked_fill(~needed, 0.0))
        return [Scored(*one) for one in zip(found[:, 0].tolist(), grids, defects, strict=True)]

    def _defect_grids(
        self, windows: Sequence[Tensor], chosen: Sequence[Tensor]
    ) -> Sequence[NDArray[np.float32] | None]:
        if self._defects is None:
            return [None] * len(chosen[0])
        maps = defect_maps(
            windows,
            chosen,
            self.window_patches,
            self._defects,
            temperature=self.config.temperature,
            patch_count=self.shape.patch_count,
        )
        return list(maps.view(*maps.shape[:2], *self.grid_hw).cpu().numpy())

    def _few_shot(self, features: Features, chosen: Sequence[Tensor], references: References) -> Tensor:
        """Fs `(N, P)`: association of patches and windows with the references (WinCLIP, equations 4 and 5)."""
        if features.patches is None:
            raise DetectorError("few-shot scores need patch features")
        distances = [association(*pair) for pair in zip(features.windows, references.windows, strict=True)]
        patches = association(features.patches, references.patches)
        return few_shot_map([patches, *self._scale_maps(distances, chosen)], self.config.few_shot_map)

    def _scale_maps(self, scores: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[Tensor]:
        """For each scale the scores `(S,)` of the chosen windows `(N, W)` spread over the patches, `(N, P)`."""
        count = self.shape.patch_count
        maps = []
        for values, mask, patches in zip(scores, chosen, self.window_patches, strict=True):
            whole = torch.ones(mask.shape, device=values.device).masked_scatter(mask.to(values.device), values)
            maps.append(harmonic(whole, patches, count, least=self.config.least_score))
        return maps

    def _features(self, tokens: Tensor, chosen: Sequence[Tensor], *, with_patches: bool) -> Features:
        """Runs the tower over the whole images and the chosen windows `(N, W)` bool of each scale, in one pass."""
        frames, length, _ = tokens.shape
        starts = torch.arange(frames, device=tokens.device)[:, None] * length
        whole = Group(starts + torch.arange(length, device=tokens.device), keep_patches=with_patches)
        windows_of = zip(chosen, self._windows, strict=False)  # none chosen: the image pass alone
        groups = [
            whole,
            *(Group(_window_rows(mask, patches, length).to(tokens.device)) for mask, patches in windows_of),
        ]
        (image, *windows), before = self.tower.encode(tokens, groups, self._beat)
        tower = self.tower
        return Features(
            tower.projected(tower.normalised(image[:, 0])),
            tuple(tower.projected(tower.normalised(window[:, 0])) for window in windows),
            self._patch_features(image[:, 1:], before[:, 1:]) if with_patches else None,
        )

    def _patch_features(self, last: Tensor, before: Tensor) -> Tensor:
        tower = self.tower
        match self.config.patch_feature:
            case PatchFeature.LN_POST:
                return tower.normalised(last)
            case PatchFeature.RAW:
                return last
            case PatchFeature.PROJECTED:
                return tower.projected(tower.normalised(last))
            case PatchFeature.PENULTIMATE:
                return before

    def _inside(self, regions: Sequence[NDArray[np.bool_] | None]) -> Tensor:
        """`(N, P)` bool on the CPU, like all that says which windows are computed: a device need not be waited for."""
        whole = np.ones(self.grid_hw, dtype=bool)
        masks = [whole if region is None else region for region in regions]
        for mask in masks:
            if mask.shape != self.grid_hw or mask.dtype != np.bool_ or not mask.any():
                raise DetectorError(f"a region is {mask.shape} {mask.dtype}, expected a non-empty {self.grid_hw} bool")
        return torch.from_numpy(np.stack(masks)).flatten(1)

    def _needed(self, inside: Tensor) -> Tensor:
        rings = [with_ring(mask) for mask in inside.view(-1, *self.grid_hw).numpy()]
        return torch.from_numpy(np.stack(rings)).flatten(1)

    def _grid(self, maps: Tensor) -> list[NDArray[np.float32]]:
        return list(maps.reshape(-1, *self.grid_hw).numpy())


def _first_line(error: Exception) -> str:
    """What torch says of a failure of the device, without its advice."""
    return str(error).partition("\n")[0]


def _window_rows(chosen: Tensor, patches: Tensor, length: int) -> Tensor:
    """Rows `(S, 1 + k²)` of the token table for the chosen windows `(N, W)`: CLS, then the window's own patches."""
    frame, window = chosen.nonzero(as_tuple=True)
    tokens = functional.pad(patches + 1, (1, 0))
    return tokens[window] + frame[:, None] * length
