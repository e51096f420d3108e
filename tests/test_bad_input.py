"""What people get wrong: `inspectd run` answers each mistake with one line that names it, and the right exit code.

Nothing is left behind: no process waits, no segment stays in shared memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from daemons import shared
from safetensors.numpy import load_file, save_file
from tests_cli import Said, inspectd

from inspectd.stages.state import segment_prefix

Break = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A daemon's folder that is right in every respect: one camera on a folder with one image."""
    weights = shared("golden", "tiny-winclip-240.safetensors")
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "part.png"), np.full((64, 96, 3), 128, np.uint8))
    (tmp_path / "recipes").mkdir()
    shutil.copyfile(weights, tmp_path / "recipes" / "model.safetensors")
    shutil.copyfile(weights.with_suffix(".json"), tmp_path / "recipes" / "model.json")
    (tmp_path / "recipes" / "part.toml").write_text(RECIPE)
    sockets = f"/tmp/inspectd-bad-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"  # short, as they must be
    (tmp_path / "inspectd.toml").write_text(CONFIG.format(sockets=sockets))
    yield tmp_path
    for name in (f"{sockets}.v", f"{sockets}.c"):
        Path(name).unlink(missing_ok=True)


CONFIG = """
state_dir = "state"
[endpoints]
verdicts = "ipc://{sockets}.v"
control = "ipc://{sockets}.c"
metrics = ""
[worker]
device = "cpu"
precision = "fp32"
threads = 1
[cameras.cam1]
recipe = "part"
source = {{ kind = "folder", path = "images", pace = "fast" }}
"""
RECIPE = """
object = "part"
deadline_ms = 600000
[model]
backbone = "tiny"
weights = "model.safetensors"
config = "model.json"
[decision]
threshold = 0.5
pixel_threshold = 0.5
"""


def edit(name: str, pattern: str, replacement: str) -> Break:
    """A mistake: something in a file is written in another way."""

    def change(folder: Path) -> None:
        path = folder / name
        text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE)
        assert count == 1
        path.write_text(text)

    return change


def run(folder: Path) -> Said:
    """The daemon, to its own end; nothing of it stays."""
    said = inspectd("run", "--config", folder / "inspectd.toml", "--exit-at-end")
    assert not list(Path("/dev/shm").glob(f"{segment_prefix(folder / 'state')}*"))
    return said


def test_the_folder_is_right(folder: Path) -> None:
    """Without a mistake the daemon inspects the image and exits 0: what fails below fails for its own reason."""
    assert run(folder).code == 0


def source(text: str) -> Break:
    """Another source of the camera."""
    return edit("inspectd.toml", "^source = .*", f"source = {{ {text} }}")


def camera_twice(folder: Path) -> None:
    with (folder / "inspectd.toml").open("a") as file:
        file.write('[cameras.cam1]\nrecipe = "part"\n')


