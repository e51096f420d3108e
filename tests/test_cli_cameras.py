"""`inspectd cameras` and the camera rows of `inspectd check`: what is there is shown, what is not is one line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from clips import number_of, numbered, write_numbered
from daemons import Daemon
from mjpeg_servers import MjpegServer, mjpeg_server
from rtsp_servers import free_port
from tests_cli import inspectd

from inspectd.cli.findings import Finding, look
from inspectd.errors import SourceError
from inspectd.settings import load_settings
from inspectd.source_settings import DropSource, FileSource, MjpegSource, V4l2Source
from inspectd.sources import attached, v4l2_kernel
from inspectd.sources.grabbing import grab
from inspectd.sources.open import open_source


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    """An MJPEG camera with 25 frames a second."""
    with mjpeg_server() as started:
        yield started


def producer() -> Path:
    """The virtual producer of the genicam wheel."""
    genicam = pytest.importorskip("genicam", reason='needs pip install "inspectd[genicam]"')
    return Path(genicam.__file__).parent / "viky.cti"


def test_cameras_are_listed_beside_those_that_fail(server: MjpegServer, tmp_path: Path) -> None:
    """A producer that is missing and a camera that is off are a line each, exit 1; the others are shown and saved."""
    off = f"http://jane:s3cret@127.0.0.1:{free_port()}/"
    arguments = ["--producer", producer(), "--producer", "/none.cti", "--preview", tmp_path / "shots", "--json"]
    said = inspectd("cameras", server.url, off, *arguments)
    assert said.code == 1
    rows = json.loads(said.out)
    assert [row["error"] is None for row in rows] == [True, True, True, False, True, False]
    assert rows[3]["error"] == "/none.cti: no such producer"
    assert rows[5]["error"].endswith("connection refused")
    assert "s3cret" not in said.out + said.err
    assert [row["name"] for row in rows[:3]] == ["0", "1", "2"]
    assert "up to 800x800 px, now 400x400" in rows[0]["modes"]
    assert rows[4]["seen"].startswith("160x96 at 2")
    assert number_of(cv2.imread(rows[4]["preview"])) < 256
    assert len(list((tmp_path / "shots").glob("*.png"))) == 4


def test_table_shows_what_json_says(server: MjpegServer) -> None:
    """Without `--json` it is a table; everything right is exit 0."""
    said = inspectd("cameras", server.url)
    assert (said.code, "160x96" in said.out) == (0, True)


def test_no_camera_is_said() -> None:
    """A machine without a camera is no mistake."""
    said = inspectd("cameras", GENICAM_GENTL64_PATH="")
    assert (said.code, said.out.startswith("no camera found")) == (0, True)


@pytest.mark.parametrize(
    "arguments", [["ftp://cam/"], ["camera"], ["http://"], ["--preview", "/proc/none"], ["--producers", "x"]]
)
def test_wrong_usage_exits_two(arguments: list[str]) -> None:
    """A URL of another kind, or a folder that cannot be made."""
    said = inspectd("cameras", *arguments)
    assert said.code == 2
    assert "Traceback" not in said.err


def test_kernel_cameras_leave_out_metadata_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webcam has two nodes, one of which gives no video; a third one that may not be opened is told."""
    modes = (
        v4l2_kernel.Mode(format="YUYV", size_wh_px=(1280, 720), fps=(10.0,)),
        v4l2_kernel.Mode(format="MJPG", size_wh_px=(1920, 1080), fps=(30.0, 15.0)),
        v4l2_kernel.Mode(format="H264", size_wh_px=(3840, 2160), fps=(30.0,)),
    )

    def examine(path: Path) -> v4l2_kernel.VideoDevice:
        match path.name:
            case "video0":
                return v4l2_kernel.VideoDevice(path=path, card="Cam", driver="uvcvideo", modes=modes)
            case "video1":
                raise v4l2_kernel.NoVideo("metadata")
            case _:
                raise SourceError("/dev/video2: permission denied")

    monkeypatch.setattr(v4l2_kernel, "devices", lambda: [Path(f"/dev/video{n}") for n in range(3)])
    monkeypatch.setattr(v4l2_kernel, "examine", examine)
    camera, closed = attached.kernel_cameras()
    assert camera.modes[1] == "MJPG 1920x1080 at 30, 15 fps"
    assert isinstance(camera.source, V4l2Source)
    assert (camera.source.format, camera.source.size_wh_px) == ("MJPG", (1920, 1080))
    assert closed.error == "/dev/video2: permission denied"


