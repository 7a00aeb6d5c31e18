"""Pure: the marks of one gateway's streams as a server knows them, between the store's word and what is under way.

A stream has two: what is known to be committed, and what has been handed to the store. A group that fails takes the
second back to the first, and `attempt` counts that, so an answer to an earlier attempt never speaks for a later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from gateway.errors import RemoteProtocolError
from gateway.model import Lane, RecordKind
from gateway.protocol.entry import Entry

MAX_STREAMS: Final = 1024
"""Of one gateway in memory; a stream that was put out is looked up again when it is heard of."""


class Mark(NamedTuple):
    """What the store knows of one stream; of an unknown one, nothing."""

    number: int = 0
    lane: Lane | None = None
    ended: bool = False


class _Stream:
    __slots__ = ("attempt", "committed", "end", "lane", "pending")

    def __init__(self, mark: Mark) -> None:
        self.committed = mark.number
        self.pending = mark.number
        """Highest number handed to the store."""
        self.lane = mark.lane
        self.end = mark.number if mark.ended else None
        """Number of its end record, once that has been handed over."""
        self.attempt = 0

    def forget(self, mark: int) -> None:
        """What was handed over beyond this mark does not count."""
        self.committed = self.pending = mark
        if self.end is not None and self.end > mark:
            self.end = None
        self.attempt += 1


class Streams:
    """The marks of one gateway, shared by its sessions: a batch may come over two of them at the same time."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    def __contains__(self, stream: str) -> bool:
        return stream in self._streams

    def learn(self, marks: Mapping[str, Mark]) -> None:
        """What the store says of streams; one that is in memory already knows better."""
        for stream, mark in marks.items():
            self._streams.setdefault(stream, _Stream(mark))
        excess = len(self._streams) - MAX_STREAMS
        if excess <= 0:
            return
        # what failed once stays: a session may not have been told yet that its records came to nothing
        rest = [name for name, s in self._streams.items() if s.pending == s.committed and not s.attempt]
        idle = [name for name in rest if name not in marks]
        for name in idle[:excess]:
            del self._streams[name]

    def mark(self, stream: str) -> int:
        """Highest number known to be committed."""
        return self._streams[stream].committed

    def expected(self, stream: str) -> int:
        """The number that continues what was handed over."""
        return self._streams[stream].pending + 1

    def attempt(self, stream: str) -> int:
        return self._streams[stream].attempt

    def hand_over(self, entry: Entry) -> None:
        """The entry goes to the store now. Raises RemoteProtocolError: another lane, or after the end (R5)."""
        state = self._streams[entry.stream]
        if state.end is not None:
            raise RemoteProtocolError(f"number {entry.seq} of stream {entry.stream} comes after its end", 4410)
        if state.lane is not None and state.lane is not entry.lane:
            raise RemoteProtocolError(f"stream {entry.stream} is of lane {state.lane}, not {entry.lane}", 4410)
        state.lane, state.pending = entry.lane, entry.last
        if entry.kind is RecordKind.END:
            state.end = entry.last

    def settle(self, entry: Entry, mark: int) -> None:
        """The store committed: this is the mark of the stream in that transaction, whether it took the entry or not."""
        state = self._streams.get(entry.stream)
        if state is None:
            return
        refused = mark < entry.last and entry.attempt == state.attempt
        if refused:
            state.forget(mark)
        elif mark > state.committed:
            state.committed = mark
            state.pending = max(state.pending, mark)

    def failed(self, entries: Iterable[Entry]) -> None:
        """A group was not committed: nothing of it, nor what was handed over behind it, counts."""
        for entry in entries:
            state = self._streams.get(entry.stream)
            if state is not None and entry.attempt == state.attempt:
                state.forget(state.committed)
