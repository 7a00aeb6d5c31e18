"""What a stream in memory costs: the paths that every message takes look at nothing that grows."""

from __future__ import annotations

from collections.abc import ItemsView

import pytest

from gateway.buffer.streams import Stream
from gateway.model import Lane, Record, RecordKind


class Watched(dict[int, Record]):
    """Says when somebody walks over it."""

    walks = 0

    def items(self) -> ItemsView[int, Record]:  # type: ignore[override]
        self.walks += 1
        return super().items()


@pytest.mark.parametrize(("seq", "walks", "found"), [(1001, 0, 0), (1000, 1, 1), (1, 1, 1000)])
def test_only_who_asks_for_what_is_acked_walks_over_what_is_kept(seq: int, walks: int, found: int) -> None:
    stream = Stream("a" * 32, Lane.LIVE, "b" * 32)
    stream.kept = kept = Watched(
        {number: Record(stream.name, stream.lane, number, RecordKind.BATCH, b"{}") for number in range(1, 1001)}
    )
    stream.mark, stream.acked, stream.next = 1000, 1000, 1001
    assert stream.offer(grounded=False).next == 1001
    records, end = stream.in_memory(seq, grounded=False)
    assert (kept.walks, len(records), end) == (walks, found, 1001)
