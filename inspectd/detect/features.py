"""What the image tower says of whole images and of windows, none of it normalised.

Letters: N frames, P patches of the grid, S windows that are computed, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from inspectd.detect.clip import Beat, Group, VisionTower
from inspectd.detect.options import PatchFeature


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the tower says of N frames: `image (N, E)`, for each scale `windows[i] (S, E)` in the order of the chosen
    windows, and `patches (N, P, D)` where references need them."""

    image: Tensor
    windows: tuple[Tensor, ...]
    patches: Tensor | None


def extract(
    tower: VisionTower, tokens: Tensor, groups: Sequence[Group], patch_feature: PatchFeature, beat: Beat
) -> Features:
    """Runs the tower in one pass over groups of token rows: whole images, then the windows of each scale."""
    (image, *windows), before = tower.encode(tokens, groups, beat)
    return Features(
        tower.projected(tower.normalised(image[:, 0])),
        tuple(tower.projected(tower.normalised(window[:, 0])) for window in windows),
        _patches(tower, image[:, 1:], before[:, 1:], patch_feature) if groups[0].keep_patches else None,
    )


def _patches(tower: VisionTower, last: Tensor, before: Tensor, patch_feature: PatchFeature) -> Tensor:
    match patch_feature:
        case PatchFeature.LN_POST:
            return tower.normalised(last)
        case PatchFeature.RAW:
            return last
        case PatchFeature.PROJECTED:
            return tower.projected(tower.normalised(last))
        case PatchFeature.PENULTIMATE:
            return before
