"""multipart/x-mixed-replace: whole parts out of any slicing of the bytes; lies about the length are damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mjpeg_servers import jpeg, part

from inspectd.errors import SourceLost
from inspectd.sources.multipart import MOST_HEAD_BYTES, Part, Parts, boundary_of

MOST = 100_000
PICTURES = [jpeg(number) for number in range(3)]
END = b"--frame--\r\n"


def all_parts(data: bytes, *, step: int = 1 << 30) -> list[Part]:
    parts = Parts(b"frame", most_bytes=MOST)
    return [each for at in range(0, len(data), step) for each in parts.feed(data[at : at + step], at + 1)]


@given(st.lists(st.integers(1, 3000), max_size=30), st.sampled_from([None, -1]))
def test_any_slicing_gives_the_same_parts(cuts: list[int], length: int | None) -> None:
    """However the network cuts the stream, the pictures come out whole, with or without their lengths."""
    data = b"".join(part(picture, length=length) for picture in PICTURES) + END
    parts, found, at = Parts(b"frame", most_bytes=MOST), [], 0
    for cut in [*cuts, len(data)]:
        found += list(parts.feed(data[at : at + cut], 1))
        at += cut
    assert [(each.content, each.damage) for each in found] == [(picture, None) for picture in PICTURES]


def test_part_is_there_before_the_next_delimiter() -> None:
    """A length that leads to the picture's end is enough: nothing waits for the next frame."""
    (found,) = all_parts(part(PICTURES[0]).removesuffix(b"\r\n"))
    assert found.content == PICTURES[0]


def test_part_begins_with_its_first_byte() -> None:
    """The time of a part without length is that of its first byte, not of the delimiter that ends it a frame later."""
    parts = Parts(b"frame", most_bytes=MOST)
    head, blank, content = part(PICTURES[0], length=None).partition(b"\r\n\r\n")
    arrivals = (1, head + blank), (2, content[:500]), (3, content[500:]), (9, END)
    found = [each for now_ns, data in arrivals for each in parts.feed(data, now_ns)]
    assert [each.began_ns for each in found] == [2]


@pytest.mark.parametrize(("length", "damage"), [(10**4, "cut"), (500, "500 were announced"), (0, "0 were announced")])
def test_wrong_length_is_damage_of_that_part_alone(length: int, damage: str) -> None:
    """A length that leads elsewhere than to a boundary damages its part; the next one is sound."""
    first, second = all_parts(part(PICTURES[0], length=length) + part(PICTURES[1]))
    assert damage in str(first.damage)
    assert (second.content, second.damage) == (PICTURES[1], None)


@pytest.mark.parametrize(
    "data",
    [b"Content-Type: image/jpeg\r\n\r\n" * 2000, part(b"x" * (MOST + 10), length=None), part(b"x", length=MOST + 1)],
    ids=["no-boundary", "no-length", "announced"],
)
def test_memory_is_bounded(data: bytes) -> None:
    """Bytes without a boundary are dropped; a part beyond the limit ends the stream."""
    parts = Parts(b"frame", most_bytes=MOST)
    if b"--frame" not in data:
        assert list(parts.feed(data, 1)) == []
        assert len(parts._buffer) < 100
        return
    with pytest.raises(SourceLost, match=r"at most|larger than"):
        list(parts.feed(data, 1))


def test_endless_headers_end_the_stream() -> None:
    """Headers that never end are told."""
    with pytest.raises(SourceLost, match=f"longer than {MOST_HEAD_BYTES}"):
        all_parts(b"--frame\r\n" + b"x: y\r\n" * 5000)


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ("multipart/x-mixed-replace; boundary=frame", b"frame"),
        ("multipart/x-mixed-replace;boundary=--frame", b"frame"),
        ('Multipart/X-Mixed-Replace; boundary="a b"', b"a b"),
        ("multipart/x-mixed-replace", None),
        ("image/jpeg", None),
        ("", None),
    ],
)
def test_boundary_is_found_as_careless_as_it_is_written(kind: str, boundary: bytes | None) -> None:
    """Quotes and dashes of a boundary do not matter; without one it is no stream of parts."""
    assert boundary_of(kind) == boundary


@given(st.binary(max_size=2000))
def test_noise_gives_no_part_and_no_crash(noise: bytes) -> None:
    """Any bytes are taken."""
    assert all(
        (each.damage or each.content is not None) for each in all_parts(b"--frame\r\n\r\n" + noise + END, step=97)
    )
