"""Matrix products: the same linear layer in each precision, with weights laid out once for the machine at hand.

On a CPU the weights are reordered for oneDNN where torch has the operators, but for fp32 without AVX-512: there MKL,
which plain products go to, is faster (Zen 3: 85 GFLOP/s a core against 74; with AVX-512 it is up to twice as slow on
AMD). Letters: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

Product = Callable[[Tensor], Tensor]
"""`(T, I)` of any float type -> `(T, O)` in the precision's own type."""
Addition = Callable[[Tensor, Tensor], None]
"""To a residual `(T, O) fp32` the product of `(T, I)` is added in place."""


class Precision(StrEnum):
    """How the transformer's products are computed. Residuals, layer norms and scores are fp32 always.

    INT8 is for CPUs: the MLP's products in 8 bits, the rest in bf16.
    """

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class Activation(StrEnum):
    """What follows a product."""

    NONE = "none"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"


COMPUTE_DTYPE = {
    Precision.FP32: torch.float32,
    Precision.TF32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.INT8: torch.float32,
}


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation in place, `(T, O)` -> `(T, O)`."""
    match activation:
        case Activation.NONE:
            pass
        case Activation.GELU:
            torch.ops.aten.gelu_(x)
        case Activation.GELU_TANH:
            torch.ops.aten.gelu_(x, approximate="tanh")
        case Activation.QUICK_GELU:
            x.mul_(torch.sigmoid(1.702 * x))
    return x


def linear(weight: Tensor, bias: Tensor, precision: Precision, activation: Activation = Activation.NONE) -> Product:
    """Lays out `weight (O, I)` and `bias (O,)` for the device that they lie on.

    Returns:
        x `(T, I)` -> activation(x weightᵀ + bias) `(T, O)`.
    """
    if precision is Precision.INT8:
        return _int8(weight, bias, activation)
    dtype = COMPUTE_DTYPE[precision]
    weight, bias = weight.to(dtype).contiguous(), bias.to(dtype).contiguous()
    if weight.device.type == "cpu" and prepacks(dtype):
        return _prepacked(weight, bias, activation)

    def product(x: Tensor) -> Tensor:
        return activate(functional.linear(x.to(dtype), weight, bias), activation)

    return product


def addition(weight: Tensor, bias: Tensor | None, precision: Precision) -> Addition:
    """As `linear`, for a product that is added to a residual, which plain fp32 products do in one pass.

    Without `bias` on a GPU those of bf16 and fp16 do, too.
    """
    dtype = COMPUTE_DTYPE[precision]
    if bias is None and weight.device.type == "cuda" and dtype is not torch.float32:
        return accumulation(weight.to(dtype))
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    plain = precision in (Precision.FP32, Precision.TF32)
    if plain and not (weight.device.type == "cpu" and prepacks(torch.float32)):
        transposed, offset = weight.contiguous().t(), bias.contiguous()

        def accumulate(residual: Tensor, x: Tensor) -> None:
            residual.add_(offset).addmm_(x, transposed)

        return accumulate
    product = linear(weight, bias, precision)

    def add(residual: Tensor, x: Tensor) -> None:
        residual.add_(product(x))

    return add


def accumulation(weight: Tensor) -> Addition:
    """For `weight (O, I)` in bf16 or fp16 on a GPU: products are added in fp32 by the product itself, and never lie in
    memory on their own. With a summand of its own the product takes no bias.
    """
    transposed = weight.contiguous().t()

    def accumulate(residual: Tensor, x: Tensor) -> None:
        torch.ops.aten.addmm.dtype_out(residual, x, transposed, torch.float32, out=residual)

    return accumulate


def prepacks(dtype: torch.dtype) -> bool:
    """Whether weights are laid out for oneDNN on this machine's processor, where it is the faster one and can."""
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in _PREPACKED):  # type: ignore[no-untyped-call]
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - it must have AVX-512
    has_mkl = bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return not has_mkl or torch.backends.cpu.get_cpu_capability() != "AVX2"


_PREPACKED = ["_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"]
_FUSED = {Activation.NONE: ("none", ""), Activation.GELU: ("gelu", "none"), Activation.GELU_TANH: ("gelu", "tanh")}
_ROWS_EXPECTED = 1024
_LEAST_STEP = 1e-12


def _split(activation: Activation, *, erf_apart: bool = False) -> tuple[str, str, Activation]:
    """What oneDNN does within a product, by name and algorithm, and what is left to be done behind it."""
    if activation not in _FUSED or (erf_apart and activation is Activation.GELU):
        return *_FUSED[Activation.NONE], activation
    return *_FUSED[activation], Activation.NONE


def _prepacked(weight: Tensor, bias: Tensor, activation: Activation) -> Product:
    dtype = weight.dtype
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_EXPECTED)  # noqa: SLF001 - torch's only name for it
    run = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    # oneDNN's erf in fp32 costs more than the pass it saves: 105 GFLOP/s fused, 130 apart, on Zen 3.
    fused, algorithm, left_over = _split(activation, erf_apart=dtype is torch.float32)

    def product(x: Tensor) -> Tensor:
        return activate(run(x.to(dtype), packed, bias, fused, [], algorithm), left_over)

    return product


def has_int8() -> bool:
    """Whether this machine has oneDNN's quantised linear layer and VNNI, without which its 16-bit sums overflow."""
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.cpu._is_vnni_supported()  # noqa: SLF001


def _int8(weight: Tensor, bias: Tensor, activation: Activation) -> Product:
    """Weights to 8 bits once, by output; rows to 8 bits as they come, by the range of all rows of one call.

    A row's result depends on the rows beside it: whoever wants the same at any batch size gives one frame at a time.
    """
    steps = weight.abs().amax(dim=1).clamp(min=_LEAST_STEP) / 127
    packed = torch.ops.onednn.qlinear_prepack((weight / steps[:, None]).round().to(torch.int8), list(weight.shape))
    zeros = torch.zeros(len(steps), dtype=torch.int32)
    fused, algorithm, left_over = _split(activation)

    def product(x: Tensor) -> Tensor:
        low, high = (float(edge) for edge in torch.aminmax(x))
        if not math.isfinite(high - low):  # 8 bits hold no NaN: what is broken must stay so
            return torch.full((len(x), len(bias)), torch.nan)
        step = max(max(high, 0.0) - min(low, 0.0), _LEAST_STEP) / 254  # so that rounding both ends stays within 255
        zero = round(-min(low, 0.0) / step)
        levels = torch.add(torch.tensor(zero + 0.5), x.to(torch.float32), alpha=1 / step).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            levels, step, zero, packed, steps, zeros, bias, 1.0, 0, torch.float32, fused, [], algorithm
        )
        return activate(y, left_over)

    return product
