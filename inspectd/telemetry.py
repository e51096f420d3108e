"""Prometheus metrics and the health endpoints, in a thread of the publisher."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10)
COMMITS_REMEMBERED = 1000
COMMIT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
MAX_CONNECTIONS = 8
POLL_S = 0.05
"""How long an end of the server may take to be noticed."""

Sample = tuple[tuple[str, ...], float]


class Metrics:
    """What the publisher counts itself. What others count in shared memory is read when somebody asks (`watch`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.verdicts = Counter(
            "inspectd_verdicts", "Verdicts published.", ["camera", "decision", "reason"], registry=self.registry
        )
        self.latency = Histogram(
            "inspectd_latency_seconds",
            "From the frame's arrival to the frozen verdict.",
            ["camera"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.late_results = Counter(
            "inspectd_late_results", "Results that came after their answer and were dropped.", registry=self.registry
        )
        self.refused_results = Counter(
            "inspectd_refused_results", "Results that no worker of this daemon can have sent.", registry=self.registry
        )
        self.commit = Histogram(
            "inspectd_journal_commit_seconds",
            "Time of one journal commit.",
            buckets=COMMIT_BUCKETS_S,
            registry=self.registry,
        )
        self.commits_ms: deque[float] = deque(maxlen=COMMITS_REMEMBERED)
        self.bad_requests = Counter(
            "inspectd_bad_requests", "Control requests that were refused.", registry=self.registry
        )

    def committed(self, spent_s: float) -> None:
        """One journal commit has taken so long."""
        self.commit.observe(spent_s)
        self.commits_ms.append(spent_s * 1e3)

    def watch(self, read: Callable[[], Mapping[str, Iterable[Sample]]]) -> None:
        """Adds metrics that are read at scrape time. `read` gives samples for the names in `_Watched.FAMILIES`."""
        self.registry.register(_Watched(read))


class _Watched(Collector):
    FAMILIES: ClassVar[dict[str, tuple[type[Metric], str, tuple[str, ...]]]] = {
        "inspectd_frames_read": (CounterMetricFamily, "Frames that a source gave.", ("camera",)),
        "inspectd_frames_skipped": (CounterMetricFamily, "Frames skipped before acceptance.", ("camera",)),
        "inspectd_frames_damaged": (CounterMetricFamily, "Frames that came damaged.", ("camera",)),
        "inspectd_frames_waiting": (GaugeMetricFamily, "Accepted frames without a verdict.", ("camera",)),
        "inspectd_camera_up": (GaugeMetricFamily, "1 while the camera gives frames.", ("camera",)),
        "inspectd_last_seq": (GaugeMetricFamily, "The last verdict's seq.", ("camera",)),
        "inspectd_messages_dropped": (
            CounterMetricFamily,
            "Messages inside the daemon that found a full queue: wake-ups cost a turn, results an error.",
            ("camera", "what"),
        ),
        "inspectd_restarts": (CounterMetricFamily, "How often a process was replaced.", ("process",)),
        "inspectd_evidence_pictures": (CounterMetricFamily, "Pictures kept as evidence, and not.", ("outcome",)),
        "inspectd_evidence_bytes": (GaugeMetricFamily, "Disk space that the evidence takes.", ()),
        "inspectd_unjournaled_verdicts": (
            CounterMetricFamily,
            "Verdicts sent before they were in the journal.",
            (),
        ),
        "inspectd_journal_backlog": (GaugeMetricFamily, "Verdicts that are not durable yet.", ()),
        "inspectd_journal_given_up": (
            CounterMetricFamily,
            "Verdicts and masks that the journal will never have, and verdicts that found no room in the spill.",
            ("what",),
        ),
        "inspectd_ready": (GaugeMetricFamily, "1 while the daemon's state is ready.", ()),
    }

    def __init__(self, read: Callable[[], Mapping[str, Iterable[Sample]]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for name, samples in self._read().items():
            kind, text, labels = self.FAMILIES[name]
            family = kind(name, text, labels=labels)  # type: ignore[call-arg]
            for values, value in samples:
                family.add_metric(values, value)  # type: ignore[attr-defined]
            yield family


class MetricsServer:
    """HTTP on loopback: `/metrics`, `/healthz` (the publisher turns) and `/readyz` (the daemon's state is ready).

    Args:
        address: `host:port`.
        alive: whether the publisher's loop has turned lately.
        ready: whether the daemon is ready.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self, address: str, registry: CollectorRegistry, alive: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        pages = {
            "/metrics": lambda: (200, generate_latest(registry), CONTENT_TYPE_LATEST),
            "/healthz": lambda: _probe(alive()),
            "/readyz": lambda: _probe(ready()),
        }
        host, _, port = address.rpartition(":")
        self._server = _Server((host.strip("[]"), int(port)), _handler(pages))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    """Serves few connections at a time: whoever comes when all are taken has the oldest one's place."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: deque[socket.socket] = deque()
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.append(request)
            if len(self._open) > MAX_CONNECTIONS:
                with contextlib.suppress(OSError):
                    self._open.popleft().shutdown(socket.SHUT_RDWR)  # wakes its thread, which ends it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or was sent away, is not worth a line."""


Page = Callable[[], tuple[int, bytes, str]]


def _probe(good: bool) -> tuple[int, bytes, str]:
    return (200, b"ok\n", "text/plain") if good else (503, b"no\n", "text/plain")


def _handler(pages: Mapping[str, Page]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            status, body, kind = page() if page else (404, b"not found\n", "text/plain")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Probes are not worth a line."""

    return Handler
