"""Both towers against open_clip's own, on random weights of several shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests_detect import CPU, NEEDS_INT8, model_config, open_tower, some_crops, write_model

from inspectd.detect import gemm
from inspectd.detect.architecture import read_architecture
from inspectd.detect.checkpoint import Checkpoint
from inspectd.detect.clip import Group, TextTower, VisionTower, embed_patches, unfolded
from inspectd.detect.gemm import Activation, Precision
from inspectd.detect.preprocess import Resize, prepare
from inspectd.detect.text import open_clip, tokenise
from inspectd.detect.windows import window_patches

SHAPES = {
    "plain": {},
    "quick-gelu": {"quick_gelu": True},
    "not square": {"image_size": [24, 64]},
    "no ln_pre": {"no_ln_pre": True},
    "layer scale": {"ls_init_value": 0.1},
    "tanh": {"act_kwargs": {"approximate": "tanh"}, "mlp_ratio": 3.0},
    "eps": {"norm_kwargs": {"eps": 1e-2}},
}


def theirs(written: dict, weights: Path) -> torch.nn.Module:
    """open_clip's model on the same weights."""
    open_clip()
    from open_clip.model import CLIP

    model = CLIP(**written).eval()
    model.load_state_dict(load_file(weights), strict=False)
    return model


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_whole_image_equals_open_clip(tmp_path: Path, changes: dict):
    """The image embedding is open_clip's, for every variant of the architecture that is taken."""
    config, weights = write_model(tmp_path, **changes)
    tower = open_tower(config, weights)
    pixels = prepare(some_crops(2), tower.shape, Resize.UINT8, CPU)
    with torch.inference_mode():
        expected = theirs(model_config(**changes), weights).encode_image(pixels)
        tokens = tower.tokens(pixels)
        rows = torch.arange(tokens[..., 0].numel()).view(len(pixels), -1)
        (hidden,), _ = tower.encode(tokens, [Group(rows)], lambda: None)
        found = tower.projected(tower.normalised(hidden[:, 0]))
    assert found == pytest.approx(expected, abs=2e-5)


def test_window_depends_on_its_own_patches_alone(tmp_path: Path):
    """A window's hidden state is that of the whole tower run on nothing but CLS and the window's tokens."""
    tower = open_tower(*write_model(tmp_path))
    with torch.inference_mode():
        tokens = tower.tokens(prepare(some_crops(2), tower.shape, Resize.UINT8, CPU))
        patches = window_patches(tower.shape.grid_hw, 2)
        both = [torch.cat([torch.zeros(1, dtype=torch.int64), 1 + patches[5]]), torch.arange(26)]
        groups = [Group(both[1][None], keep_patches=True), Group(26 + both[0][None])]
        (_, window), _ = tower.encode(tokens, groups, lambda: None)
        alone = tokens[1, both[0]][None]
        (expected,), _ = tower.encode(alone, [Group(torch.arange(5)[None])], lambda: None)
    assert window == pytest.approx(expected, abs=1e-6)


def test_beat_comes_between_blocks(tmp_path: Path):
    """The heartbeat is called behind every block."""
    tower = open_tower(*write_model(tmp_path))
    beats = []
    with torch.inference_mode():
        tower.encode(torch.randn(1, 26, 32), [Group(torch.arange(26)[None])], lambda: beats.append(1))
    assert len(beats) == tower.shape.layers


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}], ids=["gelu", "quick-gelu"])
def test_text_cut_at_the_last_end_token_equals_open_clip(tmp_path: Path, changes: dict):
    """The truncated text tower gives what open_clip's full context gives."""
    config, weights = write_model(tmp_path, **changes)
    texts = ["a photo of a cap.", "a jpeg corrupted photo of the damaged capsule with flaw."]
    ids = tokenise(texts, 77)
    padded = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))
    tower = TextTower(Checkpoint(weights), read_architecture("x", config).text, device=CPU)
    with torch.inference_mode():
        found = tower.encode(ids, lambda: None)
        expected = theirs(model_config(**changes), weights).encode_text(padded)
    assert ids.shape[1] < 20
    assert found == pytest.approx(expected, abs=2e-5)


