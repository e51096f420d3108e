"""`inspectd watch`: verdicts as they come, as a live table, as lines, or as JSON."""

from __future__ import annotations

import os
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspectd.cli.options import Endpoint, MaybeConfig, endpoint
from inspectd.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group
    from rich.text import Text

    from inspectd.client import Alarm, Message, Subscriber

ROWS = 16
LOOK_S = 0.1
STYLES = {"pass": "green", "fail": "bold red", "error": "bold yellow"}


def watch(
    config: MaybeConfig = None,
    address: Endpoint = None,
    camera: Annotated[str | None, typer.Option("--camera", help="Only this camera.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One verdict a line, as it was published.")] = False,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after so many verdicts.")] = None,
) -> None:
    """Shows verdicts live. In red: why a line would have to reject now."""
    from inspectd.client import Subscriber

    topics = ("verdict/" if camera is None else f"verdict/{_camera(camera)}/", "heartbeat/", "event/")
    with Subscriber(endpoint("verdicts", address, config), topics) as subscriber:
        if as_json or not sys.stdout.isatty():
            _lines(subscriber, count, _json_line if as_json else _plain_line)
        else:
            _live(subscriber, count, camera)


def _camera(name: str) -> str:
    import re

    if re.fullmatch(r"[a-z0-9_-]{1,32}", name) is None:
        raise typer.BadParameter(f"{name!r}: expected 1 to 32 of a-z 0-9 _ -", param_hint="--camera")
    return name


# -- lines ----------------------------------------------------------------------------------------------------------


def _lines(subscriber: Subscriber, count: int | None, line_of: Callable[[Message], str]) -> None:
    """One line a verdict on standard output, alarms on standard error. A reader that goes away ends it well."""
    from inspectd.client import Alarm, Kind

    seen = 0
    try:
        while count is None or seen < count:
            item = subscriber.receive(LOOK_S)
            if isinstance(item, Alarm):
                typer.echo(f"inspectd: {item.detail}", err=True)
            elif item is not None and item.kind is Kind.VERDICT:
                typer.echo(line_of(item))
                seen += 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its exit


def _json_line(message: Message) -> str:
    if b"\n" in message.raw:
        raise TransportError(f"{message.topic}: the body is not one line")
    return message.raw.decode()


def _plain_line(message: Message) -> str:
    body = message.body
    return (
        f"{body['captured_utc'] or '-':27} {body['camera']} {body['seq']} {body['decision']} {body['reason']} "
        f"score {_score(body)} regions {len(body['regions'])}"
    )


def _score(body: dict[str, Any]) -> str:
    return "-" if body["score"] is None else f"{body['score']:.4f}/{body['threshold']:.4f}"


# -- the live table ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Board:
    """What the live table shows: the last heartbeat, counts of each camera, the last verdicts and alarms."""

    only: str | None = None
    state: str = "waiting for the first heartbeat"
    session: str = "-"
    uptime_s: float = 0.0
    silent: bool = False
    cameras: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    verdicts: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=ROWS))
    alarms: deque[str] = field(default_factory=lambda: deque(maxlen=4))

    def take(self, item: Message | Alarm) -> bool:
        """Takes what was received; True for a verdict."""
        from inspectd.client import Alarm, AlarmKind, Kind

        if isinstance(item, Alarm):
            self.silent = self.silent or item.kind is AlarmKind.SILENCE
            self.alarms.append(item.detail)
        elif item.kind is Kind.HEARTBEAT:
            self.silent = False
            self.state, self.session, self.uptime_s = (item.body[key] for key in ("state", "session", "uptime_s"))
            beats = item.body["cameras"]
            self.cameras = beats if self.only is None else {key: beats[key] for key in beats if key == self.only}
        elif item.kind is Kind.EVENT:
            self.alarms.append(" ".join(str(item.body[key]) for key in ("kind", "camera", "count") if key in item.body))
        elif item.kind is Kind.VERDICT:
            self.verdicts.append(item.body)
            counts = self.counts.setdefault(item.body["camera"], {"pass": 0, "fail": 0, "error": 0})
            counts[item.body["decision"]] += 1
            return True
        return False

    def render(self) -> Group:
        """The board as rich draws it."""
        from rich.console import Group

        return Group(self._head(), *self._alarm_lines(), self._camera_table(), self._verdict_table())

    def _head(self) -> Text:
        from rich.text import Text

        head = Text("inspectd ", style="bold")
        if self.silent:
            return head.append("no heartbeat for 600 ms: reject", style="bold white on red")
        style = {"ready": "bold green", "degraded": "bold yellow"}.get(self.state, "bold")
        return head.append(self.state, style=style).append(f"  up {self.uptime_s:.0f} s  session {self.session}")

    def _camera_table(self) -> Any:
        from rich.table import Table

        table = Table("camera", "state", "last seq", "pass", "fail", "error", expand=True)
        for name, beat in self.cameras.items():
            counts = self.counts.get(name, {})
            figures = (str(counts.get(key, 0)) for key in ("pass", "fail", "error"))
            style = "red" if beat["state"] == "lost" or self.silent else ""
            table.add_row(name, beat["state"], str(beat["last_seq"]), *figures, style=style)
        return table

    def _verdict_table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table("captured", "camera", "seq", "verdict", "reason", "score", "regions", "total", expand=True)
        for body in reversed(self.verdicts):  # a low terminal cuts the bottom off: the newest come first
            total_ms = body["latency_ms"]["total"]
            table.add_row(
                (body["captured_utc"] or "-")[11:23],
                body["camera"],
                str(body["seq"]),
                Text(body["decision"], style=STYLES.get(body["decision"], "")),
                body["reason"],
                _score(body),
                str(len(body["regions"])),
                "-" if total_ms is None else f"{total_ms:.0f} ms",
            )
        return table

    def _alarm_lines(self) -> list[Text]:
        from rich.text import Text

        return [Text(alarm, style="red") for alarm in self.alarms]


def _live(subscriber: Subscriber, count: int | None, camera: str | None) -> None:
    from rich.live import Live

    board, seen = Board(only=camera), 0
    with Live(get_renderable=board.render, refresh_per_second=8, vertical_overflow="crop") as live:
        while count is None or seen < count:
            item = subscriber.receive(LOOK_S)
            seen += item is not None and board.take(item)
        live.refresh()
