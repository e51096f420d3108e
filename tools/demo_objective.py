"""What the demo model learns from: captions, states of whole pictures and of windows, and association of patches.

Letters: B pictures, G groups, W windows, P patches (225), E embedding. t- and t+ are WinCLIP's mean prompt embeddings.
"""

from __future__ import annotations

import numpy as np
import torch
from demo_dataset import GOOD, GRID, GROUP, Batch
from demo_network import WIDTH, embed_tokens, encode_text, encode_whole, encode_windows
from demo_shapes import PartKind
from torch import Tensor, nn
from torch.nn import functional

from inspectd.detect.prompts import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES
from inspectd.detect.text import open_clip

TEMPERATURE = 0.07
CELLS = 5
"""CLS learns where the damage is on a grid of 5 x 5: one label a picture is what learns slowest."""
WINDOWS = {2: 16, 3: 8}
"""Windows drawn from each picture, by scale."""
NORMAL_DRAWN, ANOMALOUS_DRAWN = 14, 12
WEIGHTS = {
    "image": 1.5, "window2": 0.8, "window3": 0.8, "cells": 0.6, "patch": 0.6, "assoc": 0.4, "assoc_max": 0.3,
    "clip": 0.15,
}  # fmt: skip

HAS_BF16 = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001
"""Without the instructions bfloat16 is emulated, twenty times slower than float32."""

OTHER_NORMAL = ("good {}", "intact {}", "clean {}", "undamaged {}", "{} in good condition", "new {}")
OTHER_ANOMALOUS = (
    "broken {}", "defective {}", "{} with scratch", "scratched {}", "dirty {}", "bad {}", "cracked {}",
    "{} with a hole",
)  # fmt: skip
SYNONYMS = {
    PartKind.WASHER: ("washer", "metal washer", "flat washer"),
    PartKind.RING: ("ring", "o-ring", "seal"),
    PartKind.NUT: ("hex nut", "nut", "metal nut"),
    PartKind.CAP: ("bottle cap", "cap", "lid"),
    PartKind.PLATE: ("plate", "mounting plate", "panel"),
    PartKind.BRACKET: ("bracket", "metal bracket", "angle bracket"),
    PartKind.PILL: ("capsule", "pill", "tablet"),
    PartKind.DISC: ("disc", "token", "coin"),
    PartKind.KNOB: ("knob", "handle", "star knob"),
    PartKind.CROSS: ("cross", "cross plate", "spider"),
    PartKind.TEE: ("tee", "tee plate", "fitting"),
    PartKind.CHANNEL: ("channel", "fork", "clamp"),
    PartKind.ZED: ("z plate", "offset plate", "step plate"),
    PartKind.STAR: ("star", "star wheel", "sprocket"),
}
GENERIC = ("part", "object", "item", "product", "component", "piece", "workpiece", "thing", "industrial part")
NOUNS = (
    "bottle", "cable", "carpet", "grid", "hazelnut", "leather", "metal nut", "tile", "toothbrush", "transistor", "wood",
    "zipper", "circuit board", "candle", "cashew", "macaroni", "bracket", "tube", "box", "cup", "card", "spring",
    "pipe", "wheel", "tool", "toy", "valve", "housing", "sensor", "chip", "fuse", "lens", "pcb",
)  # fmt: skip


