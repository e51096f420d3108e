"""Which attention windows get on this device: the fused kernel where it is proved here, else torch's own.

Letters: S sequences, L tokens of each, K rows that are asked for, T rows that are held, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from inspectd.log import get_logger

Attend = Callable[..., None]
"""`attend_windows` of `window_kernel.py`."""
TOLERANCE = 0.03
"""On values of standard deviation 1: bf16 rounds those near 4 by 0.016, a wrong mask is off by 1."""
_CHECKED_LENGTHS = (2, 5, 10, 17, 26)
"""Scales 1 to 5."""
_CHECKED_SEQUENCES = 101
_CHECKED_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class WindowAttention:
    """The kernel, and the longest sequences that it is for."""

    attend: Attend
    longest: int


def window_attention(device: torch.device, dtype: torch.dtype, width: int, heads: int) -> WindowAttention | None:
    """The fused kernel if it compiles on this device and agrees there with exact attention; else None, and a log line.

    None without a word where it has no purpose: on a CPU and in fp32.
    """
    if device.type != "cuda" or dtype not in _CHECKED_DTYPES:
        return None
    try:
        from inspectd.detect.window_kernel import LONGEST, attend_windows  # noqa: PLC0415 - Triton is for CUDA alone

        worst = max(
            largest_error(attend_windows, length, queries, width=width, heads=heads, device=device, dtype=dtype)
            for length in _CHECKED_LENGTHS
            for queries in (length, 1)
        )
    except Exception as error:  # noqa: BLE001 - Triton, its compiler and the driver raise what they like
        get_logger().warning("window_kernel_refused", device=str(device), error=f"{type(error).__name__}: {error}")
        return None
    if not worst <= TOLERANCE:
        get_logger().warning("window_kernel_refused", device=str(device), error=f"differs by {worst:.3g}")
        return None
    return WindowAttention(attend_windows, LONGEST)


def largest_error(
    attend: Attend,
    length: int,
    queries: int,
    *,
    width: int,
    heads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """How far the kernel is from exact attention on noise; infinite if NaN leaves, or does not fill, its sequence."""
    random = torch.Generator().manual_seed(length)
    noise = torch.randn(_CHECKED_SEQUENCES * length, 3 * width, generator=random).to(device, dtype)
    sick = torch.arange(_CHECKED_SEQUENCES, device=device) == _CHECKED_SEQUENCES // 2
    worst = 0.0
    for part in (None, 1, 2):  # all finite, then NaN in a key, then in a value
        table = noise.clone()
        query, key, value = table.chunk(3, dim=1)
        query.mul_((width // heads) ** -0.5)
        if queries < length:
            query = query.view(_CHECKED_SEQUENCES, length, -1)[:, :queries].flatten(0, 1)
        exact = _exact(query, key, value, heads, length)
        if part is not None:
            (key, value)[part - 1][_CHECKED_SEQUENCES // 2 * length] = torch.nan
        out = torch.full(query.shape, torch.inf, device=device, dtype=dtype)
        attend(query, key, value, out, length=length, heads=heads)
        rows = out.view(_CHECKED_SEQUENCES, -1).float()
        healthy = torch.ones_like(sick) if part is None else ~sick
        if not rows[~healthy].isnan().all():
            return math.inf
        error = float((rows - exact.view_as(rows))[healthy].abs().max())
        worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst


def _exact(query: Tensor, key: Tensor, value: Tensor, heads: int, length: int) -> Tensor:
    sequences = len(key) // length
    split = (x.float().view(sequences, -1, heads, x.shape[1] // heads) for x in (query, key, value))
    query, key, value = (part.transpose(1, 2) for part in split)
    seen: Tensor = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    return seen.transpose(1, 2).flatten(2).flatten(0, 1)
