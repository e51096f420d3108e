"""Real sockets inside the daemon: full ones never block, the dead ones' are neither read nor left."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from inspectd.transport.pipes import INTERNAL_HWM, Inbox, Outbox, stage_endpoint, sweep_stage_endpoints
from inspectd.transport.sockets import Bell, wait


def test_full_queue_inside_never_blocks(tmp_path: Path) -> None:
    """A send to a stage that does not read comes back as None at once, however many there were."""
    with Outbox(lambda generation: stage_endpoint(tmp_path, "worker", generation, "wake"), lambda: 1) as outbox:
        sent = [outbox.send([b"x"]) for _ in range(INTERNAL_HWM + 10)]
    assert sent[0] == 1
    assert sent[-1] is None


def test_outbox_follows_the_living_generation(tmp_path: Path) -> None:
    """What is sent after a restart goes to the new generation, never to the dead one's socket."""
    generation = 1

    def endpoint_of(number: int) -> str:
        return stage_endpoint(tmp_path, "worker", number, "wake")

    with Inbox(endpoint_of(1)) as old, Inbox(endpoint_of(2)) as new:
        with Outbox(endpoint_of, lambda: generation) as outbox:
            assert outbox.send([b"first"]) == 1
            wait([old], 20)
            assert list(old.drain()) == [[b"first"]]
            generation = 2
            assert outbox.send([b"second"]) == 2
            wait([new], 20)
            assert list(new.drain()) == [[b"second"]]
        assert list(old.drain()) == []


def test_sweep_takes_dead_stage_sockets_only(tmp_path: Path) -> None:
    """A file that only looks like a socket's name, and a socket on which somebody listens, stay."""
    (tmp_path / "my-recipe.toml").touch()
    (tmp_path / "worker-7.wake").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "publisher-1.results"))
    with Inbox(stage_endpoint(tmp_path, "worker", 2, "wake")):
        sweep_stage_endpoints(tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {"my-recipe.toml", "worker-7.wake", "worker-2.wake"}


def test_bell_wakes_a_loop_from_another_thread() -> None:
    """Once for all rings, and not again when it has been hushed."""
    bell = Bell()
    threading.Timer(0.05, lambda: [bell.ring() for _ in range(3)]).start()
    started_s = time.monotonic()
    wait([bell], 20.0)
    assert time.monotonic() - started_s < 10
    bell.hush()
    started_s = time.monotonic()
    wait([bell], 0.2)
    assert time.monotonic() - started_s >= 0.19
    bell.hush()
