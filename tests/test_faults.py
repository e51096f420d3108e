"""The fault harness: its count is right, its clip says what it says, and it turns red on seeded bugs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from daemons import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import faults_clip
from faults_clip import Kind
from faults_tally import LoopTruth, tally
from faults_witness import Seen

TRUTH = LoopTruth(kinds=[Kind.GOOD, Kind.BAD], scores={0: 0.1, 1: 0.9})
OWED = {("s", "cam1"): 4}


def seen(seq: int, **more: Any) -> Seen:
    """A pass on a good frame, published half a second after the one before."""
    first = Seen(
        at_s=seq / 2,
        session="s",
        camera="cam1",
        seq=seq,
        decision="pass",
        reason="ok",
        index=2 * seq,
        pts_s=None,
        score=0.1,
        trigger_id=None,
        total_ms=50.0,
        deadline_ms=500.0,
        captured_utc_s=None,
        journaled=True,
        digest=str(seq).encode(),
    )
    return replace(first, **more)


ALL = [seen(seq) for seq in (1, 2, 3, 4)]
JOURNALED = [seen(seq, at_s=None) for seq in (1, 2, 3, 4)]


def test_whole_row_is_clean() -> None:
    """Every number once, in order, in time, each right."""
    found = tally(ALL, JOURNALED, OWED, TRUTH.objection)
    assert found.clean
    assert (found.expected, found.late, found.after_outage) == (4, 0, 0)


@pytest.mark.parametrize(
    ("published", "field", "count"),
    [
        (ALL[:3], "missing", 1),
        ([*ALL, seen(2)], "double", 1),
        ([seen(1, index=3, score=0.9), *ALL[1:]], "silent", 1),
        ([*ALL[:3], seen(4, score=0.4)], "silent", 1),
        ([*ALL[:3], seen(4, index=6)], "silent", 1),
        ([*ALL[:3], seen(4, index=None)], "silent", 1),
        ([ALL[1], ALL[0], *ALL[2:]], "contradictions", 1),
        ([*ALL[:3], seen(4, digest=b"other")], "contradictions", 1),
    ],
    ids=["missing", "double", "bad part", "foreign score", "old frame", "no frame", "disorder", "not as journaled"],
)
def test_what_is_wrong_is_counted(published: list[Seen], field: str, count: int) -> None:
    """Each kind of wrong is one in its own column, and the row is not clean."""
    journaled = [each for each in JOURNALED if each.seq != 4 or field == "contradictions"]
    found = tally(published, journaled, OWED, TRUTH.objection)
    value = getattr(found, field)
    assert (value if isinstance(value, int) else len(value)) == count
    assert not found.clean


def test_verdict_that_only_the_journal_knows_needs_an_outage() -> None:
    """What was never sent is missing, unless the heartbeat was silent at the time."""
    gap = [ALL[0], *ALL[2:]]
    assert tally(gap, JOURNALED, OWED, TRUTH.objection).missing == 1
    found = tally(gap, JOURNALED, OWED, TRUTH.objection, silences=[(0.6, 1.4)])
    assert (found.missing, found.after_outage) == (0, 1)


def test_overdue_verdict_is_late_or_belongs_to_an_outage() -> None:
    """One that came after its deadline is counted, as late where the heartbeat went on."""
    overdue = [*ALL[:3], seen(4, total_ms=900.0, decision="error")]
    assert tally(overdue, [], OWED, TRUTH.objection).late == 1
    assert tally(overdue, [], OWED, TRUTH.objection, silences=[(1.0, 1.9)]).after_outage == 1


def test_picture_spells_number_and_kind_and_a_mixed_one_nothing() -> None:
    """Every number comes back from the blocks; half of one picture on another is noticed."""
    part = faults_clip.render(3, 1)[0][1]
    for number, kind in ((0, Kind.GOOD), (4711, Kind.BAD), (9999, Kind.GOOD)):
        picture = faults_clip.spell(number, kind, part)
        assert faults_clip.read(picture) == faults_clip.Spelt(number=number, kind=kind)
    mixed = picture.copy()
    mixed[: faults_clip.BLOCK_PX] = faults_clip.spell(1234, Kind.BAD, part)[: faults_clip.BLOCK_PX]
    assert faults_clip.read(mixed) is None


SEEDED = [
    ("nan_is_pass", "nan", "silent"),
    ("dropped_ticket", "soak", "missing"),
    ("no_second_check", "overrun", "silent"),
    ("double_publish", "soak", "double"),
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the harness finds in the real daemon with four bugs in it, each of which another column must show."""
    report = tmp_path_factory.mktemp("faults") / "report.json"
    command = [sys.executable, str(ROOT / "tools" / "faults.py"), "--only", "nan,overrun,soak", "--times", "1"]
    command += ["--minutes", "0.05", "--json", str(report), "--bug", *(bug for bug, _, _ in SEEDED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    sys.stderr.write(done.stderr + done.stdout)
    assert done.returncode == 1
    return {row["row"]: row["verdicts"] for row in json.loads(report.read_text())["rows"]}


@pytest.mark.parametrize(("bug", "row", "column"), SEEDED)
def test_harness_turns_red_on_a_seeded_bug(findings: dict[str, Any], bug: str, row: str, column: str) -> None:
    """The count of each stands in its column; without them all are 0, as the short form in `tools/test` shows."""
    assert findings[row][column], bug
