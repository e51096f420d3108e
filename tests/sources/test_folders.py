"""Image folders: natural order, every kind of image as 8-bit BGR, the unreadable named and in its place."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import number_of, numbered
from PIL import Image

from inspectd.errors import ConfigError
from inspectd.images import read_image_bgr
from inspectd.records import Frame
from inspectd.source_settings import FolderSource
from inspectd.sources.base import EndOfSource
from inspectd.sources.folders import image_paths
from inspectd.sources.open import open_source, probe


def read_folder(folder: Path) -> list[Frame]:
    source = open_source(FolderSource(kind="folder", path=folder, pace="fast"))
    frames: list[Frame] = []
    while True:
        try:
            frame = source.read(0.1)
        except EndOfSource:
            return frames
        assert frame is not None
        frames.append(frame)


def test_images_come_in_natural_order(tmp_path: Path) -> None:
    """part2 comes before part10; what is hidden or no image is left out."""
    for name in ("part10.png", "part2.png", "Part1.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in image_paths(tmp_path)] == ["Part1.JPG", "part2.png", "part10.png"]


def test_folder_plays_as_numbered(tmp_path: Path) -> None:
    """Images become frames by index, without a time of their own."""
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number}.png"), numbered(number))
    frames = read_folder(tmp_path)
    assert [(frame.index, number_of(frame.pixels_bgr), frame.pts_s) for frame in frames] == [
        (n, n, None) for n in range(12)
    ]
    info = probe(FolderSource(kind="folder", path=tmp_path, rate_fps=7))
    assert (info.size_wh_px, info.fps, info.frames) == ((160, 96), 7.0, 12)


GREY = np.arange(96 * 160, dtype=np.uint32).reshape(96, 160)
KINDS = {
    "grey8.png": ((GREY % 256).astype(np.uint8), np.repeat((GREY % 256)[..., None], 3, 2)),
    "grey16.png": ((GREY * 4).astype(np.uint16), np.repeat((GREY * 4 // 256)[..., None], 3, 2)),
    "grey16.tif": ((GREY * 4).astype(np.uint16), np.repeat((GREY * 4 // 256)[..., None], 3, 2)),
    "alpha.png": (np.dstack([numbered(5), np.full((96, 160), 7, np.uint8)]), numbered(5)),
    "colour.bmp": (numbered(6), numbered(6)),
    "colour.webp": (numbered(7), None),
    "colour.jpg": (numbered(8), None),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_eight_bit_bgr(tmp_path: Path, name: str) -> None:
    """Grey is spread, 16 bits become 8, alpha goes; lossy formats come near."""
    written, expected = KINDS[name]
    cv2.imwrite(str(tmp_path / name), written)
    pixels = read_image_bgr(tmp_path / name)
    assert (pixels.shape, pixels.dtype) == ((96, 160, 3), np.dtype(np.uint8))
    if expected is None:
        assert np.abs(pixels.astype(int) - written).mean() < 6
    else:
        assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1


def test_camera_orientation_is_applied_in_size_and_pixels(tmp_path: Path) -> None:
    """A photograph that lies on its side stands upright, and the ring is sized for that."""
    image = Image.fromarray(numbered(3)[..., ::-1])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (frame,) = read_folder(tmp_path)
    assert frame.damage is None
    assert number_of(np.ascontiguousarray(np.rot90(frame.pixels_bgr))) == 3
    assert probe(FolderSource(kind="folder", path=tmp_path)).size_wh_px == (96, 160)


def test_sizes_may_differ(tmp_path: Path) -> None:
    """The largest width and height are announced; each image keeps its own."""
    for name, size in (("a.png", (200, 50)), ("b.png", (60, 180))):
        cv2.imwrite(str(tmp_path / name), np.full((size[1], size[0], 3), 90, np.uint8))
    assert probe(FolderSource(kind="folder", path=tmp_path)).size_wh_px == (200, 180)
    assert [frame.pixels_bgr.shape for frame in read_folder(tmp_path)] == [(50, 200, 3), (180, 60, 3)]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.98])
def test_cut_image_is_damage_in_its_place(tmp_path: Path, suffix: str, share: float) -> None:
    """Only a beginning of a file, however long, is never taken for a picture; the others are not touched by it."""
    rng = np.random.default_rng(0)
    for number in range(3):
        noisy = cv2.add(numbered(number), rng.integers(0, 20, (96, 160, 3), dtype=np.uint8))
        cv2.imwrite(str(tmp_path / f"{number}.{suffix}"), noisy)
    cut = tmp_path / f"1.{suffix}"
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * share)])
    first, broken, last = read_folder(tmp_path)
    assert (first.damage, last.damage) == (None, None)
    assert broken.damage == f"1.{suffix}: not an image, or cut off"
    assert (broken.index, broken.pixels_bgr.shape, int(broken.pixels_bgr.max())) == (1, (96, 160, 3), 0)


def test_image_that_vanishes_is_damage(tmp_path: Path) -> None:
    """An image that is deleted while the folder plays is one damaged frame."""
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), numbered(number))
    source = open_source(FolderSource(kind="folder", path=tmp_path, pace="fast"))
    source.read(0.1)
    (tmp_path / "1.png").unlink()
    frame = source.read(0.1)
    assert frame is not None
    assert frame.damage is not None


def _unreadable(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")


BROKEN = {
    "missing": (Path.exists, "no such file or directory"),
    "file": (lambda folder: folder.write_text("x"), "not a directory"),
    "empty": (lambda folder: folder.mkdir(), r"holds no image \(\.bmp, "),
    "unreadable": (_unreadable, "none of its 1 images can be read"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_probe_refuses_in_one_line(tmp_path: Path, how: str) -> None:
    """A folder without a picture stops the start, in one line that names it."""
    make, expected = BROKEN[how]
    make(tmp_path / "f")
    with pytest.raises(ConfigError, match=expected) as error:
        probe(FolderSource(kind="folder", path=tmp_path / "f"))
    assert str(error.value).startswith(f"{tmp_path / 'f'}: ")
    assert "\n" not in str(error.value)
