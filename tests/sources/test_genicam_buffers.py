"""What a GenTL buffer holds: packed pixels, the camera's own time. No producer at hand gives either, so bytes do."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest

from inspectd.errors import SourceLost
from inspectd.sources.genicam_buffers import first_picture, stamp_ns

genapi = pytest.importorskip("genicam.genapi", reason='needs pip install "inspectd[genicam]"')
gentl = pytest.importorskip("genicam.gentl", reason='needs pip install "inspectd[genicam]"')
MONO10_PACKED = 0x010C0004  # PFNC's numbers
XML = """<?xml version="1.0" encoding="utf-8"?>
<RegisterDescription ModelName="m" VendorName="v" ToolTip="" StandardNameSpace="GEV" SchemaMajorVersion="1"
 SchemaMinorVersion="1" SchemaSubMinorVersion="0" MajorVersion="1" MinorVersion="0" SubMinorVersion="0"
 ProductGuid="1F3C6A72-7842-4edd-9130-E2E90A2058BA" VersionGuid="7645D2A1-A41E-4ac6-B486-1531FB7BECE6"
 xmlns="http://www.genicam.org/GenApi/Version_1_1">
<IntReg Name="ChunkTimestamp"><Address>0</Address><Length>8</Length><AccessMode>RO</AccessMode><pPort>Time</pPort>
<Cachable>NoCache</Cachable><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
{ticks}<Port Name="Time"><ChunkID>00000001</ChunkID></Port></RegisterDescription>"""
TICKS = '<Integer Name="GevTimestampTickFrequency"><Value>125000000</Value></Integer>'


@dataclass
class Buffer:
    """A buffer that a producer has filled, by the names that the genicam package gives them."""

    raw_buffer: bytes
    size_filled: int
    width: int = 4
    height: int = 2
    pixel_format: int = MONO10_PACKED
    padding_x: int = 0
    payload_type: int = field(default_factory=lambda: gentl.PAYLOADTYPE_INFO_IDS.PAYLOAD_TYPE_IMAGE)
    timestamp_ns: int = 7


def nodes_of(xml: str) -> genapi.NodeMap:
    nodes = genapi.NodeMap()
    nodes.load_xml_from_string(xml)
    return nodes


def test_packed_lines_become_grey_to_the_byte() -> None:
    """Three bytes are two pixels; padding is left out, and a byte too few is damage."""
    line = bytes([10, 0xFF, 20, 30, 0xFF, 40])
    buffer = Buffer(raw_buffer=line + b"pad" + line + b"pad", size_filled=18, padding_x=3)
    pixels, damage = first_picture(buffer, None).bgr()
    assert damage is None
    assert pixels is not None
    assert pixels[..., 0].tolist() == [[10, 20, 30, 40]] * 2
    buffer.size_filled = 14
    assert first_picture(buffer, None).bgr() == (None, "incomplete: 14 bytes of 15")


def test_formats_that_are_not_known_are_refused() -> None:
    """One line with what is known; a buffer without a picture is told too."""
    with pytest.raises(SourceLost, match=r"^sends BayerRG10p, expected one of .*Mono10p.*; set features.PixelFormat$"):
        first_picture(Buffer(raw_buffer=bytes(99), size_filled=99, pixel_format=0x010A0058), None)
    with pytest.raises(SourceLost, match=r"^sends pixel format 0x5, "):
        first_picture(Buffer(raw_buffer=bytes(99), size_filled=99, pixel_format=5), None)
    jpeg = gentl.PAYLOADTYPE_INFO_IDS.PAYLOAD_TYPE_JPEG
    with pytest.raises(SourceLost, match=r"^sends no picture"):
        first_picture(Buffer(raw_buffer=bytes(99), size_filled=99, payload_type=jpeg), None)


@pytest.mark.parametrize(("ticks", "expected_ns"), [("", 5_000_000), (TICKS, 40_000_000)])
def test_time_beside_the_picture_comes_first(ticks: str, expected_ns: int) -> None:
    """A chunk of the camera's own is its time, in ns or in the ticks that it names; without one it is the buffer's."""
    nodes = nodes_of(XML.format(ticks=ticks))
    buffer = Buffer(raw_buffer=b"", size_filled=0)
    assert stamp_ns(buffer, nodes) == 7
    chunks = b"pixels.." + struct.pack(">II", 9, 8) + struct.pack(">QII", 5_000_000, 1, 8)
    adapter = genapi.ChunkAdapterGEV(nodes)
    adapter.attach_buffer(chunks, len(chunks))
    assert stamp_ns(buffer, nodes) == expected_ns
    adapter.detach_buffer()
