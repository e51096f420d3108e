"""From prompts to the two text embeddings t- (normal) and t+ (anomalous)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from inspectd.detect.clip import Beat, TextTower
from inspectd.detect.prompts import Prompts

_PROMPTS_AT_ONCE = 64


class TextAverage(StrEnum):
    """How the embeddings of many prompts become one."""

    NORMALISED = "normalised"
    RAW = "raw"


def embed_prompts(tower: TextTower, prompts: Prompts, average: TextAverage, beat: Beat) -> Tensor:
    """`(2, E) fp32`, unit length: the normal and the anomalous class."""
    return embed_classes(tower, (prompts.normal, prompts.anomalous), average, beat)


def embed_classes(tower: TextTower, classes: Iterable[Sequence[str]], average: TextAverage, beat: Beat) -> Tensor:
    """`(K, E) fp32`, unit length: the mean of each class's prompts."""
    return torch.stack([_class_embedding(tower, texts, average, beat) for texts in classes])


def _class_embedding(tower: TextTower, texts: Sequence[str], average: TextAverage, beat: Beat) -> Tensor:
    parts = [texts[start : start + _PROMPTS_AT_ONCE] for start in range(0, len(texts), _PROMPTS_AT_ONCE)]
    embedded = torch.cat([tower.encode(tokenise(part, tower.shape.context_length), beat) for part in parts])
    if average is TextAverage.NORMALISED:
        embedded = functional.normalize(embedded, dim=-1)
    return functional.normalize(embedded.mean(dim=0), dim=-1)


def tokenise(texts: Sequence[str], context_length: int) -> Tensor:
    """Token ids `(S, L) int64`, cut behind the last end token of all texts."""
    tokenizer = open_clip().SimpleTokenizer(context_length=context_length)
    ids: Tensor = tokenizer(list(texts))
    return ids[:, : int(ids.argmax(dim=1).max()) + 1]


_schemas: list[torch.library.Library] = []


def open_clip() -> ModuleType:
    """Imports open_clip. It takes seconds: done only where prompts or hub weights are really needed.

    open_clip imports torchvision, whose wheel may be built for another torch ("operator torchvision::nms does not
    exist"). Nothing here runs a compiled operator of it, so the missing schemas are declared first.
    """
    if not _schemas and not hasattr(torch.ops.torchvision, "nms"):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # its life is theirs
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
            _schemas.append(library)
    return importlib.import_module("open_clip")
