"""RTSP against a real server that dies, stalls and returns: losses are told in time, and no secret gets out."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from clips import number_of, write_numbered
from rtsp_servers import Hole, RtspServer, free_port

from inspectd.errors import LoginRefused, SourceError, SourceLost, SourceTimeout
from inspectd.records import Frame, TimeKind
from inspectd.source_settings import RtspSource
from inspectd.sources.live import STALE_S, THREAD_NAME, LiveCamera
from inspectd.sources.open import open_source, probe
from inspectd.sources.rtsp import rtsp_camera
from inspectd.sources.timing import Backoff

PATIENCE_S = 60.0
NOTICED_S = 1.0
"""So long after the configured silence, or after the death of a server, the camera is lost."""
BACK_S = 3.0
"""So long after the return of a server its first good frame is there."""
FRAMES = 240


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered frames in groups of twelve."""
    return write_numbered(tmp_path_factory.mktemp("rtsp") / "numbered.mp4", FRAMES)


@pytest.fixture
def server(make_rtsp_server: Callable[..., RtspServer], clip: Path) -> RtspServer:
    """A server that plays the numbered clip."""
    return make_rtsp_server(clip)


def settings(url: str, **more: object) -> RtspSource:
    return RtspSource.model_validate({"kind": "rtsp", "url": url, "max_size_wh_px": (320, 240)} | more)


def any_frame(frame: Frame) -> bool:
    del frame
    return True


def read_until(camera: LiveCamera, wanted: Callable[[Frame], bool], patience_s: float = PATIENCE_S) -> Frame:
    """Reads as capture does until a frame is as wanted."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        frame = camera.read(0.05)
        if frame is not None and wanted(frame):
            return frame
    raise AssertionError("no such frame")


def read_to_failure(camera: LiveCamera, patience_s: float = PATIENCE_S) -> tuple[SourceError, float]:
    """Reads until the camera is lost; the error and how long it took."""
    begun_s = time.monotonic()
    while time.monotonic() < begun_s + patience_s:
        try:
            camera.read(0.05)
        except SourceError as error:
            return error, time.monotonic() - begun_s
    raise AssertionError("never lost")


def reconnect(source: RtspSource, start_index: int = 0) -> tuple[LiveCamera, Frame]:
    """Opens again and again with back-off, as capture does, until a frame comes."""
    backoff = Backoff()
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        camera = rtsp_camera(source, start_index=start_index)
        try:
            return camera, read_until(camera, any_frame)
        except SourceError:
            camera.close()
            threading.Event().wait(backoff.next_s())
    raise AssertionError("never back")


@contextmanager
def listener(answer: bytes | None) -> Iterator[int]:
    """A server that is none: it accepts, and answers garbage or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as accepting:

        def serve() -> None:
            try:
                connection, _ = accepting.accept()
                with connection:
                    while connection.recv(4096):
                        if answer is not None:
                            connection.sendall(answer)
            except OSError:
                return  # the test is over

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = accepting.getsockname()[1]
        yield port
        accepting.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)


def test_frames_come_in_order_and_undamaged(server: RtspServer) -> None:
    """Every frame is sound, numbered on, and shows the number that follows the last one's."""
    source = settings(server.url)
    with closing(rtsp_camera(source)) as camera:
        frames = [read_until(camera, any_frame) for _ in range(60)]
    assert (camera.simulated, camera.live, camera.size_wh_px) == (False, True, (320, 240))
    assert {frame.damage for frame in frames} == {None}
    first = frames[0]
    for frame in frames:
        assert number_of(frame.pixels_bgr) == (number_of(first.pixels_bgr) + frame.index - first.index) % FRAMES
        assert frame.captured_ns <= time.monotonic_ns()
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})


def test_opening_does_not_block_and_asks_nobody() -> None:
    """`probe` trusts the settings and `open_source` returns at once: what is wrong is told by `read`."""
    source = settings(f"rtsp://127.0.0.1:{free_port()}/cam")
    assert probe(source).size_wh_px == (320, 240)
    camera = open_source(source, start_index=41)
    with closing(camera):
        assert camera.next_index == 41
        with pytest.raises(SourceLost, match="connection refused"):
            read_to_failure_of(camera)


def read_to_failure_of(camera: object) -> None:
    assert isinstance(camera, LiveCamera)
    raise read_to_failure(camera)[0]


def test_killed_server_is_lost_and_its_return_is_noticed(server: RtspServer) -> None:
    """The camera is lost when its server dies, and gives sound frames again, numbered on, when it is back."""
    source = settings(server.url)
    with closing(rtsp_camera(source)) as camera:
        read_until(camera, lambda frame: frame.index >= 5)
        server.kill()
        error, noticed_s = read_to_failure(camera)
    assert isinstance(error, SourceLost)
    assert noticed_s < NOTICED_S
    threading.Timer(2.0, server.start).start()  # tries fail meanwhile, so that the pauses between them have grown
    again, frame = reconnect(source, start_index=camera.next_index)
    back_s = time.monotonic() - server.started_s
    again.close()
    assert frame.damage is None
    assert back_s < BACK_S
    assert frame.index == camera.next_index > 5


