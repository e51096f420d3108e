"""The journal on a real disk: cut, scribbled on, filled, locked, deleted under its feet, and killed in the middle."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from inspectd.errors import JournalError
from inspectd.journal import database
from inspectd.journal.verdicts import Entry, Journal
from inspectd.records import Decision

PATIENCE_S = 60.0
can_mount = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting a small tmpfs needs root"
)
APPEND_FOR_EVER = """
import sys
from pathlib import Path
from inspectd.journal.verdicts import Entry, Journal
from inspectd.records import Decision
journal, seq = Journal.open(Path(sys.argv[1])), 0
while True:
    seq += 1
    body = b"%d " % seq * 300
    topic = "verdict/cam1/pass/"
    journal.append([Entry(session="s", camera="cam1", seq=seq, decision=Decision.PASS, topic=topic, body=body)])
    print(seq, flush=True)
"""
HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""
ON_A_SMALL_TMPFS = """
mount -t tmpfs -o size=1m none "$1" || exit 99
exec "$0" - "$1"
"""
FILL_THE_DISK = """
import os, sys
from dataclasses import replace
from pathlib import Path
from inspectd.errors import JournalError
from inspectd.journal.verdicts import Entry, Journal
from inspectd.records import Decision
folder = Path(sys.argv[1])
journal = Journal.open(folder / "journal.sqlite")
ballast = folder / "ballast"
ballast.write_bytes(bytes(200_000))
entry = Entry(session="s", camera="c", seq=1, decision=Decision.FAIL, topic="t", body=bytes(9000))
try:
    for seq in range(1, 1000):
        journal.append([replace(entry, seq=seq)])
except JournalError as error:
    print(error)
print(seq - journal.last_seq("s", "c"))
ballast.unlink()
journal.append([replace(entry, seq=seq)])
print(seq - Journal.open(folder / "journal.sqlite", read_only=True).last_seq("s", "c"))
journal.close()
"""
READ_ONLY_DISK = """
import subprocess, sys
from dataclasses import replace
from pathlib import Path
from inspectd.errors import JournalError
from inspectd.journal.verdicts import Entry, Journal
from inspectd.records import Decision
path = Path(sys.argv[1]) / "journal.sqlite"
entry = Entry(session="s", camera="c", seq=1, decision=Decision.FAIL, topic="t", body=b"b")
journal = Journal.open(path)
journal.append([entry])
journal.close()
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
for _ in range(2):
    try:
        Journal.open(path).append([replace(entry, seq=2)])
    except JournalError as error:
        print(error)
try:
    Journal.open(path.with_name("new.sqlite"))
except JournalError as error:
    print(error)
