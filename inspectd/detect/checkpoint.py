"""Named tensors of one weights file, read without ever unpickling code and checked against what the model expects."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inspectd.errors import ConfigError

_HASH_CHUNK_BYTES = 1 << 22


class Weights(Protocol):
    """Where a tower takes its tensors from."""

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor `name` as fp32, of exactly `shape`."""
        ...

    def require_all_taken(self, prefix: str) -> None:
        """Refuses tensors below `prefix` that were not taken."""
        ...


class Checkpoint:
    """A CLIP checkpoint in open_clip's names. Tensors of a safetensors file are read one by one, as they are asked for.

    Raises (every method): ConfigError, one line that names the file: missing, truncated, or of another model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read, keys = _open(path)
        self._stored = {_plain(key): key for key in keys}
        self._taken: set[str] = set()

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor `name` as fp32, of exactly `shape`."""
        if name not in self._stored:
            raise ConfigError(f"{self.path}: holds no {name}: weights of another model, or not in open_clip's format")
        try:
            tensor = self._read(self._stored[name])
        except SafetensorError as error:
            raise ConfigError(f"{self.path}: damaged at {name}: {error}") from error
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror or error}") from error
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"{self.path}: {name} has shape {tuple(tensor.shape)}, expected {shape}: weights of another model"
            )
        self._taken.add(name)
        return tensor.to(torch.float32, copy=True)  # a view would keep the whole file mapped

    def require_all_taken(self, prefix: str) -> None:
        """Refuses tensors below `prefix` that the model has no place for, such as those of further layers."""
        left = sorted(name for name in self._stored if name.startswith(prefix) and name not in self._taken)
        if left:
            raise ConfigError(
                f"{self.path}: {left[0]} and {len(left) - 1} more have no place in this model: weights of another model"
            )


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, in hex.

    Raises:
        ConfigError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _plain(key: str) -> str:
    """open_clip's plain name: without the prefix of a parallel training, nor that of a separate text tower."""
    key = key.removeprefix("module.")
    return key.removeprefix("text.") if not key.startswith("text.text") else key


def _open(path: Path) -> tuple[Callable[[str], Tensor], list[str]]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return partial(_read_tensor, path), list(file.keys())
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path}: truncated, or not a weights file: {_first_line(error)}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(f"{path}: holds no named tensors")
    return tensors.__getitem__, list(tensors)


def _read_tensor(path: Path, key: str) -> Tensor:
    """Opened anew for each tensor: what one mapping has shown stays in the process's resident memory."""
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