def test_stalled_server_is_silent_beyond_its_limit(server: RtspServer) -> None:
    """A server that says nothing is a timeout; after it goes on a new connection is fresh."""
    source = settings(server.url, silence_s=1.0)
    with closing(rtsp_camera(source)) as camera:
        last = read_until(camera, lambda frame: frame.index >= 5)
        server.stall()
        error, noticed_s = read_to_failure(camera)
        silent_s = (time.monotonic_ns() - last.captured_ns) / 1e9
    assert isinstance(error, SourceTimeout)
    assert "no frame for 1 s" in str(error)
    assert silent_s >= 1.0
    assert noticed_s < 1.0 + NOTICED_S
    server.resume()
    resumed_ns = time.monotonic_ns()
    again, frame = reconnect(source)
    back_s = (time.monotonic_ns() - resumed_ns) / 1e9
    again.close()
    assert frame.damage is None
    assert frame.captured_ns > resumed_ns
    assert back_s < BACK_S


def test_first_frame_after_a_gap_was_not_waiting(server: RtspServer) -> None:
    """What a stalled server had half sent, and the reader's parser held, is not handed out when it goes on."""
    with closing(rtsp_camera(settings(server.url, silence_s=3.0))) as camera:
        read_until(camera, lambda frame: frame.index >= 5)
        server.stall()
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            camera.read(0.05)
        resumed_ns = time.monotonic_ns()
        server.resume()
        frame = read_until(camera, any_frame)
    after = [number for number, pushed_ns in server.pushes() if pushed_ns > resumed_ns]
    assert number_of(frame.pixels_bgr) in [number % FRAMES for number in after]
    assert frame.damage is None


def test_reader_that_was_away_gets_fresh_frames(server: RtspServer) -> None:
    """What nobody took in time is counted and never handed out late."""
    with closing(rtsp_camera(settings(server.url))) as camera:
        read_until(camera, any_frame)
        deadline_s = time.monotonic() + PATIENCE_S
        while camera.frames_missed < 30 and time.monotonic() < deadline_s:
            threading.Event().wait(0.05)
        frame = read_until(camera, any_frame)
        age_s = (time.monotonic_ns() - frame.captured_ns) / 1e9
    assert frame.index >= 30
    assert age_s < STALE_S + 1.0


def test_frame_larger_than_the_ring_is_refused(server: RtspServer) -> None:
    """A camera that sends more than `max_size_wh_px` is lost with the way out in the message."""
    with closing(rtsp_camera(settings(server.url, max_size_wh_px=(96, 96)))) as camera:
        error, _ = read_to_failure(camera)
    assert str(error).endswith("sends 160x96 px, max_size_wh_px is [96, 96]")


def test_wrong_path_is_told_apart(server: RtspServer) -> None:
    """A server that does not know the path says so."""
    with closing(rtsp_camera(settings(server.url + "-none"))) as camera:
        error, _ = read_to_failure(camera)
    assert isinstance(error, SourceLost)
    assert "404" in str(error)


