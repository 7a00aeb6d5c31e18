"""Pure: what was sent where. All sessions of a process share one `Manifest`; a `Place` is one session in one stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from gateway.protocol.messages import StreamOffer

MAX_SINKS: Final = 16
"""Of one stream: a server that calls itself by a new name every time fills no memory."""


class Manifest:
    """What this process sent of its own streams, and how far each sink has acked what. Shared by its sessions."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}
        self._marks: dict[str, dict[str, int]] = {}
        """Stream → sink → mark."""
        self._had: dict[str, dict[str, int]] = {}
        """Stream → sink → the highest mark it ever had."""
        self._distrusted: set[str] = set()

    def learn(self, offers: Iterable[StreamOffer]) -> None:
        """A stream that is seen open was opened by this process."""
        for offer in offers:
            if not offer.sealed and offer.stream not in self._sent:
                self._sent[offer.stream] = 0

    def keep(self, streams: Iterable[str]) -> None:
        """Forgets all streams but these: nothing of the others is held any more."""
        kept = set(streams)
        for stream in self._marks.keys() - kept:
            del self._marks[stream]
            self._had.pop(stream, None)
        for stream in self._sent.keys() - kept:
            del self._sent[stream]
        self._distrusted &= kept

    def sending(self, stream: str, last: int) -> None:
        if last > self._sent.get(stream, last):
            self._sent[stream] = last

    def acked(self, sink: str, stream: str, mark: int) -> None:
        self._note(sink, stream, max(mark, self.mark(sink, stream) or 0))
        had = self._had.setdefault(stream, {})
        had[sink] = max(mark, had.get(sink, 0))

    def went_back(self, sink: str, stream: str, mark: int) -> None:
        """The sink was restored from an older state."""
        self._note(sink, stream, mark)

    def _note(self, sink: str, stream: str, mark: int) -> None:
        marks = self._marks.setdefault(stream, {})
        if sink not in marks and len(marks) >= MAX_SINKS:
            oldest = next(iter(marks))
            del marks[oldest]  # should it be a real one, its next welcome tells it again
            self._had.get(stream, {}).pop(oldest, None)
        marks[sink] = mark

    def mark(self, sink: str, stream: str) -> int | None:
        """None: nothing is known."""
        return self._marks.get(stream, {}).get(sink)

    def marks(self) -> dict[tuple[str, str], int]:
        return {(sink, stream): mark for stream, marks in self._marks.items() for sink, mark in marks.items()}

    def elsewhere(self, sink: str, stream: str, at: int) -> int:
        """The highest mark at any other sink; 0 where this one had number `at` itself, and lost it: the others may only
        have been told that it has it."""
        if at <= self._had.get(stream, {}).get(sink, 0):
            return 0
        return max((mark for other, mark in self._marks.get(stream, {}).items() if other != sink), default=0)

    def acked_by_any(self, stream: str) -> int:
        """The highest mark at any sink."""
        return max(self._marks.get(stream, {}).values(), default=0)

    def acked_elsewhere(self, sink: str, stream: str) -> bool:
        return any(mark for other, mark in self._marks.get(stream, {}).items() if other != sink)

    def never_sent(self, stream: str, mark: int) -> bool:
        return stream in self._sent and mark > self._sent[stream]

    def distrust(self, stream: str) -> None:
        self._distrusted.add(stream)

    def trusted(self, stream: str) -> bool:
        return stream not in self._distrusted


class Flight(NamedTuple):
    last: int
    size: int
    sent_at: float
    sample: bool
    """Sent for the first time, so its ack measures the path [T1]."""


class Place:
    """Where this session is in one stream."""

    __slots__ = (
        "acked",
        "at",
        "bytes",
        "elsewhere",
        "filled",
        "flights",
        "lane",
        "nacks",
        "next",
        "sealed",
        "sent",
        "stream",
    )

    def __init__(self, offer: StreamOffer, at: int) -> None:
        self.stream = offer.stream
        self.lane = offer.lane
        self.sealed = offer.sealed
        self.next = offer.next
        self.at = at
        """The number to send next."""
        self.acked = 0
        """Highest number acked on this session."""
        self.sent = 0
        """Highest number sent on this session."""
        self.flights: deque[Flight] = deque()
        self.bytes = 0
        self.elsewhere = 0
        """What is not held up to here, another sink has by the word of the buffer."""
        self.filled = 0
        """A gap was asked for from here on: the buffer that does not put it there is asked once."""
        self.nacks: dict[int, int] = {}
        """Expected number → how often it was asked for since the last ack."""

    def land(self, mark: int) -> Flight | None:
        """Takes what is acked out of flight; returns the newest of it."""
        newest = None
        self.acked = max(self.acked, mark)
        while self.flights and self.flights[0].last <= mark:
            newest = self.flights.popleft()
            self.bytes -= newest.size
        self.at = max(self.at, mark + 1)
        return newest

    def rewind(self, at: int) -> None:
        self.at = at
        while self.flights and self.flights[-1].last >= at:
            self.bytes -= self.flights.pop().size
