"""A GET whose response never ends: redirects, Basic and Digest logins, and errors that hold no secret."""

from __future__ import annotations

from base64 import b64encode
from contextlib import ExitStack
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from ssl import SSLError
from urllib import request
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

MOST_TURNS = 6
"""Requests until the stream flows: some redirects and a login."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Refused(HTTPException):
    """The server answers, but not with what was asked for. Its text is for people and holds no secret."""


class LoginDenied(Refused):
    """User or password are missing, wrong, or not enough."""


def get(url: str, timeout_s: float) -> HTTPResponse:
    """The response to a GET. User and password of the URL are given when asked for, to the URL's own host alone.

    No proxy: cameras are near. Certificates of https are verified. `timeout_s` holds for connecting and every receive.

    Raises:
        OSError, HTTPException, ValueError: see `told`.
    """
    at = home = urlsplit(url)
    authorization: str | None = None
    for _ in range(MOST_TURNS):
        with ExitStack() as failing:
            response = _ask(at, authorization, timeout_s)
            failing.callback(response.close)
            if response.status == HTTPStatus.OK:
                failing.pop_all()
                return response
            if response.status in REDIRECTS:
                at, authorization = _redirected(at, response), None
            elif response.status == HTTPStatus.UNAUTHORIZED and authorization is None and _origin(at) == _origin(home):
                authorization = _login(home, at, response)
            else:
                denied = response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
                raise (LoginDenied if denied else Refused)(_status(response.status))
    raise Refused("redirected in circles")


def told(error: Exception) -> str:
    """What went wrong, without a word of the server or of the URL."""
    match error:
        case Refused():
            return str(error)
        case TimeoutError():
            return "nothing more came"
        case SSLError():
            return f"TLS: {error.reason or error.strerror or 'failed'}".lower()
        case OSError(strerror=str(strerror)):
            return strerror.lower()
        case _:
            return f"not an HTTP server that can be understood ({type(error).__name__})"


def _ask(at: SplitResult, authorization: str | None, timeout_s: float) -> HTTPResponse:
    host, port = at.hostname or "", at.port
    connection = (HTTPSConnection if at.scheme == "https" else HTTPConnection)(host, port, timeout=timeout_s)
    headers = {"User-Agent": "inspectd", "Accept": "*/*", "Connection": "close"}
    if authorization is not None:
        headers["Authorization"] = authorization
    try:
        connection.request("GET", _target(at), headers=headers)
        return connection.getresponse()
    finally:
        sock, connection.sock = connection.sock, None
        if sock is not None:
            sock.close()  # the response holds it open; connection.close() would close a chunked response too


def _target(at: SplitResult) -> str:
    return f"{at.path or '/'}?{at.query}" if at.query else at.path or "/"


def _origin(at: SplitResult) -> tuple[str, str | None, int | None]:
    return at.scheme, at.hostname, at.port


def _public(at: SplitResult) -> str:
    """The URL without user and password."""
    return str(at._replace(netloc=at.netloc.rpartition("@")[2], fragment="").geturl())


def _redirected(at: SplitResult, response: HTTPResponse) -> SplitResult:
    where = urlsplit(urljoin(_public(at), response.headers.get("Location", "")))
    if where.scheme not in ("http", "https") or not where.hostname:
        raise Refused(f"{_status(response.status)} to something that is no http")
    return where


def _login(home: SplitResult, at: SplitResult, response: HTTPResponse) -> str:
    """What answers the server's challenge; Digest, where it offers both (RFC 7616, by urllib)."""
    if home.username is None:
        raise LoginDenied(_status(response.status))
    user, password = unquote(home.username), unquote(home.password or "")
    challenges = {
        kind.lower(): request.parse_keqv_list([part for part in request.parse_http_list(rest) if "=" in part])
        for kind, _, rest in (each.strip().partition(" ") for each in response.headers.get_all("WWW-Authenticate", []))
    }
    if "digest" in challenges:
        passwords = request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, _public(at), user, password)
        asked = request.Request(_public(at))  # noqa: S310 - only http and https come here
        answer = request.HTTPDigestAuthHandler(passwords).get_authorization(asked, challenges["digest"])
        if answer:
            return f"Digest {answer}"
    if "basic" in challenges:
        return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
    raise Refused("401: asks for a login that is neither Basic nor Digest")


def _status(code: int) -> str:
    if code == HTTPStatus.UNAUTHORIZED:
        return "401: user or password is missing or wrong"
    return f"HTTP {code} {HTTPStatus(code).phrase}" if code in set(HTTPStatus) else f"HTTP {code}"
