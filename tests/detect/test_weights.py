"""Weights files and model configs that are sound, damaged, of another model, or not there."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests_detect import model_config, open_tower, write_model

from inspectd.detect.architecture import read_architecture
from inspectd.detect.checkpoint import Checkpoint
from inspectd.detect.gemm import Activation
from inspectd.detect.weights import find
from inspectd.errors import ConfigError


def one_line(error: pytest.ExceptionInfo[ConfigError], *parts: str) -> None:
    """The message is one line that holds all parts."""
    message = str(error.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


def test_default_backbone_is_read_from_open_clip():
    """The specification's numbers: D 896, 12 layers, 14 heads, MLP 3584, E 640, grid 15 x 15, erf-GELU, eps 1e-5."""
    vision = read_architecture("ViT-B-16-plus-240").vision
    assert (vision.width, vision.layers, vision.heads, vision.mlp_width) == (896, 12, 14, 3584)
    assert (vision.embedding, vision.grid_hw, vision.activation, vision.eps) == (640, (15, 15), Activation.GELU, 1e-5)


def test_quick_gelu_is_read_from_open_clip():
    """Models trained with quick-GELU get it."""
    assert read_architecture("ViT-B-32-quickgelu").vision.activation is Activation.QUICK_GELU
    assert read_architecture("ViT-B-32").vision.activation is Activation.GELU


@pytest.mark.parametrize("backbone", ["RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16", "roberta-ViT-B-32"])
def test_backbone_without_what_winclip_needs_is_refused(backbone: str):
    """ResNets, pooled towers and foreign text towers are refused with the key that says so."""
    with pytest.raises(ConfigError) as error:
        read_architecture(backbone)
    one_line(error, backbone)


def test_unknown_backbone_is_named():
    """A name that open_clip does not know."""
    with pytest.raises(ConfigError) as error:
        read_architecture("ViT-Q-99")
    one_line(error, "'ViT-Q-99'", "open_clip knows no such model")


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"embed_dim": 4}', '{"embed_dim": 4, "vision_cfg": 3, "text_cfg": {}}']
)
def test_broken_model_config_is_named(tmp_path: Path, content: str):
    """A model config that is no JSON, or lacks a key."""
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_architecture("x", path)
    one_line(error, str(path))


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_truncated_safetensors_are_refused(tmp_path: Path, kept: float):
    """A file that ends too early, wherever."""
    config, weights = write_model(tmp_path)
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(ConfigError) as error:
        open_tower(config, weights)
    one_line(error, str(weights), "truncated")


@pytest.mark.parametrize("kept", [0, 0.5])
def test_truncated_torch_file_is_refused(tmp_path: Path, kept: float):
    """The same in torch's own format."""
    config, weights = write_model(tmp_path)
    path = tmp_path / "small.pt"
    torch.save(load_file(weights), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ConfigError) as error:
        open_tower(config, path)
    one_line(error, str(path), "truncated")


def test_torch_file_of_a_training_run_is_taken(tmp_path: Path):
    """A checkpoint with `state_dict` and the prefix of parallel training gives the same tower."""
    config, weights = write_model(tmp_path)
    path = tmp_path / "small.pt"
    state = {f"module.{name}": tensor for name, tensor in load_file(weights).items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    assert torch.equal(open_tower(config, path)._proj, open_tower(config, weights)._proj)


def test_pickled_code_is_never_run(tmp_path: Path):
    """A torch file that would run code is refused without running it."""

    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    path = tmp_path / "harm.pt"
    torch.save({"visual.proj": torch.ones(2), "x": Harm()}, path, pickle_module=pickle)
    with pytest.raises(ConfigError, match=r"harm\.pt"):
        open_tower(write_model(tmp_path)[0], path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"width": 48}, "shape"), ({"layers": 4}, "holds no"), ({"layers": 2}, "no place"), ({"image_size": 48}, "shape")],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, changes: dict, part: str):
    """Another width, depth or grid is noticed, both ways."""
    _, weights = write_model(tmp_path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(model_config(**changes)))
    with pytest.raises(ConfigError) as error:
        open_tower(other, weights)
    one_line(error, str(weights), part, "of another model")


def test_file_is_mapped_only_while_a_tensor_is_read(tmp_path: Path):
    """A mapping that stays holds all that was read in the process's memory, beside the copies."""
    _, path = write_model(tmp_path)
    checkpoint = Checkpoint(path)
    assert checkpoint.take("ln_final.weight", 16).shape == (16,)
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_half_precision_weights_are_taken(tmp_path: Path):
    """Weights stored in fp16 are computed in fp32."""
    config, weights = write_model(tmp_path)
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, tmp_path / "half.safetensors")
    assert open_tower(config, tmp_path / "half.safetensors")._proj.dtype == torch.float32


def test_absent_weights_say_how_to_get_them(tmp_path: Path):
    """Without the file: the verb that fetches it, and where to put it."""
    with pytest.raises(ConfigError) as error:
        find("ViT-B-16-plus-240", "laion400m_e31", tmp_path)
    one_line(error, str(tmp_path), "inspectd weights fetch ViT-B-16-plus-240 laion400m_e31", "copy")
    with pytest.raises(ConfigError) as error:
        find("x", "y", tmp_path, file=tmp_path / "gone.pt")
    one_line(error, "gone.pt")


def test_weights_beside_their_config_are_found(tmp_path: Path):
    """What `fetch` leaves behind is found by name, with the config beside it."""
    write_model(tmp_path, "tiny.tag")
    found = find("tiny", "tag", tmp_path)
    assert (found.path.name, found.architecture.name) == ("tiny.tag.safetensors", "tiny")
    found.verify()
    assert len(found.sha256()) == 64
