"""MJPEG over HTTP against a real server that dies, stalls, lies and returns; no secret gets out."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from clips import number_of
from mjpeg_servers import MULTIPART, PATIENCE_S, MjpegServer, jpeg, mjpeg_server, part

from inspectd.errors import ConfigError, LoginRefused, SourceError, SourceLost, SourceTimeout
from inspectd.records import Frame
from inspectd.source_settings import MjpegSource
from inspectd.sources.base import FrameSource
from inspectd.sources.live import THREAD_NAME
from inspectd.sources.mjpeg import Pace
from inspectd.sources.open import open_source, probe
from inspectd.sources.timing import CATCH_UP_S, Backoff


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    """A server that plays numbered frames."""
    with mjpeg_server() as started:
        yield started


def settings(url: str, **more: object) -> MjpegSource:
    return MjpegSource.model_validate({"kind": "mjpeg", "url": url, "max_size_wh_px": (320, 240)} | more)


def read_frame(camera: FrameSource, wanted: Callable[[Frame], bool] = lambda _: True) -> Frame:
    """Reads as capture does until a frame is as wanted."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        frame = camera.read(0.05)
        if frame is not None and wanted(frame):
            return frame
    raise AssertionError("no such frame")


def failure_of(source: MjpegSource) -> SourceError:
    """What reading a camera ends with."""
    with closing(open_source(source)) as camera, pytest.raises(SourceError) as caught:
        read_frame(camera, lambda _: False)
    return caught.value


def reconnect(source: MjpegSource, start_index: int = 0) -> tuple[FrameSource, Frame]:
    """Opens again and again with back-off, as capture does, until a frame comes."""
    backoff = Backoff()
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        camera = open_source(source, start_index=start_index)
        try:
            return camera, read_frame(camera)
        except SourceError:
            camera.close()
            threading.Event().wait(backoff.next_s())
    raise AssertionError("never back")


def test_frames_come_in_order_and_undamaged(server: MjpegServer) -> None:
    """Every frame is sound and shows the number that follows the last one's; the greeting frame is not taken."""
    with closing(open_source(settings(server.url), start_index=7)) as camera:
        frames = [read_frame(camera) for _ in range(20)]
    assert (camera.simulated, camera.live, camera.size_wh_px) == (False, True, (320, 240))
    assert {frame.damage for frame in frames} == {None}
    assert [number_of(frame.pixels_bgr) for frame in frames] == [frame.index - 7 for frame in frames]
    assert frames[0].index > 7


def test_killed_server_is_lost_and_its_return_is_noticed(server: MjpegServer) -> None:
    """The camera is lost when its server dies, and gives sound frames again, numbered on, when it is back."""
    source = settings(server.url)
    with closing(open_source(source)) as camera:
        read_frame(camera, lambda frame: frame.index >= 5)
        server.kill()
        with pytest.raises(SourceLost, match=r"stream ended|reset"):
            read_frame(camera, lambda _: False)
    assert "connection refused" in str(failure_of(source))
    server.start()
    again, frame = reconnect(source, start_index=camera.next_index)
    again.close()
    assert (frame.damage, frame.index > camera.next_index) == (None, True)


def test_stalled_server_is_silent_beyond_its_limit(server: MjpegServer) -> None:
    """A server that holds its connection and says nothing is a timeout, told within a second of the limit."""
    with closing(open_source(settings(server.url, silence_s=0.5))) as camera:
        read_frame(camera)
        server.stalled.set()
        begun_s = time.monotonic()
        with pytest.raises(SourceTimeout, match=r"no frame for 0\.5 s"):
            read_frame(camera, lambda _: False)
        assert time.monotonic() - begun_s >= 0.4


