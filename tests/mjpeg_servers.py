"""A real HTTP server on loopback that plays MJPEG, and whose connections a test may stall, cut or fill with garbage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import cv2
from clips import numbered

BOUNDARY = "frame"
MULTIPART = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
PATIENCE_S = 60.0


def jpeg(number: int, size_wh: tuple[int, int] = (160, 96)) -> bytes:
    """A JPEG that spells its number."""
    return cv2.imencode(".jpg", numbered(number, size_wh), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def part(content: bytes, *, length: int | None = -1, more: str = "") -> bytes:
    """One part as most cameras send it; `length` None leaves Content-Length out, another one is a lie."""
    announced = "" if length is None else f"Content-Length: {len(content) if length == -1 else length}\r\n"
    return f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n{announced}{more}\r\n".encode() + content + b"\r\n"


class MjpegServer:
    """Answers GETs by `answers[path]`, a function that writes to the connection; `/` plays numbered frames."""

    def __init__(self, *, fps: float = 25.0) -> None:
        self.period_s = 1 / fps
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {"/": self.play}
        self.seen: list[tuple[str, str | None]] = []
        self.stalled = threading.Event()
        self.gone = threading.Event()
        self.port = 0
        self.frames = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Listens, on the same port as before."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers.get("Authorization")))
                try:
                    outer.answers[urlsplit(self.path).path](self)
                except OSError:
                    return  # the client has gone

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False
            allow_reuse_address = True

        self.gone.clear()
        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="mjpeg-server").start()

    def kill(self) -> None:
        """Cuts every connection and listens no more."""
        self.gone.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def begin(self, request: BaseHTTPRequestHandler, kind: str = MULTIPART) -> None:
        """Sends the head of a response."""
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.end_headers()

    def pause(self) -> None:
        """Waits for the next frame's time, and as long as the server is stalled; ends the connection when killed."""
        self.gone.wait(self.period_s)
        while self.stalled.is_set() and not self.gone.is_set():
            time.sleep(0.01)
        if self.gone.is_set():
            raise ConnectionAbortedError

    def play(self, request: BaseHTTPRequestHandler) -> None:
        """Numbered frames for ever."""
        self.begin(request)
        while True:
            request.wfile.write(part(jpeg(self.frames % 256)))
            self.frames += 1
            self.pause()

    def plays(self, parts: Callable[[int], bytes]) -> Callable[[BaseHTTPRequestHandler], None]:
        """An answer of which every part is made by `parts`."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            self.begin(request)
            for number in range(1_000_000):
                request.wfile.write(parts(number % 256))
                self.pause()

        return answer


@contextmanager
def mjpeg_server(*, fps: float = 25.0) -> Iterator[MjpegServer]:
    """A started server, gone afterwards."""
    server = MjpegServer(fps=fps)
    server.start()
    try:
        yield server
    finally:
        server.kill()
