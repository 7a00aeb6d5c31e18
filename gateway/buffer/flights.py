"""What the flight ring does for rows and records: what goes in, what stands for what, what is given back.

The order of writes to the ring is what a SIGKILL meets, so it is the same everywhere: the new entry is put before the
old one is freed, and the new one says what it replaces. Event loop only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gateway.buffer.entries import (
    ACKER,
    DISTRUST,
    MOVED,
    NO_ROWS,
    ORIGINS,
    RECORDS,
    ROWS,
    SESSION,
    Covers,
    Flown,
    encode_acker,
    encode_distrust,
    encode_origins,
    encode_records,
    encode_rows,
)
from gateway.buffer.ring import Entry, Ring
from gateway.buffer.streams import Flight, Held, Stream
from gateway.model import Lane, Origin, Row


class Flights:
    """The ring, or the want of one: then nothing is ever in it."""

    def __init__(self, ring: Ring | None) -> None:
        self._ring = ring
        self._sessions: dict[bytes, Entry] = {}
        self.distrusted: dict[str, Entry] = {}
        """By stream: what tells a later process."""

    @property
    def name(self) -> bytes:
        return self._ring.name if self._ring is not None else b""

    @property
    def used_bytes(self) -> int:
        return self._ring.used_bytes if self._ring is not None else 0

    def skip_to(self, number: int) -> None:
        """Numbers of entries go on behind this one."""
        if self._ring is not None:
            self._ring.skip_to(number)

    def put_rows(self, lane: Lane, rows: Sequence[Row]) -> Entry | None:
        """Rows that are in no record yet. None: they are not in the ring."""
        return self._ring.put(ROWS, encode_rows(lane, rows)) if self._ring is not None else None

    def launch(self, helds: Sequence[Held], covers: Covers = NO_ROWS, kind: int = RECORDS) -> bool:
        """Puts records into the ring, all or none."""
        if self._ring is None:
            return False
        flown = [Flown(held.record, held.at_ms) for held in helds]
        entry = self._ring.put(kind, encode_records(flown, covers))
        if entry is None:
            return False
        flight = Flight(entry, len(helds))
        for held in helds:
            held.flight = flight
        return True

    def relaunch(self, helds: Sequence[Held], old: Flight) -> bool:
        """Puts records into the ring in place of what holds them there. False: no room."""
        return self.launch(helds, Covers(old.entry.number, old.entry.number), MOVED)

    def land(self, held: Held) -> None:
        """The record needs the ring no longer."""
        flight, held.flight = held.flight, None
        if flight is not None:
            flight.left -= 1
            if flight.left == 0:
                self.free((flight.entry,))
        self.free(held.grounded)

    def free(self, entries: Iterable[Entry]) -> None:
        if self._ring is not None:
            for entry in entries:
                self._ring.free(entry)

    def keep(self, origins: Sequence[Origin]) -> Entry | None:
        """Origins alone. None: there is no room."""
        return self._ring.put(ORIGINS, encode_origins(origins)) if self._ring is not None else None

    def remember(self, held: Held, origins: Sequence[Origin]) -> Entry | None:
        """The origins of a record that is acked stay in the ring; where that has no room, by way of the record."""
        entry = self.keep(origins)
        if entry is None and held.flight is not None and held.flight.left == 1:
            entry, held.flight = held.flight.entry, None
        return entry

    # ── what a later process must know of this one ───────────────────────────────────────────────────────────────────

    def acked_by(self, stream: Stream, sink: str) -> None:
        """This sink acks something of the stream: whose they are, holes that it leaves in the ring cannot tell."""
        if self._ring is None:
            return
        wanted = {*stream.marks, sink}
        for name in wanted - stream.ackers.keys():
            entry = self._ring.put(ACKER, encode_acker(stream.name, name))
            if entry is not None:
                stream.ackers[name] = entry
        for name in stream.ackers.keys() - wanted:
            forgotten = stream.ackers.pop(name)
            if forgotten is not None:
                self._ring.free(forgotten)

    def forget(self, stream: Stream) -> None:
        """Nothing is left of it."""
        self.free([entry for entry in stream.ackers.values() if entry is not None])

    def distrust(self, stream: str, mark: int) -> None:
        """A later process must not take for an ack what some sink knows of this stream."""
        entry = self._ring.put(DISTRUST, encode_distrust(stream, mark)) if self._ring is not None else None
        if entry is not None:
            self.distrusted[stream] = entry

    def given_away(self, stream: str) -> None:
        """Nothing un-acked is left of it."""
        if stream in self.distrusted:
            self.free((self.distrusted.pop(stream),))

    def vouch(self, session: bytes) -> None:
        """From now on the ring knows of every message of this session that was taken over."""
        if self._ring is not None and session not in self._sessions:
            entry = self._ring.put(SESSION, session)
            if entry is not None:
                self._sessions[session] = entry

    def recall(self, sessions: Mapping[bytes, Entry], distrusted: Mapping[str, Entry]) -> None:
        self._sessions.update(sessions)
        self.distrusted.update(distrusted)

    def doubt(self) -> None:
        """Origins were lost with a part of the store: a later process must not believe that it knows them all."""
        self.free(self._sessions.values())
        self._sessions.clear()
