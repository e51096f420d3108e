"""Pixels to the device and results back, without waiting for either.

On a CPU there is nothing to bring and nothing to wait for. On a GPU uploads and resizing have a stream of their own, so
that those of the next pass go beside the computation of this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inspectd.detect.architecture import VisionShape
from inspectd.detect.preprocess import Resize, squashed


class Transfer:
    """The way to one device and back, for one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # A stream that is waited for keeps a core busy meanwhile, which captures are in want of.
        self._arrived = torch.cuda.Event(blocking=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def squashed(self, crops_rgb: Sequence[NDArray[np.uint8]], shape: VisionShape, resize: Resize) -> Tensor:
        """`preprocess.squashed` on the device; what is computed from now on waits for it there.

        To be kept until `wait` has returned, or the next upload could take its memory while it is read.
        """
        if self._uploads is None:
            return squashed(crops_rgb, shape, resize, self._device)
        with torch.cuda.stream(self._uploads):
            grey = squashed(crops_rgb, shape, resize, self._device)
        torch.cuda.current_stream(self._device).wait_stream(self._uploads)
        return grey

    def fetch(self, found: Tensor) -> Tensor:
        """A result on its way to the CPU: to be read behind `wait`."""
        if self._uploads is None:
            return found
        arriving = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        return arriving.copy_(found, non_blocking=True)

    def wait(self) -> None:
        """Waits until all that was fetched is here."""
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(self._device))
            self._arrived.synchronize()
