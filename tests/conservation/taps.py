"""What the oracle sees of the product while it runs: who was given which identity, and which paths were walked.

The taps sit on methods of the product, change nothing, and are taken off again. A path that no schedule walks proves
nothing; `test_conservation.py` demands that each of `PATHS` is.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from gateway.buffer import batching, inheritance
from gateway.buffer.buffer import Buffer
from gateway.buffer.committer import Committer
from gateway.buffer.ledger import OriginLedger
from gateway.buffer.ring import Ring
from gateway.buffer.schema import Loss
from gateway.buffer.shelf import Shelf
from gateway.buffer.streams import Held, Stream
from gateway.ingest.connection import Uplink as Session
from gateway.ingest.fleet import CONFLICT
from gateway.model import Origin, Record, RecordKind
from gateway.protocol import batch
from gateway.protocol.client import ClientSession
from gateway.protocol.manifest import Manifest
from gateway.protocol.marks import Streams
from gateway.protocol.server import ServerSession
from gateway.uplink.failover import Failover
from gateway.uplink.session import Carrier
from gateway.uplink.uplink import Uplink
from tests.conservation.disk import ModelStore


class Made(NamedTuple):
    """What an identity names."""

    kind: RecordKind
    body: bytes
    readings: int
    last: int


class Witness:
    """Sees every identity that is ever given."""

    def __init__(self) -> None:
        self.made: dict[str, dict[int, Made]] = {}
        """Stream → number → what it names first. Gaps that came in its place later are not noted."""
        self.acked: dict[str, int] = {}
        """Stream → up to here some sink said that it has it, and the gateway heard it."""
        self.violations: list[str] = []
        self.seen: Counter[str] = Counter()
        self.moved: dict[tuple[str, int], tuple[str, int, int]] = {}
        """New stream and number of a gap → where it was before."""
        self.offered: dict[object, dict[str, int]] = {}
        """Session → stream → its next number, in the hello."""
        self.distrusted: dict[str, float] = {}
        """Stream → since when."""
        self.no_room: set[str] = set()
        """Streams of which the ring cannot tell that they are distrusted."""
        self.found_out = asyncio.Event()
        """That a stream is to be distrusted."""
        self.renumbered: set[str] = set()
        """Streams in which records were given numbers behind newer ones."""

    def inserted(self, held: Held) -> None:
        record = held.record
        self.note(record.stream, record.seq, Made(record.kind, record.body, record.readings, record.upto))

    def named(self, stream: str, first: int, last: int) -> Iterator[tuple[str, int, Made]]:
        """The batches that these numbers name: what a gap over them gives up."""
        made = self.made.get(stream, {})
        for seq in range(first, last + 1):
            if (stream, seq) in self.moved:
                yield from self.named(*self.moved[stream, seq])
            elif seq in made and made[seq].kind is RecordKind.BATCH:
                yield stream, seq, made[seq]

    def renumber(self, old: Record, new: Record) -> None:
        """A record has another identity from now on."""
        if old.kind is RecordKind.GAP:
            self.moved[new.stream, new.seq] = (old.stream, old.seq, old.upto)
        self.renumbered.add(new.stream)

    def note(self, stream: str, seq: int, made: Made) -> None:
        known = self.made.setdefault(stream, {}).setdefault(seq, made)
        if known is not made and made.kind is not RecordKind.GAP and known[:2] != made[:2]:
            self.violations.append(f"number {seq} of {stream} names two bodies")


def numbers(body: bytes) -> list[int]:
    """The rows of a batch body."""
    return [int(str(row.values[1])) for row in batch.rows(batch.decode(body))]


PATHS = (
    "sent",
    "acked",
    "nack sent",
    "nack heard",
    "not stored",
    "sink went back",
    "fill",
    "distrust",
    "moved on disk",
    "suspect",
    "recovered",
    "dead session",
    "hedge",
    "fail back",
    "asked to move",
    "evicted session",
    "live first",
    "sealed for another sink",
    "more than 32 sealed",
    "flow 0",
    "group failed",
    "part of a gap",
    "poison",
    "late frame of a dead process",
    "ring full",
    "ring held records",
    "ring held rows",
    "ring held origins",
    "ring held distrust",
    "a copy's stream could not be given away in time",
    "shed",
    "append waits",
    "lost evicted",
    "lost expired",
    "lost overflow",
    "lost oversize",
    "lost corrupt",
    "lost unsent",
    "rescue",
    "row repaired",
    "torn commit was there",
    "redelivery recognised",
    "redelivery settled",
    "redelivery of what the power cut took",
    "packet id used again",
    "kept batch sent again",
    "batch split",
    "dropped",
    "doubled",
    "overtaken",
    "kill",
    "power cut",
    "power cut took something",
    "drain",
    "clock synchronised",
    "clock step",
    "sink crash",
    "backup took something",
    "gap of stored_elsewhere",
    "real store",
    "real sink",
    "no ring",
    "refuse when full",
)
"""Each must be walked in a campaign."""

_OUTPUTS = {
    "Fill": "fill",
    "Distrust": "distrust",
    "Suspect": "suspect",
    "Recovered": "recovered",
    "Dead": "dead session",
    "MoveAsked": "asked to move",
    "Seal": "sealed for another sink",
    "Acked": "acked",
    "Send": "sent",
}


class Taps:
    """`with taps:` puts them on; `taps.witness` is whoever is looking."""

    def __init__(self) -> None:
        self.witness = Witness()

    @contextmanager
    def on(self) -> Iterator[Taps]:
        with ExitStack() as stack:
            for owner, name, tap in self._places():
                original = getattr(owner, name)
                stack.enter_context(mock.patch.object(owner, name, _wrapped(original, tap)))
            yield self

    def _places(self) -> Sequence[tuple[Any, str, Callable[..., Callable[[Any], None] | None]]]:
        count = self._count
        return (
            (Stream, "insert", self._insert),
            (Shelf, "ack", self._ack),
            (Shelf, "count", self._loss),
            (Shelf, "shed", lambda *_, **__: lambda freed: count("shed") if freed else None),
            (inheritance, "recover", self._recover),
            (Shelf, "move", self._renumber),
            (ModelStore, "rescue", lambda *_, **__: count("rescue")),
            (Committer, "change", lambda *_, **__: count("append waits")),
            (Ring, "put", lambda *_, **__: lambda entry: count("ring full") if entry is None else None),
            (OriginLedger, "accept", self._accept),
            (ClientSession, "_nack", lambda *_, **__: count("nack heard")),
            (ClientSession, "fetched", self._fetched),
            (ClientSession, "hello", self._hello),
            (Shelf, "distrust", self._distrust),
            (Manifest, "went_back", lambda *_, **__: count("sink went back")),
            (Carrier, "_at_once", lambda _, output, *__, **___: self._output(output)),
            (Carrier, "_perform", self._perform),
            (ServerSession, "_nack", self._nack),
            (Streams, "failed", lambda *_, **__: count("group failed")),
            (Streams, "settle", self._settle),
            (Failover, "_activate", self._activate),
            (Failover, "_retire", self._retire),
            (Buffer, "offers", self._offers),
            (Uplink, "live_first", self._live_first),
            (Session, "close", lambda _, code, *__: count("evicted session") if code == CONFLICT else None),
            (batching, "encode", lambda *_, **__: lambda made: count("batch split") if len(made) > 1 else None),
        )

    def _count(self, path: str) -> None:
        self.witness.seen[path] += 1

    def _insert(self, stream: Stream, held: Held, *_: object, **__: object) -> None:
        self.witness.inserted(held)

    def _ack(self, shelf: Shelf, sink: str, stream: Stream, seq: int, *_: object, **__: object) -> None:
        acked = self.witness.acked
        acked[stream.name] = max(acked.get(stream.name, 0), min(seq, stream.next - 1))

    def _loss(self, shelf: Shelf, loss: Loss, *_: object, **__: object) -> None:
        self._count(f"lost {loss.reason.value}")

    def _recover(self, shelf: Shelf, recovered: Any, *_: object, **__: object) -> None:
        self.witness.seen["ring held records"] += len(recovered.records)
        self.witness.seen["ring held rows"] += len(recovered.loose)
        self.witness.seen["ring held origins"] += len(recovered.origins)
        self.witness.seen["ring held distrust"] += len(recovered.distrusted)

    def _distrust(self, shelf: Shelf, stream: Stream) -> Callable[[Any], None]:
        witness = self.witness
        witness.distrusted.setdefault(stream.name, shelf._clock.monotonic())
        witness.found_out.set()

        def told(_: object) -> None:
            if stream.name not in shelf.flights.distrusted and witness.seen["ring full"] > full:
                witness.no_room.add(stream.name)

        full = witness.seen["ring full"]
        return told

    def _renumber(self, shelf: Shelf, stream: Stream, target: Stream, *_: object) -> Callable[[Any], None]:
        before = [held.record for held in stream.fresh.values() if held.record.kind is not RecordKind.END]

        def told(_: object) -> None:
            gone = [old for old in before if old.seq not in stream.fresh]
            after = [held.record for held in target.fresh.values()][-len(gone) :] if gone else []
            for old, new in zip(gone, after, strict=True):
                self.witness.renumber(old, new)

        return told

    def _accept(self, ledger: OriginLedger, origin: Origin, *_: object, **__: object) -> None:
        session = ledger._sessions.get(origin.session, {})
        if origin.packet_id in session and session[origin.packet_id].fingerprint != origin.fingerprint:
            self._count("packet id used again")

    def _fetched(self, session: ClientSession, fetch: Any, records: Any, *_: object, **__: object) -> None:
        acked = self.witness.acked.get(fetch.stream, 0)
        if records and records[0].upto <= acked and records[0].kind is RecordKind.BATCH:
            self._count("kept batch sent again")

    def _hello(self, session: ClientSession, *_: object, **__: object) -> Callable[[Any], None]:
        def told(_: object) -> None:
            self.witness.offered[session] = {offer.stream: offer.next for offer in session._offered}

        return told

    def _output(self, output: object) -> None:
        path = _OUTPUTS.get(type(output).__name__)
        if path is not None:
            self._count(path)

    def _perform(self, carrier: Carrier, wanted: Sequence[object], *_: object, **__: object) -> None:
        for output in wanted:
            if type(output).__name__ in ("Fill", "Distrust", "Dead"):
                self._output(output)

    def _nack(self, session: ServerSession, stream: str, expected: int, reason: str = "") -> Callable[[Any], None]:
        def told(outputs: Sequence[object]) -> None:
            if outputs:
                self._count("nack sent")
                if reason:
                    self._count("not stored")

        return told

    def _settle(self, streams: Streams, entry: Any, mark: int, *_: object, **__: object) -> None:
        if mark < entry.last:
            self._count("store refused")

    def _activate(self, failover: Failover, *_: object, **__: object) -> None:
        if any(each.state.value == "suspect" for each in failover._connections.values()):
            self._count("hedge")

    def _retire(self, failover: Failover, connection: Any, reason: str, *_: object, **__: object) -> None:
        if reason == "back to a better endpoint":
            self._count("fail back")

    def _live_first(self, uplink: Uplink) -> Callable[[Any], None]:
        before = uplink._sealed_at

        def told(_: object) -> None:
            if uplink._sealed_at != before:
                self._count("live first")

        return told

    def _offers(self, buffer: Buffer) -> Callable[[Any], None]:
        def told(offers: Sequence[Any]) -> None:
            if len(offers) >= 34:
                self._count("more than 32 sealed")

        return told


def _wrapped(original: Any, tap: Any) -> Any:
    """Calls the tap, then the original; what the tap returned is called with the result."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        after = tap(*args, **kwargs)
        result = original(*args, **kwargs)
        if after is not None:
            after(result)
        return result

    return call
