"""Video files as they come: sizes, formats, clocks and turns; what is broken is named, never raised at run time."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from clips import flip_bits, number_of, numbered, set_display_matrix, write_clip, write_numbered

from inspectd.errors import ConfigError
from inspectd.records import PixelsU8
from inspectd.sources.videos import probe_video, video_shots


@dataclass
class Played:
    pixels_bgr: PixelsU8 | None
    pts_s: float | None
    damage: str | None

    @property
    def number(self) -> int | None:
        return None if self.pixels_bgr is None else number_of(self.pixels_bgr)


def play(path: Path) -> list[Played]:
    """Every shot of a file, loaded."""
    shots = video_shots(path, probe_video(path).size_wh_px)
    return [Played(pixels, shot.pts_s, damage) for shot in shots for pixels, damage in [shot.load()]]


FORMATS = [
    ("a.mp4", "libx264", "yuv420p"),
    ("a.mkv", "ffv1", "bgr0"),
    ("a.avi", "mjpeg", "yuvj420p"),
    ("a.webm", "libvpx", "yuv420p"),
    ("a.ts", "libx264", "yuv420p"),
    ("grey.mp4", "libx264", "gray"),
    ("ten.mp4", "libx264", "yuv420p10le"),
]


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), FORMATS, ids=lambda value: value)
def test_every_frame_comes_once_and_sound(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    """Usual codecs, 8-bit grey and 10 bits give every frame in order as 8-bit BGR."""
    played = play(write_numbered(tmp_path / name, 20, codec=codec, pix_fmt=pix_fmt))
    assert [each.number for each in played] == list(range(20))
    assert [each.damage for each in played] == [None] * 20
    assert {(each.pixels_bgr.shape, each.pixels_bgr.dtype) for each in played if each.pixels_bgr is not None} == {
        ((96, 160, 3), np.dtype(np.uint8))
    }


@pytest.mark.parametrize("size_wh", [(161, 97), (159, 96), (160, 33), (641, 359)])
def test_odd_sizes_keep_every_row_and_column(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    """Widths and heights that no codec likes come out as they went in."""
    path = write_numbered(tmp_path / "odd.mkv", 3, size_wh, codec="ffv1", pix_fmt="bgr0")
    assert probe_video(path).size_wh_px == size_wh
    for number, each in enumerate(play(path)):
        np.testing.assert_array_equal(each.pixels_bgr, numbered(number, size_wh))


def test_colours_are_bgr(tmp_path: Path) -> None:
    """Blue, green and red come out in this order."""
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[:, :53], picture[:, 53:106], picture[:, 106:] = (200, 0, 0), (0, 180, 0), (0, 0, 220)
    pixels = play(write_clip(tmp_path / "c.mp4", [picture] * 3))[0].pixels_bgr
    assert pixels is not None
    for column, bgr in ((26, (200, 0, 0)), (80, (0, 180, 0)), (133, (0, 0, 220))):
        assert np.abs(pixels[48, column].astype(int) - bgr).max() < 12


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    """PTS are handed on as they are, not as a rate would have them."""
    times_ms = [0, 40, 80, 500, 540, 2000]
    played = play(write_numbered(tmp_path / "vfr.mp4", 6, times_ms=times_ms))
    assert [each.pts_s for each in played] == pytest.approx([ms / 1000 for ms in times_ms])


def test_stream_without_pts_has_none(tmp_path: Path) -> None:
    """A bare H.264 stream knows no times; its frames come all the same."""
    played = play(write_numbered(tmp_path / "bare.h264", 10, form="h264"))
    assert [(each.number, each.pts_s, each.damage) for each in played] == [(n, None, None) for n in range(10)]


def test_b_frames_come_in_the_order_of_display(tmp_path: Path) -> None:
    """Reordered frames are put right, the last ones are not forgotten, and all have a time."""
    played = play(write_numbered(tmp_path / "b.mp4", 40, b_frames=3))
    assert [each.number for each in played] == list(range(40))
    assert [each.pts_s for each in played] == pytest.approx([n / 25 for n in range(40)])


QUARTER_TURNS = {
    "upright": ((1, 0, 0, 1), lambda picture: picture),
    "clockwise": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "half": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "counterclockwise": ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda picture: picture[::-1]),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", QUARTER_TURNS)
def test_display_matrix_is_applied(tmp_path: Path, turn: str) -> None:
    """A recording is turned and mirrored as its header says, in size and in pixels."""
    matrix, expected = QUARTER_TURNS[turn]
    path = write_numbered(tmp_path / "turned.mp4", 3)
    plain = [each.pixels_bgr for each in play(path)]
    set_display_matrix(path, matrix)
    height, width = expected(plain[0]).shape[:2]
    assert probe_video(path).size_wh_px == (width, height)
    for before, after in zip(plain, play(path), strict=True):
        np.testing.assert_array_equal(after.pixels_bgr, expected(before))


@pytest.mark.parametrize("b_frames", [0, 2])
def test_damage_taints_until_the_next_key_frame(tmp_path: Path, b_frames: int) -> None:
    """No visibly damaged frame passes for sound, what came before stays sound, and a key frame ends it."""
    path = write_numbered(tmp_path / "hit.mp4", 60, b_frames=b_frames, gop=20)
    truth = [each.pixels_bgr for each in play(path)]
    flip_bits(path, 25)
    played = play(path)
    assert len(played) == 60
    for before, after in zip(truth, played, strict=True):
        assert before is not None
        visible = after.pixels_bgr is None or int(np.abs(after.pixels_bgr.astype(int) - before).max()) > 16
        assert not visible or after.damage is not None
    damaged = [number for number, each in enumerate(played) if each.damage is not None]
    assert damaged
    assert min(damaged) >= 20
    assert max(damaged) < 40


def test_damage_behind_a_key_frame_that_is_still_to_come_is_not_ended_by_it(tmp_path: Path) -> None:
    """With B-frames a key frame is shown after its next packet was decoded: it is sound, what follows it is not."""
    path = write_numbered(tmp_path / "hit.mp4", 60, b_frames=2, gop=20)
    truth = [each.pixels_bgr for each in play(path)]
    flip_bits(path, 21, at_share=0.2, bits=160)
    played = play(path)
    damaged = {number for number, each in enumerate(played) if each.damage is not None}
    visible = {
        number
        for number, (before, after) in enumerate(zip(truth, played, strict=True))
        if before is not None
        and (after.pixels_bgr is None or int(np.abs(after.pixels_bgr.astype(int) - before).max()) > 16)
    }
    assert len(visible) > 5
    assert visible <= damaged <= set(range(21, 40))


def test_damaged_key_frame_taints_its_whole_group(tmp_path: Path) -> None:
    """A key frame that is broken cannot end the damage: the next sound one does."""
    path = write_numbered(tmp_path / "hit.mp4", 48, gop=12)
    flip_bits(path, 12, at_share=0.3, bits=64)
    damaged = {number for number, each in enumerate(play(path)) if each.damage is not None}
    assert damaged == set(range(12, 24))


def test_bitstream_that_cannot_be_decoded_gives_a_stand_in_a_packet(tmp_path: Path) -> None:
    """A packet that the decoder refuses is answered by a damaged shot without pixels: no frame vanishes."""
    path = write_numbered(tmp_path / "hit.mp4", 30, gop=10)
    flip_bits(path, 14, at_share=0.0, bits=100_000)
    played = play(path)
    assert len(played) == 30
    assert all(each.damage for each in played[14:20])
    assert not any(each.damage for each in played[:14] + played[20:])


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_truncated_file_ends_in_one_damaged_shot(tmp_path: Path, share: float) -> None:
    """What is there is given; where the file breaks off stands one damaged shot."""
    whole = write_clip(tmp_path / "w.mp4", (numbered(n) for n in range(60)))
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    played = play(path)
    assert [each.number for each in played[:-1]] == list(range(len(played) - 1))
    assert [each.damage for each in played[:-1]] == [None] * (len(played) - 1)
    assert played[-1].damage
    assert played[-1].pixels_bgr is None


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "ffv1", "bgr0"), ("a.avi", "mjpeg", "yuvj420p")])
def test_recording_cut_short_says_so(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    """A container whose header promises more than it holds ends in damage, not in silence."""
    path = write_numbered(tmp_path / name, 30, codec=codec, pix_fmt=pix_fmt)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    played = play(path)
    assert len(played) > 5
    assert played[-1].damage is not None


def test_file_that_vanished_is_one_damaged_shot(tmp_path: Path) -> None:
    """A file may go between the check and the next pass: that is damage, not a crash."""
    path = write_numbered(tmp_path / "gone.mp4", 3)
    size_wh_px = probe_video(path).size_wh_px
    path.unlink()
    (shot,) = video_shots(path, size_wh_px)
    assert shot.load()[0] is None
    assert "no such file" in str(shot.load()[1])


def test_change_of_size_is_damage(tmp_path: Path) -> None:
    """A frame of another size than the first was made by other settings: nothing calibrated holds for it."""
    path = write_numbered(tmp_path / "a.mp4", 3)
    (pixels, damage), *_ = [shot.load() for shot in video_shots(path, (320, 192))]
    assert pixels is None
    assert damage == "the frame size changed from 320x192 to 160x96 px"


def _text(path: Path) -> None:
    path.write_text("This is no video.\n" * 400)


def _frameless(path: Path) -> None:
    write_numbered(path, 3)
    data = path.read_bytes()
    with av.open(str(path)) as container:
        start = min(packet.pos for packet in container.demux(video=0) if packet.size and packet.pos)
    path.write_bytes(data[:start] + bytes(len(data) - start) if data.index(b"moov") < start else data[:start])


BROKEN = {
    "missing": (Path.exists, "no such file or directory"),
    "empty": (lambda path: path.write_bytes(b""), "not a video"),
    "text": (_text, "not a video"),
    "folder": (lambda path: path.mkdir(), 'is a folder; use kind = "folder"'),
    "frameless": (_frameless, "not a video|holds no frame"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_probe_refuses_in_one_line(tmp_path: Path, how: str) -> None:
    """What is no video is a configuration error: one line that names the file and what is wrong."""
    make, expected = BROKEN[how]
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(ConfigError, match=expected) as error:
        probe_video(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_frames_go_without_the_garbage_collector(tmp_path: Path) -> None:
    """No circle holds a frame: a camera's memory would grow by pictures until the collector comes by."""
    path = write_numbered(tmp_path / "clip.mp4", 12)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for shot in video_shots(path, probe_video(path).size_wh_px):
            assert shot.load()[0] is not None
        del shot
        gc.collect()
        assert not [each for each in gc.garbage if isinstance(each, av.VideoFrame)]
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()


def test_text_rendered_by_ffmpeg_is_no_video(tmp_path: Path) -> None:
    """FFmpeg would play a .txt file as a terminal's picture; nobody means that."""
    path = tmp_path / "notes.txt"
    _text(path)
    with pytest.raises(ConfigError, match="has no video stream"):
        probe_video(path)


def test_probe_says_size_rate_and_length(tmp_path: Path) -> None:
    """The header's figures are handed on."""
    info = probe_video(write_numbered(tmp_path / "a.mp4", 30, fps=20))
    assert (info.size_wh_px, info.fps, info.frames) == ((160, 96), 20.0, 30)
