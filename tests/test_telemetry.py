"""Metrics and probes over real HTTP."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from daemons import Daemon, file_camera, running, shared
from prometheus_client import CollectorRegistry

from inspectd.telemetry import MetricsServer

MakeDaemon = Callable[..., Daemon]


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def value_of(page: str, sample: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(f"{sample} ")]
    return float(line.split()[-1])


def test_daemon_is_measured_and_probed(make_daemon: MakeDaemon) -> None:
    """`/readyz` turns when the daemon is ready; the counters agree with what was published."""
    port = a_free_port()
    video = shared("data", "video", "dark_belt_1280x960.mp4")
    daemon = make_daemon({"cam1": file_camera(video, trigger="every_nth = 8")}, metrics=f"127.0.0.1:{port}")
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "starting")
        assert get(port, "/readyz")[0] == 503
        seen = subscriber.until(lambda seen: seen.ended("cam1") is not None and seen.state == "ready")
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (200, "ok\n")
        assert get(port, "/nowhere")[0] == 404
        status, page = get(port, "/metrics")
    assert status == 200
    counted = [line for line in page.splitlines() if line.startswith("inspectd_verdicts_total{")]
    assert sum(float(line.split()[-1]) for line in counted) == len(seen.verdicts) == 5
    assert value_of(page, 'inspectd_frames_read_total{camera="cam1"}') == 40
    assert value_of(page, 'inspectd_last_seq{camera="cam1"}') == 5
    assert value_of(page, 'inspectd_latency_seconds_count{camera="cam1"}') == 5
    assert value_of(page, 'inspectd_messages_dropped_total{camera="cam1",what="result"}') == 0
    assert value_of(page, "inspectd_ready") == 1


def test_metrics_speak_ipv6() -> None:
    """Written in brackets, as the other endpoints are."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = probe.getsockname()[1]
    server = MetricsServer(f"[::1]:{port}", CollectorRegistry(), alive=lambda: True, ready=lambda: True)
    try:
        with urllib.request.urlopen(f"http://[::1]:{port}/healthz", timeout=10) as reply:
            assert reply.read() == b"ok\n"
    finally:
        server.close()
