"""Bytes in, frames out: however they are cut, whatever they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.serial.framing import Framer


def framer(delimiter: bytes = b"\n", max_length: int = 10, idle_s: float | None = None) -> Framer:
    return Framer(delimiter, max_length, idle_s, now=0.0)


@pytest.mark.parametrize(
    ("delimiter", "stream", "frames", "overlong"),
    [
        (b"\n", b"rtial\none\ntwo\nrest", [b"one", b"two"], 0),
        (b"\n", b"\none\n\n\ntwo\n", [b"one", b"two"], 0),
        (b"\r\n", b"x\r\none\rstill\r\ntwo\r\n", [b"one\rstill", b"two"], 0),
        (b"\n", b"x\n0123456789\n", [b"0123456789"], 0),
        (b"\n", b"x\n0123456789A\nnext\n", [b"next"], 1),
        (b"\r\n", b"x\r\n0123456789\r\nnext\r\n", [b"0123456789", b"next"], 0),
        (b"\n", b"0123456789ABCDEF\nnext\n", [b"next"], 1),
        (b"\n", b"x\n" + b"A" * 1000 + b"\n" + b"B" * 1000 + b"\nnext\n", [b"next"], 2),
        (b"END", b"aEND1EN2END", [b"1EN2"], 0),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 5000])
def test_the_table_of_streams(delimiter: bytes, stream: bytes, frames: list[bytes], overlong: int, chunk: int) -> None:
    subject = framer(delimiter)
    found = [f for i in range(0, len(stream), chunk) for f in subject.feed(stream[i : i + chunk], i)]
    assert found == frames
    assert subject.overlong == overlong


@given(
    st.sampled_from([b"\n", b"\r\n", b"--", b"aba"]),
    st.lists(st.sampled_from([b"\n", b"\r", b"-", b"a", b"b", b"aba", b"long text " * 3]), max_size=60),
    st.data(),
)
def test_any_cutting_of_a_stream_gives_the_same_frames(
    delimiter: bytes, parts: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(parts)
    whole = framer(delimiter)
    expected = whole.feed(stream, 0)
    pieces = framer(delimiter)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += pieces.feed(stream[start:end], 0)
    assert found == expected
    assert pieces.overlong == whole.overlong
    assert all(0 < len(frame) <= 10 and delimiter not in frame for frame in found)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=50))
def test_a_flood_of_anything_stays_bounded(chunks: list[bytes]) -> None:
    subject = framer(b"\r\n", max_length=64)
    for chunk in chunks:
        assert all(len(frame) <= 64 for frame in subject.feed(chunk, 0))
        assert len(subject._buffer) <= 64 + 1


def test_a_line_that_never_ends_is_counted_once_and_forgotten_as_it_comes() -> None:
    subject = framer(max_length=100)
    subject.feed(b"\n", 0)
    for _ in range(1000):
        assert subject.feed(b"x" * 4096, 0) == []
        assert len(subject._buffer) <= 100
    assert subject.overlong == 1
    assert subject.feed(b"\nback\n", 0) == [b"back"]


def test_silence_ends_a_frame_and_makes_the_next_one_whole() -> None:
    subject = framer(idle_s=0.5)
    assert subject.feed(b"half", 0.25) == []
    assert subject.deadline() == 0.75
    assert subject.tick(0.74) == []
    assert subject.tick(0.75) == [], "it may have lost its beginning"
    assert subject.deadline() is None
    subject.feed(b"who", 1.0)
    subject.feed(b"le", 1.25)
    assert subject.tick(1.74) == []
    assert subject.tick(1.75) == [b"whole"]
    assert subject.feed(b"late", 2.0) == []
    assert subject.feed(b"next\n", 3.0) == [b"late", b"next"], "silence counts although nobody called tick"


def test_a_line_that_was_silent_before_its_first_byte_has_lost_nothing() -> None:
    subject = framer(idle_s=0.05)
    assert subject.tick(0.05) == []
    assert subject.feed(b"first\n", 0.06) == [b"first"]
    assert framer().feed(b"first\n", 99.0) == [], "without idle_s nobody knows"


def test_an_overlong_frame_that_silence_ends_is_no_frame() -> None:
    subject = framer(idle_s=0.05)
    subject.tick(1.0)
    subject.feed(b"x" * 50, 1.0)
    assert subject.tick(2.0) == []
    assert subject.overlong == 1
    assert subject.feed(b"ok\n", 2.01) == [b"ok"]
