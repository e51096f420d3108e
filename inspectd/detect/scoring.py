"""WinCLIP's formulas: from embeddings to scores and maps, each one a pure function.

Letters: N frames, P patches, E width of an embedding, R rows of references; `…` any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

_ROWS_AT_ONCE = 8192
"""Reference rows compared at once: bounds the memory of a bank of hundreds of references."""


class FewShotMap(StrEnum):
    """How the few-shot maps of patches and scales are put together."""

    MEAN = "mean"
    SUM = "sum"


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """Unit vectors of all reference images: `patches (R, D)`, and for each scale `windows[i] (R, E)`."""

    patches: Tensor
    windows: tuple[Tensor, ...]


def anomalous_share(embedding: Tensor, text: Tensor, temperature: float) -> Tensor:
    """p(z) = softmax([ẑ·t-, ẑ·t+] / τ)₊: `(…, E)` and `(2, E)` of unit length -> `(…)` in [0, 1]."""
    similarity = functional.normalize(embedding, dim=-1) @ text.T
    return (similarity / temperature).softmax(dim=-1)[..., 1]


def association(query: Tensor, references: Tensor) -> Tensor:
    """a(z, R) = ½ min over r of (1 - ẑ·r̂) (WinCLIP, equation 4): `(…, E)` and unit rows `(R, E)` -> `(…)` in [0, 1].

    >>> association(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])).tolist()
    [0.5]
    """
    unit = functional.normalize(query, dim=-1)
    nearest = [(unit @ part.T).amax(dim=-1) for part in torch.split(references, _ROWS_AT_ONCE)]
    return (1 - torch.stack(nearest).amax(dim=0)) / 2


def zero_shot_map(image_score: Tensor, scale_maps: Sequence[Tensor]) -> Tensor:
    """M0: the harmonic mean of the image score, as one more scale, and the maps: `(N,)`, each `(N, P)` -> `(N, P)`.

    >>> zero_shot_map(torch.tensor([0.5]), [torch.tensor([[0.5, 0.25]])]).tolist()
    [[0.5, 0.3333333432674408]]
    """
    inverse = torch.stack([image_score[:, None].expand_as(scale_maps[0]), *scale_maps]).reciprocal()
    return len(inverse) / inverse.sum(dim=0)


def few_shot_map(maps: Sequence[Tensor], kind: FewShotMap) -> Tensor:
    """Fs from the maps of patches and scales, each `(N, P)`."""
    total = torch.stack(list(maps)).sum(dim=0)
    return total / len(maps) if kind is FewShotMap.MEAN else total
