"""Attention of windows to themselves, many windows in one program. Imports Triton, which comes with torch for CUDA.

A window has 5 or 10 tokens, a tile of a matrix unit 16 rows or more: a window alone in a padded tile wastes most of it.
Here a tile holds as many whole windows as fit, one head of each, and what is not a row's own window is masked.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LONGEST = 32
"""Tokens of a window up to which two or more share a tile."""
_TILE_ROWS = 64
_LEAST_TILE_ROWS = 16


def attend_windows(query: Tensor, key: Tensor, value: Tensor, out: Tensor, *, length: int, heads: int) -> None:
    """Writes into `out (K, D)` what scaled queries `(K, D)` see of keys and values `(T, D)`.

    T is a multiple of `length`, the tokens of one sequence; of each the first K·length/T tokens are asked for. Rows
    may be parts of longer ones; the numbers of a row lie side by side. NaN stays within its own sequence.
    """
    sequences, width = len(key) // length, key.shape[1]
    queries, packed, head = len(query) // max(1, sequences), _TILE_ROWS // length, width // heads
    if not sequences:
        return
    query_rows = max(_LEAST_TILE_ROWS, triton.next_power_of_2(packed * queries))
    columns = max(_LEAST_TILE_ROWS, triton.next_power_of_2(head))
    _attend[(heads, triton.cdiv(sequences, packed))](
        query,
        key,
        value,
        out,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        out.stride(0),
        sequences,
        length,
        queries,
        packed,
        head=head,
        query_rows=query_rows,
        key_rows=_TILE_ROWS,
        columns=columns,
        num_warps=4,
    )


# Counts change with every batch: compiled for one of them, the kernel would be compiled again in the middle of work.
# Triton reads annotations as its own, so that there are none but its own.
@triton.jit(do_not_specialize=["sequences", "length", "queries", "packed"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    out,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    sequences,
    length,
    queries,
    packed,
    head: tl.constexpr,
    query_rows: tl.constexpr,
    key_rows: tl.constexpr,
    columns: tl.constexpr,
):
    first = tl.program_id(1).to(tl.int64) * packed
    here = tl.minimum(sequences - first, packed)  # sequences of this program: fewer in the last one
    column = tl.arange(0, columns)
    across = (tl.program_id(0) * head + column)[None, :]
    asked, held = tl.arange(0, query_rows), tl.arange(0, key_rows)
    is_asked, is_held = asked < here * queries, held < here * length
    asked_in = is_asked[:, None] & (column < head)[None, :]
    held_in = is_held[:, None] & (column < head)[None, :]
    asked_row, held_row = (first * queries + asked)[:, None], (first * length + held)[:, None]

    q = tl.load(query + asked_row * query_stride + across, mask=asked_in, other=0.0)
    k = tl.load(key + held_row * key_stride + across, mask=held_in, other=0.0)
    v = tl.load(value + held_row * value_stride + across, mask=held_in, other=0.0)

    own = ((asked // queries)[:, None] == (held // length)[None, :]) & is_held[None, :]
    own = own | ~is_asked[:, None]  # rows that nobody asked for see everything: a row that sees nothing is 0 / 0
    scores = tl.where(own, tl.dot(q, tl.trans(k)), float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]

    # A weight of 0 does not keep NaN out of a product: values that are not finite are taken out, their own rows marked.
    finite = tl.abs(v) < float("inf")
    broken = tl.max(tl.where(finite, 0.0, 1.0), axis=1)
    seen = tl.dot(weights.to(v.dtype), tl.where(finite, v, 0.0).to(v.dtype))
    spoilt = tl.max(tl.where(own, broken[None, :], 0.0), axis=1)
    seen = tl.where(spoilt[:, None] > 0, float("nan"), seen)
    tl.store(out + asked_row * out_stride + across, seen.to(out.dtype.element_ty), mask=asked_in)
