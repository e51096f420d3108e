"""The demo model: open_clip's own CLIP, started well and run fast enough to be trained on two cores.

Letters: B pictures, P patches (225), W windows, k a window's side in patches, D width, E embedding, n sequences.
The windows are WinCLIP's (Jeong et al., CVPR 2023): CLS and k² patches of ``ln_pre(x0)`` with their own positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from inspectd.detect.text import open_clip

GRID = 15
PATCH_PX = 16
CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 240, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
WIDTH = 128

Attention = Callable[[Tensor, int], Tensor]
"""Takes queries, keys and values side by side ``(n, length, 3 D)`` and the number of heads."""


def build_model() -> nn.Module:
    """A fresh CLIP whose first filters are cosine waves and whose positions are a 2-D sine table."""
    model: nn.Module = open_clip().model.CLIP(**CONFIG)
    with torch.no_grad():
        model.visual.conv1.weight.copy_(_cosine_filters(WIDTH, PATCH_PX))
        model.visual.positional_embedding.copy_(_sine_positions(WIDTH, GRID) * 0.5)
    return model


def whiten(model: nn.Module, pixels: Tensor) -> None:
    """Scales the first filters so that each answers with about unit spread to ``pixels (B, 3, 240, 240)``.

    Brightness outweighs fine detail a hundredfold in raw patches; the norm after it would keep detail small.
    """
    with torch.no_grad():
        spread = model.visual.conv1(pixels).std((0, 2, 3))
        model.visual.conv1.weight.div_((spread + 0.02 * spread.max())[:, None, None, None])


def _cosine_filters(count: int, side: int) -> Tensor:
    """``(count, 3, side, side)``: the lowest 2-D cosine waves, three of four for brightness, the rest for colour."""
    axis = (torch.arange(side) + 0.5) * math.pi / side
    order = sorted(
        ((u, v) for u in range(side) for v in range(side)), key=lambda wave: (wave[0] ** 2 + wave[1] ** 2, wave)
    )

    def waves(number: int) -> Tensor:
        planes = torch.stack([torch.outer(torch.cos(axis * u), torch.cos(axis * v)) for u, v in order[:number]])
        return planes / planes.flatten(1).norm(dim=1)[:, None, None]

    mixes = (([0.58, 0.58, 0.58], count - count // 4), ([0.7, 0.0, -0.7], count // 8), ([0.4, -0.8, 0.4], count // 8))
    parts = [waves(number)[:, None] * torch.tensor(mix)[None, :, None, None] for mix, number in mixes]
    return torch.cat(parts)


def _sine_positions(width: int, side: int) -> Tensor:
    """``(1 + side², width)``: a zero row for CLS, then sines and cosines of row and column."""
    rates = 1.0 / (30.0 ** (torch.arange(width // 4).float() / (width // 4)))
    waves = torch.outer(torch.arange(side).float(), rates)
    line = torch.cat([waves.sin(), waves.cos()], 1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([torch.zeros(1, width), torch.cat([rows, columns], 2).reshape(-1, width)])


def embed_tokens(model: nn.Module, pixels: Tensor) -> Tensor:
    """``t = ln_pre(cls, patches + positions)``: ``(B, 1 + P, D)``."""
    visual = model.visual
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(patches.dtype).expand(len(pixels), 1, -1)
    tokens: Tensor = visual.ln_pre(torch.cat([cls, patches], 1) + visual.positional_embedding.to(patches.dtype))
    return tokens


def encode_whole(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image embedding ``(B, E)``, hidden CLS ``(B, D)`` and patch features ``(B, P, D)``, float32 unit vectors."""
    x = tokens
    for block in model.visual.transformer.resblocks:
        x = _run(block, x, _full_attention)
    y = model.visual.ln_post(x)
    image = functional.normalize((y[:, 0] @ model.visual.proj).float(), dim=-1)
    return image, functional.normalize(y[:, 0].float(), dim=-1), functional.normalize(y[:, 1:].float(), dim=-1)


def encode_windows(model: nn.Module, tokens: Tensor, patches: Tensor) -> Tensor:
    """Unit embeddings ``(B, W, E)`` of the windows that hold ``patches (B, W, k²)``, counted from 0."""
    b, w, k2 = patches.shape
    rows = (patches + 1).reshape(b, w * k2, 1).expand(-1, -1, tokens.shape[-1])
    inside = tokens.gather(1, rows).reshape(b * w, k2, -1)
    x = torch.cat([tokens[:, :1].expand(-1, w, -1).reshape(b * w, 1, -1), inside], 1)
    *blocks, last = model.visual.transformer.resblocks
    for block in blocks:
        x = _run(block, x, _packed_attention)
    y = model.visual.ln_post(_run(last, x, _first_row_attention))
    return functional.normalize((y[:, 0] @ model.visual.proj).float(), dim=-1).reshape(b, w, -1)


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Unit embeddings ``(n, E)``; the causal tower makes cutting after the last end token exact."""
    ends = tokens.argmax(-1)
    tokens = tokens[:, : int(ends.max()) + 1]
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    for block in model.transformer.resblocks:
        x = _run(block, x, _causal_attention)
    last = model.ln_final(x)[torch.arange(len(x)), ends]
    return functional.normalize((last @ model.text_projection).float(), dim=-1)


def _split(rows: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values: each ``(n, heads, length, D / heads)``."""
    n, length, width = rows.shape
    q, k, v = rows.reshape(n, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def _full_attention(rows: Tensor, heads: int) -> Tensor:
    return functional.scaled_dot_product_attention(*_split(rows, heads)).transpose(1, 2).flatten(2)


def _causal_attention(rows: Tensor, heads: int) -> Tensor:
    return functional.scaled_dot_product_attention(*_split(rows, heads), is_causal=True).transpose(1, 2).flatten(2)


def _packed_attention(rows: Tensor, heads: int) -> Tensor:
    """Many tiny sequences, 4 or 8 of them side by side under a block-diagonal mask: exact, and one matrix product."""
    n, length, width = rows.shape
    pack = math.gcd(n, 8 if length <= 5 else 4)
    q, k, v = _split(rows.reshape(n // pack, pack * length, width), heads)
    blocks = torch.block_diag(*[torch.ones(length, length)] * pack)
    bias = torch.where(blocks > 0, 0.0, float("-inf")).to(q.dtype)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(n, length, width // 3)


def _first_row_attention(rows: Tensor, heads: int) -> Tensor:
    """The first query alone, elementwise: ``(n, 1, D)``. Nothing reads the other rows of a last block."""
    q, k, v = _split(rows, heads)
    weights = ((q[:, :, :1] * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5).softmax(2)
    return (weights * v).sum(2).flatten(1)[:, None]


def _run(block: nn.Module, x: Tensor, attend: Attention) -> Tensor:
    """One residual block, ``(n, rows, D)``; as many rows come out as the attention gives."""
    attention = block.attn
    mixed = attend(
        functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias), attention.num_heads
    )
    x = x[:, : mixed.shape[1]] + functional.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)
    result: Tensor = x + block.mlp(block.ln_2(x))
    return result
