"""A lost frame of an H.264 stream is noticed, since decoders hide it; sound streams raise no alarm."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from clips import numbered, write_numbered

from inspectd.sources.decoding import Decoder, Picture, Upright

COUNT, GOP = 36, 12
WRONG_LEVELS = 4.0
"""A sound picture of these clips is off by less on average."""


def pictures(clip: Path, lost: int | None) -> list[Picture]:
    """What a decoder makes of a clip of which one packet is lost."""
    with av.open(str(clip)) as container:
        decoder = Decoder(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        kept = [packet for number, packet in enumerate(packets) if number != lost]
        return [picture for packet in [*kept, None] for picture in decoder.decode(packet)]


def is_wrong(picture: Picture) -> bool:
    assert picture.raw is not None
    assert picture.pts_s is not None
    shown = Upright().pixels_bgr(picture.raw).astype(np.int16)
    return bool(np.abs(shown - numbered(round(picture.pts_s * 25))).mean() > WRONG_LEVELS)


@pytest.fixture(scope="module", params=[0, 2], ids=["p-frames", "b-frames"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups of pictures."""
    folder = tmp_path_factory.mktemp("h264")
    return write_numbered(folder / "n.mp4", COUNT, gop=GOP, b_frames=request.param)


def test_sound_stream_raises_no_alarm(clip: Path) -> None:
    """All pictures are right and undamaged."""
    found = pictures(clip, None)
    assert len(found) == COUNT
    assert not any(picture.damage or is_wrong(picture) for picture in found)


@pytest.mark.parametrize("lost", [*range(1, GOP), GOP])
def test_no_wrong_picture_is_vouched_for(clip: Path, lost: int) -> None:
    """Whichever frame is lost: what is wrong for want of it is damaged, and the next key frame ends it."""
    found = [picture for picture in pictures(clip, lost) if picture.raw is not None]
    assert not any(is_wrong(picture) and picture.damage is None for picture in found)
    assert all(picture.damage is None for picture in found if picture.pts_s and picture.pts_s * 25 >= 2 * GOP)


def test_lost_frame_is_noticed_in_a_stream_between_start_codes(tmp_path: Path) -> None:
    """Cameras send parameter sets within the stream: they are read there."""
    clip = write_numbered(tmp_path / "n.h264", COUNT, gop=GOP, form="h264")
    assert {picture.damage for picture in pictures(clip, None)} == {None}
    damages = [picture.damage for picture in pictures(clip, 5) if picture.raw is not None]
    assert damages == [None] * 5 + ["a frame is missing"] * (GOP - 6) + [None] * (2 * GOP)
