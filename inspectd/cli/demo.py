"""`inspectd demo`: the verb alone; what it shows is in `inspectd/demo/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    keep: Annotated[
        Path, typer.Option("--keep", metavar="DIR", help="Where the picture, verdicts, journal and log go.")
    ] = Path(".demo"),
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Write the contact sheet.")] = True,
) -> None:
    """The whole daemon on the bundled model and sample video: no camera, no network, no GPU."""
    from inspectd.demo.show import show

    raise typer.Exit(show(keep, picture=picture))
