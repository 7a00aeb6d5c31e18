"""What earlier processes left, on disk and in the ring, and what is to be believed of it. Event loop only."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.buffer import batching
from gateway.buffer.ledger import Home
from gateway.buffer.recovery import Recovered
from gateway.buffer.shelf import Shelf
from gateway.buffer.store import Opened
from gateway.buffer.streams import Flight, Held, Stream
from gateway.model import Lane, Origin


def adopt(shelf: Shelf, opened: Opened) -> dict[Lane, int]:
    """Takes over what the store holds: at the start, or when it could be opened at last, or after a rescue.

    Returns, for each lane, up to which entry number of the ring its rows are in the store.
    """
    for stream in shelf.streams.values():
        stream.set_disk(opened.disks.get(stream.name))
    older = {}
    for name, disk in opened.disks.items():
        if name not in shelf.streams:
            older[name] = stream = Stream(name, disk.lane, disk.boot, sealed=True)
            stream.set_disk(disk)
            _inherit(stream, opened.sinks.get(name, {}))
    shelf.streams = older | shelf.streams
    _renounce(shelf)
    if opened.damaged:
        _doubt(shelf)
    for name, number in opened.proved.items():
        stream = shelf.streams[name]
        stream.proved_on_disk = number
        stream.unpinned = max(stream.unpinned, number)
    newer = shelf.ledger.packets()
    for name, seq, origins in opened.origins:
        if seq <= shelf.streams[name].unpinned:
            continue  # forgotten, or known
        valid = tuple([origin for origin in origins if (origin.session, origin.packet_id) not in newer])
        if valid:
            _recall_row(shelf, shelf.streams[name], seq, valid)
    for loss in opened.losses:
        shelf.count(loss)
    covered = {lane: number for (ring, lane), number in opened.covered.items() if ring == shelf.flights.name}
    shelf.flights.skip_to(max(covered.values(), default=0))
    return covered


def _recall_row(shelf: Shelf, stream: Stream, seq: int, origins: tuple[Origin, ...]) -> None:
    home = Home()
    shelf.ledger.recall(origins, home, settled=True)
    held = stream.fresh.get(seq)
    if held is not None and held.home is None:  # it takes the place of the row, and knows less
        held.record, held.home = msgspec.structs.replace(held.record, origins=origins), home
    else:
        home.row = (stream.name, seq)
        stream.pins[seq] = home


def _inherit(stream: Stream, sinks: Mapping[str, int]) -> None:
    """What earlier processes wrote down of who has acked what."""
    stream.marks_on_disk = dict(sinks)
    stream.marks |= sinks
    stream.ackers |= dict.fromkeys(sinks)
    stream.inherited |= sinks.keys()


def _doubt(shelf: Shelf) -> None:
    """Something was lost: what is missing need not have been acked, what is unknown need not be new."""
    shelf.flights.doubt()
    for stream in shelf.streams.values():
        stream.inherited = frozenset()


def recover(shelf: Shelf, recovered: Recovered, now_s: float, *, sound: bool) -> None:
    """Takes over the ring's records under their old identity, and its origins.

    `sound`: neither store nor ring has lost anything, so what they do not know never was.
    """
    for entry, flown in recovered.records:
        flight = Flight(entry, len(flown))
        for record, at_ms in flown:
            stream = shelf.streams.get(record.stream)
            if stream is None:
                stream = shelf.older_stream(record.stream, record.lane)
            if record.seq in stream.pins and not record.origins:  # it takes the place of a row that knows more
                origins = shelf.ledger.of(stream.pins[record.seq])
                record = msgspec.structs.replace(record, origins=origins)
            held = Held(record, at_ms, batching.utc(at_ms, shelf.clock_state), now_s)
            held.flight = flight
            if record.origins:
                held.home = Home()
                shelf.ledger.recall(record.origins, held.home, settled=False)
            stream.insert(held)
            shelf.memory_bytes += held.bytes
    for entry, origins in recovered.origins:
        home = Home()
        home.entry = entry
        shelf.ledger.recall(origins, home, settled=True)
    for entry, name, sink in recovered.ackers:
        stream = shelf.streams.get(name)
        if stream is None or not sound or sink in stream.ackers:
            shelf.flights.free((entry,))
        else:
            stream.ackers[sink] = entry
            stream.marks.setdefault(sink, 0)
            stream.inherited |= {sink}
    shelf.flights.recall(recovered.sessions, {name: entry for entry, name, _ in recovered.distrusted})
    shelf.distrusted.update((name, mark) for _, name, mark in recovered.distrusted)
    _renounce(shelf)
    if sound:
        shelf.ledger.trust(recovered.sessions)
    else:
        _doubt(shelf)
    shelf.flights.free(recovered.useless)


def _renounce(shelf: Shelf) -> None:
    """What an earlier process distrusted is not used by this one either, as far as it is known by now."""
    for name, mark in shelf.distrusted.items():
        if name in shelf.streams:
            shelf.acked(shelf.streams[name], mark)
