"""What `inspectd cameras` says of each camera."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inspectd.errors import InspectdError
from inspectd.images import encode_png
from inspectd.source_settings import GenicamSource, V4l2Source
from inspectd.sources.attached import Attached
from inspectd.sources.grabbing import grab


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One camera. `seen` describes the frame that was taken, `preview` is the file it was saved in."""

    kind: str
    name: str
    description: str
    modes: tuple[str, ...]
    seen: str | None = None
    preview: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def text(self) -> str:
        """For the table."""
        lines = [self.description, *self.modes, self.seen, self.preview, self.error]
        return "\n".join(line for line in lines if line)


def look(found: Attached, preview: Path | None) -> Sighting:
    """Takes a frame of a camera where a preview is wanted or nothing else is known of it."""
    seen, saved, error = None, None, found.error
    known = isinstance(found.source, V4l2Source | GenicamSource)
    if found.source is not None and (preview is not None or not known):
        try:
            grabbed = grab(found.source)
            if grabbed is not None:
                seen = str(grabbed)
                saved = None if preview is None else _save(preview, found.name, encode_png(grabbed.pixels_bgr))
        except InspectdError as failure:
            error = str(failure)
        except OSError as failure:
            error = f"{preview}: {failure.strerror or failure}"
    return Sighting(
        kind=found.kind,
        name=found.name,
        description=found.description,
        modes=found.modes,
        seen=seen,
        preview=saved,
        error=error,
    )


def _save(folder: Path, name: str, png: bytes) -> str:
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name).strip('_')}.png"
    path.write_bytes(png)
    return str(path)
