"""Shared-memory segments on the real /dev/shm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspectd.errors import TransportError
from inspectd.transport import memory
from inspectd.transport.memory import FOLDER, Segment, names, sweep

CREATE_ON_A_SMALL_TMPFS = """
mount -t tmpfs -o size=1m,mode=1777 none /dev/shm || exit 99
exec "$0" -c '
import os
from inspectd.errors import TransportError
from inspectd.transport.memory import Segment
try:
    Segment.create("inspectd-full", 4_000_000)
except TransportError as error:
    print(error)
print(os.listdir("/dev/shm"))
segment = Segment.create("inspectd-fits", 500_000)
segment.bytes[:] = 7
print(int(segment.bytes.sum()))
'
"""


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix of this test alone; what is left under it is swept."""
    prefix = f"inspectd-test{os.getpid()}-"
    yield prefix
    sweep(prefix)


def test_a_segment_is_shared_private_and_zero(prefix: str) -> None:
    """What one process writes another that attaches reads; only the owner may; it begins as zeros."""
    made = Segment.create(f"{prefix}a", 4097)
    assert not made.bytes.any()
    made.words[3] = -5
    other = Segment.attach(f"{prefix}a")
    assert other.words[3] == -5
    assert len(other.bytes) == 4104
    assert (FOLDER / f"{prefix}a").stat().st_mode & 0o777 == 0o600


def test_a_segment_has_all_its_memory_from_the_start(prefix: str) -> None:
    """No page is left to be found missing later."""
    Segment.create(f"{prefix}a", 1_000_000)
    assert (FOLDER / f"{prefix}a").stat().st_blocks * 512 >= 1_000_000


def test_a_taken_name_is_refused(prefix: str) -> None:
    """Two makers of one name do not share by accident."""
    Segment.create(f"{prefix}a", 8)
    with pytest.raises(TransportError, match=rf"^/dev/shm/{prefix}a: File exists$"):
        Segment.create(f"{prefix}a", 8)


def test_a_missing_or_empty_segment_is_refused(prefix: str) -> None:
    """Attaching to nothing is one line, also where the maker was killed before it had any bytes."""
    with pytest.raises(TransportError, match=rf"^/dev/shm/{prefix}a: No such file or directory$"):
        Segment.attach(f"{prefix}a")
    (FOLDER / f"{prefix}b").touch()
    with pytest.raises(TransportError, match=f"{prefix}b"):
        Segment.attach(f"{prefix}b")


@pytest.mark.parametrize("name", ["inspectd-../../etc/passwd", "other", "inspectd-", "inspectd-a b", "inspectd-a\n"])
def test_only_names_of_our_own_are_segments(name: str) -> None:
    """No name leads out of /dev/shm, or to a file that is not ours."""
    with pytest.raises(TransportError, match="segment name"):
        Segment.create(name, 8)


def test_sweeping_takes_what_the_prefix_names_and_nothing_else(prefix: str) -> None:
    """A sweep unlinks the leftovers of one state folder; a prefix that is not inspectd's is refused."""
    for what in ("a-table", "a-ring-cam1", "b-table"):
        Segment.create(f"{prefix}{what}", 8)
    assert sweep(f"{prefix}a-") == [f"{prefix}a-ring-cam1", f"{prefix}a-table"]
    assert names(prefix) == [f"{prefix}b-table"]
    for foreign in ("", "psm_", "inspect"):
        with pytest.raises(ValueError, match="must begin with"):
            sweep(foreign)


def test_a_mapping_outlives_its_name(prefix: str) -> None:
    """A process that has a segment mapped keeps it when its name is taken away."""
    made = Segment.create(f"{prefix}a", 8)
    other = Segment.attach(f"{prefix}a")
    made.unlink()
    made.words[0] = 3
    assert other.words[0] == 3
    assert names(prefix) == []


def test_closing_unmaps(prefix: str) -> None:
    """A closed segment leaves no mapping behind."""
    segment = Segment.create(f"{prefix}a", 8)
    assert f"{prefix}a" in Path("/proc/self/maps").read_text()
    segment.close()
    assert f"{prefix}a" not in Path("/proc/self/maps").read_text()


def test_a_process_that_attaches_does_not_unlink_at_its_end(prefix: str) -> None:
    """The table must be there for the next daemon, whoever had it mapped and died."""
    Segment.create(f"{prefix}a", 8)
    code = f"from inspectd.transport.memory import Segment; Segment.attach('{prefix}a').words[0] = 9"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert Segment.attach(f"{prefix}a").words[0] == 9


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting a small tmpfs needs root")
def test_a_full_dev_shm_is_one_line_and_no_sigbus() -> None:
    """The error names /dev/shm, what is needed and what is free, and leaves no file behind."""
    command = ["unshare", "-m", "sh", "-c", CREATE_ON_A_SMALL_TMPFS, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip(f"no mount of its own here: {done.stderr.strip()}")
    refusal, left, total = done.stdout.splitlines()
    assert refusal.startswith("/dev/shm: inspectd-full needs 4000000 bytes (4.0 MB) of shared memory, 1048576 bytes")
    assert left == "[]"
    assert int(total) == 7 * 500_000


def test_the_fence_of_weaker_machines_always_comes_back() -> None:
    """The fence takes no lock that it does not give back."""
    for _ in range(3):
        memory._fence()
    assert not memory._round_trip.locked()
