"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023, arXiv 2303.14814): crops -> anomaly scores and maps.

A call is cut into passes. Each is planned (which windows), launched (pixels up, tower, scores, result on its way back)
and, when all are launched, waited for once. Letters: N frames, P patches of the grid, G the grid's sides, W windows of
one scale, S windows that are computed, D width, E embedding, K kinds of defects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inspectd.detect.architecture import VisionShape
from inspectd.detect.cache import EmbeddingCache
from inspectd.detect.clip import Beat, Group, VisionTower
from inspectd.detect.features import Features, extract
from inspectd.detect.gemm import Precision
from inspectd.detect.identity import Facts, hash_pixels
from inspectd.detect.judging import Judge, Scored
from inspectd.detect.options import Mode, WinclipConfig
from inspectd.detect.plans import Plan, Planner
from inspectd.detect.preprocess import normalised, prepare
from inspectd.detect.recording import Recordings
from inspectd.detect.reuse import Recall, ReuseRule, WindowMemory, distinct
from inspectd.detect.scoring import References
from inspectd.detect.transfer import Transfer
from inspectd.detect.windows import coverage, window_patches
from inspectd.errors import DetectorError, OutOfMemory
from inspectd.log import get_logger

_FLOATS_PER_PASS_CPU = 1 << 21
"""Token floats of one pass on a CPU: larger batches gain nothing there and fall out of the cache."""
_TOKENS_PER_PASS_GPU = 24_000
"""Fills a GPU: 8 frames with all windows; the next pass's pixels go up meanwhile, and memory is that of one pass."""
_PASSES = {Mode.FULL: (True,), Mode.LOCALISE_ON_FAIL: (False, True), Mode.IMAGE_ONLY: (False,)}
"""The kinds of passes of a mode: with windows, or of whole images alone."""


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
        self.tower, self._reuse = tower, reuse
        windows = [window_patches(tower.shape.grid_hw, scale, config.stride) for scale in config.scales]
        self._judge = Judge(
            config=config,
            grid_hw=tower.shape.grid_hw,
            coverages=[coverage(patches, tower.shape.patch_count, tower.device) for patches in windows],
            text=functional.normalize(text.to(tower.device), dim=-1),
            defects=None if defects is None else functional.normalize(defects.to(tower.device), dim=-1),
        )
        self._window_patches = [patches.to(tower.device) for patches in windows]
        self._planner = Planner(tower.shape, windows, tower.device)
        self._transfer = Transfer(tower.device)
        self._recordings = Recordings(tower.device)
        on_cpu = tower.device.type == "cpu"
        self._tokens_per_pass = _FLOATS_PER_PASS_CPU // tower.shape.width if on_cpu else _TOKENS_PER_PASS_GPU
        self._halved = False

    @property
    def shape(self) -> VisionShape:
        """The image tower's shape."""
        return self.tower.shape

    @property
    def text(self) -> Tensor:
        """The directions of t- and t+, `(2, E)`, unit vectors."""
        return self._judge.text

    @property
    def window_patches(self) -> Sequence[Tensor]:
        """For each scale the patches of its windows, `(W, k²) int64`."""
        return self._window_patches

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
        return self._judge.references is not None

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
        frames = self._frames(crops_rgb, regions, memories)
        try:
            if self.config.mode is Mode.FULL:
                return self._scored(frames, windows=True)
            found = self._scored(frames, windows=False)
            failing = self._to_localise(found, localise_from)
            mapped = self._scored([frames[at] for at in failing], windows=True)
        except torch.AcceleratorError as error:  # the device's context is lost for this process
            raise DetectorError(f"{self.device}: {_first_line(error)}") from error
        for at, one in zip(failing, mapped, strict=True):
            found[at] = replace(one, score=found[at].score)
        return found

    @torch.inference_mode()
    def rehearse(
        self, crops_rgb: Sequence[NDArray[np.uint8]], *, regions: Sequence[NDArray[np.bool_] | None] | None = None
    ) -> None:
        """Makes ready for batches of just so many crops, with these regions: on a GPU their passes are recorded.

        Without it they take other launches and the same results. To be called again after `enroll`.
        """
        if not self.tower.fused or self._reuse is not None:  # which windows are fresh, no recording can know
            return
        for windows in _PASSES[self.config.mode]:
            frames: Sequence[_Frame] = self._frames(crops_rgb, regions, None)
            while frames:
                part = self._next_pass(frames, windows=windows)
                plan = self._plan(part, windows=windows)
                if self._recordings.lack(plan):  # else no pixels need go up: batches of n frames repeat those before
                    self._recordings.record(self._computed, self._grey(part), plan)
                frames = frames[len(part) :]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what only the runs before a recording needed

    def _halve_passes(self, frames: int, error: torch.OutOfMemoryError, *, windows: bool) -> None:
        """Makes room once in a detector's life: what is short of memory again wants a new process.

        What is recorded goes for good, so that passes of the new size are launched plainly too.
        """
        if self._halved or frames < 2:
            raise OutOfMemory(f"{self.device}: {frames} frames in a pass: {_first_line(error)}") from error
        self._halved, self._tokens_per_pass = True, frames // 2 * self._tokens_of_frame(windows=windows)
        self._recordings.stop()
        get_logger().warning("passes_halved", frames=frames // 2, launches="plain", error=_first_line(error))

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
            self.use_references(None)
            self.identity = self._facts.identity()
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
        """The same detector without its references, on the same tower, in another mode."""
        config = replace(self.config, mode=mode)
        facts = replace(self._facts, config={**self._facts.config, "mode": mode})
        return Detector(
            self.tower,
            self.text,
            config,
            facts=facts,
            cache=self._cache,
            defects=self._judge.defects,
            reuse=self._reuse,
            beat=self._beat,
        )

    def use_references(self, references: References | None) -> None:
        """Compares with a bank made elsewhere, or with none. For benchmarks: the identity knows nothing of it."""
        self._recordings.clear()
        self._judge = replace(self._judge, references=references)

    def _embed_references(self, references_rgb: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """Unit vectors of every patch and every window of the references, `(R, D)` and `(R, E)` for each scale."""
        rows: dict[str, list[Tensor]] = defaultdict(list)
        size = self._pass_size(windows=True)
        for start in range(0, len(references_rgb), size):
            part = references_rgb[start : start + size]
            features = self.features(prepare(part, self.shape, self.config.resize, self.device))
            for scale, windows in zip(self.config.scales, features.windows, strict=True):
                rows[f"windows_{scale}"].append(functional.normalize(windows, dim=-1))
            if features.patches is not None:
                rows["patches"].append(functional.normalize(features.patches.flatten(0, 1), dim=-1))
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def features(self, pixels: Tensor) -> Features:
        """Everything of `(N, 3, H, W)` normalised pixels: the image, all windows of all scales, all patches."""
        inside = torch.ones(len(pixels), self.shape.patch_count, dtype=torch.bool)
        plan = self._planner.plan(inside, windows=True, keep_patches=bool(self.config.scales))
        return self._features(self.tower.tokens(pixels), plan.groups)

    def _pass_size(self, *, windows: bool) -> int:
        """How many frames a pass takes at most."""
        if self.tower.precision is Precision.INT8:
            return 1  # frames that shared a range would change each other's scores
        return max(1, self._tokens_per_pass // self._tokens_of_frame(windows=windows))

    def _tokens_of_frame(self, *, windows: bool) -> int:
        """Of the whole image, and of all its windows."""
        return 1 + self.shape.patch_count + windows * sum(rows.numel() + len(rows) for rows in self.window_patches)

    def _frames(
        self,
        crops_rgb: Sequence[NDArray[np.uint8]],
        regions: Sequence[NDArray[np.bool_] | None] | None,
        memories: Sequence[WindowMemory | None] | None,
    ) -> list[_Frame]:
        nothing = [None] * len(crops_rgb)
        if regions is not None and len(regions) != len(crops_rgb):
            raise DetectorError(f"{len(crops_rgb)} crops came with {len(regions)} regions")
        inside = [self._inside(region) for region in regions or nothing]
        return [_Frame(*one) for one in zip(crops_rgb, inside, memories or nothing, strict=True)]

    def _inside(self, region: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Of one crop, `(G, G)`. It stays on the CPU, like all that says which windows are computed."""
        mask = np.ones(self.grid_hw, dtype=bool) if region is None else region
        if mask.shape != self.grid_hw or mask.dtype != np.bool_ or not mask.any():
            raise DetectorError(f"a region is {mask.shape} {mask.dtype}, expected a non-empty {self.grid_hw} bool")
        return mask

    def _scored(self, frames: Sequence[_Frame], *, windows: bool) -> list[Scored]:
        """Launches one pass after the other, then waits once."""
        launched: list[_Launched] = []
        done = 0
        while done < len(frames):
            part = self._next_pass(frames[done:], windows=windows)
            try:
                launched.append(self._launch(part, windows=windows))
            except torch.OutOfMemoryError as error:
                self._halve_passes(len(part), error, windows=windows)
            else:
                done += len(part)
        self._transfer.wait()
        self._beat()
        return [scored for each in launched for scored in self._judge.read(each.found, each.plan)]

    def _next_pass(self, frames: Sequence[_Frame], *, windows: bool) -> Sequence[_Frame]:
        part = frames[: self._pass_size(windows=windows)]
        return part[: distinct([frame.memory for frame in part])] if windows else part

    def _launch(self, frames: Sequence[_Frame], *, windows: bool) -> _Launched:
        grey = self._grey(frames)
        plan = self._plan(frames, windows=windows)
        memories = [frame.memory for frame in frames]
        remembers = windows and any(memory is not None for memory in memories)
        found = self._recalled(grey, plan, memories) if remembers else self._recordings.run(self._computed, grey, plan)
        return _Launched(self._transfer.fetch(found), plan, grey)

    def _grey(self, frames: Sequence[_Frame]) -> Tensor:
        return self._transfer.squashed([frame.crop_rgb for frame in frames], self.shape, self.config.resize)

    def _plan(self, frames: Sequence[_Frame], *, windows: bool) -> Plan:
        inside = torch.from_numpy(np.stack([frame.inside for frame in frames])).flatten(1)
        return self._planner.plan(inside, windows=windows, keep_patches=windows and self.few_shot)

    def _computed(self, grey: Tensor, plan: Plan) -> Tensor:
        """A pass on the device, from grey levels to what `Judge.judge` gives; nothing in it waits for the device."""
        return self._judge.judge(self._features(self._tokens(grey), plan.groups), plan)

    def _recalled(self, grey: Tensor, plan: Plan, memories: Sequence[WindowMemory | None]) -> Tensor:
        """The same without computing the windows whose pixels are remembered; which ones, the device must say first."""
        recall = Recall(memories, grey, plan.chosen, self.shape, self.window_patches)
        groups = self._planner.groups(recall.fresh, len(memories), keep_patches=self.few_shot)
        features = self._features(self._tokens(grey), groups)
        return self._judge.judge(replace(features, windows=recall.complete(features.windows)), plan)

    def _tokens(self, grey: Tensor) -> Tensor:
        return self.tower.tokens(normalised(grey, self.shape))

    def _features(self, tokens: Tensor, groups: Sequence[Group]) -> Features:
        return extract(self.tower, tokens, groups, self.config.patch_feature, self._beat)

    def _to_localise(self, scored: Sequence[Scored], localise_from: float | None) -> list[int]:
        if self.config.mode is not Mode.LOCALISE_ON_FAIL:
            return []
        return [at for at, one in enumerate(scored) if localise_from is None or not one.score < localise_from]


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """One crop, the patches `(G, G)` inside its region, and what is remembered of its camera and tile."""

    crop_rgb: NDArray[np.uint8]
    inside: NDArray[np.bool_]
    memory: WindowMemory | None


@dataclass(frozen=True, slots=True, eq=False)
class _Launched:
    """One pass on its way: its result is there when the transfer was waited for, and its pixels are kept till then."""

    found: Tensor
    plan: Plan
    grey: Tensor


def _first_line(error: Exception) -> str:
    """What torch says of a failure of the device, without its advice."""
    return str(error).partition("\n")[0]
