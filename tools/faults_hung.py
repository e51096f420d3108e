"""A disk that hangs, for real: a file system of our own (FUSE) that shows files and, by order, answers no read.

Who reads then hangs in the kernel, as on a dead NFS server, and not even SIGKILL ends him before an answer comes. The
server is a process of its own, `python faults_hung.py FOLDER MOUNT FLAG`: it hangs while the flag exists, and when it
ends whoever hung gets an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

FUSE = Path("/dev/fuse")
HEAD = struct.Struct("<IIQQIIIHH")
"""Of a request: length, what, its number, the file's number, uid, gid, pid."""
ANSWER = struct.Struct("<IiQ")
ROOT_INODE = 1
VALID_S = 1
DIRECT_IO = 1
LOOK_S = 0.02


class Op(IntEnum):
    """What the kernel may ask (linux/fuse.h)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    FORGET_MANY = 42


class HungFiles:
    """The files of a folder, by numbers from 2 on."""

    def __init__(self, folder: Path, flag: Path, device: int) -> None:
        self._files = sorted(path for path in folder.iterdir() if path.is_file())
        self._flag, self._device = flag, device
        self._unanswered: list[tuple[int, bytes]] = []

    def serve(self) -> None:
        """Answers until the mount has gone."""
        while True:
            if select.select([self._device], [], [], LOOK_S)[0]:
                try:
                    request = os.read(self._device, 1 << 20)
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return
                    continue
                self._take(request)
            if not self._flag.exists():
                for number, data in self._unanswered:
                    self._answer(number, data)
                self._unanswered.clear()

    def _take(self, request: bytes) -> None:
        _, what, number, inode, *_ = HEAD.unpack_from(request)
        body = request[HEAD.size :]
        match what:
            case Op.INIT:
                self._answer(number, struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 16, 0, 0))
            case Op.LOOKUP:
                names = [path.name.encode() for path in self._files]
                name = body.rstrip(b"\0")
                if name not in names:
                    self._answer(number, error=errno.ENOENT)
                    return
                found = names.index(name) + 2
                head = struct.pack("<QQQQII", found, 0, VALID_S, VALID_S, 0, 0)
                self._answer(number, head + self._attributes(found))
            case Op.GETATTR:
                self._answer(number, struct.pack("<QII", VALID_S, 0, 0) + self._attributes(inode))
            case Op.OPEN:
                self._answer(number, struct.pack("<QII", 0, DIRECT_IO, 0))
            case Op.READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                with self._files[inode - 2].open("rb") as file:
                    file.seek(offset)
                    self._unanswered.append((number, file.read(size)))
            case Op.RELEASE | Op.FLUSH:
                self._answer(number)
            case Op.FORGET | Op.INTERRUPT | Op.FORGET_MANY:
                pass  # nothing is to be said
            case _:
                self._answer(number, error=errno.ENOSYS)

    def _attributes(self, inode: int) -> bytes:
        if inode == ROOT_INODE:
            return struct.pack("<6Q10I", inode, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
        size = self._files[inode - 2].stat().st_size
        blocks = -(-size // 512)
        return struct.pack("<6Q10I", inode, size, blocks, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o444, 1, 0, 0, 0, 4096, 0)

    def _answer(self, number: int, data: bytes = b"", error: int = 0) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone
            os.write(self._device, ANSWER.pack(ANSWER.size + len(data), -error, number) + data)


@contextmanager
def hung_mount(folder: Path, mount: Path, flag: Path) -> Iterator[None]:
    """The folder's files once more below `mount`, where reads hang while `flag` exists.

    Raises:
        OSError: no file system can be mounted here.
    """
    mount.mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, __file__, str(folder), str(mount), str(flag)])
    try:
        until_s = time.monotonic() + 5
        while not mount.is_mount():
            if server.poll() is not None or time.monotonic() > until_s:
                raise OSError(errno.EPERM, "no FUSE file system can be mounted here")
            time.sleep(LOOK_S)
        yield
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True)


def main() -> None:
    folder, mount, flag = map(Path, sys.argv[1:])
    device = os.open(FUSE, os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", bytes(mount), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    HungFiles(folder, flag, device).serve()


if __name__ == "__main__":
    main()
