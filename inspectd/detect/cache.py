"""Embeddings on disk, so that a second start encodes nothing again. A cache never decides: damaged means absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from inspectd.log import get_logger

_DIGEST_BYTES = 32


class EmbeddingCache:
    """Sets of tensors by key. A file is the SHA-256 of what follows, then safetensors; it is whole or absent."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` None: nothing is kept."""
        self._folder = folder
        self._log = get_logger()

    def get(self, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors stored under `key` (hex), or those that `compute` gives, which are then stored."""
        found = self._load(key)
        if found is None:
            found = {name: tensor.cpu().contiguous() for name, tensor in compute().items()}
            self._store(key, found)
        return found

    def _load(self, key: str) -> dict[str, Tensor] | None:
        if self._folder is None:
            return None
        path = self._path(self._folder, key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log.warning("embedding_cache_unreadable", path=str(path), reason=error.strerror)
            return None
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        try:
            if hashlib.sha256(payload).digest() == digest:
                return safetensors.torch.load(payload)
        except (SafetensorError, ValueError):
            pass
        self._log.warning("embedding_cache_discarded", path=str(path), reason="damaged")
        return None

    def _store(self, key: str, tensors: dict[str, Tensor]) -> None:
        if self._folder is None:
            return
        path = self._path(self._folder, key)
        payload = safetensors.torch.save(tensors)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(payload).digest() + payload)
                Path(temporary).replace(path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._log.warning("embedding_cache_unwritable", path=str(path), reason=error.strerror)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"{key}.embeddings"
