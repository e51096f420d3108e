"""Layer norm of a residual, written once, in the type that the next product takes. Imports Triton, which comes with
torch for CUDA.

torch's own reads fp32, writes fp32 and leaves the conversion to another pass: here a row is read once and lies in
registers for mean, variance and result. Letters: T rows, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def normalise(x: Tensor, lacking: Tensor, weight: Tensor, bias: Tensor, eps: float, *, dtype: torch.dtype) -> Tensor:
    """LN(x + lacking): rows `(T, D) fp32` whose numbers lie side by side, `(D,) fp32` thrice -> `(T, D)` of `dtype`.

    NaN stays within its own row.
    """
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=dtype, device=x.device)
    if rows:
        columns = triton.next_power_of_2(width)
        _normalise[(rows,)](x, lacking, weight, bias, out, x.stride(0), eps, width=width, columns=columns, num_warps=4)
    return out


# Triton reads annotations as its own, so that there are none but its own.
@triton.jit  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    x, lacking, weight, bias, out, stride, eps, width: tl.constexpr, columns: tl.constexpr
):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, columns)
    inside = column < width
    whole = tl.load(x + row * stride + column, mask=inside, other=0.0)
    whole += tl.load(lacking + column, mask=inside, other=0.0)
    apart = tl.where(inside, whole - tl.sum(whole, axis=0) / width, 0.0)
    spread = tl.sqrt(tl.sum(apart * apart, axis=0) / width + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0)
    offset = tl.load(bias + column, mask=inside, other=0.0)
    normal = apart / spread * gain + offset
    tl.store(out + row * width + column, normal.to(out.dtype.element_ty), mask=inside)
