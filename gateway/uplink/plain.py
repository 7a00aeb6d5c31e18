"""Pure: a session with an endpoint that does not speak our protocol. It is driven like a `ClientSession`.

Each batch is sent as one text message of plain JSON (several, of a thousand readings each, when it is large):

    {"type": "readings", "gateway": "plant-7", "id": "9b1c…:17", "n": 5, "lane": "live", "clock": "synced",
     "readings": [{"device": "meter-1", "point": "u", "time": "2026-11-22T19:30:00.123Z", "value": 230.1, "unit": "V",
                   "quality": "good"}]}
    {"type": "gap", "gateway": "plant-7", "id": "9b1c…:18", "n": 6, "lane": "live", "reason": "evicted",
     "readings": 480, "device": "", "since": null, "until": null}

`id` names the message for ever, so a repeated one can be told; `n` counts the messages of this connection. `clock` is
the trust in the stamps, `quality` as `good` or `bad:comm_timeout`; a bad value is null. Stamps are put right as far as
the gateway knows when it sends; clock and end records are of no use to a peer without streams, and are not sent.

What counts as an ack is configured, and with it what is promised:

* `none`: what was handed to the socket counts as delivered. At most once.
* `pong`: a ping follows every message. Frames are consumed in order (RFC 6455 §5.5.3), so the pong says that the peer's
  WebSocket library has taken everything before it. At least once, that far.
* a path: a message of the peer holds, at this path, the `id` or the `n` that it acks. At least once, that far.

Nothing is known of what the peer has stored, so what was not acked is sent again on the next connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from gateway.codec.path import Path
from gateway.errors import DecodeError
from gateway.model import ClockState, Json, Lane, Record, RecordKind, Result, Trust
from gateway.protocol import batch
from gateway.protocol.allowance import Allowance, Room
from gateway.protocol.manifest import Flight, Manifest, Place
from gateway.protocol.messages import UNREADABLE, GapBody, StreamOffer
from gateway.protocol.outputs import Acked, Fetch, Hold, Output, Ping, Send, Welcomed
from gateway.protocol.watch import Watch

READINGS_PER_MESSAGE: Final = 1000
"""About 150 KB of JSON: many listeners take a megabyte and no more."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def sink_of(url: str) -> str:
    """Whoever listens there is a sink of its own."""
    return hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


class _Message(NamedTuple):
    id: str
    n: int
    frame: bytes


