"""Pure: the `[buffer]` table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from gateway.settings import Duration, Key, Mistake, Size, Table


class WhenFull(StrEnum):
    """What gives way when nothing more fits."""

    DROP_OLDEST = "drop_oldest"
    REFUSE = "refuse"


class BufferSettings(Table, frozen=True, kw_only=True):
    """Readings that wait for the sink's ack: on disk when the ack is late, in memory when it is not."""

    max_size: Annotated[Size, Key("bytes on disk", min=1_000_000)] = 512_000_000
    max_age: Annotated[
        Duration | None, Key("give up what is older; counts only while the clock is trusted", min=1, example='"30d"')
    ] = None
    free_space_floor: Annotated[Size, Key("stop growing when the file system has less than this left")] = 64_000_000
    when_full: Annotated[WhenFull, Key("`drop_oldest` reports a gap and goes on; `refuse` makes the sources wait")] = (
        WhenFull.DROP_OLDEST
    )
    commit_after: Annotated[
        Duration,
        Key("what is not acked after this goes to disk; a power cut takes at most this and `linger`", min=0.01, max=60),
    ] = 0.5
    linger: Annotated[Duration, Key("how long an open batch waits for more readings", min=0.001, max=10)] = 0.1
    memory_limit: Annotated[Size, Key("bytes of readings in memory that are not yet on disk", min=1_000_000)] = (
        32_000_000
    )
    keep_acked: Annotated[Size, Key("bytes of acked batches kept in memory, for a sink that lost some")] = 8_000_000
    ring_size: Annotated[
        Size, Key("bytes of the flight ring in /run, where readings survive a crash of the process", min=1 << 20)
    ] = 8 << 20

    def mistakes(self) -> Iterable[Mistake]:
        if self.linger > self.commit_after:
            yield Mistake(("linger",), f"linger {self.linger:g} s is longer than commit_after {self.commit_after:g} s")
