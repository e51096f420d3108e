"""A model that changes under a real daemon; `tools/faults.py` has the rows of one that fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from daemons import DEMO, Daemon, Seen, broken_model, file_camera, running, shared
from safetensors.numpy import load_file, save_file

MakeDaemon = Callable[..., Daemon]


def a_breakable_daemon(make_daemon: MakeDaemon, fault: str, flag: Path) -> Daemon:
    """One camera that never ends and has no deadline: only the model's fault makes an error."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    return make_daemon({"cam1": file_camera(video, loop=True)}, environment=broken_model(fault, flag))


def scored_after(seen: Seen, count: int) -> bool:
    return len(seen.verdicts) > count and seen.verdicts[-1]["decision"] != "error"


def test_other_weights_under_a_new_worker_are_not_believed(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Weights that change while the daemon runs are another model: what it says is an error until the next start."""
    weights = tmp_path / "model.safetensors"
    shutil.copyfile(DEMO / "model.safetensors", weights)
    recipe = f'[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n[model]\nbackbone = "demo"\nweights = "{weights}"\n'
    recipe += f'config = "{DEMO / "model.json"}"\n'
    camera = file_camera(shared("data", "video", "bottle_bench_640x360.mp4"), loop=True)
    daemon = make_daemon({"cam1": camera}, recipe=recipe)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: scored_after(seen, 3))
        others = {name: np.asarray(tensor * 1.01, tensor.dtype) for name, tensor in load_file(weights).items()}
        save_file(others, weights)
        (worker,) = [each["pid"] for each in daemon.ask("status")["processes"] if each["name"] == "worker"]
        psutil.Process(worker).kill()
        subscriber.until(lambda seen: any(each["reason"] == "worker_lost" for each in seen.verdicts))
        lost = len(subscriber.seen.verdicts)
        seen = subscriber.until(lambda seen: any(each["reason"] == "recipe_changing" for each in seen.verdicts))
    assert {each["reason"] for each in seen.verdicts[lost:]} <= {"worker_lost", "recipe_changing"}