class PlainSession:
    """One connection. `ack` is `none`, `pong` or a path."""

    def __init__(self, manifest: Manifest, url: str, gateway: str, ack: str | Path, watch: Watch) -> None:
        self.sink = sink_of(url)
        self.active = False
        self._manifest = manifest
        self._gateway = gateway
        self._ack = ack
        self._watch = watch
        self._allowance = Allowance()
        self._sending = False
        self._places: dict[str, Place] = {}
        self._clocks: dict[str, ClockState] = {}
        """Boot → the best that is known of its clock."""
        self._n = 0
        self._waiting: dict[int, tuple[str, str, int]] = {}
        """n of a message that no ack has come for → its id, stream and number of its record."""
        self._done: dict[str, set[int]] = {}
        """Stream → records that were acked before one that precedes them."""

    # ── opening and closing ──────────────────────────────────────────────────────────────────────────────────────

    def hello(
        self,
        _process: str,
        _software: str,
        clock: ClockState,
        _o: Sequence[StreamOffer],
        _a: Mapping[str, Json],
        now: float,
    ) -> list[Output]:
        """Nothing is said: the peer is ready when the handshake is done."""
        self._clocks[clock.boot] = clock
        self._watch.hello(now)
        self._watch.welcomed(0.0, now)
        return [Welcomed(self.sink, "")]

    def activate(self, now: float) -> list[Output]:
        """Records go this way from now on."""
        self.active = self._watch.active = self._sending = True
        self._watch.progress(now)
        return []

    def retire(self) -> None:
        """No further records; what is in flight may still be acked."""
        self._sending = False

    def bye(self, _reason: str) -> list[Output]:
        self._sending = False
        return []

    def results(self, _results: Iterable[Result]) -> list[Output]:
        """Nobody asked for them here."""
        return []

    def stats(self, _values: dict[str, Json]) -> list[Output]:
        return []

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────

    def update(self, offers: Sequence[StreamOffer]) -> None:
        """What the buffer holds now; `want` decides from it."""
        gone = self._places.keys() - {offer.stream for offer in offers}
        for stream in gone:
            done = self._places[stream]
            done.next = done.at  # all of it is acked, by way of whatever session
            if not done.flights:
                del self._places[stream]
                self._done.pop(stream, None)
        for offer in offers:
            place = self._places.get(offer.stream)
            if place is not None:
                place.next, place.sealed = offer.next, offer.sealed
            elif self._sending:
                mark = self._manifest.mark(self.sink, offer.stream) or 0
                self._places[offer.stream] = Place(offer, max(offer.first, mark + 1))

    def idle(self, lane: Lane) -> bool:
        """Nothing of the open stream of this lane is in flight: the batch may be closed at once."""
        places = self._places.values()
        return self._sending and not any(p.flights or p.at < p.next for p in places if p.lane is lane and not p.sealed)

    @property
    def streams(self) -> Collection[str]:
        """Those that this session is at."""
        return self._places.keys()

    def want(self, readings: bool = True, backlog: bool = True, but: Set[str] = frozenset()) -> Fetch | None:
        """The next records to send: alarms, then new readings, with a share for old ones. See `ClientSession.want`."""
        if not self._sending:
            return None
        behind = [place for place in self._places.values() if place.at < place.next and place.stream not in but]
        alarm = next((place for place in behind if place.lane is Lane.ALARM), None)
        if alarm is not None:
            return self._fetch(alarm, self._allowance.room(self.in_flight, 1))
        live = next((place for place in behind if not place.sealed), None) if readings else None
        old = next((place for place in behind if place.sealed), None) if readings and backlog else None
        room = self._allowance.room(self.in_flight, 0)
        if old is not None:
            flying = [p for p in self._places.values() if p.sealed and p.lane is Lane.LIVE]
            owed, spare = self._allowance.backlog(_sum(flying))
            fetch = self._fetch(old, room.least(spare if live is None else owed))
            if fetch is not None or live is None:
                return fetch
        return self._fetch(live, room) if live is not None else None

    def _fetch(self, place: Place, room: Room) -> Fetch | None:
        return Fetch(place.stream, place.at, room.bytes, room.records) if room.records > 0 and room.bytes > 0 else None

    @property
    def in_flight(self) -> Room:
        """Records and bytes."""
        return _sum(self._places.values())

    def fetched(self, fetch: Fetch, records: Sequence[Record], now: float) -> list[Output]:
        """The answer to `want`. What is missing was acked by another sink, and is left out."""
        place = self._places.get(fetch.stream)
        if place is None or place.at != fetch.seq or not self._sending:
            return []
        if not records:
            place.at = place.next
        outputs: list[Output] = []
        for record in records[: fetch.max_records]:
            if outputs and self._allowance.room(self.in_flight, 0).bytes <= 0:
                break
            outputs += self._send(place, record, now)
        if place.flights:
            outputs.insert(0, Hold(place.stream, place.flights[-1].last))
        return outputs

    def _send(self, place: Place, record: Record, now: float) -> list[Output]:
        """One record; without an ack to wait for it has landed with this."""
        frames = tuple(self._frames(record))
        size = sum(len(frame) for _, _, frame in frames)
        if not self.in_flight.records:
            self._watch.progress(now)
        place.at = record.upto + 1
        self._manifest.sending(place.stream, record.upto)
        place.flights.append(Flight(record.upto, size, now, bool(frames) and record.upto > place.sent))
        place.sent = max(place.sent, record.upto)
        place.bytes += size
        outputs: list[Output] = []
        for name, number, frame in frames:
            outputs.append(Send(frame))
            if self._ack != "none":
                self._waiting[number] = name, place.stream, record.upto
            if self._ack == "pong":
                outputs.append(Ping(number))
        if self._ack == "none" or not frames:
            outputs += self._landed(place.stream, record.upto, now)
        return outputs

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _frames(self, record: Record) -> Iterable[_Message]:
        """The messages that this record makes; none where it means nothing to the peer."""
        name = f"{record.stream}:{record.seq}"
        try:
            match record.kind:
                case RecordKind.BATCH:
                    yield from self._batch(name, record, batch.decode(record.body))
                case RecordKind.GAP:
                    gap = msgspec.json.decode(record.body, type=GapBody)
                    said = {"reason": gap.reason.value, "readings": gap.readings, "device": gap.device}
                    times = {"since": _iso(gap.since_utc_ms), "until": _iso(gap.until_utc_ms)}
                    yield self._message("gap", name, record, {**said, **times})
                case RecordKind.CLOCK:
                    clock = msgspec.json.decode(record.body, type=ClockState)
                    self._clocks[clock.boot] = clock
                case RecordKind.END:
                    pass
        except (DecodeError, *UNREADABLE) as error:  # nobody can read it, here or there
            yield self._message("unreadable", name, record, {"error": str(error)})

    def _batch(self, name: str, record: Record, body: batch.Body) -> Iterable[_Message]:
        clock = body.clock
        if clock.trust is Trust.UNSYNCED:
            clock = self._clocks.get(clock.boot, clock)
        body = msgspec.structs.replace(body, clock=clock)
        readings = [
            {
                "device": reading.device,
                "point": reading.point,
                "time": _iso(reading.utc_ms),
                "value": reading.value,
                "unit": reading.unit,
                "quality": reading.status.value,
            }
            for reading in batch.readings(body)
        ]
        parts = [readings[i : i + READINGS_PER_MESSAGE] for i in range(0, len(readings), READINGS_PER_MESSAGE)]
        for number, part in enumerate(parts, start=1):
            own = name if len(parts) == 1 else f"{name}.{number}"
            yield self._message("readings", own, record, {"clock": clock.trust.value, "readings": part})

    def _message(self, kind: str, name: str, record: Record, content: Mapping[str, Json]) -> _Message:
        self._n += 1
        head = {"type": kind, "gateway": self._gateway, "id": name, "n": self._n, "lane": record.lane.value}
        return _Message(name, self._n, msgspec.json.encode({**head, **content}))

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, frame: bytes, now: float) -> list[Output]:
        """Whatever the peer says is no violation; with a path it may be an ack."""
        self._watch.heard(now)
        if not isinstance(self._ack, Path):
            return []
        try:
            said = self._ack.find(msgspec.json.decode(frame))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return []
        if type(said) is int:
            return self._acked(said, now)
        number = next((n for n, (name, _, _) in self._waiting.items() if name == said), None)
        return self._acked(number, now) if number is not None else []

    def pong(self, now: float, number: int = 0) -> list[Output]:
        """`number`: of the message that this ping followed."""
        self._watch.pong(now)
        return self._acked(number, now) if number else []

    def _acked(self, number: int, now: float) -> list[Output]:
        """One message arrived; its record has when no other message of it is missing."""
        if number not in self._waiting:
            return []
        _, stream, seq = self._waiting.pop(number)
        if any((stream, seq) == each[1:] for each in self._waiting.values()):
            return []
        return self._landed(stream, seq, now)

    def _landed(self, stream: str, seq: int, now: float) -> list[Output]:
        """Acks upwards are cumulative: a record waits here for those before it."""
        place = self._places.get(stream)
        if place is None:
            return []
        done = self._done.setdefault(stream, set())
        done.add(seq)
        mark = 0
        for flight in place.flights:
            if flight.last not in done:
                break
            mark = flight.last
            done.discard(mark)
        if not mark:
            return []
        newest = place.land(mark)
        self._manifest.acked(self.sink, stream, mark)
        outputs: list[Output] = [Acked(stream, mark)]
        if newest is not None and newest.sample and self._ack != "none":
            self._watch.measure(now - newest.sent_at)
            self._allowance.measured(now - newest.sent_at)
        if not place.flights:
            outputs.append(Hold(stream, 0))
        self._watch.progress(now)
        return outputs + self._watch.relieve()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def suspect(self) -> bool:
        """Acks are overdue."""
        return self._watch.suspect

    @property
    def srtt_s(self) -> float:
        return self._watch.srtt_s

    @property
    def ack_timeout_s(self) -> float:
        return self._watch.ack_timeout_s

    def deadline(self) -> float | None:
        """When to call `tick`."""
        return self._watch.deadline(bool(self.in_flight.records))

    def tick(self, now: float) -> list[Output]:
        return self._watch.tick(bool(self.in_flight.records), now)


def _sum(places: Iterable[Place]) -> Room:
    flying = [(len(place.flights), place.bytes) for place in places]
    return Room(sum(count for count, _ in flying), sum(size for _, size in flying))


def _iso(utc_ms: int | None) -> str | None:
    """None: there is none, or none that a calendar has."""
    if utc_ms is None:
        return None
    try:
        at = _EPOCH + timedelta(milliseconds=utc_ms)
    except OverflowError:
        return None
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"
