"""Fixtures of the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon


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
