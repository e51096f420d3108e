"""multipart/x-mixed-replace without I/O: bytes go in, parts come out, whatever the sender says of their length.

Senders are careless: boundaries with and without their dashes, line feeds alone, no Content-Length or a wrong one. A
part whose length does not lead to a boundary is given as damaged, and reading goes on at the next boundary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from inspectd.errors import SourceLost

MOST_HEAD_BYTES = 8192
"""Longer headers of a part are no headers."""
BLANK_LINE = re.compile(rb"\r?\n\r?\n")
AFTER_PART = re.compile(rb"\r?\n?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part. `damage` says what is wrong with its framing, None where it is sound; header names are lower case.

    `began_ns` is when the first byte of the content came. The end would be a frame too late where a server announces
    no length and sends the delimiter together with the next part.
    """

    headers: dict[str, str]
    content: bytes
    began_ns: int
    damage: str | None = None


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type announces, without leading dashes; None where it is not multipart.

    >>> boundary_of('multipart/x-mixed-replace; boundary="--frame"')
    b'frame'
    """
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_maintype() != "multipart" or not boundary:
        return None
    return boundary.strip().lstrip("-").encode("latin-1", "replace") or None


class Parts:
    """The parts of a stream. Feed it what comes; it never holds more than one part and what follows."""

    def __init__(self, boundary: bytes, *, most_bytes: int) -> None:
        """`boundary` is without leading dashes; a part of more than `most_bytes` ends the stream."""
        self._delimiter = re.compile(rb"--+" + re.escape(boundary))
        self._guard = len(boundary) + 8  # a delimiter that has begun at the buffer's end may yet be completed
        self._most_bytes = most_bytes
        self._buffer = bytearray()
        self._headers: dict[str, str] | None = None
        self._searched = 0
        self._began_ns = 0

    def feed(self, data: bytes, now_ns: int) -> Iterator[Part]:
        """The parts that are complete with these bytes, which came at `now_ns`.

        Raises:
            SourceLost: a part or its headers are larger than any that is expected.
        """
        self._buffer += data
        while True:
            if self._headers is None and not self._begin():
                return
            if not self._began_ns and self._buffer:
                self._began_ns = now_ns
            part = self._finish()
            if part is None:
                return
            yield part

    def _begin(self) -> bool:
        """Takes a delimiter and the headers behind it; False while they are not all there."""
        found = self._delimiter.search(self._buffer)
        if found is None:
            del self._buffer[: -self._guard]
            return False
        del self._buffer[: found.start()]
        begin = found.end() - found.start()
        end = BLANK_LINE.search(self._buffer, begin)
        if end is None:
            if len(self._buffer) - begin > MOST_HEAD_BYTES:
                raise SourceLost(f"a part's headers are longer than {MOST_HEAD_BYTES} bytes")
            return False
        self._headers = _headers(bytes(self._buffer[begin : end.start()]))
        self._searched = 0
        del self._buffer[: end.end()]
        return True

    def _finish(self) -> Part | None:
        """Takes the content up to its delimiter; None while it is not all there."""
        headers = self._headers or {}
        length = _length(headers)
        if length is not None and length > self._most_bytes:
            raise SourceLost(f"announces a part of {length} bytes, at most {self._most_bytes} are expected")
        if length is not None and _is_jpeg_end(self._buffer, length):
            # no need to wait for the delimiter: many servers send it with the next part, a whole frame later
            return self._part(headers, self._cut(length), None)
        found = self._delimiter.search(self._buffer, self._searched)
        if found is not None:
            content = self._cut(found.start())
            return self._part(headers, _trimmed(content, length), _lie(content, length))
        self._searched = max(0, len(self._buffer) - self._guard)
        if len(self._buffer) > self._most_bytes:
            raise SourceLost(f"a part is larger than the {self._most_bytes} bytes that are expected")
        return None

    def _cut(self, length: int) -> bytes:
        content = bytes(self._buffer[:length])
        del self._buffer[:length]
        return content

    def _part(self, headers: dict[str, str], content: bytes, damage: str | None) -> Part:
        part = Part(headers=headers, content=content, began_ns=self._began_ns, damage=damage)
        self._headers, self._began_ns = None, 0
        return part


def _is_jpeg_end(buffer: bytearray, length: int) -> bool:
    return 2 <= length <= len(buffer) and buffer[length - 2 : length] == b"\xff\xd9"


def _headers(head: bytes) -> dict[str, str]:
    lines = (line.decode("latin-1").partition(":") for line in head.splitlines())
    return {name.strip().lower(): value.strip() for name, colon, value in lines if colon}


def _length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _trimmed(content: bytes, length: int | None) -> bytes:
    """The content without the line end that belongs to the delimiter."""
    if length is not None and length <= len(content):
        return content[:length]
    return content.removesuffix(b"\n").removesuffix(b"\r")


def _lie(content: bytes, length: int | None) -> str | None:
    if length is None:
        return None
    if length > len(content):
        return f"cut: {len(content)} bytes of {length} came"
    if not AFTER_PART.fullmatch(content[length:]):
        return f"{len(content)} bytes came where {length} were announced"
    return None
