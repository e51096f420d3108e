"""From what the tower says of frames to scores and maps: WinCLIP's steps 6 to 9 for one pass.

Letters: N frames, P patches, G the grid's sides, W windows of one scale, S windows that are computed, D width, E
embedding, K kinds of defects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inspectd.detect.defects import defect_maps
from inspectd.detect.features import Features
from inspectd.detect.options import WinclipConfig
from inspectd.detect.plans import Plan
from inspectd.detect.scoring import References, anomalous_share, association, few_shot_map, zero_shot_map
from inspectd.detect.windows import Coverage, harmonic, spread_windows
from inspectd.errors import DetectorError


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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Judge:
    """What embeddings are compared with, and how.

    `text (2, E)`: t- and t+; `defects (K, E)`: the kinds' directions; all of unit length. `coverages`: of each scale's
    windows. All on the device.
    """

    config: WinclipConfig
    grid_hw: tuple[int, int]
    coverages: Sequence[Coverage]
    text: Tensor
    defects: Tensor | None = None
    references: References | None = None

    def judge(self, features: Features, plan: Plan) -> Tensor:
        """`(N, 1 + P + K·P) float32` on the device: image scores, maps and kinds; scores alone where no windows are.

        Nothing in it waits for the device.
        """
        scores = anomalous_share(features.image, self.text, self.config.temperature)
        if not plan.chosen:
            return scores[:, None]
        shares = [anomalous_share(scale, self.text, self.config.temperature) for scale in features.windows]
        maps = zero_shot_map(scores, self._scale_maps(shares, plan))
        if self.references is not None:
            few_shot = self._few_shot(features, plan, self.references)
            scores = (scores + few_shot.masked_fill(~plan.inside, -torch.inf).amax(dim=1)) / 2
            maps = (maps + few_shot) / 2
        return torch.cat([scores[:, None], maps, *self._kinds(features, plan)], dim=1)

    def read(self, found: Tensor, plan: Plan) -> list[Scored]:
        """What `judge` found, as it lies on the CPU."""
        scores, patches = found[:, 0].tolist(), self.grid_hw[0] * self.grid_hw[1]
        if not plan.chosen:
            return [Scored(score, None) for score in scores]
        maps = found[:, 1 : 1 + patches].masked_fill(~plan.needed, 0.0).view(-1, *self.grid_hw).numpy()
        if self.defects is None:
            return [Scored(*one) for one in zip(scores, maps, strict=True)]
        kinds = found[:, 1 + patches :].reshape(len(found), len(self.defects), *self.grid_hw).numpy()
        return [Scored(*one) for one in zip(scores, maps, kinds, strict=True)]

    def _kinds(self, features: Features, plan: Plan) -> list[Tensor]:
        if self.defects is None:
            return []
        maps = defect_maps(features.windows, plan, self.coverages, self.defects, temperature=self.config.temperature)
        return [maps.flatten(1)]

    def _few_shot(self, features: Features, plan: Plan, references: References) -> Tensor:
        """Fs `(N, P)`: association of patches and windows with the references (WinCLIP, equations 4 and 5)."""
        if features.patches is None:
            raise DetectorError("few-shot scores need patch features")
        distances = [association(*pair) for pair in zip(features.windows, references.windows, strict=True)]
        patches = association(features.patches, references.patches)
        return few_shot_map([patches, *self._scale_maps(distances, plan)], self.config.few_shot_map)

    def _scale_maps(self, scores: Sequence[Tensor], plan: Plan) -> list[Tensor]:
        """For each scale the scores `(S,)` of the chosen windows spread over the patches, `(N, P)`."""
        return [
            harmonic(spread_windows(values, places, mask.shape), covered, least=self.config.least_score)
            for values, places, mask, covered in zip(scores, plan.places, plan.chosen, self.coverages, strict=True)
        ]
