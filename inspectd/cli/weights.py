"""`inspectd weights`: fetch, verify and show the model's weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspectd.cli.options import weights_dir

if TYPE_CHECKING:
    from inspectd.detect.weights import WeightsFile

app = typer.Typer(
    help="Fetch, verify and show the model's weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Backbone = Annotated[str, typer.Argument(metavar="[MODEL]", help="A CLIP backbone as open_clip names it.")]
Pretrained = Annotated[str, typer.Argument(metavar="[PRETRAINED]", help="Its weights as open_clip names them.")]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="Where weights lie; default: the daemon's."),
]
DEFAULT_BACKBONE, DEFAULT_PRETRAINED = "ViT-B-16-plus-240", "laion400m_e31"


@app.command()
def fetch(
    backbone: Backbone = DEFAULT_BACKBONE, pretrained: Pretrained = DEFAULT_PRETRAINED, folder: Folder = None
) -> None:
    """Downloads weights from the hub and verifies them."""
    from rich.console import Console

    from inspectd.detect.weights import fetch as fetch_weights

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # why it retried stands in the one line at the end
    with Console(stderr=True).status(f"fetching {backbone} ({pretrained})"):
        found = fetch_weights(backbone, pretrained, weights_dir(folder, None))
    _say(found)


@app.command()
def verify(
    backbone: Backbone = DEFAULT_BACKBONE, pretrained: Pretrained = DEFAULT_PRETRAINED, folder: Folder = None
) -> None:
    """Reads every tensor and holds it against the model."""
    from inspectd.detect.weights import find

    found = find(backbone, pretrained, weights_dir(folder, None))
    found.verify()
    _say(found)


@app.command()
def show(
    backbone: Backbone = DEFAULT_BACKBONE, pretrained: Pretrained = DEFAULT_PRETRAINED, folder: Folder = None
) -> None:
    """Says where weights lie, how large they are and what their hash is."""
    from inspectd.detect.weights import find

    _say(find(backbone, pretrained, weights_dir(folder, None)))


def _say(found: WeightsFile) -> None:
    typer.echo(f"{found.path}\n{found.path.stat().st_size / 1e6:.1f} MB, sha256 {found.sha256()}")
