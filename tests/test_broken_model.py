"""A model that fails, in a real daemon: every frame is answered once, and nothing that it could not see passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from daemons import Daemon, Seen, broken_model, file_camera, running, shared

MakeDaemon = Callable[..., Daemon]


def a_breakable_daemon(make_daemon: MakeDaemon, fault: str, flag: Path) -> Daemon:
    """One camera that never ends and has no deadline: only the model's fault makes an error."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    return make_daemon({"cam1": file_camera(video, loop=True)}, environment=broken_model(fault, flag))


def scored_after(seen: Seen, count: int) -> bool:
    return len(seen.verdicts) > count and seen.verdicts[-1]["decision"] != "error"


def test_worker_without_memory_is_replaced(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """What halving does not mend ends the worker: its frames are errors, answered once, and the next one goes on."""
    flag = tmp_path / "flag"
    daemon = a_breakable_daemon(make_daemon, "out_of_memory", flag)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: scored_after(seen, 5))
        flag.touch()
        seen = subscriber.until(lambda seen: any(each["reason"] == "worker_lost" for each in seen.verdicts))
        flag.unlink()
        broken = len(seen.verdicts)
        subscriber.until(lambda seen: scored_after(seen, broken + 20))
    assert seen.seqs("cam1") == list(range(1, len(seen.verdicts) + 1))
    assert any(event["kind"] == "worker_restarted" for event in seen.events)
    assert "out of memory" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_score_that_is_not_finite_is_an_error(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """While the model gives NaN every verdict is `error/not_finite`; afterwards it judges again."""
    flag = tmp_path / "flag"
    flag.touch()  # from the first frame on, so that no verdict of the sound model is under way
    daemon = a_breakable_daemon(make_daemon, "not_finite", flag)
    with running(daemon) as subscriber:
        seen = subscriber.until(lambda seen: len(seen.verdicts) > 20)
        assert {(each["decision"], each["reason"]) for each in seen.verdicts} == {("error", "not_finite")}
        assert all(each["score"] is None and each["regions"] == [] for each in seen.verdicts)
        flag.unlink()
        subscriber.until(lambda seen: scored_after(seen, 20))
