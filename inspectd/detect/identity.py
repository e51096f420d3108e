"""What a score depends on, as hashes: the identity that thresholds are bound to, and the keys of cached embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspectd.records import ModelIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything but the references. The mappings hold what `json` can write."""

    detector: str
    backbone: str
    weights_sha256: str
    precision: str
    architecture: Mapping[str, Any]
    config: Mapping[str, Any]
    prompts: Mapping[str, Any]
    view: Mapping[str, Any]
    """What of the frame the model is shown: region and tiling."""

    def identity(self, references_sha256: str | None = None) -> ModelIdentity:
        """The identity that stands in verdicts; its `sha256` changes whenever scores could."""
        facts = [self.detector, *self._tower(), self.config, self.prompts, self.view, references_sha256]
        return ModelIdentity(
            detector=self.detector,
            backbone=self.backbone,
            weights_sha256=self.weights_sha256,
            precision=self.precision,
            sha256=_sha256(facts),
        )

    def text_key(self) -> str:
        """The cache key of the two text embeddings, which are computed in fp32 always."""
        return _sha256(["text", self.weights_sha256, self.architecture, self.prompts, self.config["text_average"]])

    def defects_key(self, defects: Mapping[str, Any]) -> str:
        """The cache key of the kinds of defects. They are no part of the identity: they label, and change no score."""
        average = self.config["text_average"]
        return _sha256(["defects", self.weights_sha256, self.architecture, list(defects.items()), average])

    def references_key(self, references_sha256: str) -> str:
        """The cache key of a reference bank."""
        return _sha256(["references", *self._tower(), self.config, references_sha256])

    def _tower(self) -> list[Any]:
        return [self.weights_sha256, self.architecture, self.precision]


def hash_pixels(crops_rgb: Sequence[NDArray[np.uint8]]) -> str:
    """The hash of crops in their order, shapes included."""
    digest = hashlib.sha256()
    for crop in crops_rgb:
        digest.update(repr(crop.shape).encode() + np.ascontiguousarray(crop).tobytes())
    return digest.hexdigest()


def _sha256(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
