"""Matrix products: the same linear layer in each precision, with weights laid out once for the machine at hand.

On a CPU the weights are reordered for oneDNN where torch has the operators (plain `linear` goes to MKL, which is up to
twice as slow on AMD); the activation is fused there. Letters: T rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

Product = Callable[[Tensor], Tensor]
"""`(T, I)` of any float type -> `(T, O)` in the precision's own type."""


class Precision(StrEnum):
    """How the transformer's products are computed. Residuals, layer norms and scores are fp32 always."""

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
    """The activation as a function of its own, `(T, O)` -> `(T, O)`."""
    match activation:
        case Activation.NONE:
            return x
        case Activation.GELU:
            return functional.gelu(x)
        case Activation.GELU_TANH:
            return functional.gelu(x, approximate="tanh")
        case Activation.QUICK_GELU:
            return x * torch.sigmoid(1.702 * x)


def linear(weight: Tensor, bias: Tensor, precision: Precision, activation: Activation = Activation.NONE) -> Product:
    """Lays out `weight (O, I)` and `bias (O,)` for the device that they lie on.

    Returns:
        x `(T, I)` -> activation(x weightᵀ + bias) `(T, O)`.
    """
    dtype = COMPUTE_DTYPE[precision]
    weight, bias = weight.to(dtype).contiguous(), bias.to(dtype).contiguous()
    if weight.device.type == "cpu" and has_prepacked():
        return _prepacked(weight, bias, activation)

    def product(x: Tensor) -> Tensor:
        return activate(functional.linear(x.to(dtype), weight, bias), activation)

    return product


def has_prepacked() -> bool:
    """Whether torch has oneDNN's prepacked linear layer on this machine."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


_FUSED = {Activation.NONE: ("none", ""), Activation.GELU: ("gelu", "none"), Activation.GELU_TANH: ("gelu", "tanh")}
_ROWS_EXPECTED = 1024


def _prepacked(weight: Tensor, bias: Tensor, activation: Activation) -> Product:
    dtype = weight.dtype
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_EXPECTED)  # noqa: SLF001 - torch's only name for it
    run = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    fused, algorithm = _FUSED.get(activation, _FUSED[Activation.NONE])
    left_over = activation if activation not in _FUSED else Activation.NONE

    def product(x: Tensor) -> Tensor:
        return activate(run(x.to(dtype), packed, bias, fused, [], algorithm), left_over)

    return product
