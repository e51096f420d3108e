"""The verbs. Modules here import what is heavy inside the verb that needs it, so that `--help` answers at once."""

from __future__ import annotations

import typer

from inspectd import __version__
from inspectd.cli import bench, cameras, check, daemon, demo, recordings, requests, watch, weights


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inspectd {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="inspectd",
    help="Watches cameras, inspects every part with WinCLIP and publishes exactly one verdict for each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _top(
    _: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version and exit."),
) -> None:
    pass


app.command("run")(daemon.run)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("cameras")(cameras.cameras)
app.command("status")(requests.status)
app.command("watch")(watch.watch)
app.command("trigger")(requests.trigger)
app.command("calibrate")(recordings.calibrate)
app.command("replay")(recordings.replay)
app.add_typer(weights.app, name="weights")
app.add_typer(bench.app, name="bench")
