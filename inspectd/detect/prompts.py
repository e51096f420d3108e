"""The compositional prompt ensemble of WinCLIP (section 3.2 of the paper): every state in every template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")

_LOOKS = ("cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry")
TEMPLATES = (
    *(f"a {look} photo of {article} {{}}." for look in _LOOKS for article in ("a", "the")),
    *(f"a photo of {article} {{}}." for article in ("a", "the")),
    *(f"a photo of {article} {size} {{}}." for size in ("small", "large") for article in ("a", "the")),
    *(f"a photo of {article} {{}} for visual inspection." for article in ("a", "the")),
    *(f"a photo of {article} {{}} for anomaly detection." for article in ("a", "the")),
)
"""The paper's 22 templates."""

ANOMALIB_TEMPLATES = (
    *(text for text in TEMPLATES if text not in ("a cropped photo of a {}.", "a jpeg corrupted photo of a {}.")),
    "a jpeg corrupted photo of the {}.",
)
"""The 21 of anomalib: two of the 22 are missing, one stands there twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Two sets of prompts whose mean embeddings are t- (normal) and t+ (anomalous)."""

    normal: tuple[str, ...]
    anomalous: tuple[str, ...]


def compose_defects(
    names: Sequence[str], defects: Mapping[str, Sequence[str]], *, templates: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The prompts of each kind of defect: its states of every name in every template.

    >>> compose_defects(["cap"], {"scratch": ["{} with a scratch"]}, templates=["a {}."])
    {'scratch': ('a cap with a scratch.',)}
    """
    return {kind: compose(names, normal=states, templates=templates).normal for kind, states in defects.items()}


def compose(
    names: Sequence[str],
    *,
    normal: Sequence[str] = (),
    anomalous: Sequence[str] = (),
    templates: Sequence[str] = (),
) -> Prompts:
    """Puts every name into every state and every state into every template. What is empty is the paper's.

    >>> prompts = compose(["bottle_cap"])
    >>> len(prompts.normal), len(prompts.anomalous), prompts.anomalous[0]
    (154, 88, 'a cropped photo of a damaged bottle cap.')
    """
    plain = [name.replace("_", " ") for name in names]

    def fill(states: Sequence[str]) -> tuple[str, ...]:
        objects = [state.format(name) for name in plain for state in states]
        return tuple(template.format(thing) for thing in objects for template in templates or TEMPLATES)

    return Prompts(normal=fill(normal or NORMAL_STATES), anomalous=fill(anomalous or ANOMALOUS_STATES))
