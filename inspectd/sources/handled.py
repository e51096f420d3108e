"""Which images of a drop folder were handed out, kept in a file, so that a restart repeats none.

The one image that was in hand when the daemon was killed is handed out again, because nobody can say whether it was
accepted: a part with two verdicts is better than one with none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inspectd.errors import SourceLost

FORGET_AFTER_S = 86_400.0
"""So long at least an image that has gone from the folder is remembered: it may come back with its share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What tells a file from another of its name, and one that is being written from one that is whole."""

    size_bytes: int
    mtime_ns: int


class Handled:
    """The numbered list of what was handed out: one line before an image is given, one when it is through."""

    def __init__(self, path: Path | None, *, start_index: int, present: Iterable[str]) -> None:
        """Reads the file and leaves out what is long gone; `present` are the names in the folder now.

        The caller knows that everything before `start_index` was accepted, and nothing from there on; 0 says nothing.

        Raises:
            SourceLost: the file cannot be read or written.
        """
        self._path = path
        self._done: dict[str, tuple[int, Version]] = {}
        self._in_hand: tuple[int, str, Version] | None = None
        self.next_index = start_index
        for line in self._read():
            self._replay(line)
        if start_index:
            self._done = {name: entry for name, entry in self._done.items() if entry[0] < start_index}
            if self._in_hand is not None and self._in_hand[0] < start_index:
                self._finish(*self._in_hand)
        self._in_hand = None
        self.next_index = max([start_index, *(number + 1 for number, _ in self._done.values())])
        self._write(frozenset(present))

    def knows(self, name: str, version: Version) -> bool:
        """Whether this very file was handed out."""
        entry = self._done.get(name)
        return entry is not None and entry[1] == version

    def begin(self, name: str, version: Version) -> int:
        """The number of an image that is about to be handed out.

        Raises:
            SourceLost: it cannot be noted; then it must not be handed out.
        """
        number = self.next_index
        self._append({"n": number, "name": name, "size": version.size_bytes, "mtime_ns": version.mtime_ns})
        self._in_hand = number, name, version
        self.next_index = number + 1
        return number

    def finish(self) -> None:
        """What was handed out last is through."""
        if self._in_hand is None:
            return
        number, name, version = self._in_hand
        self._finish(number, name, version)
        self._in_hand = None
        self._append({"done": number})

    def _finish(self, number: int, name: str, version: Version) -> None:
        self._done[name] = number, version

    def _read(self) -> list[dict[str, object]]:
        if self._path is None:
            return []
        try:
            lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SourceLost(f"{self._path}: {error.strerror or error}") from error
        found = []
        for line in lines:
            with suppress(ValueError):  # a power cut may leave half a line
                found.append(json.loads(line))
        return found

    def _replay(self, line: dict[str, object]) -> None:
        match line:
            case {"n": int(number), "name": str(name), "size": int(size), "mtime_ns": int(mtime_ns)}:
                self._in_hand = number, name, Version(size_bytes=size, mtime_ns=mtime_ns)
            case {"done": int(number)} if self._in_hand is not None and self._in_hand[0] == number:
                self._finish(*self._in_hand)
                self._in_hand = None

    def _write(self, present: frozenset[str]) -> None:
        """Writes the file anew. From an empty folder, perhaps a share that is away, nothing is forgotten."""
        if self._path is None:
            return
        forget_ns = time.time_ns() - round(FORGET_AFTER_S * 1e9)
        if present:
            last = self.next_index - 1
            self._done = {
                name: (number, version)
                for name, (number, version) in self._done.items()
                if name in present or version.mtime_ns > forget_ns or number == last
            }
        lines = [
            json.dumps({"n": number, "name": name, "size": version.size_bytes, "mtime_ns": version.mtime_ns})
            + f'\n{{"done": {number}}}\n'
            for name, (number, version) in sorted(self._done.items(), key=lambda item: item[1][0])
        ]
        new = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text("".join(lines), encoding="ascii")
            new.replace(self._path)
        except OSError as error:
            raise SourceLost(f"{self._path}: {error.strerror or error}") from error

    def _append(self, line: dict[str, object]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise SourceLost(f"{self._path}: {error.strerror or error}") from error
