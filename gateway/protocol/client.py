"""Pure: one session as the gateway sees it, and what all sessions of this process share.

The session owns its place in every stream, what is in flight, the window and the timing of acks. It is asked for the
next records to fetch (`want`), given them (`fetched`), given every message (`receive`), and answers with outputs that
the driver carries out in order. `README.md` beside this file is the specification; `[A6]` and the like are its numbers.

What holds, whatever the server sends:

* A record is sent only when it continues what this session sent of its stream, or what the sink is known to have: holes
  are filled by a gap first (`Fill`), so a sink never waits for something that nobody has.
* In flight stays within the window; alarms may exceed it by `ALARM_EXTRA`.
* Each nack rewinds once. A sink that expects the same number again and again is left.
* A stream of which the sink knows more than this process ever sent is not used again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Final

import msgspec

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.model import ClockState, GapReason, Json, Lane, Record, RecordKind, Result
from gateway.protocol.allowance import Allowance, Room
from gateway.protocol.command import Commands
from gateway.protocol.manifest import Flight, Manifest, Place
from gateway.protocol.messages import (
    MAX_OPEN_COMMANDS,
    Ack,
    CommandMessage,
    Flow,
    FromServer,
    GapBody,
    GatewayBye,
    Hello,
    Move,
    Nack,
    ResultAck,
    ResultMessage,
    ServerError,
    Stats,
    StreamOffer,
    Welcome,
    encode,
    encode_record,
)
from gateway.protocol.outputs import (
    Acked,
    Complaint,
    Distrust,
    Fetch,
    Fill,
    Hold,
    Missing,
    MoveAsked,
    Output,
    ResultStored,
    Seal,
    Send,
    Welcomed,
)
from gateway.protocol.watch import Watch

ALARM_EXTRA: Final = 4
"""Records of the alarm lane beyond the window."""
STORED_ELSEWHERE: Final = msgspec.json.encode(GapBody(GapReason.STORED_ELSEWHERE, 0))
OFFERED_SEALED: Final = 32
SAME_NACK_LIMIT: Final = 3
NACK_LIMIT: Final = 16
"""Different numbers without an ack of the stream in between."""


class ClientSession:
    """One connection, from hello to bye. `source` names the endpoint in commands."""

    def __init__(self, manifest: Manifest, source: str, standby: bool, watch: Watch | None = None) -> None:
        self.sink = ""
        self.active = False
        self._manifest = manifest
        self._standby = standby
        """What the server takes this session for."""
        self._state = "new"
        self._sending = False
        self._offered: tuple[StreamOffer, ...] = ()
        self._known_before: dict[tuple[str, str], int] = {}
        self._places: dict[str, Place] = {}
        self._blocked = False
        """The next record does not fit into what is left of the window."""
        self._allowance = Allowance()
        self._watch = watch or Watch()
        self._commands = Commands(source)
        self._results: set[str] = set()
        """Sent on this session, of those that still wait for their ack."""

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    def hello(
        self,
        process: str,
        software: str,
        clock: ClockState,
        offers: Sequence[StreamOffer],
        about: Mapping[str, Json],
        now: float,
    ) -> list[Output]:
        """The first message. `about`: the `devices` and `writable` members, as they are."""
        if self._state != "new":
            raise LocalProtocolError("hello is said once")
        self._state = "hello"
        self._manifest.learn(offers)
        opened = [offer for offer in offers if not offer.sealed]
        sealed = [offer for offer in offers if offer.sealed][:OFFERED_SEALED]
        self._offered = tuple(opened + sealed)
        self._known_before = self._manifest.marks()
        self._watch.hello(now)
        hello = Hello(
            process=process, software=software, clock=clock, standby=self._standby, streams=self._offered, **about
        )
        return [Send(encode(hello))]

    def _welcome(self, welcome: Welcome, now: float) -> list[Output]:
        if self._state != "hello":
            raise RemoteProtocolError("welcome comes once, after hello")
        self._state = "open"
        self.sink = welcome.sink
        self._allowance.grant(welcome.window)
        self._watch.paused(not welcome.window.batches, now)
        self._watch.welcomed(welcome.ack_budget_ms / 1000, now)
        self._commands.welcomed(welcome.mono_ms, now)
        outputs: list[Output] = [Welcomed(welcome.sink, welcome.session, welcome.utc_ms, self._watch.srtt_s)]
        for offer in self._offered:
            outputs += self._resume(offer, welcome.marks.get(offer.stream, 0))
        if welcome.open_commands:
            outputs.append(Missing(welcome.open_commands[:MAX_OPEN_COMMANDS]))
        return outputs

    def _resume(self, offer: StreamOffer, mark: int) -> list[Output]:
        """What the sink has of one stream [M2, M3, M4]."""
        if self._manifest.never_sent(offer.stream, mark):
            return self._distrust(offer.stream)
        if mark < self._known_before.get((self.sink, offer.stream), 0):
            self._manifest.went_back(self.sink, offer.stream, mark)
            if self._manifest.trusted(offer.stream):  # by the first update it may be offered no more
                self._places[offer.stream] = Place(offer, mark + 1)
            return []
        held = min(mark, offer.next - 1)
        self._manifest.acked(self.sink, offer.stream, held)
        return [Acked(offer.stream, held)] if held else []

    def _distrust(self, stream: str) -> list[Output]:
        self._manifest.distrust(stream)
        self._blocked = False  # perhaps all that filled the window was of this stream
        place = self._places.pop(stream, None)
        return [*([Hold(stream, 0)] if place else []), Distrust(stream)]

    def activate(self, now: float) -> list[Output]:
        """Records go this way from now on, after the welcome. A standby session tells the server so [P4]."""
        if self._state != "open":
            raise LocalProtocolError("only a welcomed session carries records")
        outputs: list[Output] = []
        if self._standby:
            outputs.append(Send(encode(Stats(values={}))))
            self._standby = False
        self.active = self._watch.active = self._sending = True
        self._watch.progress(now)
        for offer in self._offered:
            foreign = not offer.sealed and self._manifest.acked_elsewhere(self.sink, offer.stream)
            if foreign and self._manifest.trusted(offer.stream):
                outputs.append(Seal(offer.lane))
        return outputs

    def retire(self) -> None:
        """No further records; what is in flight may still be acked."""
        self._sending = False

    def bye(self, reason: str) -> list[Output]:
        self._sending = False
        if self._state != "open":
            return []
        self._state = "bye"
        return [Send(encode(GatewayBye(reason=reason)))]

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────

    def update(self, offers: Sequence[StreamOffer]) -> None:
        """What the buffer holds now; `want` decides from it."""
        if self._state == "open":
            self._offered = tuple(offers)
            self._manifest.learn(offers)
        gone = self._places.keys() - {offer.stream for offer in offers}
        for stream in gone:
            left = self._places[stream]
            if self._manifest.trusted(stream) and self._manifest.acked_by_any(stream) < left.next - 1:
                continue  # this sink lost it, and more streams wait than are offered
            left.next = left.at  # all of it is acked, by way of whatever session
            if not left.flights:
                del self._places[stream]
        for offer in offers:
            place = self._places.get(offer.stream)
            if place is not None:
                place.next, place.sealed = offer.next, offer.sealed
            elif self._sending and self._manifest.trusted(offer.stream):
                mark = self._manifest.mark(self.sink, offer.stream)
                self._places[offer.stream] = Place(offer, offer.first if mark is None else mark + 1)

    def idle(self, lane: Lane) -> bool:
        """Nothing of the open stream of this lane is in flight, and records may be sent: close the batch at once."""
        if not self._sending or not self._allowance.window.batches:
            return False
        return not any(p.flights or p.at < p.next for p in self._places.values() if p.lane is lane and not p.sealed)

    @property
    def streams(self) -> Collection[str]:
        """Those that this session is at."""
        return self._places.keys()

    def want(self, readings: bool = True, backlog: bool = True, but: Set[str] = frozenset()) -> Fetch | None:
        """The next records to send, as far as the window goes: alarms, then new readings, with a share for old ones.
        Without `readings` alarms only; without `backlog` what is sealed waits; of the streams in `but` nothing.
        """
        if not self._sending or not self._allowance.window.batches:
            return None
        for stream in but & self._places.keys():
            self._places[stream].filled = 0  # it may be asked for again: the buffer could not
        behind = [place for place in self._places.values() if place.at < place.next and place.stream not in but]
        alarm = next((place for place in behind if place.lane is Lane.ALARM), None)
        if alarm is not None:
            return self._fetch(alarm, self._room(ALARM_EXTRA))
        if self._blocked:
            return None
        live = next((place for place in behind if not place.sealed), None) if readings else None
        old = next((place for place in behind if place.sealed), None) if readings and backlog else None
        if old is not None:
            owed, spare = self._allowance.backlog(self._flying(backlog=True))
            fetch = self._fetch(old, self._room(0).least(spare if live is None else owed))
            if fetch is not None or live is None:
                return fetch
        return self._fetch(live, self._room(0)) if live is not None else None

    def _fetch(self, place: Place, room: Room) -> Fetch | None:
        return Fetch(place.stream, place.at, room.bytes, room.records) if room.records > 0 and room.bytes > 0 else None

    @property
    def in_flight(self) -> Room:
        """Records and bytes."""
        return self._flying()

    def _flying(self, backlog: bool = False) -> Room:
        places: Collection[Place] = self._places.values()
        if backlog:
            places = [place for place in places if place.sealed and place.lane is Lane.LIVE]
        return Room(sum([len(place.flights) for place in places]), sum([place.bytes for place in places]))

    def _room(self, extra: int) -> Room:
        return self._allowance.room(self._flying(), extra)

    def fetched(self, fetch: Fetch, records: Sequence[Record], now: float) -> list[Output]:
        """The answer to `want`."""
        place = self._places.get(fetch.stream)
        if place is None or place.at != fetch.seq or not self._sending:
            return []  # a nack or an ack came in between
        elsewhere = self._manifest.elsewhere(self.sink, place.stream, place.at)
        elsewhere = min(max(elsewhere, place.elsewhere), place.next - 1)
        if elsewhere >= place.at:  # also what is still held, for the sink that acked it [R7]
            records = [Record(place.stream, place.lane, place.at, RecordKind.GAP, STORED_ELSEWHERE, 0, elsewhere)]
        hole = (records[0].seq if records else place.next) - 1
        if hole >= place.at:
            known = self._manifest.mark(self.sink, place.stream) or 0
            place.at = max(place.at, min(known, hole) + 1)
            if hole >= place.at:
                return self._fill(place, hole)
        outputs: list[Output] = []
        flying, size = self._flying()
        for record in records[: fetch.max_records]:
            if record.seq > place.at:
                break  # a hole: the next fetch begins with it
            frame = encode_record(record)
            if flying and place.lane is not Lane.ALARM and size + len(frame) > self._allowance.bytes:
                self._blocked = True
                break
            outputs.append(Send(frame))
            if not flying:
                self._watch.progress(now)
            flying, size = flying + 1, size + len(frame)
            place.flights.append(Flight(record.upto, len(frame), now, record.upto > place.sent))
            place.bytes += len(frame)
            place.at = record.upto + 1
            place.sent = max(place.sent, record.upto)
            self._manifest.sending(place.stream, record.upto)
        if outputs:
            outputs.insert(0, Hold(place.stream, place.at - 1))
        return outputs

    def _fill(self, place: Place, hole: int) -> list[Output]:
        if place.filled == place.at:
            raise LocalProtocolError(f"the buffer has no record of {place.at}..{hole} of {place.stream}")
        place.filled = place.at
        return [Fill(place.stream, place.lane, place.at, hole)]

    def filled(self, stream: str, elsewhere: int) -> None:
        """The answer to `Fill`: up to here another sink has what was asked for; a gap stands for the rest."""
        place = self._places.get(stream)
        if place is not None:
            place.elsewhere = elsewhere

    def results(self, results: Iterable[Result]) -> list[Output]:
        """Sends what was not sent on this session yet [K5]. `results`: all that wait for their ack."""
        if self._state != "open" or not self._sending:
            return []
        results = list(results)
        new = [result for result in results if result.id not in self._results]
        self._results = {result.id for result in results}
        messages = [
            ResultMessage(id=r.id, outcome=r.outcome, reason=r.reason, value=r.value, utc_ms=r.utc_ms) for r in new
        ]
        return [Send(encode(message)) for message in messages]

    def stats(self, values: dict[str, Json]) -> list[Output]:
        return [Send(encode(Stats(values=values)))] if self._state == "open" and self.active else []

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, message: FromServer, now: float) -> list[Output]:
        """One message of the server. Raises RemoteProtocolError; its `code` closes the connection."""
        self._watch.heard(now)
        match message:
            case Welcome():
                return self._welcome(message, now)
            case ServerError():
                return [Complaint(message.reason)]
            case _ if self._state == "hello":
                raise RemoteProtocolError("the first message must be welcome")
            case Ack():
                return self._ack(message.marks, now)
            case Nack():
                return self._nack(message, now)
            case CommandMessage():
                return [self._commands.take(message, now)]
            case ResultAck():
                return [ResultStored(message.id)]
            case Flow():
                self._allowance.grant(message.window)
                self._watch.paused(not message.window.batches, now)
                self._blocked = False
                self._watch.progress(now)
                return [] if message.window.batches else self._watch.relieve()  # who asks for a pause is not dead [W3b]
            case Move():
                return [MoveAsked(message.deadline_ms / 1000, message.spread_ms / 1000, message.reason)]

    def _ack(self, marks: Mapping[str, int], now: float) -> list[Output]:
        outputs: list[Output] = []
        progress = False
        for stream, mark in marks.items():
            place = self._places.get(stream)
            if place is None:
                continue  # everything of it was acked and let go before [A3b]
            if self._manifest.never_sent(stream, mark):
                outputs += self._distrust(stream)
                continue
            held = min(mark, place.next - 1)  # of an earlier process the sink may know more [M4b]
            if held <= place.acked:
                continue  # overtaken by a later one [A3c]
            newest = place.land(held)
            self._manifest.acked(self.sink, stream, held)
            outputs.append(Acked(stream, held))
            if newest is not None:
                progress = True
                place.nacks.clear()
                if newest.sample:
                    self._watch.measure(now - newest.sent_at)
                    self._allowance.measured(now - newest.sent_at)
            if not place.flights:
                outputs.append(Hold(stream, 0))
        if progress:
            self._blocked = False
            self._watch.progress(now)
            outputs += self._watch.relieve()
        return outputs

    def _nack(self, nack: Nack, now: float) -> list[Output]:
        place = self._places.get(nack.stream)
        if place is None:
            return []
        if not 1 <= nack.expected <= place.sent:
            raise RemoteProtocolError(f"a nack that expects {nack.expected} after {place.sent} were sent")  # [A7]
        asked = place.nacks[nack.expected] = place.nacks.get(nack.expected, 0) + 1
        if asked >= SAME_NACK_LIMIT:
            raise RemoteProtocolError(f"number {nack.expected} was asked for {asked} times", 4410)
        if len(place.nacks) >= NACK_LIMIT:
            raise RemoteProtocolError(f"{len(place.nacks)} numbers were asked for again, and none was acked", 4410)
        place.rewind(nack.expected)
        # lower than an ack of this very session: the sink went back; lower than one of another session: they crossed
        if nack.expected <= place.acked:
            place.acked = nack.expected - 1
            self._manifest.went_back(self.sink, nack.stream, nack.expected - 1)
        place.filled = place.elsewhere = 0
        self._blocked = False
        self._watch.progress(now)
        return [Hold(nack.stream, place.at - 1 if place.flights else 0)]

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

    def pong(self, now: float, _: int = 0) -> list[Output]:
        self._watch.pong(now)
        return []

    def deadline(self) -> float | None:
        """When to call `tick`."""
        return self._watch.deadline(self._waits()) if self._state in ("hello", "open") else None

    def tick(self, now: float) -> list[Output]:
        return self._watch.tick(self._waits(), now) if self._state in ("hello", "open") else []

    def _waits(self) -> bool:
        """Records are in flight, and the server has not asked for a pause [W3]."""
        return bool(self._allowance.window.batches) and any(place.flights for place in self._places.values())
