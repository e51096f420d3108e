"""Drop folders: every image once, only when it is whole, in order of arrival, and none again after a restart."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import number_of, numbered

from inspectd.errors import SourceLost
from inspectd.records import Frame, TimeKind
from inspectd.source_settings import DropSource
from inspectd.sources.base import FrameSource
from inspectd.sources.drops import Intake
from inspectd.sources.handled import Handled, Version
from inspectd.sources.open import open_source, probe

PATIENCE_S = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty drop folder."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def settings(folder: Path, **more: object) -> DropSource:
    usual = {"kind": "drop", "path": folder, "settle_s": 0.1, "index": folder.parent / "index"}
    return DropSource.model_validate(usual | {"max_size_wh_px": (320, 240)} | more)


def picture(number: int, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, numbered(number))[1].tobytes()


def read_frame(source: FrameSource) -> Frame:
    """The next frame; it is acknowledged before the one after it is read."""
    source.acknowledge()
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if (frame := source.read(0.05)) is not None:
            return frame
    raise AssertionError("no frame")


def rest(source: FrameSource, quiet_s: float = 0.4) -> list[int]:
    """The numbers of all frames until none comes for a while."""
    source.acknowledge()
    numbers, until_s = [], time.monotonic() + quiet_s
    while time.monotonic() < until_s:
        if (frame := source.read(0.05)) is not None:
            source.acknowledge()
            numbers.append(number_of(frame.pixels_bgr))
            until_s = time.monotonic() + quiet_s
    return numbers


def test_images_come_once_in_order_of_arrival(folder: Path) -> None:
    """What lies there comes by its time, then by name; what arrives later comes later; nothing comes twice."""
    for name, at_s in (("b.png", 100), ("part10.png", 200), ("part2.png", 200)):
        (folder / name).write_bytes(picture(len(name)))
        os.utime(folder / name, (at_s, at_s))
    with closing(open_source(settings(folder))) as source:
        assert rest(source) == [len("b.png"), len("part2.png"), len("part10.png")]
        (folder / "a.jpg").write_bytes(picture(77, ".jpg"))
        frame = read_frame(source)
        assert (number_of(frame.pixels_bgr), frame.index, frame.time_kind) == (77, 3, TimeKind.FILE)
        assert rest(source) == []
    assert (source.simulated, source.frames_missed, source.next_index) == (True, 0, 4)


@pytest.mark.parametrize("at_s", [-11e9, 11e9])
def test_file_with_an_impossible_date_is_an_image_like_others(folder: Path, at_s: float) -> None:
    """The clock of the camera that wrote it stands in 1621, or in 2318: its date fits no word, and is a label."""
    (folder / "a.png").write_bytes(picture(3))
    os.utime(folder / "a.png", (at_s, at_s))
    with closing(open_source(settings(folder))) as source:
        assert 0 <= read_frame(source).captured_utc_ns <= time.time_ns()


def test_partial_file_is_never_read(folder: Path) -> None:
    """A writer that dawdles between pieces is waited for; the frame is the whole picture."""
    content = picture(5, ".jpg")
    with closing(open_source(settings(folder))) as source, (folder / "slow.jpg").open("wb", buffering=0) as file:
        for at in range(0, len(content), len(content) // 4 + 1):
            file.write(content[at : at + len(content) // 4 + 1])
            if at + len(content) // 4 + 1 < len(content):
                assert rest(source, 0.25) == []
        frame = read_frame(source)
    assert (frame.damage, number_of(frame.pixels_bgr)) == (None, 5)


def test_renamed_file_is_taken_and_hidden_or_other_files_are_not(folder: Path) -> None:
    """Writing under another name and renaming is the sure way; what is no image is nobody's business."""
    for name in (".a.png", "a.png.part", "notes.txt"):
        (folder / name).write_bytes(picture(9))
    (folder / "folder.png").mkdir()
    with closing(open_source(settings(folder))) as source:
        assert rest(source) == []
        (folder / ".a.png").rename(folder / "a.png")
        assert rest(source) == [9]


def test_new_content_under_an_old_name_is_a_new_image(folder: Path) -> None:
    """A camera that always writes the same file is read each time."""
    with closing(open_source(settings(folder))) as source:
        for number in (1, 2, 3):
            (folder / ".new").write_bytes(picture(number))
            (folder / ".new").rename(folder / "latest.png")
            assert number_of(read_frame(source).pixels_bgr) == number


@pytest.mark.parametrize("content", [b"", b"no image", picture(1)[:-20], picture(1, ".jpg")[:-200]])
def test_file_that_never_becomes_readable_is_one_damaged_frame(folder: Path, content: bytes) -> None:
    """After its time it is damage, once, and named; the next image is not held up by it."""
    (folder / "bad.png").write_bytes(content)
    with closing(open_source(settings(folder, unreadable_after_s=0.5))) as source:
        (folder / "good.png").write_bytes(picture(3))
        assert number_of(read_frame(source).pixels_bgr) == 3
        frame = read_frame(source)
        assert frame.damage == "bad.png: not an image, or cut off"
        assert frame.pixels_bgr.shape == (240, 320, 3)
        assert rest(source, 0.7) == []


