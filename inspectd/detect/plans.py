"""What one pass computes, as indices that a device follows without being waited for.

Letters: N frames, P patches of the grid, W windows of one scale, S windows that are computed, L tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inspectd.detect.architecture import VisionShape
from inspectd.detect.clip import Group
from inspectd.detect.upload import uploaded
from inspectd.detect.windows import covering, with_ring

_PLANS_KEPT = 256
"""A recipe's regions and batch sizes; frames of ever new sizes make ever new regions."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One pass over N frames. What the CPU asks of it lies there, the rest on the device.

    Plans of one planner with the same `key` are the same pass, whenever they were made. `needed (N, P) bool` on the
    CPU: patches whose map counts, the region's and their neighbours. `chosen`: for each scale the windows that hold one
    of them, `(N, W) bool` on the CPU. `places (S,) int64`: where these stand among all N·W. `inside (N, P) bool`: the
    region. `groups`: the token rows of whole images, then of each scale's windows.
    """

    key: tuple[object, ...]
    needed: Tensor = field(compare=False)
    chosen: tuple[Tensor, ...] = field(compare=False)
    inside: Tensor = field(compare=False)
    places: tuple[Tensor, ...] = field(compare=False)
    groups: tuple[Group, ...] = field(compare=False)


class Planner:
    """Plans for one detector: made once for each combination of regions, then kept."""

    def __init__(self, shape: VisionShape, windows: Sequence[Tensor], device: torch.device) -> None:
        """`windows`: for each scale `window_patches`, on the CPU."""
        self._shape, self._windows, self._device = shape, windows, device
        self._kept: dict[tuple[object, ...], Plan] = {}

    def plan(self, inside: Tensor, *, windows: bool, keep_patches: bool) -> Plan:
        """The pass over frames with these regions `(N, P) bool` on the CPU; without `windows` over whole images alone.

        `keep_patches`: whether the last block is asked for every token of the images.
        """
        key = (inside.numpy().tobytes(), len(inside), windows, keep_patches)
        found = self._kept.get(key)
        if found is None:
            found = self._made(key, inside, windows=windows, keep_patches=keep_patches)
            if len(self._kept) >= _PLANS_KEPT:
                self._kept.clear()
            self._kept[key] = found
        return found

    def groups(self, chosen: Sequence[Tensor], frames: int, *, keep_patches: bool) -> tuple[Group, ...]:
        """Token rows of the whole images and of the chosen windows `(N, W) bool` of each scale."""
        length = 1 + self._shape.patch_count
        whole = torch.arange(frames)[:, None] * length + torch.arange(length)
        rows = [whole, *(_window_rows(mask, self._windows[at], length) for at, mask in enumerate(chosen))]
        return tuple(
            Group(uploaded(part, self._device), keep_patches=keep_patches and at == 0) for at, part in enumerate(rows)
        )

    def _made(self, key: tuple[object, ...], inside: Tensor, *, windows: bool, keep_patches: bool) -> Plan:
        rings = [with_ring(mask) for mask in inside.view(-1, *self._shape.grid_hw).numpy()]
        needed = torch.from_numpy(np.stack(rings)).flatten(1)
        chosen = tuple(covering(needed, patches) for patches in self._windows) if windows else ()
        return Plan(
            key,
            needed,
            chosen,
            uploaded(inside, self._device),
            tuple(uploaded(mask.flatten().nonzero()[:, 0], self._device) for mask in chosen),
            self.groups(chosen, len(inside), keep_patches=keep_patches),
        )


def _window_rows(chosen: Tensor, patches: Tensor, length: int) -> Tensor:
    """Rows `(S, 1 + k²)` of the token table for the chosen windows `(N, W)`: CLS, then the window's own patches."""
    frame, window = chosen.nonzero(as_tuple=True)
    tokens = functional.pad(patches + 1, (1, 0))
    return tokens[window] + frame[:, None] * length