WAYS = [
    (precision, prepacks)
    for precision in (Precision.FP32, Precision.BF16)
    for prepacks in sorted({False, precision is Precision.FP32 or gemm.prepacks(torch.bfloat16)})
]
"""Every way to compute a product that this processor can go, also those that it does not choose."""


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize(("precision", "prepacks"), WAYS)
def test_products_are_the_same_with_and_without_onednn(
    monkeypatch: pytest.MonkeyPatch, activation: Activation, precision: Precision, prepacks: bool
):
    """Each agrees with the formula."""
    x, weight, bias = torch.randn(37, 24), torch.randn(40, 24), torch.randn(40)
    expected = gemm.activate(x @ weight.T + bias, activation)
    monkeypatch.setattr(gemm, "prepacks", lambda _: prepacks)
    found = gemm.linear(weight, bias, precision, activation)(x)
    assert found.dtype == gemm.COMPUTE_DTYPE[precision]
    assert found.float() == pytest.approx(expected, abs={Precision.FP32: 1e-4, Precision.BF16: 0.3}[precision])


@pytest.mark.parametrize(("precision", "prepacks"), WAYS)
def test_product_is_added_to_the_residual(monkeypatch: pytest.MonkeyPatch, precision: Precision, prepacks: bool):
    """In place, in some rows alone, in fp32 whatever the product is computed in."""
    table, x, weight, bias = torch.randn(50, 40), torch.randn(37, 24), torch.randn(40, 24), torch.randn(40)
    expected = table.clone()
    expected[5:42] += x @ weight.T + bias
    monkeypatch.setattr(gemm, "prepacks", lambda _: prepacks)
    gemm.addition(weight, bias, precision)(table[5:42], x.to(gemm.COMPUTE_DTYPE[precision]))
    assert table == pytest.approx(expected, abs={Precision.FP32: 1e-4, Precision.BF16: 0.3}[precision])


@pytest.mark.parametrize("prepacks", [True, False])
def test_tower_is_the_same_with_and_without_onednn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prepacks: bool):
    """The whole tower runs on either kind of product."""
    files = write_model(tmp_path)
    tokens, groups = torch.randn(1, 26, 32), [Group(torch.arange(26)[None], keep_patches=True)]

    def run(tower: VisionTower) -> torch.Tensor:
        with torch.inference_mode():
            return tower.encode(tokens, groups, lambda: None)[0][0]

    expected = run(open_tower(*files))
    monkeypatch.setattr(gemm, "prepacks", lambda _: prepacks)
    assert run(open_tower(*files)) == pytest.approx(expected, abs=1e-5)


@NEEDS_INT8
@pytest.mark.parametrize("activation", list(Activation))
def test_product_in_8_bits_is_near(activation: Activation):
    """Rounding rows and weights to 8 bits costs less than 2 % of the result's spread, at ranges of any offset."""
    x, weight, bias = torch.randn(64, 256) * 3 + 1, torch.randn(40, 256) / 16, torch.randn(40)
    expected = gemm.linear(weight, bias, Precision.FP32, activation)(x)
    found = gemm.linear(weight, bias, Precision.INT8, activation)(x)
    assert float((found - expected).square().mean().sqrt()) < 0.02 * float(expected.std())


@NEEDS_INT8
@pytest.mark.parametrize("rows", [torch.zeros(2, 8), torch.full((2, 8), 5.0), torch.full((2, 8), -5.0)])
def test_product_in_8_bits_takes_rows_without_a_range(rows: torch.Tensor):
    """Rows that are all alike, 0 or on one side of it, are exact to a step."""
    weight, bias = torch.eye(8), torch.zeros(8)
    assert gemm.linear(weight, bias, Precision.INT8)(rows) == pytest.approx(rows, abs=0.05)


@pytest.mark.parametrize("size_hw_px", [(40, 40), (43, 37)])
def test_patches_as_rows_give_the_convolution(size_hw_px: tuple[int, int]):
    """What a GPU embeds patches by is the CPU's convolution, with pixels left over at the edges, too."""
    random = torch.Generator().manual_seed(0)
    pixels, weight = torch.randn(2, 3, *size_hw_px, generator=random), torch.randn(16, 3, 8, 8, generator=random)
    rows = unfolded(pixels, weight.shape[2:]) @ weight.flatten(1).T
    assert torch.allclose(rows, embed_patches(pixels, weight), atol=1e-4)
