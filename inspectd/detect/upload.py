"""One tensor's way to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor of the CPU on `device`. To a GPU it goes through page-locked memory: the copy need not be waited for.

    Torch's host allocator gives a block away again only behind the last copy that read it.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
