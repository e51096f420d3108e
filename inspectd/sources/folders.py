"""Image folders: every image in the natural order of names; an unreadable one becomes a damaged shot."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from inspectd.errors import ConfigError, SourceError
from inspectd.images import read_image_bgr
from inspectd.recipe import IMAGE_SUFFIXES
from inspectd.records import PixelsU8
from inspectd.sources.base import SourceInfo
from inspectd.sources.files import Pass, Shot

UNREADABLE = "not an image, or cut off"
EXIF_ORIENTATION = 0x0112
EXIF_SWAPPED = frozenset({5, 6, 7, 8})


def image_paths(folder: Path) -> list[Path]:
    """The images directly in a folder, `part2` before `part10`; hidden files are left out.

    Raises:
        ConfigError: not a folder, unreadable, or without an image.
    """
    try:
        entries = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        raise ConfigError(f"{folder}: {(error.strerror or str(error)).lower()}") from error
    paths = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not paths:
        raise ConfigError(f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def probe_folder(folder: Path, rate_fps: float) -> SourceInfo:
    """The largest width and height in a folder, by the images' headers.

    Raises:
        ConfigError: not a folder, unreadable, or without an image that can be read.
    """
    paths = image_paths(folder)
    sizes = [size for path in paths if (size := header_size_wh_px(path)) is not None]
    if not sizes:
        raise ConfigError(f"{folder}: none of its {len(paths)} images can be read")
    widths, heights = zip(*sizes, strict=True)
    return SourceInfo(size_wh_px=(max(widths), max(heights)), fps=rate_fps, frames=len(paths))


def folder_shots(paths: list[Path]) -> Pass:
    """One pass through images. They have no time of their own: `pts_s` is None."""
    for path in paths:
        yield Shot(pts_s=None, load=lambda path=path: load_image(path))  # type: ignore[misc]  # bound now


def load_image(path: Path) -> tuple[PixelsU8 | None, str | None]:
    """`(pixels_bgr, damage)` of an image file: one of them is None."""
    try:
        return read_image_bgr(path), None
    except SourceError:
        return None, f"{path.name}: {UNREADABLE}"


def natural(name: str) -> tuple[list[str | int], str]:
    """A key to sort names by, numbers in them by value."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def header_size_wh_px(path: Path) -> tuple[int, int] | None:
    """Width and height of an upright image by its header; None where it has none that can be read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            width, height = image.size
            swapped = image.getexif().get(EXIF_ORIENTATION) in EXIF_SWAPPED
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None
    return (height, width) if swapped else (width, height)
