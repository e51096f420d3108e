"""CLIP's two transformers, written for windows: one pass over the tokens of all windows and frames.

Letters: N frames, P patches of the grid, S sequences, L tokens of one sequence, T rows of tokens in all, K rows that
are kept behind the last block, D width, E embedding. Row 0 of each image is its CLS token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from inspectd.detect.architecture import TextShape, TowerShape, VisionShape
from inspectd.detect.checkpoint import Weights
from inspectd.detect.gemm import COMPUTE_DTYPE, Precision, addition, linear
from inspectd.detect.kernels import Normalise, WindowAttention, fused_norm, window_attention

Beat = Callable[[], None]

_MLP_ROWS_CPU = 1024
"""About so many rows of the MLP's hidden layer still lie in a CPU's cache."""
_MLP_ROWS_GPU = 1 << 30
"""A GPU takes all rows at once."""
_SHORT = 64
"""Tokens of a sequence up to which plain products beat torch's fused attention on a CPU: every window's."""


@dataclass(frozen=True, slots=True)
class Span:
    """S sequences of L tokens that lie one after the other; the first `queries` tokens of each are computed."""

    sequences: int
    length: int
    queries: int


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Sequences of one length as rows of the token table: `rows (S, L) int64`, each beginning with its CLS token."""

    rows: Tensor
    keep_patches: bool = False
    """Whether the last block computes every token (whole images with references), not CLS alone."""

    def span(self, *, last: bool) -> Span:
        """The group in the last block, or in any other, which computes every token."""
        sequences, length = self.rows.shape
        return Span(sequences, length, 1 if last and not self.keep_patches else length)