def test_server_that_never_answers_is_a_timeout() -> None:
    """A black hole costs the time limit, not for ever."""
    with (
        listener(None) as port,
        closing(rtsp_camera(settings(f"rtsp://127.0.0.1:{port}/x", open_timeout_s=0.5))) as camera,
    ):
        error, _ = read_to_failure(camera)
    assert isinstance(error, SourceTimeout)
    assert "no answer" in str(error)


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 200 OK\r\n\r\n", b"\x00\xff" * 3000], ids=["silent", "http", "noise"]
)
def test_credentials_never_leave(answer: bytes | None, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever goes wrong, neither message nor standard error holds user, password or token."""
    with listener(answer) as port:
        url = f"rtsp://jane:s3cret@127.0.0.1:{port}/cam?token=t0ken"
        with closing(rtsp_camera(settings(url, open_timeout_s=0.5))) as camera:
            error, _ = read_to_failure(camera)
    told = f"{error!r} {error.__cause__!r} {error.__context__!r} {''.join(capfd.readouterr())}"
    assert f"rtsp://***@127.0.0.1:{port}/cam?***" in told
    assert not any(secret in told for secret in ("jane", "s3cret", "t0ken"))


def test_reconnects_leave_nothing_behind(server: RtspServer) -> None:
    """Descriptors and threads are flat over many connections that were used, refused or cut."""
    source = settings(server.url, open_timeout_s=2.0, silence_s=1.0)
    refused = settings(f"rtsp://127.0.0.1:{free_port()}/cam")

    def turn() -> None:
        reconnect(source)[0].close()
        with closing(rtsp_camera(refused)) as camera:
            read_to_failure(camera)

    def held() -> tuple[int, int]:
        """Descriptors and threads, those of FFmpeg's decoders too."""
        return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    gc.disable()  # what waits for the collector is not let go of
    try:
        turn()
        wait_for(lambda: not any(thread.name == THREAD_NAME for thread in threading.enumerate()))
        before = held()
        for _ in range(5):
            turn()
        wait_for(lambda: held() <= before)
        assert held() <= before
    finally:
        gc.enable()


def wait_for(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached() and time.monotonic() < deadline_s:
        threading.Event().wait(0.05)


def test_connections_that_hang_are_limited() -> None:
    """Threads that wait in a dead network do not pile up: no further connection is tried until some have ended."""
    with listener(None) as port:
        source = settings(f"rtsp://127.0.0.1:{port}/x", open_timeout_s=2.0)
        cameras = [rtsp_camera(source) for _ in range(8)]
        with pytest.raises(SourceLost, match="8 earlier connections still hang"):
            rtsp_camera(source)
        for camera in cameras:
            camera.close()
        wait_for(lambda: not any(thread.name == THREAD_NAME for thread in threading.enumerate()))
        with closing(rtsp_camera(source)) as camera:
            assert camera.next_index == 0


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("h265.mp4", "libx265", "yuv420p"), ("mjpeg.mkv", "mjpeg", "yuvj420p")]
)
def test_other_codecs_come_in_order_and_undamaged(
    make_rtsp_server: Callable[..., RtspServer], tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    """H.265 and MJPEG are cameras like any other."""
    server = make_rtsp_server(write_numbered(tmp_path / name, 48, codec=codec, pix_fmt=pix_fmt))
    with closing(rtsp_camera(settings(server.url))) as camera:
        frames = [read_until(camera, any_frame) for _ in range(30)]
    first = frames[0]
    assert {frame.damage for frame in frames} == {None}
    for frame in frames:
        assert number_of(frame.pixels_bgr) == (number_of(first.pixels_bgr) + frame.index - first.index) % 48


def test_rtcp_tells_when_frames_were_exposed(server: RtspServer) -> None:
    """Until the first sender report arrival counts; from then on the time is that of the push, to milliseconds."""
    with closing(rtsp_camera(settings(server.url))) as camera:
        assert read_until(camera, any_frame).time_kind is TimeKind.ARRIVAL
        read_until(camera, lambda frame: frame.time_kind is TimeKind.RTCP)
        frames = [read_until(camera, any_frame) for _ in range(10)]
    pushed = dict(server.pushes()[-100:])
    for frame in frames:
        nearest = min(pushed.items(), key=lambda push: abs(push[1] - frame.captured_ns))
        assert nearest[0] % FRAMES == number_of(frame.pixels_bgr)
        assert frame.captured_ns - nearest[1] == pytest.approx(0, abs=10_000_000)
        assert frame.arrived_ns >= frame.captured_ns


def test_rtcp_is_not_trusted_where_it_must_not_be(server: RtspServer) -> None:
    """With `trust_rtcp = false` the arrival less the configured lag counts throughout."""
    source = settings(server.url, trust_rtcp=False, exposure_lag_ms=80)
    begun_s = time.monotonic()
    with closing(rtsp_camera(source)) as camera:
        frame = read_until(camera, lambda _: time.monotonic() > begun_s + 4)
    assert frame.time_kind is TimeKind.ARRIVAL
    assert frame.lag_ns >= 80_000_000


def test_black_hole_is_left_as_soon_as_it_ends(server: RtspServer) -> None:
    """What was sent into it never comes back, so further connections are tried while the first still waits."""
    hole = Hole(server.port)
    source = settings(f"rtsp://127.0.0.1:{hole.port}/cam", silence_s=1.0, open_timeout_s=60.0)
    with closing(hole):
        with closing(rtsp_camera(source)) as camera:
            read_until(camera, any_frame)
            hole.swallows = True
            error, lost_after_s = read_to_failure(camera)
        assert isinstance(error, SourceTimeout)
        assert lost_after_s < 1.0 + NOTICED_S
        with closing(rtsp_camera(source)) as camera:
            assert camera.read(2.5) is None
            hole.swallows = False
            begun_s = time.monotonic()
            frame = read_until(camera, any_frame)
            back_after_s = time.monotonic() - begun_s
    assert frame.damage is None
    assert back_after_s < BACK_S


@pytest.mark.parametrize("password", ["s3cret/w@rd", "wr0ng"])
def test_login(make_rtsp_server: Callable[..., RtspServer], clip: Path, tmp_path: Path, password: str) -> None:
    """User and password from keys of their own open the camera; a wrong one is told without being told."""
    server = make_rtsp_server(clip, login="jane:s3cret/w@rd")
    (tmp_path / "password").write_text(password + "\n")
    source = settings(server.url, username="jane", password_file=tmp_path / "password")
    with closing(rtsp_camera(source)) as camera:
        if password == "wr0ng":
            error, _ = read_to_failure(camera)
            assert isinstance(error, LoginRefused)
            assert "401" in str(error)
            told = f"{error!r} {error.__cause__!r} {error.__context__!r}"
            assert not any(secret in told for secret in ("jane", password))
        else:
            assert read_until(camera, any_frame).damage is None
