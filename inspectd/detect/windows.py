"""Windows of patches: which patches they hold, which of them a region needs, and the way back to a map.

Letters: N frames, P patches of the grid (row-major), W windows of one scale, k the side of a window in patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


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


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """Which windows hold each patch: the columns of C, as few as they are.

    `windows (M, P) int64`: the holders of each patch in order, M the most that one has, W where there are fewer.
    `count (P,) float32`: how many there are, which is C 1.
    """

    windows: Tensor
    count: Tensor


def coverage(patches: Tensor, patch_count: int, device: torch.device | None = None) -> Coverage:
    """Of the windows `(W, k²)` of `window_patches`.

    >>> coverage(window_patches((1, 3), 1)[:2], 3).windows.tolist()
    [[0, 1, 2]]
    """
    holders: list[list[int]] = [[] for _ in range(patch_count)]
    for window, held in enumerate(patches.tolist()):
        for patch in held:
            holders[patch].append(window)
    most = max(map(len, holders))
    padded = torch.tensor([[*windows, *[len(patches)] * (most - len(windows))] for windows in holders])
    count = torch.tensor([float(len(windows)) for windows in holders])
    return Coverage(padded.T.contiguous().to(device), count.to(device))


def harmonic(scores: Tensor, covered: Coverage, *, least: float = 1e-12) -> Tensor:
    """Harmonic mean of the scores of all windows that hold a patch (WinCLIP, equation 3).

    Args:
        scores: `(N, W) float32`, one per window.
        covered: by which windows each patch is held.
        least: scores are raised to it first: a query equal to a reference gives tiny values of either sign.

    Returns:
        `(N, P) float32`: (C 1) / (C (1 / scores)) with the coverage C `(P, W)`, which is never built, so that one
        score that is not finite spoils its own patches alone. The order of each sum is fixed, on a GPU too.

    >>> harmonic(torch.tensor([[0.5, 0.25]]), coverage(window_patches((1, 3), 1)[:2], 3))[0, :2].tolist()
    [0.5, 0.25]
    """
    inverse = scores.clamp(min=least).reciprocal() if least > 0 else scores.reciprocal()
    held = functional.pad(inverse, (0, 1)).index_select(1, covered.windows.flatten())
    return covered.count / held.view(len(scores), *covered.windows.shape).sum(dim=1)
