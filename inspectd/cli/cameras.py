"""`inspectd cameras`: which cameras this machine can reach, what they can give, and a picture of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspectd.cli.options import AsJson
from inspectd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inspectd.cli.sightings import Sighting
    from inspectd.source_settings import MjpegSource, RtspSource


def cameras(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help="Network cameras: rtsp://… or http://… (MJPEG).")
    ] = None,
    *,
    producer: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A GenTL producer (.cti); default: those of GENICAM_GENTL64_PATH."),
    ] = None,
    preview: Annotated[Path | None, typer.Option(metavar="DIR", help="Save one frame of each camera there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Finds the cameras that are attached, and looks at those whose URLs are given. Exits 1 if one cannot be used."""
    from rich.console import Console

    sources = [_network_source(url) for url in urls or []]
    if preview is not None:
        _make(preview)
    with Console(stderr=True).status("looking"):
        found = list(_look(sources, tuple(producer or ()), preview))
    if as_json:
        typer.echo(json.dumps([each.as_dict() for each in found], indent=1))
    else:
        _show(found)
    if any(each.error for each in found):
        raise typer.Exit(ExitCode.FOUND_WRONG)


def _network_source(url: str) -> RtspSource | MjpegSource:
    from pydantic import ValidationError

    from inspectd.source_settings import MjpegSource, RtspSource
    from inspectd.toml import one_line

    kind = url.partition("://")[0]
    try:
        if kind in ("http", "https"):
            return MjpegSource(kind="mjpeg", url=url)
        return RtspSource(kind="rtsp", url=url)
    except ValidationError as error:
        raise typer.BadParameter(one_line(error).replace("rtsp://", "rtsp:// or http://", 1)) from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{folder}: {error.strerror or error}", param_hint="--preview") from None


def _look(
    sources: list[RtspSource | MjpegSource], producers: tuple[Path, ...], preview: Path | None
) -> Iterator[Sighting]:
    from itertools import chain

    from inspectd.cli.sightings import look
    from inspectd.sources.attached import camera_at, gentl_cameras, kernel_cameras

    for each in chain(kernel_cameras(), gentl_cameras(producers), map(camera_at, sources)):
        yield look(each, preview)


def _show(found: list[Sighting]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    if not found:
        console.print("no camera found; network cameras are looked at by their URLs")
        return
    table = Table("", "kind", Column("which", overflow="fold"), Column("what it gives", overflow="fold"))
    for each in found:
        mark = Text("wrong", style="bold red") if each.error else Text("ok", style="green")
        table.add_row(mark, each.kind, Text(each.name), Text(each.text()))
    console.print(table)
