"""Where the weights of a backbone lie, and how they get there. Nothing is ever downloaded but by `fetch`."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from inspectd.detect.architecture import Architecture, read_architecture
from inspectd.detect.checkpoint import Checkpoint, sha256_of
from inspectd.detect.clip import TextTower, VisionTower
from inspectd.detect.gemm import Precision
from inspectd.detect.text import open_clip
from inspectd.errors import ConfigError

_SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """A weights file and the architecture it belongs to."""

    path: Path
    architecture: Architecture

    def sha256(self) -> str:
        """The hash of the file."""
        return sha256_of(self.path)

    def verify(self) -> None:
        """Reads every tensor of both towers.

        Raises:
            ConfigError: truncated, or of another model.
        """
        checkpoint, device = Checkpoint(self.path), torch.device("cpu")
        VisionTower(checkpoint, self.architecture.vision, device=device, precision=Precision.FP32)
        TextTower(checkpoint, self.architecture.text, device=device)


def find(
    backbone: str, pretrained: str, weights_dir: Path, *, file: Path | None = None, config: Path | None = None
) -> WeightsFile:
    """The local `file` if given, else what `fetch` left in `weights_dir`.

    Raises:
        ConfigError: they are not there; the message says how to get them.
    """
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"model.weights {file}: no such file")
        return WeightsFile(path=file, architecture=read_architecture(backbone, config))
    stem = _stem(backbone, pretrained)
    for suffix in _SUFFIXES:
        path = weights_dir / f"{stem}{suffix}"
        if path.is_file():
            sidecar = weights_dir / f"{stem}.json"
            known = config or (sidecar if sidecar.is_file() else None)
            return WeightsFile(path=path, architecture=read_architecture(backbone, known))
    read_architecture(backbone, config)
    raise ConfigError(
        f"weights of {backbone} ({pretrained}) are not in {weights_dir}: run `inspectd weights fetch {backbone} "
        f"{pretrained}` on a machine with internet access and copy {stem}.* into that folder"
    )


def fetch(backbone: str, pretrained: str, weights_dir: Path) -> WeightsFile:
    """Downloads weights from the hub that open_clip names for the tag, verifies them and puts them into `weights_dir`.

    Raises:
        ConfigError: no such model or tag, no network, or a download that is not this model.
    """
    read_architecture(backbone)
    hub = open_clip().pretrained
    tag = hub.get_pretrained_cfg(backbone, pretrained)
    if not tag:
        known = ", ".join(hub.list_pretrained_tags_by_model(backbone)) or "none"
        raise ConfigError(f"{backbone} has no weights called {pretrained!r}; known: {known}")
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=weights_dir, prefix=".fetch-") as folder:
            downloaded = Path(hub.download_pretrained(tag, cache_dir=folder))
            return _install(downloaded, backbone, pretrained, tag, weights_dir)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise ConfigError(
            f"weights of {backbone} ({pretrained}) cannot be fetched into {weights_dir}: {reason}; run `inspectd "
            f"weights fetch {backbone} {pretrained} --dir DIR` on a machine with internet access and copy "
            f"DIR/{_stem(backbone, pretrained)}.* into {weights_dir}"
        ) from error


def _install(
    downloaded: Path, backbone: str, pretrained: str, tag: dict[str, object], weights_dir: Path
) -> WeightsFile:
    """Moves a verified download into place, with a model config that tells what the tag says of it."""
    stem = _stem(backbone, pretrained)
    suffix = downloaded.suffix if downloaded.suffix in _SUFFIXES else ".pt"
    model = dict(open_clip().get_model_config(backbone))
    model["quick_gelu"] = bool(tag.get("quick_gelu", model.get("quick_gelu", False)))
    config = downloaded.parent / "config.json"
    config.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {key: tag[key] for key in ("mean", "std")}}))
    staged = downloaded.parent / f"staged{suffix}"
    shutil.copyfile(downloaded.resolve(), staged)
    WeightsFile(path=staged, architecture=read_architecture(backbone, config)).verify()
    config.replace(weights_dir / f"{stem}.json")
    staged.replace(weights_dir / f"{stem}{suffix}")
    return find(backbone, pretrained, weights_dir)


def _stem(backbone: str, pretrained: str) -> str:
    return f"{backbone.replace('/', '-')}.{pretrained}"