class Block:
    """One pre-norm residual attention block: x += out(attention(qkv(ln_1 x))); x += proj(act(fc(ln_2 x))).

    Where the biases of out and proj are deferred, the residual lacks their sum over this block and all before it. It is
    added where the residual is read: by the layer norms, and by `completed`.
    """

    def __init__(
        self,
        weights: Weights,
        prefix: str,
        shape: TowerShape,
        *,
        device: torch.device,
        precision: Precision,
        apart: bool = False,
        normalise: Normalise | None = None,
        lacking: Tensor | None = None,
    ) -> None:
        """`apart`: queries are computed apart from keys and values, as the last block of the image tower does.

        `normalise`: a device's own layer norm, with which biases are deferred; `lacking (D,)`: what the residual then
        lacks before this block.
        """
        width, hidden = shape.width, shape.mlp_width
        # 8 bits are for the MLP, two thirds of the work; in attention they would cost most of the accuracy.
        gentle = Precision.BF16 if precision is Precision.INT8 else precision
        self._width, self._eps = width, shape.eps
        self._rows = _MLP_ROWS_CPU if device.type == "cpu" else _MLP_ROWS_GPU

        def take(name: str, *dimensions: int) -> Tensor:
            return weights.take(f"{prefix}.{name}", *dimensions).to(device)

        def scaled(name: str, gamma: str, inputs: int) -> tuple[Tensor, Tensor]:
            weight, bias = take(f"{name}.weight", width, inputs), take(f"{name}.bias", width)
            factor = take(gamma, width) if shape.layer_scale else torch.ones(width, device=device)
            return weight * factor[:, None], bias * factor

        ln_1 = take("ln_1.weight", width), take("ln_1.bias", width)
        ln_2 = take("ln_2.weight", width), take("ln_2.bias", width)
        # Queries leave the product scaled by 1 / sqrt(D / heads), so that attention has one pass less.
        scale = torch.ones(3 * width, device=device)
        scale[:width] = (width // shape.heads) ** -0.5
        weight = take("attn.in_proj_weight", 3 * width, width) * scale[:, None]
        bias = take("attn.in_proj_bias", 3 * width) * scale
        sizes = [width, 2 * width] if apart else [3 * width]
        self._inputs = [
            linear(*part, gentle) for part in zip(torch.split(weight, sizes), torch.split(bias, sizes), strict=True)
        ]
        out, out_bias = scaled("attn.out_proj", "ls_1.gamma", width)
        self._fc = linear(
            take("mlp.c_fc.weight", hidden, width), take("mlp.c_fc.bias", hidden), precision, shape.activation
        )
        proj, proj_bias = scaled("mlp.c_proj", "ls_2.gamma", hidden)
        deferred = normalise is not None
        lacking = torch.zeros(width, device=device) if lacking is None else lacking
        self._normalise = normalise
        self._ln_1, self._ln_2 = (lacking, *ln_1), (lacking + out_bias, *ln_2)
        self.lacking = lacking + out_bias + proj_bias if deferred else None
        self._out = addition(out, None if deferred else out_bias, gentle)
        self._proj = addition(proj, None if deferred else proj_bias, precision)

    def qkv(self, x: Tensor) -> Tensor:
        """Scaled queries, keys and values `(T, 3D)` of rows `(T, D)`."""
        return self._inputs[0](self._norm(x, self._ln_1))

    def query(self, x: Tensor) -> Tensor:
        """Scaled queries alone `(K, D)`."""
        return self._inputs[0](self._norm(x, self._ln_1))

    def key_value(self, x: Tensor) -> Tensor:
        """Keys and values alone `(T, 2D)`."""
        return self._inputs[1](self._norm(x, self._ln_1))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the block, in place on the residual `x (T, D) fp32`; `attended (T, D)`."""
        # Equal parts: a few rows left over would cost as much as many, since the weights are read again for them.
        parts = max(1, round(len(x) / self._rows))
        for part, seen in zip(x.tensor_split(parts), attended.tensor_split(parts), strict=True):
            self._out(part, seen)
            self._proj(part, self._fc(self._norm(part, self._ln_2)))
        return x

    def completed(self, x: Tensor) -> Tensor:
        """What this block left of the residual `(…, D)`, with all that was deferred."""
        return x if self.lacking is None else x + self.lacking

    def _norm(self, x: Tensor, lacking_weight_bias: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        lacking, weight, bias = lacking_weight_bias
        if self._normalise is None:
            return functional.layer_norm(x, (self._width,), weight, bias, self._eps)
        return self._normalise(x, lacking, weight, bias, self._eps)


def attend(
    qkv: Sequence[Tensor],
    spans: Sequence[Span],
    heads: int,
    *,
    causal: bool = False,
    windows: WindowAttention | None = None,
) -> Tensor:
    """Attention of each sequence to itself alone: scaled queries `(K, D)`, keys and values `(T, D)` -> `(K, D)`.

    Sequences of equal length form one batch; nothing is masked or padded. `windows`: a device's own for short ones.
    """
    asked = [span.sequences * span.queries for span in spans]
    held = [span.sequences * span.length for span in spans]
    seen = torch.empty(qkv[0].shape, dtype=qkv[0].dtype, device=qkv[0].device)
    parts = (torch.split(x, rows) for x, rows in zip((*qkv, seen), (asked, held, held, asked), strict=True))
    for span, *part, out in zip(spans, *parts, strict=True):
        if windows is not None and span.length <= windows.longest:
            windows.attend(*part, out, length=span.length, heads=heads)
            continue
        query, key, value = (_by_head(x, span.sequences, heads) for x in part)
        _by_head(out, span.sequences, heads).copy_(_attention(query, key, value, causal=causal))
    return seen


def _by_head(x: Tensor, sequences: int, heads: int) -> Tensor:
    """`(S·L, D)` -> `(S, heads, L, D / heads)`, a view; S may be 0."""
    return x.view(sequences, len(x) // max(1, sequences), heads, x.shape[1] // heads).transpose(1, 2)


def _attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    short = key.shape[2] <= _SHORT or key.dtype == torch.bfloat16
    if short and query.device.type == "cpu" and not causal:
        # Less than half the time of torch's fused kernel, which is slow for short sequences and for bf16.
        return torch.matmul(torch.matmul(query, key.transpose(-1, -2)).softmax(dim=-1), value)
    return functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=1.0)


def embed_patches(pixels: Tensor, weight: Tensor) -> Tensor:
    """`(N, 3, H, W)` and a kernel `(D, 3, h, w)`, which is also its own stride -> `(N, P, D)`, in fp32 on any device.

    A GPU's convolutions take TF32 unless the whole process is told not to; its products do not.
    """
    size = weight.shape[2:]
    if pixels.device.type == "cpu":
        return functional.conv2d(pixels, weight, stride=size).flatten(2).transpose(1, 2)
    return unfolded(pixels, size) @ weight.flatten(1).T


def unfolded(pixels: Tensor, size: torch.Size) -> Tensor:
    """The patches of `(N, 3, H, W)` as rows, `(N, P, 3·h·w)`, in the order of a kernel's own numbers."""
    return functional.unfold(pixels, tuple(size), stride=tuple(size)).transpose(1, 2)


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """TF32 on a GPU is a switch of the process: on for a tower that is to have it, and off again behind it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision is Precision.TF32 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class VisionTower:
    """The image tower: pixels -> token table -> hidden states of any groups of its rows."""

    def __init__(
        self, weights: Weights, shape: VisionShape, *, device: torch.device, precision: Precision, fused: bool = True
    ) -> None:
        """`fused`: whether a GPU may use kernels of our own and recorded passes."""
        self.shape = shape
        self.fused = fused and device.type == "cuda"
        self.device = device
        self.precision = precision
        width, patches = shape.width, shape.patch_count

        def take(name: str, *dimensions: int) -> Tensor:
            return weights.take(f"visual.{name}", *dimensions).to(device)

        self._conv1 = take("conv1.weight", width, 3, *shape.patch_hw_px)
        self._cls = take("class_embedding", width)
        self._position = take("positional_embedding", patches + 1, width)
        self._ln_pre = (take("ln_pre.weight", width), take("ln_pre.bias", width)) if shape.pre_norm else None
        dtype = COMPUTE_DTYPE[precision]
        self._windows = window_attention(device, dtype, width, shape.heads) if fused else None
        normalise = fused_norm(device, dtype, width) if fused else None
        self._blocks: list[Block] = []
        for index in range(shape.layers):
            self._blocks.append(
                Block(
                    weights,
                    f"visual.transformer.resblocks.{index}",
                    shape,
                    device=device,
                    precision=precision,
                    apart=index == shape.layers - 1,
                    normalise=normalise,
                    lacking=self._blocks[-1].lacking if self._blocks else None,
                )
            )
        self._ln_post = take("ln_post.weight", width), take("ln_post.bias", width)
        self._proj = take("proj", width, shape.embedding)
        weights.require_all_taken("visual.")

    def tokens(self, pixels: Tensor) -> Tensor:
        """`(N, 3, H, W)` normalised pixels -> `(N, 1 + P, D) fp32`: CLS and patches, with positions, behind ln_pre."""
        patches = embed_patches(pixels, self._conv1)
        cls = self._cls.expand(len(pixels), 1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self._position
        return tokens if self._ln_pre is None else self._norm(tokens, self._ln_pre)

    def encode(self, tokens: Tensor, groups: Sequence[Group], beat: Beat) -> tuple[list[Tensor], Tensor]:
        """Runs all blocks over all groups at once; `beat` is called behind each block.

        Returns:
            for each group its hidden states behind the last block, `(S, L, D)` or `(S, 1, D)` (before ln_post); and
            those of the first group before the last block, `(S, L, D)`.
        """
        with products_in(self.precision):
            return self._encoded(tokens, groups, beat)

    def _encoded(self, tokens: Tensor, groups: Sequence[Group], beat: Beat) -> tuple[list[Tensor], Tensor]:
        table = tokens.flatten(0, 1)
        rows = torch.cat([group.rows.flatten() for group in groups])
        full = [group.span(last=False) for group in groups]
        first, *middle, last = self._blocks
        # Every window sees the same tokens before the first block: its layer norm and QKV are shared by the grid.
        x = first.finish(table[rows], self._attend(first.qkv(table)[rows].chunk(3, dim=1), full))
        for block in middle:
            beat()
            x = block.finish(x, self._attend(block.qkv(x).chunk(3, dim=1), full))
        beat()
        kept = [group.span(last=True) for group in groups]
        before = self._blocks[-2].completed(x[: groups[0].rows.numel()]).view(*groups[0].rows.shape, -1)
        x = last.completed(self._last(last, x, kept))
        beat()
        parts = torch.split(x, [span.sequences * span.queries for span in kept])
        return [
            part.view(span.sequences, span.queries, x.shape[1]) for part, span in zip(parts, kept, strict=True)
        ], before

    def _last(self, block: Block, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """The last block computes keys and values of all rows, and the rest for the kept rows alone."""
        start, rows = 0, []
        for span in spans:
            offsets = torch.arange(span.sequences, device=x.device)[:, None] * span.length
            rows.append((start + offsets + torch.arange(span.queries, device=x.device)).flatten())
            start += span.sequences * span.length
        residual = x[torch.cat(rows)]
        qkv = [block.query(residual), *block.key_value(x).chunk(2, dim=1)]
        return block.finish(residual, self._attend(qkv, spans))

    def _attend(self, qkv: Sequence[Tensor], spans: Sequence[Span]) -> Tensor:
        return attend(qkv, spans, self.shape.heads, windows=self._windows)

    def normalised(self, hidden: Tensor) -> Tensor:
        """ln_post: `(…, D)` -> `(…, D)`."""
        return self._norm(hidden, self._ln_post)

    def projected(self, normalised: Tensor) -> Tensor:
        """Into the space of the text: `(…, D)` -> `(…, E)`."""
        return normalised @ self._proj

    def _norm(self, x: Tensor, weight_bias: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(x, (self.shape.width,), *weight_bias, self.shape.eps)


class TextTower:
    """The causal text tower. Ids may be cut behind the last end token: what follows cannot be seen from it."""

    def __init__(self, weights: Weights, shape: TextShape, *, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        width = shape.width

        def take(name: str, *dimensions: int) -> Tensor:
            return weights.take(name, *dimensions).to(device)

        self._embedding = take("token_embedding.weight", shape.vocabulary, width)
        self._position = take("positional_embedding", shape.context_length, width)
        self._blocks = [
            Block(weights, f"transformer.resblocks.{index}", shape, device=device, precision=Precision.FP32)
            for index in range(shape.layers)
        ]
        self._ln_final = take("ln_final.weight", width), take("ln_final.bias", width)
        self._proj = take("text_projection", width, shape.embedding)

    def encode(self, ids: Tensor, beat: Beat) -> Tensor:
        """`(S, L) int64` token ids, L at most the context length -> `(S, E)`; the end token has the largest id."""
        ids = ids.to(self.device)
        count, length = ids.shape
        spans = [Span(count, length, length)]
        x = (self._embedding[ids] + self._position[:length]).flatten(0, 1)
        for block in self._blocks:
            x = block.finish(x, attend(block.qkv(x).chunk(3, dim=1), spans, self.shape.heads, causal=True))
            beat()
        ends = x.view(count, length, -1)[torch.arange(count, device=self.device), ids.argmax(dim=1)]
        return functional.layer_norm(ends, (self.shape.width,), *self._ln_final, self.shape.eps) @ self._proj
