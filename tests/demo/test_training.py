"""The training of the demo model: the same arithmetic as open_clip, and labels that say what a window can know."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_dataset import Batch, Pictures, render_shards
from demo_network import build_model, embed_tokens, encode_text, encode_whole, encode_windows
from demo_objective import WEIGHTS, Heads, Vocabulary, losses, pick_windows, window_table
from demo_shapes import PartKind


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model().eval()


@torch.inference_mode()
def test_whole_images_are_encoded_as_open_clip_does(model):
    """The training's own forward pass gives open_clip's image embedding."""
    pixels = torch.randn(2, 3, 240, 240)
    image, _, _ = encode_whole(model, embed_tokens(model, pixels))
    assert torch.allclose(image, functional.normalize(model.encode_image(pixels), dim=-1), atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("scale", [2, 3])
def test_packed_windows_are_the_transformer_on_each_window_alone(model, scale):
    """Windows packed under a block-diagonal mask, CLS alone in the last block, change nothing."""
    tokens = embed_tokens(model, torch.randn(2, 3, 240, 240))
    table = window_table(scale)[40:48]
    packed = encode_windows(model, tokens, table[None].expand(2, -1, -1))
    for number, patches in enumerate(table):
        alone = model.visual.transformer(torch.cat([tokens[:, :1], tokens[:, 1 + patches]], 1))
        expected = model.visual.ln_post(alone)[:, 0] @ model.visual.proj
        assert torch.allclose(packed[:, number], functional.normalize(expected, dim=-1), atol=1e-5)


@torch.inference_mode()
def test_text_cut_after_its_last_end_token_is_exact(model):
    """The causal tower needs no padding."""
    tokens = Vocabulary().tokens(["a photo of a damaged hex nut.", "ring"])
    assert torch.allclose(
        encode_text(model, tokens), functional.normalize(model.encode_text(tokens), dim=-1), atol=1e-5
    )


def test_window_labels_follow_the_damage_and_skip_what_no_window_can_tell():
    """Damaged near the part: positive; clean: negative; gone far from any edge: in neither loss."""
    damaged, near = torch.zeros(1, 15, 15), torch.zeros(1, 15, 15)
    damaged[0, 2, 2] = near[0, 2, 2] = 100
    damaged[0, 10, 10] = 100
    batch = Batch(pixels=torch.empty(0), damaged=damaged.flatten(1), near=near.flatten(1), kinds=[PartKind.NUT])
    torch.manual_seed(0)
    patches, label, valid = pick_windows(batch, 2, 8)
    holds = (patches == 2 * 15 + 2).any(-1).float()
    hidden = (patches == 10 * 15 + 10).any(-1).float()
    assert torch.equal(label, holds)
    assert not (valid * hidden).any()
    assert label.sum() >= 2  # four of 196 windows hold it: chance alone would draw none


def test_shards_make_batches_and_every_loss_is_finite_and_reaches_the_model(tmp_path, model, monkeypatch):
    """From rendering to gradients: the whole way of one step."""
    monkeypatch.setattr("demo_dataset.SHARD_GROUPS", 2)
    render_shards(tmp_path, 1, 0, 1)
    pictures = Pictures(tmp_path)
    assert pictures.refresh() == 2
    batch = pictures.batch(np.random.default_rng(0), 1)
    terms = losses(model, Heads(), Vocabulary(), batch, np.random.default_rng(0))
    assert set(WEIGHTS) <= set(terms)
    total = torch.stack([terms[name] for name in WEIGHTS]).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
