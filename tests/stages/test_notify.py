"""The service manager's protocol, against a real datagram socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from inspectd.stages.notify import Notifier


def test_messages_reach_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY with a status, watchdog beats at a third of the period, STOPPING."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        notifier = Notifier()
        notifier.ready("warm")
        notifier.watchdog()
        notifier.watchdog()
        notifier.stopping()
        received = [manager.recv(1000).decode() for _ in range(3)]
    assert received == ["READY=1\nSTATUS=warm", "WATCHDOG=1", "STOPPING=1\nSTATUS=draining"]


def test_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of systemd nothing is sent, and nothing breaks; a manager that has gone breaks nothing either."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("warm")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notifier = Notifier()
    notifier.ready("warm")
    assert notifier is not None