def test_image_larger_than_the_ring_is_damage(folder: Path) -> None:
    """The limit is named."""
    (folder / "large.png").write_bytes(cv2.imencode(".png", np.zeros((300, 400, 3), np.uint8))[1].tobytes())
    with closing(open_source(settings(folder, unreadable_after_s=0.1))) as source:
        assert read_frame(source).damage == "large.png: 400x300 px, max_size_wh_px is [320, 240]"


def test_folder_that_vanishes_is_a_lost_camera_and_may_return(folder: Path) -> None:
    """Reading ends with a loss, opening fails until it is back, and nothing is inspected again."""
    (folder / "a.png").write_bytes(picture(1))
    with closing(open_source(settings(folder))) as source:
        assert rest(source) == [1]
        away = folder.rename(folder.with_name("away"))
        with pytest.raises(SourceLost, match="no such file or directory"):
            rest(source)
    with pytest.raises(SourceLost, match=f"{folder}: no such file"):
        open_source(settings(folder))
    away.rename(folder)
    with closing(open_source(settings(folder), start_index=source.next_index)) as source:
        (folder / "b.png").write_bytes(picture(2))
        assert rest(source) == [2]


def test_restart_inspects_nothing_again(folder: Path) -> None:
    """A new daemon goes on with the images that came meanwhile."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number))
    with closing(open_source(settings(folder))) as source:
        assert rest(source) == [0, 1, 2]
    (folder / "3.png").write_bytes(picture(3))
    with closing(open_source(settings(folder))) as source:
        frame = read_frame(source)
        assert (number_of(frame.pixels_bgr), frame.index) == (3, 3)


def test_image_that_was_not_acknowledged_is_given_again(folder: Path) -> None:
    """Whoever stops with an image in hand, and has not accepted it, leaves it to the next; so does an orderly end."""
    (folder / "a.png").write_bytes(picture(1))
    with closing(open_source(settings(folder))) as source:
        assert read_frame(source).index == 0
    with closing(open_source(settings(folder))) as source:
        assert (number_of(read_frame(source).pixels_bgr), source.next_index) == (1, 1)
        source.acknowledge()
    with closing(open_source(settings(folder))) as source:
        assert rest(source) == []


def kill_after(folder: Path, count: int) -> None:
    """Reads that many images and dies with the last one in hand."""
    source = open_source(settings(folder))
    for _ in range(count):
        read_frame(source)


def test_killed_capture_goes_on_where_the_table_says(folder: Path) -> None:
    """What was accepted before a death is not repeated; what was in hand and not accepted is."""
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture(number))
        os.utime(folder / f"{number}.png", (number + 1, number + 1))
    kill_after(folder, 2)
    with closing(open_source(settings(folder), start_index=2)) as accepted:
        assert number_of(read_frame(accepted).pixels_bgr) == 2


def test_killed_daemon_repeats_only_what_it_had_in_hand(folder: Path) -> None:
    """Nobody can say whether the last one was accepted, and a part without a verdict is worse than one with two."""
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture(number))
        os.utime(folder / f"{number}.png", (number + 1, number + 1))
    kill_after(folder, 2)
    with closing(open_source(settings(folder))) as source:
        assert rest(source) == [1, 2, 3]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """An index of three images that were handed out; the last line is torn by a power cut."""
    handled = Handled(tmp_path / "index", start_index=0, present=())
    for number in range(3):
        handled.begin(f"{number}.png", Version(size_bytes=number, mtime_ns=1))
        handled.finish()
    with (tmp_path / "index").open("a") as file:
        file.write('{"n": 3, "na')
    return tmp_path / "index"


def test_torn_index_is_read_as_far_as_it_goes(listed: Path) -> None:
    """Half a line costs nothing but itself."""
    handled = Handled(listed, start_index=0, present=["0.png"])
    assert handled.next_index == 3
    assert handled.knows("0.png", Version(size_bytes=0, mtime_ns=1))
    assert not handled.knows("0.png", Version(size_bytes=0, mtime_ns=2))


def test_empty_listing_forgets_nothing(listed: Path) -> None:
    """A share that is away looks empty, and when it is back nothing is new; what was deleted is forgotten."""
    assert len(Handled(listed, start_index=0, present=())._done) == 3
    assert set(Handled(listed, start_index=0, present=["1.png"])._done) == {"1.png", "2.png"}


def test_index_that_cannot_be_written_is_a_lost_camera(folder: Path) -> None:
    """An image that cannot be noted is not handed out: it would come again after a restart."""
    (folder.parent / "file").write_text("")
    with pytest.raises(SourceLost, match="file/index"):
        open_source(settings(folder, index=folder.parent / "file" / "index"))


def test_ripe_files_are_tried_once_until_they_change() -> None:
    """A file that cannot be read costs one try for each of its versions, and one at the end."""
    intake = Intake(settle_s=1, give_up_s=5)
    old, new = Version(size_bytes=1, mtime_ns=1), Version(size_bytes=2, mtime_ns=2)
    tries = []
    for now_s in range(9):
        intake.see({"a": old if now_s < 3 else new}, now_s)
        tries += [(now_s, last) for _, _, last in intake.ripe(now_s)]
    assert tries == [(1, False), (4, False), (8, True)]


def test_probe_does_not_look() -> None:
    """A share that is not mounted yet is no mistake in the configuration."""
    assert probe(settings(Path("/nowhere/in"))).size_wh_px == (320, 240)
