"""Fixtures of the whole suite."""

from __future__ import annotations

import atexit
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import EMBEDDINGS, Daemon
from rtsp_servers import RtspServer

collect_ignore = ["gst_camera.py", "shims"]  # imported by other programs: the system's Python, the daemons


STARTERS = {"daemons", "rtsp_servers", "tests_cli"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes runs one after the other, with `-n 2 --dist loadgroup` beside all the rest."""
    for item in items:
        used = {getattr(each, "__module__", None) for each in vars(getattr(item, "module", item)).values()}
        if used & STARTERS:
            item.add_marker(pytest.mark.xdist_group("processes"))


def pytest_configure() -> None:
    """A run in the background of a script ignores SIGINT, and so would every program that the tests send Ctrl-C to.

    Daemons share the embeddings of their prompts, as the second start of any daemon has them.
    """
    if EMBEDDINGS not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="inspectd-test-embeddings-")
        atexit.register(folder.cleanup)
        os.environ[EMBEDDINGS] = folder.name
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes configured daemons in folders of their own and ends them all."""
    made: list[Daemon] = []

    def make(cameras: dict[str, str], **more: str) -> Daemon:
        daemon = Daemon(folder=tmp_path / f"d{len(made)}", cameras=cameras, **more)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.stop()


@pytest.fixture
def make_rtsp_server() -> Iterator[Callable[..., RtspServer]]:
    """Makes RTSP servers that play a clip, started, and ends them all."""
    made: list[RtspServer] = []

    def make(clip: Path, *, fps: float = 25, start: bool = True, login: str | None = None) -> RtspServer:
        server = RtspServer(clip, fps=fps, login=login)
        made.append(server)
        if start:
            server.start()
        return server

    yield make
    for server in made:
        server.remove()
