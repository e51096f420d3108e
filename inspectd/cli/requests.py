"""`inspectd status` and `inspectd trigger`: one request to a running daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspectd.cli.options import AsJson, Endpoint, MaybeConfig, endpoint
from inspectd.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table


def status(config: MaybeConfig = None, address: Endpoint = None, as_json: AsJson = False) -> None:
    """One look at a running daemon: processes, cameras, queues, rates, latencies."""
    from inspectd.client import Client

    with Client(endpoint("control", address, config)) as client:
        answer = client.status()
    if as_json:
        typer.echo(json.dumps(answer))
        return
    from rich.console import Console

    console = Console()
    console.print(f"[bold]{answer['state']}[/] for {answer['uptime_s']:.0f} s, session {answer['session']}")
    console.print(_processes(answer["processes"]), _cameras(answer["cameras"]))


def trigger(
    camera: Annotated[str, typer.Argument(metavar="CAMERA", help='A camera with trigger.kind = "external".')],
    *,
    trigger_id: Annotated[
        str | None, typer.Option("--id", help="The trigger's own name; the same one again gives the same seq.")
    ] = None,
    part_id: Annotated[str | None, typer.Option("--part-id", help="The part's name, for the verdict.")] = None,
    deadline_ms: Annotated[
        float | None, typer.Option("--deadline-ms", min=1, help="The verdict must be out after so long.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Print the verdict; exit 1 unless it is a pass.")] = False,
    config: MaybeConfig = None,
    address: Endpoint = None,
) -> None:
    """Inspects one part now, and prints the answer as a line of JSON."""
    import secrets

    from inspectd.client import Client, Refused

    with Client(endpoint("control", address, config)) as client:
        try:
            answer = client.trigger(
                camera,
                trigger_id or f"cli-{secrets.token_hex(8)}",
                part_id=part_id,
                deadline_ms=deadline_ms,
                wait_s=(deadline_ms or 60_000) / 1000 if wait else None,
            )
        except Refused as error:
            typer.echo(f"inspectd: refused ({error.code}): {error}", err=True)
            raise typer.Exit(ExitCode.FOUND_WRONG) from error
    typer.echo(json.dumps(answer["verdict"] if wait else {"camera": camera, "seq": answer["seq"]}))
    if wait and answer["verdict"]["decision"] != "pass":
        raise typer.Exit(ExitCode.FOUND_WRONG)


def _processes(processes: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("process", "pid", "restarts", "beat", "memory", title="processes", title_justify="left")
    for each in processes:
        beat, memory = each["beat_age_ms"], each["memory_mb"]
        table.add_row(
            each["name"],
            str(each["pid"]),
            str(each["restarts"]),
            "-" if beat is None else f"{beat:.0f} ms ago",
            "gone" if memory is None else f"{memory:.0f} MB",
        )
    return table


def _cameras(cameras: dict[str, dict[str, Any]]) -> Table:
    from rich.table import Table

    columns = ("camera", "state", "recipe", "seq", "waiting", "pass", "fail", "error", "skipped")
    table = Table(*columns, "frames/s", "verdicts/s", "p50", "p99", title="cameras", title_justify="left")
    if any(each["decisions_after_seq"] for each in cameras.values()):
        table.caption = "a new publisher counts pass, fail and error from its own first seq"
    for name, each in cameras.items():
        counts, latency = each["decisions"], each["latency_ms"]
        figures = (each["last_seq"], each["waiting"], *counts.values(), each["frames_skipped"])
        rates = ("-" if rate is None else f"{rate:.1f}" for rate in each["rates_per_s"].values())
        times = ("-" if latency[key] is None else f"{latency[key]:.0f} ms" for key in ("p50", "p99"))
        table.add_row(name, each["state"], each["recipe"], *map(str, figures), *rates, *times)
    return table
