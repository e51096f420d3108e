"""What processes cost, as the kernel counts it: CPU time and resident memory, by pid."""

from __future__ import annotations

import os
from pathlib import Path

from inspectd.stages.figures import resident_bytes

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12
"""Fields of /proc/PID/stat behind the name, which may hold anything but ends at the last bracket (proc(5))."""


def stat_fields(stat: str) -> list[str]:
    """The fields behind pid and name.

    >>> stat_fields("7 (a) b) S 1 7")
    ['S', '1', '7']
    """
    return stat.rpartition(") ")[2].split()


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all its threads together; 0 where it has gone."""
    try:
        fields = stat_fields(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return 0.0
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_PER_S


def children(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat_fields(path.read_text())[_PARENT])
        except OSError:  # it ended meanwhile
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return found


def memory_mb(pid: int | None = None) -> float:
    """Resident memory of a process (default: this one); 0 where it has gone."""
    try:
        return resident_bytes(pid or "self") / 1e6
    except OSError:
        return 0.0
