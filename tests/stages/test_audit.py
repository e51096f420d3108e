"""How long a commit is waited for: as long as it harms nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inspectd.stages.audit import COMMIT_NS, SEND_NS, Audit
from inspectd.stages.journaling import JournalWriter
from inspectd.stages.spill import Spill
from inspectd.transport.memory import sweep

RESERVE_NS = 20_000_000
NOW_NS = 10**12


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    name = f"inspectd-test-audit-{tmp_path.parent.name}"
    writer = JournalWriter(tmp_path / "journal.sqlite", keep_days=1, spill=Spill.create(name, 100_000))
    yield Audit(writer, strict=False, reserve_ns=RESERVE_NS)
    writer.close(5)
    sweep(name)


@pytest.mark.parametrize(
    ("due_in_ns", "deadline_in_ns", "patience_ns"),
    [
        (10**9, 10**9, COMMIT_NS),
        (50_000_000, 70_000_000, 50_000_000),
        (1_000_000, 21_000_000, RESERVE_NS),
        (-12_000_000, 8_000_000, 8_000_000 - SEND_NS),
        (-30_000_000, -10_000_000, 0),
    ],
    ids=["nobody waits", "another falls due", "the reserve", "its own deadline is near", "it is over"],
)
def test_no_commit_is_waited_for_beyond_a_deadline(
    audit: Audit, due_in_ns: int, deadline_in_ns: int, patience_ns: int
) -> None:
    """What would be sent too late is sent before its commit instead."""
    assert audit.patience_ns([NOW_NS + due_in_ns], [NOW_NS + deadline_in_ns], NOW_NS) == patience_ns
