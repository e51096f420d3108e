"""`inspectd check`: everything that `run` will need, looked at one by one, without starting anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from inspectd.cli.options import AsJson, Config
from inspectd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inspectd.cli.findings import Finding


def check(config: Config, as_json: AsJson = False) -> None:
    """What is right and what is wrong: config, recipes, weights, endpoints, cameras. Exits 3 if anything is wrong."""
    from rich.console import Console

    with Console(stderr=True).status("looking"):
        findings = list(_find(config))
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=1))
    else:
        _show(findings)
    if not all(finding.right for finding in findings):
        raise typer.Exit(ExitCode.CONFIG)


def _find(config: Path) -> Iterator[Finding]:
    from inspectd.cli.findings import Finding, look
    from inspectd.errors import ConfigError
    from inspectd.settings import load_settings

    try:
        settings = load_settings(config)
    except ConfigError as error:
        yield Finding(what="config", subject=str(config), right=False, detail=str(error))
        return
    yield Finding(what="config", subject=str(config), right=True, detail=f"{len(settings.cameras)} camera(s)")
    yield from look(settings)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("", "what", Column("which", overflow="fold"), Column("detail", overflow="fold"))
    for finding in findings:
        mark = Text("ok", style="green") if finding.right else Text("wrong", style="bold red")
        mark = Text("warning", style="yellow") if finding.warns else mark
        table.add_row(mark, finding.what, Text(finding.subject), Text(finding.detail))
    console = Console()
    console.print(table)
    wrong = sum(not finding.right for finding in findings)
    console.print(Text("everything is right", "green") if not wrong else Text(f"{wrong} wrong", "bold red"))
