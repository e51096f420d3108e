"""Credentials of cameras: nothing that a daemon says, on any channel, holds one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import write_numbered
from daemons import Daemon, running
from rtsp_servers import RtspServer

from inspectd.errors import ConfigError
from inspectd.settings import load_settings

SECRETS = ("jane-the-user", "wr0ng-passw0rd", "t0ken-of-the-url")


def test_wrong_password_is_never_said(
    make_daemon: Callable[..., Daemon], make_rtsp_server: Callable[..., RtspServer], tmp_path: Path
) -> None:
    """A camera that refuses the login: log, events, verdicts, status, `check` and the files of the daemon are clean."""
    server = make_rtsp_server(write_numbered(tmp_path / "n.mp4", 24), login="jane-the-user:right")
    user, password, token = SECRETS
    in_url = f"rtsp://{user}:{password}@127.0.0.1:{server.port}/cam?{token}"
    apart = f'url = "{server.url}?{token}", username = "{user}"'
    tables = {
        "cam1": f'source = {{ kind = "rtsp", url = "{in_url}" }}\n',
        "cam2": f'source = {{ kind = "rtsp", {apart} }}\n',
        "cam3": f'source = {{ kind = "rtsp", {apart}, password_file = "{tmp_path / "password"}" }}\n',
    }
    (tmp_path / "password").write_text(password)
    daemon = make_daemon(tables, extra='[log]\nlevel = "debug"\n')
    daemon.environment["INSPECTD_CAMERAS__CAM2__SOURCE__PASSWORD"] = password
    with running(daemon) as subscriber:
        subscriber.until(
            lambda seen: (
                {beat["state"] for beat in seen.heartbeats[-1]["cameras"].values()} == {"lost"}
                if seen.heartbeats
                else False
            )
        )
        told = [daemon.log(), json.dumps(daemon.ask("status")), json.dumps(subscriber.seen.verdicts)]
        told += [json.dumps(subscriber.seen.events), *(" ".join(each.cmdline()) for each in daemon.children())]
    check = [sys.executable, "-m", "inspectd", "check", "--json", "--config", str(daemon.config)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    told += [done.stdout, done.stderr, daemon.log()]
    told += [path.read_bytes().decode("latin-1") for path in (daemon.folder / "state").rglob("*") if path.is_file()]
    assert daemon.log().count("401") >= 2
    for secret in SECRETS:
        assert not any(secret in each for each in told)


@pytest.mark.parametrize("name", ["CAMERAS", "CAMERAS__CAM1", "CAMERAS__CAM1__SOURCE", "CAMERAS__CAM1__SOURCE__PORT"])
@pytest.mark.parametrize("value", ["rtsp://jane:s3cret@cam/1", '{"kind": "rtsp", "password": "s3cret"'])
def test_address_in_the_wrong_variable_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The line names the variable, and keeps to itself what may hold a login."""
    config = tmp_path / "inspectd.toml"
    config.write_text('[cameras.cam1]\nrecipe = "part"\nsource = { kind = "rtsp", url = "rtsp://127.0.0.1/1" }\n')
    monkeypatch.setenv(f"INSPECTD_{name}", value)
    with pytest.raises(ConfigError, match=f"INSPECTD_{name}") as error:
        load_settings(config)
    assert "s3cret" not in str(error.value)
