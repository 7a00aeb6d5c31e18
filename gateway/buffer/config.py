"""Pure: the `[buffer]` table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from gateway.settings import Duration, Key, Mistake, Size, Table, size_text


class WhenFull(StrEnum):
    """What gives way when nothing more fits."""

    DROP_OLDEST = "drop_oldest"
    REFUSE = "refuse"


class BufferSettings(Table, frozen=True, kw_only=True):
    """Readings that wait for the sink's ack: on disk when the ack is late, in memory when it is not."""

    max_size: Annotated[Size, Key("bytes on disk", min=1_000_000)] = 512_000_000
    alarm_reserve: Annotated[
        Size, Key("bytes of `max_size` that readings leave to alarms, a quarter of it at most")
    ] = 16_000_000
    max_age: Annotated[
        Duration | None,
        Key("give up readings that are older; counts only while the clock is trusted", min=1, example='"30d"'),
    ] = None
    alarm_max_age: Annotated[Duration | None, Key("the same for alarms", min=1, example='"1y"')] = None
    free_space_floor: Annotated[
        Size,
        Key("readings leave this much of the file system free; half of it is for alarms, half for command results"),
    ] = 64_000_000
    when_full: Annotated[WhenFull, Key("`drop_oldest` reports a gap and goes on; `refuse` makes the sources wait")] = (
        WhenFull.DROP_OLDEST
    )
    commit_after: Annotated[
        Duration,
        Key(
            "what is not acked this long after it came goes to disk; a power cut takes nothing that is older",
            min=0.01,
            max=60,
        ),
    ] = 0.5
    linger: Annotated[Duration, Key("how long an open batch waits for more readings", min=0.001, max=10)] = 0.1
    memory_limit: Annotated[Size, Key("bytes of readings in memory that are not yet on disk", min=1_000_000)] = (
        32_000_000
    )
    keep_acked: Annotated[Size, Key("bytes of acked batches kept in memory, for a sink that lost some")] = 8_000_000
    ring_size: Annotated[
        Size,
        Key(
            "bytes of the flight ring in /run, where readings survive a crash; changed when nothing is in it",
            min=1 << 20,
        ),
    ] = 8 << 20

    def warnings(self) -> Iterable[Mistake]:
        most = self.max_size // 4
        if self.alarm_reserve > most and self.alarm_reserve != BufferSettings().alarm_reserve:
            yield Mistake(
                ("alarm_reserve",), f"a quarter of `max_size` at most: {size_text(most)} will be kept for alarms"
            )

    def mistakes(self) -> Iterable[Mistake]:
        if self.linger > self.commit_after / 2:
            yield Mistake(
                ("linger",),
                f"linger {self.linger:g} s is more than half of commit_after {self.commit_after:g} s: no time would be "
                "left for the ack, and every batch would go to disk",
            )
