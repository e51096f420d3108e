"""Which kind of defect a patch looks like most: a label for regions, which decides nothing.

Letters: N frames, P patches, W windows of one scale, S windows that were computed, K kinds of defects, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from inspectd.detect.plans import Plan
from inspectd.detect.windows import Coverage, harmonic, spread_windows


def defect_maps(
    windows: Sequence[Tensor],
    plan: Plan,
    coverages: Sequence[Coverage],
    kinds: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """How near each patch is to each kind, `(N, K, P)`: the softmax over the kinds alone, put together as scores are.

    Windows go to patches by the harmonic mean (WinCLIP, equation 3), scales by another. The whole image has no say, for
    two regions of one frame may be of two kinds.

    Args:
        windows: for each scale the embeddings `(S, E)` of the plan's chosen windows.
        kinds: `(K, E)`, the directions of the kinds' prompts.
    """
    inverse = []
    for embeddings, mask, places, covered in zip(windows, plan.chosen, plan.places, coverages, strict=True):
        shares = (functional.normalize(embeddings, dim=-1) @ kinds.T / temperature).softmax(dim=-1)
        by_kind = spread_windows(shares, places, mask.shape, 1 / len(kinds)).transpose(1, 2).flatten(0, 1)
        inverse.append(harmonic(by_kind, covered).reciprocal())
    return (len(inverse) / torch.stack(inverse).sum(dim=0)).view(-1, len(kinds), inverse[0].shape[1])
