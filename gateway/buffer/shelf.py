"""Records in memory: numbered, in the ring, and what an ack or a commit does to them. Event loop only."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from weakref import WeakSet

import msgspec

from gateway.buffer import batching
from gateway.buffer.entries import NO_ROWS, Covers
from gateway.buffer.flights import Flights
from gateway.buffer.gaps import Run, gap_body, gap_record
from gateway.buffer.ledger import Home, OriginLedger
from gateway.buffer.ring import Entry
from gateway.buffer.schema import Loss
from gateway.buffer.streams import Held, Kept, Settling, Stream
from gateway.clock import Clock
from gateway.model import ClockState, GapReason, Lane, Origin, Record, RecordKind
from gateway.protocol.messages import GapBody, StreamOffer

log = logging.getLogger(__name__)

SEALED_OFFERED: Final = 32


class Shelf:
    """All streams and their fresh records."""

    def __init__(self, clock: Clock, flights: Flights, keep_acked_bytes: int) -> None:
        self._clock = clock
        self.flights = flights
        self._opened_s = clock.monotonic()
        self.clock_state = clock.state()
        self.earliest_offset_ms = self.clock_state.offset_ms
        """By the earliest UTC that was ever believed, the age of other boots' records: a step expires nothing."""
        self.streams: dict[str, Stream] = {}
        """Oldest first."""
        self.current: dict[Lane, Stream] = {}
        """The open stream of each lane."""
        self.distrusted: dict[str, int] = {}
        """Streams that are never used again, and up to where they had been acked by then."""
        self.ledger = OriginLedger(self._homeless, self._vouch)
        self._beside: WeakSet[Home] = WeakSet()
        """Of messages that may be at a sink, and that only this process knows of."""
        self.kept = Kept(keep_acked_bytes)
        self._confirmed = 0
        self.memory_bytes = 0
        """Of fresh records; the owner of the open batches adds theirs."""
        self.lost: Counter[GapReason] = Counter()
        self.gaps_of_unknown_size: Counter[GapReason] = Counter()
        self.trimmable: Callable[[], None] = _nobody
        """Told when rows on disk are of no more use."""

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def new_stream(self, lane: Lane) -> Stream:
        """A stream of this process; it is not current by that."""
        stream = Stream(secrets.token_hex(16), lane, self.clock_state.boot)
        stream.ours = True
        self.streams[stream.name] = stream
        return stream

    def older_stream(self, name: str, lane: Lane) -> Stream:
        """One that has ended, and of which nothing is known yet, or any more."""
        stream = self.streams[name] = Stream(name, lane, self.clock_state.boot, sealed=True)
        return stream

    def begin(self) -> None:
        """Opens the first streams of this process, once the older ones are known."""
        self.current = {lane: self.new_stream(lane) for lane in Lane}

    def seal(self, lane: Lane) -> bool:
        """Ends the current stream and opens another; False: nothing was in it."""
        stream = self.current[lane]
        if stream.next == 1:
            return False
        self.add(stream, [batching.Encoded(RecordKind.END, b"", 0)])
        stream.sealed = True
        self.current[lane] = self.new_stream(lane)
        return True

    def sweep(self) -> None:
        """Forgets ended streams of which nothing is left. Not while the store works."""
        for stream in [stream for stream in self.streams.values() if stream.sealed and stream.empty]:
            self.flights.forget(stream)
            del self.streams[stream.name]
        for name in self.distrusted.keys() - self.streams.keys() - self.flights.distrusted.keys():
            del self.distrusted[name]

    def distrust(self, stream: Stream) -> bool:
        """From now on no ack of it counts, and it is not offered. False: that is known."""
        if stream.name in self.distrusted:
            return False
        self.distrusted[stream.name] = stream.mark
        self.flights.distrust(stream.name, stream.mark)
        if not stream.sealed:
            stream.sealed = True
            self.current[stream.lane] = self.new_stream(stream.lane)
        return True

    def leave(self) -> None:
        """The process ends in order: of streams of which nothing is held, the next one need know nothing."""
        for stream in self.streams.values():
            if not stream.fresh and stream.disk is None:
                self.flights.forget(stream)

    def offers(self, *, grounded: bool) -> tuple[StreamOffer, ...]:
        """See `Outbox`. Records that are not in the ring are offered only with `grounded`."""
        wanted = [stream for stream in self.streams.values() if stream.waiting or stream.kept]
        sealed = [stream for stream in wanted if stream.sealed and stream.name not in self.distrusted]
        # stable: by age within a lane; last those of which a sink may want something back, each in its turn
        sealed.sort(key=lambda stream: (0, stream.lane is Lane.LIVE) if stream.waiting else (1, stream.confirmed))
        chosen = (*(self.current[lane] for lane in Lane), *sealed[:SEALED_OFFERED])
        return tuple([stream.offer(grounded=grounded) for stream in chosen])

    def waiting(self) -> tuple[int, float]:
        """Un-acked records, and the age of the oldest in seconds."""
        count, age_s = 0, 0.0
        now, boot_ms = self._clock.monotonic(), self.boot_ms()
        for stream in self.streams.values():
            count += stream.waiting
            if stream.fresh:
                age_s = max(age_s, now - next(iter(stream.fresh.values())).born_s)
            if stream.waiting_on_disk and stream.disk is not None:
                # of another boot nothing more is known for sure than that it is older than this process
                same_boot = stream.boot == self.clock_state.boot
                age_s = max(age_s, (boot_ms - stream.disk.first_at_ms) / 1000 if same_boot else now - self._opened_s)
        return count, age_s

    def boot_ms(self) -> int:
        return self._clock.boot_ns() // 1_000_000

    def set_clock(self, state: ClockState) -> None:
        if state.trust.own:
            believed = self.clock_state.trust.own
            self.earliest_offset_ms = min(self.earliest_offset_ms, state.offset_ms) if believed else state.offset_ms
        self.clock_state = state

    # ── rows and records ─────────────────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        stream: Stream,
        encoded: Sequence[batching.Encoded],
        rows: Sequence[Entry] = (),
        origins: Sequence[Origin] = (),
        settlings: Sequence[Settling] = (),
        born_s: float | None = None,
    ) -> None:
        """Numbers records of one batch and makes them fresh; they enter the ring together, in place of `rows`.

        `born_s`: from when on it counts how long they are not on disk; None: from now on.
        """
        at_ms, born_s = self.boot_ms(), self._clock.monotonic() if born_s is None else born_s
        utc_ms = batching.utc(at_ms, self.clock_state)
        helds = []
        alone = any(held.flight is None for held in list(stream.fresh.values())[-1:])
        for i, (kind, body, readings) in enumerate(encoded):
            # a message that had to be split is known by its last part: a power cut may repeat it, never lose it
            known = tuple(origins) if i == len(encoded) - 1 else ()
            held = Held(
                Record(stream.name, stream.lane, stream.next, kind, body, readings, 0, known), at_ms, utc_ms, born_s
            )
            held.settlings = tuple(settlings)
            stream.insert(held)
            helds.append(held)
            if kind is RecordKind.GAP:
                self.count_gap(body)
        for settling in settlings:
            settling.left += len(helds) - 1
        covers = Covers(rows[0].number, rows[-1].number) if rows else NO_ROWS
        # behind one that is not in the ring: of a dead process's stream that would leave the end, and a hole before it
        if not alone and self.flights.launch(helds, covers):
            self.flights.free(rows)
        else:
            helds[-1].grounded = rows
        if origins:
            helds[-1].home = home = Home()
            self.ledger.house(origins, home)
        self.memory_bytes += sum([held.bytes for held in helds])

    def report_corruption(self) -> None:
        """Something was damaged, and nobody knows what was in it: a gap of unknown size in the open stream."""
        body = msgspec.json.encode(GapBody(GapReason.CORRUPT))
        self.add(self.current[Lane.LIVE], [batching.Encoded(RecordKind.GAP, body, 0)])

    def fill(self, sink: str, stream: Stream, first: int, last: int) -> int:
        """Puts a gap where nothing is held and this sink misses something; returns up to where another sink has it.

        That it is elsewhere is true for this sink alone, and as long as the other one keeps it: no record says so."""
        middle = min(last, max(stream.stored_elsewhere(sink, first), first - 1))
        if middle < last:
            # of our own stream, what nobody acked was lost with a part of the store
            lost = stream.ours and middle >= stream.acked
            body = GapBody(GapReason.CORRUPT if lost else GapReason.UNSENT)
            self._add_gap(stream, middle + 1, last, body)
            self.count(Loss(body.reason, None))
            stream.mark = min(stream.mark, middle)  # or the gap would go from the disk before it is sent
        return middle

    def _add_gap(self, stream: Stream, first: int, last: int, body: GapBody) -> None:
        stored = gap_record(stream.name, stream.lane, first, last, body, self.boot_ms(), None)
        born_s = min([self._clock.monotonic(), *(held.born_s for held in stream.fresh.values())])
        self._insert(stream, Held(stored.record, stored.at_ms, stored.utc_ms, born_s))

    def move(self, stream: Stream, target: Stream) -> bool:
        """Gives fresh records another identity: that of the open stream `target`. False: some are in the ring, which
        has no room to replace them, and stay as safe as they are."""
        for _, group in itertools.groupby(list(stream.fresh.values()), lambda held: held.flight or held):
            olds = list(group)
            flight = olds[0].flight
            moving = [held for held in olds if held.record.kind is not RecordKind.END]
            news = [_renumbered(held, target.name, number) for number, held in enumerate(moving, target.next)]
            alone = any(held.flight is None for held in list(target.fresh.values())[-1:])
            if flight is None and any(held.grounded for held in stream.fresh.values()):
                return False  # the rows are: a commit that failed and is there all the same would have them go
            if news and flight is not None and (alone or not self.flights.relaunch(news, flight)):
                return False
            for old, new in zip(moving, news, strict=True):
                new.settlings, old.settlings = old.settlings, ()
                target.insert(new)
                self.memory_bytes += new.bytes
            for old in olds:
                self._remove(stream, old)
        return True

    def _insert(self, stream: Stream, held: Held) -> None:
        self.flights.launch([held])
        stream.insert(held)
        self.memory_bytes += held.bytes

    def _remove(self, stream: Stream, held: Held) -> None:
        del stream.fresh[held.record.seq]
        self.memory_bytes -= held.bytes
        self.flights.land(held)

    def hand_out(self, stream: Stream, records: Sequence[Record]) -> None:
        """They may be sent now."""
        for record in records:
            stream.sent = max(stream.sent, record.upto)
            held = stream.fresh.get(record.seq)
            if held is not None and held.home is not None and held.flight is None:
                self._doubt(held.home)

    # ── ack and commit ───────────────────────────────────────────────────────────────────────────────────────────────

    def ack(self, sink: str, stream: Stream, seq: int) -> None:
        if stream.name in self.distrusted:
            return  # it may be of the copy's records
        if not stream.sealed:
            seq = min(seq, stream.next - 1)
        if sink not in stream.ackers:
            stream.meet(sink)
            self.flights.acked_by(stream, sink)
        stream.marks[sink] = max(stream.marks.get(sink, 0), seq)
        if seq >= stream.next - 1:
            self._confirmed += 1
            stream.confirmed = self._confirmed
        self.acked(stream, seq)

    def acked(self, stream: Stream, seq: int) -> None:
        """By whomever, at some time."""
        if seq > stream.mark:
            stream.mark = seq
            stream.acked = max(stream.acked, seq)
            self._trim(stream)
        acked = []
        for held in stream.fresh.values():
            if held.record.upto > seq:
                break
            acked.append(held)
        for held in acked:
            self.kept.add(stream, held.record)
            if held.home is not None and held.home.left:
                held.home.entry = self.flights.remember(held, self.ledger.known(held.record.origins))
                if held.home.entry is None:
                    self._doubt(held.home)
            self._settle(stream, held)

    def committed(self, held: Held) -> None:
        """Its row is on disk. It may have been acked while it was written."""
        stream = self.streams[held.record.stream]
        if stream.fresh.get(held.record.seq) is not held:
            self._trim(stream)
            return
        home = held.home
        if home is not None and home.left:
            home.row = (stream.name, held.record.seq)
            stream.pins[held.record.seq] = home
        self._settle(stream, held)

    def _settle(self, stream: Stream, held: Held) -> None:
        self.ledger.settle(held.record.origins)
        self._remove(stream, held)
        settlings, held.settlings = held.settlings, ()
        for settling in settlings:
            settling.done()

    def _trim(self, stream: Stream) -> None:
        if stream.disk is not None and stream.disk.first <= stream.mark:
            self.trimmable()

    def rehouse(self, stream: Stream, target: Stream, moved: Mapping[int, int]) -> None:
        """Rows on disk that keep origins have another identity now."""
        for seq, number in moved.items():
            home = stream.pins.pop(seq, None)
            if home is None:  # forgotten while they moved
                target.unpinned = max(target.unpinned, number)
            else:
                home.row = (target.name, number)
                target.pins[number] = home

    def rows_made_room(self) -> None:
        """Acked rows went although they kept origins."""
        for stream in self.streams.values():
            self._move_out(stream, 1, stream.mark)

    def _move_out(self, stream: Stream, first: int, last: int) -> None:
        """These rows are gone, and their origins may still be sent again: the ring keeps them, where it has room."""
        for seq in [seq for seq in stream.pins if first <= seq <= last]:
            home = stream.pins.pop(seq)
            home.row = None
            home.entry = self.flights.keep(self.ledger.of(home))
            if home.entry is None:
                self._doubt(home)

    def _doubt(self, home: Home) -> None:
        """Killed now, nobody would know that its messages came before."""
        self._beside.add(home)
        self.flights.doubt()

    def _vouch(self, session: bytes) -> None:
        if not any(home.left and home.entry is None and home.row is None for home in self._beside):
            self.flights.vouch(session)

    def _homeless(self, home: Home) -> None:
        """The source will not send these messages again: nothing needs to remember them."""
        if home.entry is not None:
            self.flights.free((home.entry,))
        if home.row is not None:
            stream = self.streams.get(home.row[0])
            if stream is not None and stream.pins.get(home.row[1]) is home:
                del stream.pins[home.row[1]]
                stream.unpinned = max(stream.unpinned, home.row[1])
                self._trim(stream)
        home.entry = home.row = None

    # ── what is given up ─────────────────────────────────────────────────────────────────────────────────────────────

    def count(self, loss: Loss) -> None:
        """A gap says so; this is for status and, once for each reason, for the log. What had been taken from a source
        stays taken: the sink may have it although its ack never came."""
        if not self.lost[loss.reason] and not self.gaps_of_unknown_size[loss.reason]:
            log.warning("readings are given up: %s; further ones are counted in status", loss.reason.value)
        if loss.readings is None:
            self.gaps_of_unknown_size[loss.reason] += 1
        else:
            self.lost[loss.reason] += loss.readings
        if loss.stream in self.streams:
            self._move_out(self.streams[loss.stream], loss.first, loss.last)
        if loss.reason is GapReason.CORRUPT:
            self.flights.doubt()  # nobody knows which messages were in it

    def count_gap(self, body: bytes) -> None:
        gap = gap_body(body)
        if gap is not None:
            self.count(Loss(gap.reason, gap.readings))

    def shed(self, target_bytes: int) -> bool:
        """Gives up the oldest records that may be: readings first. False: none may."""
        freed = 0
        for lane in (Lane.LIVE, Lane.ALARM):
            for stream in list(self.streams.values()):
                if stream.lane is lane and freed < target_bytes:
                    freed += self._shed_stream(stream, target_bytes - freed)
        return freed > 0

    def _shed_stream(self, stream: Stream, target_bytes: int) -> int:
        run, freed = Run(GapReason.OVERFLOW), 0
        gone: list[Held] = []
        for held in list(stream.fresh.values()):
            if freed >= target_bytes:
                break
            record = held.record
            if not run.follows(record.seq):
                self._give_up(stream, run, gone)
                run, gone = Run(GapReason.OVERFLOW), []
            if held.evictable(stream.pinned):
                run.add(record.seq, record.readings, held.at_ms, held.utc_ms)
                freed += held.bytes
                gone.append(held)
            elif (body := stream.growing_gap(held)) is not None:
                run.absorb(record.seq, record.upto, body, held.at_ms)
                gone.append(held)
        self._give_up(stream, run, gone)
        return freed

    def _give_up(self, stream: Stream, run: Run, gone: Sequence[Held]) -> None:
        if not run.batches:
            return
        stored = run.gap(stream.name, stream.lane)
        gap = Held(stored.record, stored.at_ms, stored.utc_ms, gone[0].born_s)
        # behind one that is not in the ring it would leave a hole; where there is no room, there is after what it takes
        alone = any(held.flight is None for seq, held in stream.fresh.items() if seq < run.first)
        safe = alone or self.flights.launch([gap])
        for held in gone:
            self._remove(stream, held)
        if not safe:
            self.flights.launch([gap])
        stream.insert(gap)
        self.memory_bytes += gap.bytes
        self.count(Loss(run.reason, run.lost))


def _renumbered(held: Held, stream: str, number: int) -> Held:
    record = msgspec.structs.replace(held.record, stream=stream, seq=number, last=0)
    again = Held(record, held.at_ms, held.utc_ms, held.born_s)
    again.home = held.home
    return again


def _nobody() -> None:
    """Nobody wants to know yet."""
