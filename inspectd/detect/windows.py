"""Windows of patches: which patches they hold, which of them a region needs, and the way back to a map.

Letters: N frames, P patches of the grid (row-major), W windows of one scale, k the side of a window in patches.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def window_patches(grid_hw: tuple[int, int], scale: int, stride: int = 1) -> Tensor:
    """The patches of each window, `(W, k²) int64`, windows and patches in row-major order.

    With a stride above 1 the last window of a row or column is moved back to the edge, so that no patch is left out.

    >>> window_patches((2, 3), 2).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    starts = [[*range(0, side - scale, stride), side - scale] for side in grid_hw]
    within = torch.tensor([row * grid_hw[1] + column for row, column in product(range(scale), repeat=2)])
    first = torch.tensor([row * grid_hw[1] + column for row, column in product(*starts)])
    return first[:, None] + within[None, :]


def with_ring(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A patch mask `(h, w)` grown by its 8 neighbours: bilinear upsampling inside a region reads one patch beyond it.

    >>> with_ring(np.array([[True, False, False]])).tolist()
    [[True, True, False]]
    """
    padded = np.pad(region, 1)
    height, width = region.shape
    shifts: list[NDArray[np.bool_]] = [
        padded[row : row + height, column : column + width] for row, column in product(range(3), repeat=2)
    ]
    grown: NDArray[np.bool_] = np.logical_or.reduce(shifts)
    return grown


def covering(needed: Tensor, patches: Tensor) -> Tensor:
    """Which windows hold a needed patch: `(N, P)` bool and `(W, k²)` -> `(N, W)` bool."""
    return needed[:, patches].any(dim=-1)


def spread_windows(values: Tensor, places: Tensor, shape: torch.Size, fill: float = 1.0) -> Tensor:
    """Values `(S, …)` of the computed windows at their `places (S,)` among all `(N, W)`, and `fill` elsewhere.

    >>> spread_windows(torch.tensor([0.5]), torch.tensor([2]), torch.Size([1, 3])).tolist()
    [[1.0, 1.0, 0.5]]
    """
    whole = values.new_full((shape.numel(), *values.shape[1:]), fill)
    return whole.index_copy_(0, places, values).view(*shape, *values.shape[1:])


def harmonic(scores: Tensor, patches: Tensor, patch_count: int, *, least: float = 1e-12) -> Tensor:
    """Harmonic mean of the scores of all windows that hold a patch (WinCLIP, equation 3).

    Args:
        scores: `(N, W) float32`, one per window.
        patches: `(W, k²)` from `window_patches`.
        patch_count: P.
        least: scores are raised to it first: a query equal to a reference gives tiny values of either sign.

    Returns:
        `(N, P) float32`: (C 1) / (C (1 / scores)) with the coverage C `(P, W)`, which is never built, so that one
        score that is not finite spoils its own patches alone.

    >>> harmonic(torch.tensor([[0.5, 0.25]]), window_patches((1, 3), 1)[:2], 3)[0, :2].tolist()
    [0.5, 0.25]
    """
    inverse = scores.clamp(min=least).reciprocal() if least > 0 else scores.reciprocal()
    members = patches.flatten()
    spread = inverse.repeat_interleave(patches.shape[1], dim=1)
    total = torch.zeros(len(scores), patch_count, device=scores.device).index_add_(1, members, spread)
    count = torch.zeros(patch_count, device=scores.device).index_add_(0, members, torch.ones_like(spread[0]))
    return count / total
