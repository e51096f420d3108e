"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inspectd.settings import Settings, Worker

Config = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The daemon's configuration (TOML).")]
MaybeConfig = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Take the endpoint from this configuration.")
]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="ADDRESS", help="tcp://HOST:PORT or ipc:///PATH of the daemon.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ModelConfig = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Take device, precision and weights folder from this configuration."
    ),
]


def endpoint(which: str, given: str | None, config: Path | None) -> str:
    """The address of a daemon's endpoint (`verdicts` or `control`): as given, of a configuration, or the default."""
    if given is not None and config is not None:
        raise typer.BadParameter("give --endpoint or --config, not both")
    if given is not None:
        if not given.startswith(("tcp://", "ipc://")):
            raise typer.BadParameter(f"{given!r} is not tcp://HOST:PORT or ipc:///PATH", param_hint="--endpoint")
        return given
    from inspectd.settings import Endpoints, load_settings

    endpoints = Endpoints() if config is None else load_settings(config).endpoints
    address: str = getattr(endpoints, which)
    return address


def weights_dir(given: Path | None, settings: Settings | None) -> Path:
    """Where weights lie: as given, of the configuration, of the environment, or the daemon's default."""
    if given is not None:
        return given
    if settings is not None:
        return settings.weights_dir
    if "INSPECTD_WEIGHTS__DIR" in os.environ:
        return Path(os.environ["INSPECTD_WEIGHTS__DIR"])
    return Path(os.environ.get("INSPECTD_STATE_DIR", "/var/lib/inspectd")) / "weights"


def worker_settings(settings: Settings | None, device: str | None, precision: str | None) -> Worker:
    """The worker's settings of the configuration, or the defaults, with what the command line says over them.

    Raises:
        BadParameter: not a device or precision.
    """
    from pydantic import ValidationError

    from inspectd.settings import Worker
    from inspectd.toml import one_line

    given = {key: value for key, value in (("device", device), ("precision", precision)) if value is not None}
    base = {} if settings is None else settings.worker.model_dump()
    try:
        return Worker(**base | given)
    except ValidationError as error:
        raise typer.BadParameter(one_line(error)) from error
