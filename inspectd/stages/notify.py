"""The service manager's notification protocol (sd_notify(3)): one datagram a message, nothing where nobody asks."""

from __future__ import annotations

import os
import socket
import time

from inspectd.log import get_logger

STATUS_EVERY_S = 2.0


class Notifier:
    """Tells systemd READY, STATUS, WATCHDOG and STOPPING; does nothing outside of systemd."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        wants_watchdog = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 if wants_watchdog else 0.0
        self._due_s = 0.0
        self._status = ""
        self._status_due_s = 0.0

    def ready(self, status: str) -> None:
        """The models are warm and cameras may accept."""
        self._status = status
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`; sent when it has changed, at most every two seconds."""
        now_s = time.monotonic()
        if status != self._status and now_s >= self._status_due_s:
            self._status, self._status_due_s = status, now_s + STATUS_EVERY_S
            self._send(f"STATUS={status}")

    def watchdog(self) -> None:
        """The loop has turned: called from it, sent three times in each watchdog period."""
        now_s = time.monotonic()
        if self._watchdog_s and now_s >= self._due_s:
            self._due_s = now_s + self._watchdog_s / 3
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon drains."""
        self._send("STOPPING=1\nSTATUS=draining")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            get_logger().warning("notify_failed", error=str(error))
