"""What is kept for a sink that loses something is bounded by its bytes, the oldest ack goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.buffer.streams import RECORD_OVERHEAD, Kept, Stream
from gateway.model import Lane, Record, RecordKind


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000)), max_size=200), st.integers(0, 20_000))
def test_what_is_kept_never_exceeds_its_bytes_and_the_newest_stay(acks: list[tuple[int, int]], limit: int) -> None:
    streams = [Stream(f"{i:032x}", Lane.LIVE, "boot") for i in range(3)]
    kept = Kept(limit)
    added: list[tuple[Stream, int, int]] = []
    for seq, (which, size) in enumerate(acks, start=1):
        record = Record(streams[which].name, Lane.LIVE, seq, RecordKind.BATCH, bytes(size))
        kept.add(streams[which], record)
        added.append((streams[which], seq, size + RECORD_OVERHEAD))
        held = sum(len(r.body) + RECORD_OVERHEAD for stream in streams for r in stream.kept.values())
        assert held == kept.bytes <= limit
    total, expected = 0, set()
    for stream, seq, size in reversed(added):
        total += size
        if total > limit:
            break
        expected.add((stream.name, seq))
    assert {(stream.name, seq) for stream in streams for seq in stream.kept} == expected
