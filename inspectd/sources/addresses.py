"""Where a network camera is, with its credentials and without."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

from inspectd.errors import SourceLost
from inspectd.source_settings import NetworkSource


def redact(url: str) -> str:
    """A URL without user, password and query, any of which may be a secret.

    >>> redact("rtsp://admin:s3cret@10.0.0.7:554/stream?token=abc")
    'rtsp://***@10.0.0.7:554/stream?***'
    """
    url = re.sub(r"(?<=://)[^/?#]*@", "***@", url)
    return re.sub(r"\?.*", "?***", url, flags=re.DOTALL)


def address(settings: NetworkSource) -> str:
    """The URL with user and password, to be handed to the connection and to nobody else. Reads the password's file.

    Raises:
        SourceLost: the password's file cannot be read; it may be there at the next try.
    """
    if settings.username is None:
        return settings.url
    login = quote(settings.username, safe="")
    password = settings.password.get_secret_value() if settings.password is not None else None
    if settings.password_file is not None:
        password = _first_line(settings.password_file)
    if password is not None:
        login += ":" + quote(password, safe="")
    scheme, _, place = settings.url.partition("://")
    return f"{scheme}://{login}@{place}"


def check_host(url: str) -> None:
    """Whether the name of a URL's host can be resolved: FFmpeg calls that an input/output error.

    Raises:
        SourceLost: it cannot.
    """
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        raise SourceLost(f"{redact(url)}: the name {host} is not known") from None


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        why = error.strerror or type(error).__name__
    except UnicodeDecodeError:
        why = "not UTF-8 text"
    else:
        if lines and lines[0]:
            return lines[0]
        why = "holds no password in its first line"
    raise SourceLost(f"password_file {path}: {why.lower()}")