def cut(number: int) -> bytes:
    content = jpeg(number)
    return part(content[: len(content) // 2], length=None) if number % 3 == 2 else part(content)


def lying(number: int) -> bytes:
    return part(jpeg(number), length=100 if number % 3 == 2 else -1)


@pytest.mark.parametrize("parts", [cut, lying], ids=["cut", "lying"])
def test_damaged_part_is_a_damaged_frame(server: MjpegServer, parts: Callable[[int], bytes]) -> None:
    """A cut JPEG and a wrong Content-Length damage their own frame, in its place, and no other."""
    server.answers["/"] = server.plays(parts)
    with closing(open_source(settings(server.url))) as camera:
        frames = [read_frame(camera) for _ in range(9)]
    for frame in frames:
        assert (frame.damage is not None) == (frame.index % 3 == 2)
        if frame.damage is None:
            assert number_of(frame.pixels_bgr) == frame.index


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    return answer


def greets(server: MjpegServer, kind: str, body: bytes = b"") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        server.begin(request, kind)
        request.wfile.write(body)

    return answer


def chunked(server: MjpegServer) -> Callable[[BaseHTTPRequestHandler], None]:
    """HTTP/1.1 with chunks that end anywhere in a part, as a proxy in between makes them."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.send_header("Content-Type", MULTIPART)
        request.end_headers()
        for number in range(1000):
            content = part(jpeg(number % 256))
            for piece in (content[:1000], content[1000:]):
                request.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            server.pause()

    return answer


def test_chunks_of_a_proxy_are_put_together(server: MjpegServer) -> None:
    """A proxy's chunks have nothing to do with parts."""
    server.answers["/"] = chunked(server)
    with closing(open_source(settings(server.url))) as camera:
        frames = [read_frame(camera) for _ in range(5)]
    assert [number_of(frame.pixels_bgr) for frame in frames] == [frame.index for frame in frames]


def garbage(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"\x00\xffnot http\r\n" * 500)


ANSWERS = {
    "missing": (lambda _: status(404), "HTTP 404 Not Found"),
    "broken": (lambda _: status(503), "HTTP 503 Service Unavailable"),
    "unknown-login": (lambda _: status(401, WWW_Authenticate="Bearer"), "neither Basic nor Digest"),
    "garbage": (lambda _: garbage, "not an HTTP server"),
    "snapshot": (lambda server: greets(server, "image/jpeg", jpeg(1)), "sends image/jpeg, expected multipart"),
    "page": (lambda server: greets(server, "text/html; charset=utf-8"), "sends text/html, expected multipart"),
    "no-boundary": (lambda server: greets(server, "multipart/x-mixed-replace"), "with a boundary"),
    "too-large": (lambda server: greets(server, "multipart/x;boundary=frame", part(b"", length=10**8)), "at most"),
    "circle": (lambda _: status(302, Location="/"), "in circles"),
    "to-a-file": (lambda _: status(302, Location="file:///etc/passwd"), "no http"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_other_answers_are_told_in_one_line(server: MjpegServer, name: str) -> None:
    """Whatever the server says instead of pictures, the camera is lost with one line that tells it."""
    answer, told = ANSWERS[name]
    server.answers["/"] = answer(server)
    error = failure_of(settings(server.url.replace("//", "//jane:pw@")))
    assert isinstance(error, SourceLost)
    assert str(error).startswith(f"http://***@127.0.0.1:{server.port}/: ")
    assert told in str(error)
    assert "\n" not in str(error)


def test_server_that_never_answers_is_a_timeout(server: MjpegServer) -> None:
    """A black hole costs the time limit, not for ever."""
    server.answers["/"] = lambda _: server.pause()
    server.stalled.set()
    error = failure_of(settings(server.url, open_timeout_s=0.3))
    assert isinstance(error, SourceTimeout)
    assert "no answer for 0.3 s" in str(error)


def guarded(server: MjpegServer, kind: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        given = request.headers.get("Authorization", "")
        basic = "Basic " + base64.b64encode(b"jane:s3 cret").decode()
        if given == basic or given.startswith('Digest username="jane"'):
            server.play(request)
        else:
            status(401, WWW_Authenticate=kind)(request)

    return answer


@pytest.mark.parametrize("kind", ['Basic realm="cam"', 'Digest realm="cam", nonce="12", qop="auth", algorithm=MD5'])
def test_login_as_the_server_asks(server: MjpegServer, kind: str) -> None:
    """User and password of the URL are given by Basic or Digest, and only once asked for."""
    server.answers["/"] = guarded(server, kind)
    url = server.url.replace("//", "//jane:s3%20cret@")
    with closing(open_source(settings(url))) as camera:
        assert read_frame(camera).damage is None
    assert server.seen[0][1] is None


def test_redirect_is_followed_without_the_password(server: MjpegServer) -> None:
    """Another host is not told what only the first one may know."""
    with mjpeg_server() as other:
        other.answers["/"] = guarded(other, 'Basic realm="cam"')
        server.answers["/"] = status(307, Location=other.url)
        error = failure_of(settings(server.url.replace("//", "//jane:s3%20cret@")))
        assert isinstance(error, LoginRefused)
        assert "401: user or password is missing or wrong" in str(error)
        assert {given for _, given in other.seen} == {None}
        other.answers["/"] = other.play
        with closing(open_source(settings(server.url))) as camera:
            assert read_frame(camera).damage is None


@pytest.mark.parametrize("answer", [status(401, WWW_Authenticate='Basic realm="x"'), garbage, status(404)])
def test_credentials_never_leave(
    server: MjpegServer, answer: Callable[[BaseHTTPRequestHandler], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever goes wrong, neither message nor standard error holds user, password or token."""
    server.answers["/"] = answer
    error = failure_of(settings(server.url.replace("//", "//jane:s3cret@") + "?token=t0ken"))
    told = f"{error!r} {error.__cause__!r} {''.join(capfd.readouterr())}"
    assert f"http://***@127.0.0.1:{server.port}/?***" in told
    assert not any(secret in told for secret in ("jane", "s3cret", "t0ken"))


def test_frame_larger_than_the_ring_is_refused(server: MjpegServer) -> None:
    """A camera that sends more than `max_size_wh_px` is lost with the way out in the message."""
    error = failure_of(settings(server.url, max_size_wh_px=(96, 96)))
    assert str(error).endswith("sends 160x96 px, max_size_wh_px is [96, 96]")


def test_frame_size_that_changes_is_a_loss(server: MjpegServer) -> None:
    """A camera that was set to another size meanwhile is opened anew, so that nothing goes on by the old one."""
    sizes = [(160, 96)] * 6 + [(192, 96)] * 250
    server.answers["/"] = server.plays(lambda number: part(jpeg(number, sizes[number])))
    with closing(open_source(settings(server.url))) as camera, pytest.raises(SourceLost, match="changed to 192x96 px"):
        read_frame(camera, lambda _: False)


def test_opening_does_not_block_and_asks_nobody() -> None:
    """`probe` trusts the settings."""
    assert probe(settings("http://192.0.2.1/")).size_wh_px == (320, 240)


def test_reconnects_leave_nothing_behind(server: MjpegServer) -> None:
    """Descriptors and threads are flat over many connections."""

    def held() -> tuple[int, int]:
        readers = sum(thread.name == THREAD_NAME for thread in threading.enumerate())
        return len(list(Path("/proc/self/fd").iterdir())), readers

    def settled(limit: tuple[int, int]) -> bool:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (held()[0] <= limit[0] and held()[1] <= limit[1]) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return held()[0] <= limit[0] and held()[1] <= limit[1]

    before = held()
    server.period_s = 0.005
    for _ in range(20):
        reconnect(settings(server.url))[0].close()
    server.kill()
    assert settled((before[0], 0))


@pytest.mark.parametrize(
    ("arrivals_s", "fresh"),
    [
        ([0, 0.04, 0.08, 0.12], [False, True, True, True]),
        ([0, 0.001, 0.002, 0.04, 0.08], [False, False, False, True, True]),
        ([0, 1, 2, 3], [False, True, True, True]),
        ([0, 0.04, 0.08, 2, 2.005, 2.01, 2.05], [False, True, True, False, False, False, True]),
        ([0, 0.04, 0.08] + [2 + n for n in range(5)], [False, True, True] + [False] * 2 + [True] * 3),
    ],
    ids=["steady", "greeting", "slow", "gap-and-backlog", "slows-down"],
)
def test_pace_tells_fresh_from_backlog(arrivals_s: list[float], fresh: list[bool]) -> None:
    """What waited somewhere comes faster than usual; a camera that slows down is fresh again after some frames."""
    pace = Pace()
    assert [pace.is_fresh(at_s) for at_s in arrivals_s] == fresh


def test_a_backlog_without_end_is_the_pace() -> None:
    """What comes fast for longer than any backlog lasts is fresh."""
    pace = Pace()
    assert not any(pace.is_fresh(n * 0.001) for n in range(int(CATCH_UP_S * 1000)))
    assert pace.is_fresh(CATCH_UP_S + 0.002)


@pytest.mark.parametrize("url", ["rtsp://cam/", "http://", "http://cam:0/", "http://cam:99999/", "http://a b/", "cam"])
def test_wrong_url_is_refused_without_being_shown(url: str) -> None:
    """The line says what is expected; a URL may hold a password, so it is not repeated."""
    from pydantic import ValidationError

    from inspectd.toml import one_line

    with pytest.raises(ValidationError) as caught:
        settings(url)
    assert one_line(caught.value) == "url: expected http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH"


def test_daemon_error_is_not_a_config_error(server: MjpegServer) -> None:
    """A camera that answers wrongly may be right tomorrow: it is never a reason not to start."""
    server.answers["/"] = status(404)
    assert not isinstance(failure_of(settings(server.url)), ConfigError)


@pytest.mark.parametrize(
    ("stamp", "believed"),
    [("{:.2f}", True), ("0.000000", False), ("nan", False), ("inf", False), ("-{}", False), ("noon", False)],
)
def test_time_of_a_part_is_believed_while_it_advances(server: MjpegServer, stamp: str, believed: bool) -> None:
    """What stands still, runs back or is no number would hide a gap, or make one of every frame."""
    header = f"X-Timestamp: {stamp}\r\n"
    server.answers["/"] = server.plays(lambda number: part(jpeg(number), more=header.format(1e9 + number / 25)))
    with closing(open_source(settings(server.url))) as camera:
        times_s = [read_frame(camera).pts_s for _ in range(5)]
    if believed:
        assert times_s == [pytest.approx(times_s[0] + step / 25, abs=0.011) for step in range(5)]
    else:
        assert times_s == [None] * 5