"""


def entry(seq: int, **more: object) -> Entry:
    """A verdict of cam1 in the session `s`."""
    first = Entry(
        session="s",
        camera="cam1",
        seq=seq,
        decision=Decision.PASS,
        topic="verdict/cam1/pass/",
        body=b'{"seq": %d}' % seq,
    )
    return replace(first, **more)


def seqs(journal: Journal, session: str = "s") -> list[int]:
    """The seqs of cam1 in a session."""
    return [each.seq for each in journal.since("cam1", 0, session=session, limit=100_000)]


def the_disk_of(folder: Path, code: str) -> list[str]:
    """The lines that a program prints that has a disk of 1 MB of its own at `folder`."""
    command = ["unshare", "-m", "sh", "-c", ON_A_SMALL_TMPFS, sys.executable, str(folder)]
    done = subprocess.run(command, input=code, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip(f"no mount of its own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the write lock."""
    command = [sys.executable, "-c", HOLD_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait(PATIENCE_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is; the name holds what a URI would take for something else."""
    folder = tmp_path / "a ?mode=ro#%41"
    folder.mkdir()
    return folder / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """An open journal."""
    journal = Journal.open(path)
    yield journal
    journal.close()


def test_verdicts_come_back_byte_for_byte_and_in_order(journal: Journal, path: Path) -> None:
    """A reader gets what was appended, whatever the bytes, in the order of seq."""
    entries = [
        entry(3, body="ä\0".encode(), trigger_id="t\0ä"),
        entry(1, mask=bytes(range(256)) * 40, decision=Decision.FAIL, topic="verdict/cam1/fail/"),
        entry(2, mask=b""),
    ]
    journal.append(entries)
    reader = Journal.open(path, read_only=True)
    assert reader.since("cam1", 0, session="s") == [entries[1], entries[2], entries[0]]
    assert reader.since("cam1", 1, session="s", limit=1) == [entries[2]]
    assert reader.mask("s", "cam1", 1) == entries[1].mask
    assert reader.mask("s", "cam1", 3) is None
    assert reader.mask("s", "cam1", 4) is None
    reader.close()


def test_cameras_and_sessions_are_apart(journal: Journal) -> None:
    """Numbers are per session and camera; without a session the newest of that camera is meant."""
    journal.append([entry(7), entry(1, session="old", camera="cam2")])
    journal.append([entry(1, session="new"), entry(2, session="new", camera="cam2")])
    assert [journal.last_seq("s", camera) for camera in ("cam1", "cam2")] == [7, None]
    assert [each.session for each in journal.since("cam2", 0)] == ["new"]
    assert journal.since("cam3", 0) == []
    assert [each.session for each in journal.sessions()] == ["s", "old", "new"]


def test_bodies_are_as_many_as_fit(journal: Journal) -> None:
    """The first one always, then no more than the bytes allow, in order."""
    journal.append([entry(seq, body=bytes(100)) for seq in range(1, 10)])
    for max_bytes, count in ((1, 1), (100, 1), (250, 2), (1000, 5)):
        found = journal.bodies("cam1", 2, session="s", limit=5, max_bytes=max_bytes)
        assert found == [(seq, bytes(100)) for seq in range(3, 3 + count)]


def test_a_trigger_id_finds_its_first_seq(journal: Journal) -> None:
    """The same trigger id leads to the same seq, per session and camera."""
    journal.append([entry(4, trigger_id="part 9"), entry(2, trigger_id="part 9"), entry(3)])
    assert journal.seq_of_trigger("s", "cam1", "part 9") == 2
    assert journal.seq_of_trigger("s", "cam2", "part 9") is None
    assert journal.seq_of_trigger("old", "cam1", "part 9") is None


def test_a_later_word_on_the_same_seq_replaces_the_first(journal: Journal) -> None:
    """A correction leaves one row, with its own mask and trigger."""
    journal.append([entry(1, mask=b"png", trigger_id="a")])
    journal.append([entry(1, body=b"other", decision=Decision.ERROR)])
    assert journal.since("cam1", 0, session="s") == [entry(1, body=b"other", decision=Decision.ERROR)]


def test_a_batch_is_committed_whole_or_not_at_all(journal: Journal) -> None:
    """An entry that SQLite refuses takes its batch with it, and the journal goes on."""
    with pytest.raises(JournalError, match="NOT NULL"):
        journal.append([entry(1), entry(2, body=None)])
    assert seqs(journal) == []
    journal.append([entry(1)])
    assert seqs(journal) == [1]


def test_commits_are_made_to_survive_a_power_cut(journal: Journal) -> None:
    """The log is synced at every commit, and checkpoints do not happen behind the writer's back."""
    pragmas = ("journal_mode", "synchronous", "wal_autocheckpoint")
    values = [journal._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert values == ["wal", 2, 0]


@pytest.mark.parametrize("kill_after", [1, 20, 60])
def test_a_killed_writer_leaves_every_verdict_that_it_had_committed(path: Path, kill_after: int) -> None:
    """After SIGKILL the journal opens with all that was acknowledged and no gap."""
    command = [sys.executable, "-c", APPEND_FOR_EVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        told = [int(writer.stdout.readline()) for _ in range(kill_after)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
    found = seqs(Journal.open(path))
    assert found == list(range(1, len(found) + 1))
    assert len(found) in (len(told), len(told) + 1)


def torn(path: Path, folder: Path, number: int, edit: object) -> Journal:
    """The journal after a power cut: database and log as they were on disk, the log edited, the index gone."""
    folder = folder / f"torn{number}"
    folder.mkdir()
    shutil.copy(path, folder / "journal.sqlite")
    log = bytearray(path.with_name("journal.sqlite-wal").read_bytes())
    edit(log)
    (folder / "journal.sqlite-wal").write_bytes(log)
    return Journal.open(folder / "journal.sqlite")


def test_a_log_torn_at_any_byte_opens_with_a_prefix(journal: Journal, path: Path, tmp_path: Path) -> None:
    """Whatever part of the log reached the disk, what opens is verdicts 1…k, and k grows with it."""
    for seq in range(1, 31):
        journal.append([entry(seq, body=bytes(seq * 50))])
        if seq == 10:
            journal.checkpoint()
    size = path.with_name("journal.sqlite-wal").stat().st_size
    dice = random.Random(3)
    cuts = [0, *sorted(dice.randrange(size) for _ in range(25)), size]
    counts = []
    for number, cut in enumerate(cuts):
        torn_journal = torn(path, tmp_path, number, lambda log, cut=cut: log.__delitem__(slice(cut, None)))
        found = seqs(torn_journal)
        assert torn_journal.damaged is None
        assert found == list(range(1, len(found) + 1))
        torn_journal.append([entry(len(found) + 1)])
        torn_journal.close()
        counts.append(len(found))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (10, 30)


def test_a_log_with_a_flipped_bit_opens_with_a_prefix(journal: Journal, path: Path, tmp_path: Path) -> None:
    """The log's checksums end it where it was scribbled on."""
    for seq in range(1, 21):
        journal.append([entry(seq)])
    size = path.with_name("journal.sqlite-wal").stat().st_size
    dice = random.Random(4)
    for number in range(15):
        place, bit = dice.randrange(32, size), 1 << dice.randrange(8)

        def flip(log: bytearray, place: int = place, bit: int = bit) -> None:
            log[place] ^= bit

        found = seqs(torn(path, tmp_path, number, flip))
        assert found == list(range(1, len(found) + 1))


def overwritten(path: Path, at: int, count: int) -> None:
    """Scribbles over a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(1).randbytes(count))


@pytest.mark.parametrize("damage", ["garbage", "scribbled", "cut"])
def test_a_damaged_journal_is_set_aside_and_a_new_one_begun(path: Path, damage: str) -> None:
    """Nothing is deleted; the new journal works, and says where the old one is."""
    first = Journal.open(path)
    first.append([entry(seq, body=bytes(3000)) for seq in range(1, 200)])
    first.close()
    match damage:
        case "garbage":
            path.write_bytes(random.Random(2).randbytes(70_000))
        case "scribbled":
            overwritten(path, 4096, path.stat().st_size - 4096)
        case "cut":
            os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    kept = path.read_bytes()
    second = Journal.open(path)
    assert second.damaged is not None
    assert second.damaged.name.startswith("journal.sqlite.damaged-20")
    assert second.damaged.read_bytes() == kept
    second.append([entry(1)])
    assert seqs(second) == [1]
    second.close()
    assert Journal.open(path).damaged is None


def test_whatever_happens_to_its_bytes_a_journal_opens_and_goes_on(
    journal: Journal, path: Path, tmp_path: Path
) -> None:
    """Database and log cut, zeroed or scribbled on at random: what is read is rows that were written, or an error that
    says so; the writer goes on with the old journal or with a new one, and no other error ever comes."""
    entries = [entry(seq, body=b"%d" % seq * 400, trigger_id=f"t{seq}") for seq in range(1, 120)]
    journal.append(entries[:80])
    journal.checkpoint()
    journal.append(entries[80:])
    files = {name: path.with_name(f"journal.sqlite{name}").read_bytes() for name in ("", "-wal")}
    dice, set_aside = random.Random(11), 0
    for number in range(80):
        folder = tmp_path / f"damaged{number}"
        folder.mkdir()
        for name, content in files.items():
            (folder / f"journal.sqlite{name}").write_bytes(damaged(content, dice) if dice.random() < 0.7 else content)
        set_aside += survives(folder / "journal.sqlite")
    assert 0 < set_aside < 80


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Bytes to which something happened."""
    at, count = dice.randrange(len(content)), dice.choice([1, 50, 4096, 30_000])
    match dice.choice(["cut", "zeroed", "scribbled"]):
        case "cut":
            return content[:at]
        case "zeroed":
            return content[:at] + bytes(len(content[at : at + count])) + content[at + count :]
        case _:
            return content[:at] + dice.randbytes(len(content[at : at + count])) + content[at + count :]


def survives(path: Path) -> bool:
    """Uses a journal in every way, reader beside writer; whether the writer had to begin a new one."""
    writer, reader = Journal.open(path), Journal.open(path, read_only=True)
    for ask in (
        lambda: reader.since("cam1", 0, session="s"),
        lambda: reader.bodies("cam1", 0, session="s", limit=1000, max_bytes=100_000),
        lambda: reader.mask("s", "cam1", 7),
        lambda: reader.last_seq("s", "cam1"),
        lambda: reader.seq_of_trigger("s", "cam1", "t7"),
        lambda: reader.since("cam1", 0),
    ):
        with suppress(JournalError):
            ask()
    for seq in range(1000, 1003):  # whoever meets the damage fails; the next one must not
        try:
            writer.append([entry(seq)])
        except JournalError:
            writer.append([entry(seq)])
    writer.checkpoint()
    assert seqs(reader)[-3:] == [1000, 1001, 1002]
    writer.close()
    return writer.damaged is not None


def test_the_log_of_a_damaged_journal_is_not_replayed_into_the_new_one(journal: Journal, path: Path) -> None:
    """It goes aside with its database."""
    journal.append([entry(1, body=bytes(20_000))])
    journal.checkpoint()
    journal.append([entry(2)])
    shutil.copy(path.with_name("journal.sqlite-wal"), path.with_name("kept-wal"))
    journal._drop()
    path.write_bytes(b"no database at all" * 1000)
    shutil.copy(path.with_name("kept-wal"), path.with_name("journal.sqlite-wal"))
    fresh = Journal.open(path)
    assert seqs(fresh) == []
    assert fresh.damaged.with_name(fresh.damaged.name + "-wal").read_bytes() == path.with_name("kept-wal").read_bytes()


def test_damage_that_the_check_did_not_reach_is_noticed_in_use(journal: Journal, path: Path) -> None:
    """The write that meets it fails, the next one goes to a new journal."""
    journal.append([entry(seq, body=bytes(3000)) for seq in range(1, 200)])
    journal.close()
    overwritten(path, 4096, path.stat().st_size - 4096)
    with pytest.raises(JournalError, match=r"journal\.sqlite: "):
        journal.append([entry(200)])
    journal.append([entry(200)])
    assert seqs(journal) == [200]
    assert journal.damaged is not None


def test_the_check_takes_no_longer_than_a_restart_can_afford(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound journal whose check is cut short opens like any other."""
    for first in range(0, 20_000, 2000):
        journal.append([entry(first + number, body=bytes(500)) for number in range(2000)])
    journal.close()
    monkeypatch.setattr(database, "CHECK_S", 0.002)
    again = Journal.open(path)
    assert again.damaged is None
    again.append([entry(20_000)])
    assert again.last_seq("s", "cam1") == 20_000
    again.close()


def test_a_journal_deleted_while_it_is_open_is_made_anew(journal: Journal, path: Path) -> None:
    """Verdicts do not go on into a file that nobody can find; a reader follows."""
    journal.append([entry(1)])
    reader = Journal.open(path, read_only=True)
    assert seqs(reader) == [1]
    for each in path.parent.iterdir():
        each.unlink()
    journal.append([entry(2)])
    assert seqs(Journal.open(path, read_only=True)) == [2]
    assert seqs(reader) == [2]


@pytest.mark.parametrize("statement", ["CREATE TABLE cats (name TEXT)", "PRAGMA user_version = 9"])
def test_another_programs_database_is_refused_and_left_alone(path: Path, statement: str) -> None:
    """A sound database that is no journal of this version is one line, and stays where it is."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE dogs (name TEXT)")
        connection.execute(statement)
    connection.close()
    with pytest.raises(JournalError, match=r"journal\.sqlite: a database, but no journal of version 1"):
        Journal.open(path)
    assert [each.name for each in path.parent.iterdir() if "damaged" in each.name] == []


def test_a_path_that_cannot_be_a_file_is_one_line(tmp_path: Path) -> None:
    """A folder in its place, no folder around it, or a file where the folder should be."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none" / "journal.sqlite", tmp_path / "file" / "journal.sqlite"):
        with pytest.raises(JournalError, match=rf"^{path}: unable to open database file; expected in a folder that"):
            Journal.open(path)


def test_a_reader_waits_for_no_file(path: Path) -> None:
    """It may be there before the journal: its queries raise until there is one, and it never makes one."""
    reader = Journal.open(path, read_only=True)
    with pytest.raises(JournalError, match="unable to open"):
        reader.last_seq("s", "cam1")
    assert not path.exists()
    writer = Journal.open(path)
    writer.append([entry(1)])
    assert seqs(reader) == [1]
    writer.close()
    assert seqs(reader) == [1]
    assert seqs(Journal.open(path, read_only=True)) == [1]
    reader.close()


def test_a_reader_reports_damage_and_moves_nothing(path: Path) -> None:
    """Only the writer may set a journal aside."""
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(JournalError, match="not a database"):
        Journal.open(path, read_only=True).last_seq("s", "cam1")
    assert path.exists()


def test_a_lock_of_another_process_fails_a_write_and_no_read(journal: Journal, path: Path) -> None:
    """A write fails within the busy time and can be tried again; readers do not notice."""
    journal.append([entry(1)])
    with locked(path):
        with pytest.raises(JournalError, match="database is locked"):
            journal.append([entry(2)])
        assert seqs(Journal.open(path, read_only=True)) == [1]
    journal.append([entry(2)])
    assert seqs(journal) == [1, 2]


def test_nothing_is_decided_before_the_lock_is_held(journal: Journal, path: Path) -> None:
    """What to write is asked for when it can be written."""
    asked = []
    with locked(path), pytest.raises(JournalError, match="locked"):
        journal.append_late(lambda: asked.append(1) or [entry(1)])
    assert asked == []


def test_old_verdicts_are_pruned_a_few_at_a_time(journal: Journal) -> None:
    """The oldest go first, at most as many as asked; sessions without verdicts go too, but for the newest."""
    journal.append([entry(seq, session="old") for seq in range(1, 6)])
    between = journal._connection.execute("SELECT max(journaled_utc_ns) FROM verdicts").fetchone()[0] + 1
    journal.append([entry(1)])
    assert journal.prune(between, limit=2) == 2
    assert seqs(journal, "old") == [3, 4, 5]
    assert journal.prune(between) == 3
    assert journal.prune(between) == 0
    assert seqs(journal) == [1]
    assert [each.session for each in journal.sessions()] == ["s"]


@can_mount
def test_a_full_disk_fails_the_write_and_keeps_the_rest(tmp_path: Path) -> None:
    """The failed verdict can be written when there is room again; nothing before it is lost."""
    error, behind, after = the_disk_of(tmp_path, FILL_THE_DISK)
    assert error.startswith(f"{tmp_path}/journal.sqlite: database or disk is full; its disk has ")
    assert (behind, after) == ("1", "0")


@can_mount
def test_a_read_only_disk_is_one_line(tmp_path: Path) -> None:
    """Neither an old nor a new journal can be opened for writing there."""
    first, again, fresh = the_disk_of(tmp_path, READ_ONLY_DISK)
    assert first == again
    assert first.startswith(f"{tmp_path}/journal.sqlite: unable to open database file; expected in a folder that can")
    assert fresh.startswith(f"{tmp_path}/new.sqlite: unable to open database file; expected in a folder that can")
