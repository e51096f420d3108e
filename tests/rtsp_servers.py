"""A real RTSP server on loopback (`gst_camera.py`), which a test may kill, stop and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
CAMERA = Path(__file__).with_name("gst_camera.py")
NEEDS = "gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer, GstApp"


@cache
def _is_installed() -> bool:
    if not Path(SYSTEM_PYTHON).exists():
        return False
    return (
        subprocess.run([SYSTEM_PYTHON, "-c", f"import gi; {NEEDS}"], capture_output=True, check=False).returncode == 0
    )


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RtspServer:
    """One server that plays a clip in a loop; it keeps its port over restarts.

    Args:
        login: `USER:PASSWORD`, where it asks for one.
    """

    def __init__(self, clip: Path, *, fps: float = 25, login: str | None = None) -> None:
        """Skips the test where the server's Debian packages are absent."""
        if not _is_installed():
            pytest.skip("needs the Debian packages of the RTSP server: see .ci/run")
        self._clip, self._fps, self._login = clip, fps, login
        self._pushes = Path(tempfile.mkdtemp(prefix="inspectd-rtsp-")) / "pushes"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cam"

    def start(self) -> None:
        """Returns once it listens."""
        command = [SYSTEM_PYTHON, str(CAMERA), str(self.port), str(self._clip)]
        command += ["--fps", str(self._fps), "--pushes", str(self._pushes)]
        command += ["--user", self._login] if self._login else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(b"ready")
        self.started_s = time.monotonic()

    def pushes(self) -> list[tuple[int, int]]:
        """Number and monotonic ns of every frame that it sent, over all its lives."""
        lines = self._pushes.read_text().splitlines() if self._pushes.exists() else []
        return [(int(number), int(at_ns)) for number, at_ns in (line.split() for line in lines)]

    def kill(self) -> None:
        """Dies without a word, as a camera whose plug is pulled."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def stall(self) -> None:
        """Holds its connections and says nothing more."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on after `stall`."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Ends it for good."""
        self.kill()
        shutil.rmtree(self._pushes.parent)


class Hole:
    """A way to a server that may become a black hole: connections are still accepted, and every byte is swallowed."""

    def __init__(self, port: int) -> None:
        self.swallows = False
        self._to = port
        self._accepting = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._accepting.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Ends all connections."""
        self._accepting.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._accepting, *self._ends):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._accepting.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pump, args=ends))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        """What was cut once stays silent: the bytes are gone."""
        swallowed = False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                swallowed = swallowed or self.swallows
                if not swallowed:
                    target.sendall(data)
            if not swallowed:
                target.shutdown(socket.SHUT_WR)