class Heads(nn.Module):
    """What only training needs: linear looks at patches and of CLS at cells, and the scale of association."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(WIDTH, 1)
        self.cells = nn.Linear(WIDTH, CELLS * CELLS)
        self.sharpness = nn.Parameter(torch.tensor(20.0))
        self.middle = nn.Parameter(torch.tensor(0.15))
        nn.init.normal_(self.patch.weight, std=1.0)


class Vocabulary:
    """Tokenised prompts by sentence; each is tokenised once."""

    def __init__(self) -> None:
        self._tokenize = open_clip().get_tokenizer("ViT-B-32")
        self._known: dict[str, Tensor] = {}

    def tokens(self, sentences: list[str]) -> Tensor:
        """``(n, 77)`` token numbers."""
        new = [s for s in dict.fromkeys(sentences) if s not in self._known]
        if new:
            self._known.update(zip(new, self._tokenize(new), strict=True))
        return torch.stack([self._known[s] for s in sentences])


def _draw(
    rng: np.random.Generator, name: str, states: tuple[str, ...], others: tuple[str, ...], count: int
) -> list[str]:
    """Random prompts of the ensemble; one of ten takes a word from outside it."""
    drawn = []
    for _ in range(count):
        pool = others if others and rng.random() < 0.1 else states
        state = pool[int(rng.integers(len(pool)))].format(name)
        drawn.append(TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(state))
    return drawn


def _name(rng: np.random.Generator, kind: PartKind) -> str:
    """Its own name, a general one, or a wrong one: the state must not hang on the name."""
    roll = rng.random()
    pool = SYNONYMS[kind] if roll < 0.6 else GENERIC if roll < 0.8 else NOUNS
    return pool[int(rng.integers(len(pool)))]


def _captions(rng: np.random.Generator, kinds: list[PartKind], bad: Tensor) -> list[str]:
    """One caption a picture, with its own kind's name."""
    captions = []
    for i, is_bad in enumerate(bad.tolist()):
        own = SYNONYMS[kinds[i // GROUP]]
        states = ANOMALOUS_STATES if is_bad else NORMAL_STATES
        captions += _draw(rng, own[int(rng.integers(len(own)))], states, (), 1)
    return captions


def window_table(scale: int) -> Tensor:
    """``(W, k²)`` patch numbers of every window, row-major."""
    numbers = torch.arange(GRID * GRID).reshape(GRID, GRID)
    return numbers.unfold(0, scale, 1).unfold(1, scale, 1).reshape(-1, scale * scale)


def pick_windows(batch: Batch, scale: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patches ``(B, number, k²)``, labels and validity ``(B, number)`` of random windows, about half damaged."""

    def summed(counts: Tensor) -> Tensor:
        return functional.avg_pool2d(counts.reshape(-1, 1, GRID, GRID), scale, 1).flatten(1) * scale * scale

    damaged, near = summed(batch.damaged), summed(batch.near)
    positive, negative = near >= 25, damaged == 0
    side = GRID - scale + 1
    beside = functional.max_pool2d(damaged.reshape(-1, 1, side, side), 5, 1, 2).flatten(1) > 0
    weight = torch.full_like(near, 1e-6)
    for chosen, share in ((positive, 0.5), (negative & beside, 0.2), (negative, 0.5)):
        weight += chosen * (share / chosen.sum(1, keepdim=True).clamp_min(1))
    picks = torch.multinomial(weight, number)
    label = positive.gather(1, picks).float()
    return window_table(scale)[picks], label, label + negative.gather(1, picks).float()


def balanced_loss(logit: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Cross entropy in which damaged and clean weigh the same, and what is still wrong weighs most.

    Without the latter the mass of bare belt, soon learnt, drowns the clean part beside a defect.
    """
    loss = functional.binary_cross_entropy_with_logits(logit, label, reduction="none")
    hard = valid * (1.05 - torch.exp(-loss.detach()))
    means = [(loss * hard * side).sum() / (hard * side).sum().clamp_min(1e-3) for side in (label, 1 - label)]
    return 0.5 * (means[0] + means[1])


def association(features: Tensor, rng: np.random.Generator) -> Tensor:
    """Distance of every patch to the nearest patch of 1 to 3 other good pictures of its group: ``(B, P)``."""
    grouped = features.reshape(-1, GROUP, *features.shape[1:])
    distances = []
    for i in range(GROUP):
        others = [j for j in range(GOOD) if j != i]
        picks = rng.choice(others, int(rng.integers(1, 4)), replace=False).tolist()
        similarity = torch.bmm(grouped[:, i], grouped[:, picks].flatten(1, 2).transpose(1, 2))
        distances.append(0.5 * (1 - similarity.amax(-1)))
    return torch.stack(distances, 1).flatten(0, 1)


def _contrast(image: Tensor, caption: Tensor, scale: Tensor, group_kinds: list[PartKind], bad: Tensor) -> Tensor:
    """CLIP's own loss; captions of the same kind and state are all right."""
    similarity = image @ caption.T * scale
    kind = torch.tensor([list(PartKind).index(k) for k in group_kinds]).repeat_interleave(GROUP)
    same = ((kind[:, None] == kind[None]) & (bad[:, None] == bad[None])).float()
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target))


def losses(
    model: nn.Module, heads: Heads, vocabulary: Vocabulary, batch: Batch, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Every term of the objective on one batch, by the names of ``WEIGHTS``, and the accuracy on whole pictures."""
    bad = (batch.damaged.sum(1) > 0).float()
    prompts = []
    for name in [_name(rng, kind) for kind in batch.kinds]:
        prompts += _draw(rng, name, NORMAL_STATES, OTHER_NORMAL, NORMAL_DRAWN)
        prompts += _draw(rng, name, ANOMALOUS_STATES, OTHER_ANOMALOUS, ANOMALOUS_DRAWN)
    picked = {scale: pick_windows(batch, scale, number) for scale, number in WINDOWS.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16):
        texts = encode_text(model, vocabulary.tokens(prompts + _captions(rng, batch.kinds, bad)))
        tokens = embed_tokens(model, batch.pixels)
        image, cls, features = encode_whole(model, tokens)
        windows = {scale: encode_windows(model, tokens, patches) for scale, (patches, _, _) in picked.items()}
    pools = texts[: len(prompts)].reshape(len(batch.kinds), NORMAL_DRAWN + ANOMALOUS_DRAWN, -1)
    normal = functional.normalize(pools[:, :NORMAL_DRAWN].mean(1), dim=-1)
    anomalous = functional.normalize(pools[:, NORMAL_DRAWN:].mean(1), dim=-1)

    def log_odds(z: Tensor) -> Tensor:
        direction = (anomalous - normal).repeat_interleave(GROUP, 0)
        return (z * (direction if z.ndim == 2 else direction[:, None])).sum(-1) / TEMPERATURE

    whole = log_odds(image)
    out = {"image": functional.binary_cross_entropy_with_logits(whole, bad)}
    for scale, (_, label, valid) in picked.items():
        out[f"window{scale}"] = balanced_loss(log_odds(windows[scale]), label, valid)
    label = (batch.near >= 10).float()
    valid = label + (batch.damaged == 0).float()
    out["patch"] = balanced_loss(heads.patch(features)[..., 0] * 3, label, valid)
    cells = functional.avg_pool2d(batch.damaged.reshape(-1, 1, GRID, GRID), GRID // CELLS).flatten(1) * 9
    seen = (cells >= 20).float()
    out["cells"] = balanced_loss(heads.cells(cls) * 3, seen, seen + (cells == 0).float())
    distance = (association(features, rng) - heads.middle) * heads.sharpness.clamp(5, 60)
    out["assoc"] = balanced_loss(distance, label, valid)
    out["assoc_max"] = functional.binary_cross_entropy_with_logits(distance.amax(1), bad)
    scale = model.logit_scale.exp().clamp(max=50)
    out["clip"] = _contrast(image, texts[len(prompts) :], scale, batch.kinds, bad)
    out["accuracy"] = ((whole > 0).float() == bad).float().mean().detach()
    return out
