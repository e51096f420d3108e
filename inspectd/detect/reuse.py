"""Windows that need not be computed again, because their pixels are those that they were last computed from.

Letters: P patches of the grid, W windows of one scale, k the side of a window in patches, B bytes of one patch, E
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inspectd.detect.architecture import VisionShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseRule:
    """When a window is computed again. Tolerance 0 changes no score; any other makes another model."""

    tolerance_levels: int = 0
    """Grey levels by which any one pixel of a window may differ from those that its embedding was computed from."""
    refresh_every: int = 100
    """Every so many frames all windows are computed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """One scale as it was last computed: `pixels (W, k²·B) uint8`, `embeddings (W, E) fp32`, `known (W) bool`."""

    pixels: Tensor
    embeddings: Tensor
    known: Tensor

    def renewed(self, pixels: Tensor, fresh: Tensor, computed: Tensor) -> _Kept:
        """With the fresh windows `(W) bool` taken from `pixels` and `computed (S, E)`."""
        fresh, embeddings = fresh.to(pixels.device), self.embeddings.clone()
        embeddings[fresh] = computed
        return _Kept(
            torch.where(fresh[:, None], pixels, self.pixels),
            embeddings,
            (self.known | fresh) & embeddings.isfinite().all(dim=1),  # one broken computation is not remembered
        )


class WindowMemory:
    """The windows of one view of one camera.

    Pixels are compared with those **from which the kept embedding was computed**, never with the last frame's: slow
    change would creep through. What goes wrong between `stale` and `renew` leaves the memory as it was.
    """

    def __init__(self, rule: ReuseRule) -> None:
        self._rule = rule
        self._kept: list[_Kept] = []
        self._frames = 0

    def stale(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """For each scale which windows must be computed, `(W) bool`, given their pixels `(W, k²·B) uint8`."""
        if self._refreshes():
            return [torch.ones(len(given), dtype=torch.bool, device=given.device) for given in pixels]
        tolerance = self._rule.tolerance_levels
        return [
            ~kept.known | _differ(given, kept.pixels, tolerance) for given, kept in zip(pixels, self._kept, strict=True)
        ]

    def renew(self, pixels: Sequence[Tensor], fresh: Sequence[Tensor], computed: Sequence[Tensor]) -> list[Tensor]:
        """Takes in what was computed of the fresh windows; for each scale all embeddings `(W, E)`, NaN for none."""
        refreshes = self._refreshes()
        before = self._kept or [_nothing(given, rows) for given, rows in zip(pixels, computed, strict=True)]
        parts = zip(before, pixels, fresh, computed, strict=True)
        self._kept = [kept.renewed(*part) for kept, *part in parts]
        self._frames = 1 if refreshes else self._frames + 1
        return [kept.embeddings for kept in self._kept]

    def _refreshes(self) -> bool:
        return not self._kept or self._frames >= self._rule.refresh_every


def _nothing(pixels: Tensor, computed: Tensor) -> _Kept:
    unknown = computed.new_full((len(pixels), computed.shape[1]), torch.nan)
    return _Kept(pixels, unknown, torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device))


def _differ(pixels: Tensor, others: Tensor, tolerance_levels: int) -> Tensor:
    """Which rows of uint8 differ anywhere by more than the tolerance.

    >>> _differ(torch.tensor([[9, 0], [250, 3]]).byte(), torch.tensor([[0, 0], [255, 3]]).byte(), 5).tolist()
    [True, False]
    """
    if tolerance_levels == 0:
        return (pixels != others).any(dim=1)
    return (torch.maximum(pixels, others) - torch.minimum(pixels, others) > tolerance_levels).any(dim=1)


class Recall:
    """One pass over frames some of which come with a memory: what must be computed, and then all embeddings."""

    def __init__(
        self,
        memories: Sequence[WindowMemory | None],
        grey: Tensor,
        chosen: Sequence[Tensor],
        shape: VisionShape,
        window_patches: Sequence[Tensor],
    ) -> None:
        """`grey (N, 3, H, W) uint8`; `chosen (N, W) bool` on the CPU, of each scale: what the map needs."""
        self._chosen = chosen
        self._held = {
            at: (memory, _window_pixels(grey[at], shape, window_patches))
            for at, memory in enumerate(memories)
            if memory is not None
        }
        self.fresh = [mask.clone() for mask in chosen] if self._held else list(chosen)
        for at, (memory, pixels) in self._held.items():
            for mask, stale in zip(self.fresh, memory.stale(pixels), strict=True):
                mask[at] &= stale.cpu()

    def complete(self, computed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """For each scale the embeddings of the chosen windows `(S, E)`, given those of the fresh ones."""
        if not self._held:
            return tuple(computed)
        by_frame = [
            list(torch.split(rows, mask.sum(dim=1).tolist())) for rows, mask in zip(computed, self.fresh, strict=True)
        ]
        for at, (memory, pixels) in self._held.items():
            whole = memory.renew(pixels, [mask[at] for mask in self.fresh], [rows[at] for rows in by_frame])
            for rows, mask, embeddings in zip(by_frame, self._chosen, whole, strict=True):
                rows[at] = embeddings[mask[at]]
        return tuple(torch.cat(rows) for rows in by_frame)


def distinct(memories: Sequence[WindowMemory | None]) -> int:
    """How many frames from the front share no memory: a pass computes all its frames at once, so they must not.

    >>> one = WindowMemory(ReuseRule())
    >>> distinct([one, None, None, one])
    3
    """
    held: set[int] = set()
    for at, memory in enumerate(memories):
        if memory is not None and id(memory) in held:
            return at
        held.add(id(memory))
    return len(memories)


def _window_pixels(grey: Tensor, shape: VisionShape, window_patches: Sequence[Tensor]) -> list[Tensor]:
    """What each window of one frame `(3, H, W) uint8` sees: for each scale `(W, k²·B) uint8`."""
    (rows, columns), (height, width) = shape.grid_hw, shape.patch_hw_px
    cut = grey[:, : rows * height, : columns * width].reshape(3, rows, height, columns, width)
    patches = cut.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)
    return [patches[windows].flatten(1) for windows in window_patches]
