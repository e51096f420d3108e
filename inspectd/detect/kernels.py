"""Which kernels of our own this device gets: those that are proved here on noise; for the rest there is torch.

Letters: S sequences, L tokens of each, K rows that are asked for, T rows that are held, I inputs, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from inspectd.detect.gemm import accumulation
from inspectd.log import get_logger

Attend = Callable[..., None]
"""`attend_windows` of `window_kernel.py`."""
Normalise = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""`normalise` of `norm_kernel.py` for one type of results."""
Made = TypeVar("Made")
TOLERANCE = 0.03
"""On values of standard deviation 1: bf16 rounds those near 4 by 0.016, a wrong mask is off by 1."""
_CHECKED_LENGTHS = (2, 5, 10, 17, 26)
"""Scales 1 to 5."""
_CHECKED_ROWS = 101
"""Sequences, or rows: no multiple of a tile. What is broken on purpose is in the middle one."""
_SICK = _CHECKED_ROWS // 2
_CHECKED_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class WindowAttention:
    """The kernel, and the longest sequences that it is for."""

    attend: Attend
    longest: int


def window_attention(device: torch.device, dtype: torch.dtype, width: int, heads: int) -> WindowAttention | None:
    """Attention of many windows at once, or None: torch's own."""

    def prove() -> tuple[WindowAttention, float]:
        from inspectd.detect.window_kernel import LONGEST, attend_windows  # noqa: PLC0415 - Triton is for CUDA alone

        worst = max(
            attention_error(attend_windows, length, queries, width=width, heads=heads, device=device, dtype=dtype)
            for length in _CHECKED_LENGTHS
            for queries in (length, 1)
        )
        return WindowAttention(attend_windows, LONGEST), worst

    return _proved("windows", device, dtype, prove)


def fused_norm(device: torch.device, dtype: torch.dtype, width: int) -> Normalise | None:
    """Layer norm of a residual that lacks biases, for products that leave them out (`gemm.accumulation`); or None.

    The two are for each other: None where either is not as it should be, and biases are added with each product.
    """

    def prove() -> tuple[Normalise, float]:
        from inspectd.detect.norm_kernel import normalise  # noqa: PLC0415 - Triton is for CUDA alone

        made: Normalise = partial(normalise, dtype=dtype)
        worst = max(norm_error(made, width, device=device), accumulation_error(width, device=device, dtype=dtype))
        return made, worst

    return _proved("norm", device, dtype, prove)


def _proved(
    kernel: str, device: torch.device, dtype: torch.dtype, prove: Callable[[], tuple[Made, float]]
) -> Made | None:
    """What `prove` makes if it compiles on this device and its error there is small; else None, and a log line.

    None without a word where kernels of our own have no purpose: on a CPU and in fp32.
    """
    if device.type != "cuda" or dtype not in _CHECKED_DTYPES:
        return None
    try:
        made, worst = prove()
        refusal = None if worst <= TOLERANCE else f"differs by {worst:.3g}"
    except Exception as error:  # noqa: BLE001 - Triton, its compiler and the driver raise what they like
        refusal = f"{type(error).__name__}: {error}"
    if refusal is None:
        return made
    get_logger().warning("kernel_refused", kernel=kernel, device=str(device), error=refusal)
    return None


def attention_error(
    attend: Attend,
    length: int,
    queries: int,
    *,
    width: int,
    heads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """How far a kernel is from exact attention on noise; infinite if NaN leaves, or does not fill, its sequence."""
    noise = _noise(_CHECKED_ROWS * length, 3 * width, device=device).to(dtype)
    worst = 0.0
    for part in (None, 1, 2):  # all finite, then NaN in a key, then in a value
        table = noise.clone()
        query, key, value = table.chunk(3, dim=1)
        query.mul_((width // heads) ** -0.5)
        if queries < length:
            query = query.view(_CHECKED_ROWS, length, -1)[:, :queries].flatten(0, 1)
        exact = _exact_attention(query, key, value, heads, length)
        if part is not None:
            (key, value)[part - 1][_SICK * length] = torch.nan
        out = torch.full(query.shape, torch.inf, device=device, dtype=dtype)
        attend(query, key, value, out, length=length, heads=heads)
        rows = (out.view(_CHECKED_ROWS, -1).float(), exact.view(_CHECKED_ROWS, -1))
        worst = max(worst, _difference(*rows, sick=part is not None))
    return worst


def norm_error(normalise: Normalise, width: int, *, device: torch.device) -> float:
    """How far a kernel is from torch's layer norm on noise; infinite if NaN leaves, or does not fill, its row."""
    x = 3 + 2 * _noise(_CHECKED_ROWS, width, device=device)
    lacking, gain, bias = _noise(3, width, device=device)
    gain, eps = 0.5 + gain / 16, 1e-5  # bf16 rounds values below 4 by 0.008
    exact = functional.layer_norm(x + lacking, (width,), gain, bias / 8, eps)
    x[_SICK, width // 3] = torch.nan
    return _difference(normalise(x, lacking, gain, bias / 8, eps).float(), exact, sick=True)


def accumulation_error(width: int, *, device: torch.device, dtype: torch.dtype) -> float:
    """How far `gemm.accumulation` is from exact on noise; infinite as above, or if it writes beside its rows."""
    inputs = 4 * width
    table, x = _noise(_CHECKED_ROWS + 2, width, device=device), _noise(_CHECKED_ROWS, inputs, device=device).to(dtype)
    weight = (_noise(width, inputs, device=device) * inputs**-0.5).to(dtype)
    exact = table.clone()
    exact[1:-1] += x.float() @ weight.float().T
    x[_SICK, inputs // 3] = torch.nan
    accumulation(weight)(table[1:-1], x)
    beside = float((table - exact)[[0, -1]].abs().max())
    return math.inf if beside else _difference(table[1:-1], exact[1:-1], sick=True)


def _noise(rows: int, columns: int, *, device: torch.device) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)).to(device)


def _difference(found: Tensor, exact: Tensor, *, sick: bool) -> float:
    """The largest of healthy rows; infinite if one of them is broken, or the `sick` one is anywhere sound."""
    healthy = torch.ones(len(found), dtype=torch.bool, device=found.device)
    healthy[_SICK] = not sick
    if sick and not found[_SICK].isnan().all():
        return math.inf
    error = float((found - exact)[healthy].abs().max())
    return error if math.isfinite(error) else math.inf


def _exact_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, length: int) -> Tensor:
    sequences = len(key) // length
    split = (x.float().view(sequences, -1, heads, x.shape[1] // heads) for x in (query, key, value))
    query, key, value = (part.transpose(1, 2) for part in split)
    seen: Tensor = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    return seen.transpose(1, 2).flatten(2).flatten(0, 1)