CONFIG_MISTAKES = [
    pytest.param(edit("inspectd.toml", "^state_dir", "state_folder"), "state_folder: unknown key", id="unknown-key"),
    pytest.param(edit("inspectd.toml", "^recipe = ", "recipee = "), "cameras.cam1.recipe", id="misspelt-key"),
    pytest.param(edit("inspectd.toml", "threads = 1", 'threads = "two"'), "worker.threads", id="wrong-type"),
    pytest.param(edit("inspectd.toml", r"\[cameras.cam1\]", '[cameras."a/b"]'), "a/b", id="camera-with-a-slash"),
    pytest.param(edit("inspectd.toml", '"folder"', '"webcam"'), "cameras.cam1.source", id="unknown-source"),
    pytest.param(edit("inspectd.toml", r"\[worker\]", "[worker"), "not valid TOML", id="not-toml"),
    pytest.param(camera_twice, "Cannot declare ('cameras', 'cam1') twice", id="camera-twice"),
    pytest.param(source('kind = "mjpeg", url = "rtsp://a:pw@c/"'), "expected http://HOST", id="wrong-scheme"),
    pytest.param(source('kind = "rtsp", url = "http://a:pw@c/"'), "expected rtsp://HOST", id="wrong-rtsp-scheme"),
    pytest.param(source('kind = "v4l2", device = "cam", format = "H264"'), "'MJPG', 'YUYV'", id="wrong-format"),
    pytest.param(source('kind = "v4l2", device = "cam", size_wh_px = [0, 0]'), "from 16 to 16384 px", id="wrong-size"),
    pytest.param(source('kind = "genicam"'), "cameras.cam1.source.serial", id="no-serial"),
    pytest.param(edit("inspectd.toml", 'ipc:///.*v"', 'tcp://0.0.0.0:5550"'), "endpoints.verdicts", id="open-endpoint"),
    pytest.param(edit("inspectd.toml", 'ipc:///.*v"', 'ipc://v"'), "ipc:///absolute/path", id="relative-endpoint"),
    pytest.param(
        edit("inspectd.toml", "^state_dir", f'runtime_dir = "/{"r" * 99}"\nstate_dir'), "runtime_dir", id="long"
    ),
    pytest.param(edit("inspectd.toml", '"images"', '"pictures"'), "pictures", id="missing-folder"),
    pytest.param(edit("inspectd.toml", '"part"', '"parts"'), "parts.toml", id="missing-recipe"),
    pytest.param(edit("inspectd.toml", '"state"', '"images/part.png/state"'), "state_dir", id="state-below-a-file"),
    pytest.param(edit("inspectd.toml", '"state"', '"/proc/inspectd"'), "state_dir", id="read-only-state"),
    pytest.param(edit("recipes/part.toml", "^threshold.*", ""), "inspectd calibrate", id="no-threshold"),
    pytest.param(edit("recipes/part.toml", "^threshold.*", "threshold = 1.5"), "decision.threshold", id="out-of-range"),
    pytest.param(edit("recipes/part.toml", "^threshold.*", "threshold = nan"), "decision.threshold", id="not-a-number"),
    pytest.param(edit("recipes/part.toml", "^deadline_ms", "deadline"), "deadline: unknown key", id="recipe-key"),
    pytest.param(
        edit("recipes/part.toml", r"\[decision\]", "[filters]\nmin_area_px = 10000\n[decision]\nfail_on = 'regions'"),
        "filters.min_area_px: 10000, but a region has 6144 px at most here",
        id="no-region-is-large-enough",
    ),
    pytest.param(
        edit("recipes/part.toml", r"\[decision\]", "[detector]\nmode = 'image_only'\n[decision]\nfail_on = 'either'"),
        'detector.mode = "image_only" needs',
        id="regions-without-maps",
    ),
    pytest.param(lambda folder: (folder / "inspectd.toml").unlink(), "inspectd.toml: No such file", id="no-config"),
]


@pytest.mark.parametrize(("mistake", "named"), CONFIG_MISTAKES)
def test_mistake_in_files_is_one_line(folder: Path, mistake: Break, named: str) -> None:
    """A mistake in the configuration or a recipe exits 3 at once, with a single line that names it."""
    mistake(folder)
    said = run(folder)
    assert said.code == 3
    assert said.err.count("\n") == 1
    assert named in said.complaint
    assert "pw@" not in said.err


def a_video_without_frames(folder: Path) -> None:
    (folder / "empty.mp4").write_bytes(b"")
    edit("inspectd.toml", 'kind = "folder", path = "images"', 'kind = "file", path = "empty.mp4"')(folder)


def a_video_that_is_none(folder: Path) -> None:
    (folder / "text.mp4").write_text("a letter" * 1000)
    edit("inspectd.toml", 'kind = "folder", path = "images"', 'kind = "file", path = "text.mp4"')(folder)


def a_folder_without_readable_images(folder: Path) -> None:
    (folder / "images" / "part.png").write_bytes(b"not a picture")


def references(folder: Path, content: bytes | None) -> None:
    (folder / "references").mkdir()
    if content is not None:
        (folder / "references" / "good.png").write_bytes(content)
    with (folder / "recipes" / "part.toml").open("a") as file:
        file.write('[references]\nfolder = "../references"\n')


def weights_are_cut(folder: Path) -> None:
    path = folder / "recipes" / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def weights_of_another_model(folder: Path) -> None:
    path = folder / "recipes" / "model.safetensors"
    tensors = load_file(path)
    tensors["visual.proj"] = np.ascontiguousarray(tensors["visual.proj"][:, :-1])
    save_file(tensors, path)


