"""`inspectd run`: the daemon."""

from __future__ import annotations

from typing import Annotated

import typer

from inspectd.cli.options import Config


def run(
    config: Config,
    exit_at_end: Annotated[
        bool, typer.Option("--exit-at-end", help="Stop when every file and folder has been inspected to its end.")
    ] = False,
) -> None:
    """The daemon: cameras in, verdicts out, until SIGTERM or Ctrl-C."""
    from inspectd.settings import load_settings

    settings = load_settings(config)
    try:
        from inspectd.supervisor import run_daemon

        code = run_daemon(settings, exit_at_end=exit_at_end)
    except KeyboardInterrupt:  # before the supervisor listens to signals there is nothing to drain
        raise typer.Exit from None
    raise typer.Exit(code)
