"""`inspectd check`: what is right is shown, what is wrong is named, and nothing is started or changed."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from daemons import Daemon, running
from tests_cli import inspectd

from inspectd.cli.findings import Finding, look
from inspectd.settings import load_settings
from inspectd.stages.state import segment_prefix
from inspectd.transport.memory import Segment, sweep


@pytest.fixture
def configured(tmp_path: Path) -> Daemon:
    """A right configuration: one camera on a folder with one image."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "part.png"), np.full((64, 96, 3), 100, np.uint8))
    return Daemon(folder=tmp_path, cameras={"cam1": 'source = { kind = "folder", path = "images", pace = "fast" }'})


def findings(daemon: Daemon) -> dict[str, Finding]:
    """What `check` finds, by what it is about."""
    return {f"{each.what} {each.subject}".split(" tcp:")[0].split(" ipc:")[0]: each for each in look_at(daemon)}


def look_at(daemon: Daemon) -> list[Finding]:
    return list(look(load_settings(daemon.config)))


def test_all_right_exits_zero(configured: Daemon) -> None:
    """A right configuration is a table without a wrong row, exit 0; and no state folder was made."""
    said = inspectd("check", "--config", configured.config)
    assert said.code == 0, said.out + said.err
    assert "everything is right" in said.out
    assert "wrong" not in said.out
    assert not (configured.folder / "state").exists()


def test_json_has_every_row(configured: Daemon) -> None:
    """`--json` gives the rows to programs; one mistake exits 3 and does not hide the others' rows."""
    configured.write_recipe("part", "[decision]\npixel_threshold = 0.5\n")
    said = inspectd("check", "--config", configured.config, "--json")
    assert said.code == 3
    rows = {row["what"]: row for row in json.loads(said.out)}
    assert rows["camera"]["right"]
    assert not rows["recipe"]["right"]
    assert "inspectd calibrate" in rows["recipe"]["detail"]


def test_wrong_configuration_is_one_row(configured: Daemon) -> None:
    """A configuration that cannot be read is a row too, exit 3."""
    configured.config.write_text("cameras = 1")
    said = inspectd("check", "--config", configured.config)
    assert said.code == 3
    assert "wrong" in said.out
    assert "cameras" in said.out


def test_camera_row_shows_size_and_picture(configured: Daemon) -> None:
    """One frame is grabbed: its size, brightness and sharpness are shown."""
    row = findings(configured)["camera cam1"]
    assert row.right
    assert "96x64" in row.detail
    assert "brightness 100, sharpness 0" in row.detail


def damage_image(daemon: Daemon) -> None:
    (daemon.folder / "images" / "part.png").write_bytes(b"no picture")


def remove_images(daemon: Daemon) -> None:
    (daemon.folder / "images" / "part.png").unlink()


def cut_weights(daemon: Daemon) -> None:
    copy = daemon.folder / "recipes" / "cut.safetensors"
    recipe = daemon.folder / "recipes" / "part.toml"
    source = re.search(r'weights = "(.*)"', recipe.read_text())[1]
    copy.write_bytes(Path(source).read_bytes()[:-1000])
    recipe.write_text(recipe.read_text().replace(source, str(copy)))


def other_model(daemon: Daemon) -> None:
    measured = {"good": 1, "bad": 0, "target_false_reject_rate": 0.1, "measured_utc": "-", "model_sha256": "0" * 64}
    daemon.write_recipe("part", "")
    (daemon.folder / "recipes" / "part.calibration.json").write_text(
        json.dumps(measured | {"threshold": 0.5, "pixel_threshold": 0.5})
    )


def empty_references(daemon: Daemon) -> None:
    (daemon.folder / "good").mkdir()
    daemon.write_recipe("part", f'{daemon.recipe}[references]\nfolder = "../good"\n')


def state_below_a_file(daemon: Daemon) -> None:
    (daemon.folder / "state").write_text("")


@pytest.mark.parametrize(
    ("mistake", "row", "named"),
    [
        (damage_image, "camera cam1", "images"),
        (remove_images, "camera cam1", "holds no image"),
        (cut_weights, "weights part", "cut.safetensors"),
        (other_model, "model part", "inspectd calibrate"),
        (empty_references, "references part", "holds 0 images"),
        (state_below_a_file, "state {folder}/state", "state_dir"),
    ],
)
def test_wrong_rows_name_what_is_wrong(
    configured: Daemon, mistake: Callable[[Daemon], None], row: str, named: str
) -> None:
    """Each mistake makes its own row wrong, in one line that names it."""
    mistake(configured)
    found = findings(configured)[row.format(folder=configured.folder)]
    assert not found.right
    assert named in found.detail
    assert "\n" not in found.detail


