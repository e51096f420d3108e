"""Credentials: from the URL, keys of their own or a file, to the camera alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspectd.errors import ConfigError, SourceLost
from inspectd.settings import load_settings
from inspectd.source_settings import RtspSource
from inspectd.sources.addresses import address, check_host, redact


def source(**fields: object) -> RtspSource:
    return RtspSource.model_validate({"kind": "rtsp", "url": "rtsp://cam:554/a?b=c"} | fields)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://host/a", "rtsp://host/a"),
        ("rtsps://u:p%40ss@[::1]:554/a/b", "rtsps://***@[::1]:554/a/b"),
        ("rtsp://u:p@ss@host/a?user=u&pwd=p", "rtsp://***@host/a?***"),
        ("rtsp://host?pwd=p@q", "rtsp://host?***"),
    ],
)
def test_redact_keeps_only_what_is_public(url: str, shown: str) -> None:
    """Host and path stay; user, password and query go, also where they hold an @."""
    assert redact(url) == shown


def test_user_and_password_are_put_in_the_url_with_their_signs_escaped(tmp_path: Path) -> None:
    """A password may hold anything; of a file its first line counts, as it is at that moment."""
    file = tmp_path / "password"
    file.write_text("p@s:s/w?rd\nnot this\n")
    assert address(source(username="jane d", password_file=file)) == "rtsp://jane%20d:p%40s%3As%2Fw%3Frd@cam:554/a?b=c"
    file.write_text("new")
    assert address(source(username="jane", password_file=file)) == "rtsp://jane:new@cam:554/a?b=c"
    assert address(source(username="jane", password="%")) == "rtsp://jane:%25@cam:554/a?b=c"
    assert address(source()) == "rtsp://cam:554/a?b=c"


@pytest.mark.parametrize(("content", "told"), [(None, "no such file"), (b"", "holds no"), (b"\xff", "not utf-8")])
def test_password_file_that_cannot_be_read_is_a_loss(tmp_path: Path, content: bytes | None, told: str) -> None:
    """The camera is lost until the file is there; the message names it and not what it holds."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SourceLost, match=f"password_file {file}: {told}"):
        address(source(username="jane", password_file=file))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('password = "s3cret"', "username: is needed"),
        ('username = "j"\npassword = "s3cret"\npassword_file = "p"', "only one of them is allowed"),
        ('username = "j"\npassword = "s3cret"\nurl = "rtsp://jane:s3cret@cam/a"', "not allowed where the url"),
        ('username = "j"\npassword = 5', "password"),
        ('username = ""\npassword = "s3cret"', "username"),
    ],
)
def test_contradicting_logins_are_refused_without_telling_them(tmp_path: Path, more: str, told: str) -> None:
    """One line that names the key; the password is not in it."""
    config = tmp_path / "inspectd.toml"
    url = "" if "url" in more else 'url = "rtsp://cam/a"\n'
    config.write_text(f'[cameras.cam1]\nrecipe = "x"\n[cameras.cam1.source]\nkind = "rtsp"\n{url}{more}\n')
    with pytest.raises(ConfigError, match=told) as caught:
        load_settings(config)
    assert "s3cret" not in str(caught.value)


def test_login_from_the_environment_and_from_a_credential_of_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment completes what the file says of a camera; `${CREDENTIALS_DIRECTORY}` is filled in."""
    config = tmp_path / "inspectd.toml"
    head = '[cameras.cam1]\nrecipe = "x"\n[cameras.cam1.source]\nkind = "rtsp"\nurl = "rtsp://cam/a"\nusername = "j"\n'
    config.write_text(head)
    monkeypatch.setenv("INSPECTD_CAMERAS__CAM1__SOURCE__PASSWORD", "s3cret")
    named = load_settings(config).cameras["cam1"].source
    assert isinstance(named, RtspSource)
    assert address(named) == "rtsp://j:s3cret@cam/a"
    assert "s3cret" not in repr(named)
    monkeypatch.delenv("INSPECTD_CAMERAS__CAM1__SOURCE__PASSWORD")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config.write_text(head + 'password_file = "${CREDENTIALS_DIRECTORY}/cam1"\n')
    (tmp_path / "cam1").write_text("other\n")
    named = load_settings(config).cameras["cam1"].source
    assert isinstance(named, RtspSource)
    assert address(named) == "rtsp://j:other@cam/a"


def test_host_that_nobody_knows_is_named_without_the_login() -> None:
    """FFmpeg calls it an input/output error."""
    check_host("rtsp://jane:s3cret@127.0.0.1:554/a")
    with pytest.raises(SourceLost, match=r"^rtsp://\*\*\*@cam\.invalid/a: the name cam\.invalid is not known$"):
        check_host("rtsp://jane:s3cret@cam.invalid/a")