def test_grab_skips_damage_of_a_camera_and_measures_its_rate(server: MjpegServer) -> None:
    """A camera may begin with damage; the rate is that of its frames, those that were damaged included."""
    from mjpeg_servers import jpeg, part

    server.answers["/"] = server.plays(lambda number: part(jpeg(number) if number > 3 else b"\xff\xd8", length=None))
    found = grab(MjpegSource(kind="mjpeg", url=server.url))
    assert found is not None
    assert number_of(found.pixels_bgr) >= 4
    assert found.fps == pytest.approx(25, rel=0.5)


def test_grab_tells_a_camera_that_gives_only_damage(server: MjpegServer) -> None:
    """It answers, but there is nothing to see."""
    from mjpeg_servers import part

    server.answers["/"] = server.plays(lambda _: part(b"\xff\xd8 nothing", length=None))
    with pytest.raises(SourceError, match="but damaged ones: a JPEG without its end"):
        grab(MjpegSource(kind="mjpeg", url=server.url, open_timeout_s=0.1, silence_s=0.2))


def test_grab_takes_nothing_from_a_drop_folder(tmp_path: Path) -> None:
    """Looking is not inspecting: the image is still there for the daemon."""
    source = DropSource(kind="drop", path=tmp_path / "in", index=tmp_path / "index", settle_s=0.05)
    source.path.mkdir()
    assert grab(source) is None
    cv2.imwrite(str(source.path / "a.png"), numbered(7))
    found = grab(source)
    assert found is not None
    assert number_of(found.pixels_bgr) == 7
    opened = open_source(source)
    deadline_s = time.monotonic() + 30
    while (frame := opened.read(0.1)) is None and time.monotonic() < deadline_s:
        pass
    assert frame is not None
    opened.close()


def test_grab_of_a_recording_gives_what_it_says(tmp_path: Path) -> None:
    """Rate and length come from the file."""
    clip = write_numbered(tmp_path / "clip.mp4", 10)
    found = grab(FileSource(kind="file", path=clip))
    assert found is not None
    assert (found.fps, found.frames) == (25.0, 10)


def test_check_looks_at_every_camera_at_once(tmp_path: Path, server: MjpegServer) -> None:
    """Cameras that are off or silent are wrong rows, waited for together; the others are shown with their pictures."""
    (tmp_path / "in").mkdir()
    server.answers["/silent"] = lambda _: server.gone.wait(60)
    silent = f'source = {{ kind = "mjpeg", url = "{server.url}silent", open_timeout_s = 2.0 }}'
    cameras = {f"silent{n}": silent for n in range(4)}
    cameras["off"] = f'source = {{ kind = "mjpeg", url = "http://127.0.0.1:{free_port()}/" }}'
    cameras["on"] = f'source = {{ kind = "mjpeg", url = "{server.url}" }}'
    cameras["empty"] = f'source = {{ kind = "drop", path = "{tmp_path}/in" }}'
    cameras["usb"] = 'source = { kind = "v4l2", device = "usb-none" }'
    daemon = Daemon(folder=tmp_path, cameras=cameras)
    begun_s = time.monotonic()
    rows: dict[str, Finding] = {}
    for each in look(load_settings(daemon.config)):
        if each.what == "memory":
            rows["memory"] = each
            break
        rows[each.subject] = each
    assert time.monotonic() - begun_s < 4 * 2.0
    assert [rows[f"silent{n}"].detail for n in range(4)] == [f"{server.url}silent: no answer for 2 s"] * 4
    assert (rows["off"].right, rows["usb"].right) == (False, False)
    assert rows["on"].right
    assert rows["on"].detail.startswith("mjpeg 160x96 at ")
    assert (rows["empty"].right, rows["empty"].detail) == (True, "drop: no image yet")
    assert rows["memory"].right