def test_held_ports_are_wrong(configured: Daemon) -> None:
    """A port that another program holds is found without waiting."""
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        text = configured.config.read_text()
        configured.config.write_text(re.sub('control = ".*"', f'control = "{address}"', text))
        row = findings(configured)["endpoint control"]
    assert not row.right
    assert f"{address} is held by another program" in row.detail


def test_held_sockets_are_wrong_and_left_over_ones_are_not(configured: Daemon) -> None:
    """A unix socket on which somebody listens is held; the file that a dead daemon left is none."""
    path = configured.verdicts.removeprefix("ipc://")
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(path)
        other.listen()
        assert not findings(configured)["endpoint verdicts"].right
    assert findings(configured)["endpoint verdicts"].right
    Path(path).unlink()


def test_running_daemon_is_named_and_its_endpoints_are_right(configured: Daemon) -> None:
    """While the daemon runs, `check` names its pid and finds its endpoints held by it."""
    with running(configured) as seen:
        seen.until(lambda seen: seen.state is not None)
        found = findings(configured)
        assert found["endpoint verdicts"].detail == f"held by the running inspectd (pid {configured.process.pid})"
        assert found[f"daemon {configured.folder / 'state'}"].right
        assert configured.process.poll() is None


def test_memory_of_ones_own_counts_as_free(configured: Daemon) -> None:
    """What a running daemon holds, or a dead one left, the next start has for itself."""

    def free_mb() -> float:
        return float(re.search(r"([\d.]+) MB free", findings(configured)["memory /dev/shm"].detail)[1])

    before_mb = free_mb()
    prefix = segment_prefix(configured.folder / "state")
    Segment.create(f"{prefix}own", 50_000_000).close()
    Segment.create(f"{prefix[:-1]}0-other", 50_000_000).close()
    try:
        assert free_mb() == pytest.approx(before_mb - 50, abs=20)
    finally:
        sweep(prefix)
        sweep(f"{prefix[:-1]}0-")


def test_stations_that_cannot_be_are_a_wrong_row(tmp_path: Path) -> None:
    """Their cameras' deadlines are looked at, as when the daemon starts."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "part.png"), np.full((64, 96, 3), 100, np.uint8))
    camera = 'source = { kind = "folder", path = "images" }\ntrigger = { kind = "presence" }\n'
    station = '[stations.gate]\nmatch = "time"\ncameras = ["cam1", "cam2"]\nwindow_ms = {window_ms}\n'
    daemon = Daemon(folder=tmp_path, cameras=dict.fromkeys(("cam1", "cam2"), camera), extra="# station")
    text, recipe = daemon.config.read_text(), "deadline_ms = 500\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"
    daemon.write_recipe("part", recipe)
    for window_ms, right in ((400, True), (450, False)):
        daemon.config.write_text(text.replace("# station", station.replace("{window_ms}", str(window_ms))))
        found = findings(daemon)["stations gate"]
        assert found.right is right
        assert ("stations.gate.window_ms: 450 needs deadline_ms above 520" in found.detail) is not right


SOURCES = ['kind = "rtsp"\nurl = "rtsp://cam/a"', 'kind = "v4l2"\ndevice = "cam"', 'kind = "genicam"\nserial = "1"']


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("lag", "kind", "warned"), [("", "external", 1), ("0", "external", 0), ("", "continuous", 0)])
def test_unknown_exposure_lag_is_a_warning(tmp_path: Path, source: str, lag: str, kind: str, warned: int) -> None:
    """Who triggers by program is told that frames count from their arrival, and where to say better."""
    from inspectd.cli.findings import _unknown_lags
    from inspectd.settings import load_settings

    config = tmp_path / "inspectd.toml"
    more = f"exposure_lag_ms = {lag}\n" if lag else ""
    config.write_text(
        f'[cameras.cam1]\nrecipe = "x"\ntrigger = {{ kind = "{kind}" }}\n[cameras.cam1.source]\n{source}\n{more}'
    )
    found = list(_unknown_lags(load_settings(config)))
    assert [(each.right, each.warns) for each in found] == [(True, True)] * warned
    assert all("cameras.cam1.source.exposure_lag_ms" in each.detail for each in found)