def threshold_of_other_weights(folder: Path) -> None:
    edit("recipes/part.toml", "^threshold.*\npixel_threshold.*\n", "")(folder)
    calibration = {
        "threshold": 0.5,
        "pixel_threshold": 0.5,
        "model_sha256": "ab" * 32,
        "good": 10,
        "bad": 0,
        "target_false_reject_rate": 0.1,
        "measured_utc": "2026-01-01T00:00:00Z",
    }
    (folder / "recipes" / "part.calibration.json").write_text(json.dumps(calibration))


DATA_MISTAKES = [
    pytest.param(a_video_without_frames, "empty.mp4", id="empty-video"),
    pytest.param(a_video_that_is_none, "text.mp4", id="no-video"),
    pytest.param(a_folder_without_readable_images, "images", id="no-image"),
    pytest.param(lambda folder: references(folder, None), "references.folder", id="no-references"),
    pytest.param(lambda folder: references(folder, b"x"), "good.png", id="unreadable-reference"),
    pytest.param(weights_are_cut, "model.safetensors", id="truncated-weights"),
    pytest.param(weights_of_another_model, "visual.proj", id="weights-of-another-model"),
    pytest.param(threshold_of_other_weights, "inspectd calibrate", id="threshold-of-other-weights"),
]


@pytest.mark.parametrize(("mistake", "named"), DATA_MISTAKES)
def test_mistake_in_data_is_one_line(folder: Path, mistake: Break, named: str) -> None:
    """A recording, reference, weights file or threshold that cannot be used ends the daemon: exit 3, one line."""
    mistake(folder)
    said = run(folder)
    assert said.code == 3
    assert named in said.complaint


ENDPOINT_MISTAKES = [
    pytest.param("verdicts", "ipc:///missing/v", "No such file or directory", id="missing-folder"),
    pytest.param("control", f"ipc:///tmp/{'c' * 107}", "File name too long", id="long"),
    pytest.param("control", "ipc:///etc/passwd/c", "Not a directory", id="below-a-file"),
]


@pytest.mark.parametrize(("key", "endpoint", "why"), ENDPOINT_MISTAKES)
def test_endpoint_that_can_never_be_bound_is_one_line(folder: Path, key: str, endpoint: str, why: str) -> None:
    """It is no reason to try again and again: exit 3, and the key, the endpoint and what is wrong with it."""
    edit("inspectd.toml", f"^{key} = .*", f'{key} = "{endpoint}"')(folder)
    said = run(folder)
    assert said.code == 3
    assert said.complaint == f"inspectd: endpoints.{key}: {endpoint}: cannot be bound: {why}"


def test_port_in_use_exits_four(folder: Path) -> None:
    """An endpoint that another program holds is tried for five seconds, then named; exit 4."""
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        edit("inspectd.toml", 'verdicts = ".*"', f'verdicts = "{address}"')(folder)
        said = run(folder)
    assert said.code == 4
    assert address in said.complaint


def test_ipc_endpoint_in_use_is_not_taken_over(folder: Path) -> None:
    """A unix socket on which somebody listens is somebody else's: exit 4, and the other goes on."""
    path = Path(re.search('control = "ipc://(.*)"', (folder / "inspectd.toml").read_text())[1])
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
        other.listen()
        said = run(folder)
        assert said.code == 4
        assert str(path) in said.complaint
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(5)  # a backlog that is full would block for ever
            client.connect(str(path))
    path.unlink()


@pytest.mark.parametrize(
    ("variable", "value"), [("WORKER__DEVICE", "tpu"), ("WORKER", "foo"), ("WORKER_DEVICE", "cpu"), ("CAMERAS", "[]")]
)
def test_environment_is_checked_too(folder: Path, variable: str, value: str) -> None:
    """A setting overridden by the environment is held to the same rules, and the line names its variable."""
    said = inspectd("run", "--config", folder / "inspectd.toml", **{f"INSPECTD_{variable}": value})
    assert said.code == 3
    assert said.complaint.startswith(f"inspectd: INSPECTD_{variable}: ")
