"""An outbox and a command router in memory that keep the contracts of `gateway/uplink/ports.py`, and check ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import msgspec

from gateway.model import Command, GapReason, Lane, Record, RecordKind, Result
from gateway.protocol.messages import GapBody, StreamOffer

_numbers = iter(range(1, 1 << 62))


def stream_id() -> str:
    return f"{next(_numbers):032x}"


class _Stream:
    def __init__(self, lane: Lane) -> None:
        self.id = stream_id()
        self.lane = lane
        self.sealed = False
        self.next = 1
        self.records: dict[int, Record] = {}
        self.acked: dict[str, int] = {}

    @property
    def free(self) -> int:
        return max(self.acked.values(), default=0)

    def add(self, kind: RecordKind, body: bytes, last: int = 0) -> None:
        record = Record(self.id, self.lane, self.next, kind, body, readings=1, last=last)
        self.records[self.next] = record
        self.next = record.upto + 1


class MemoryOutbox:
    """Each `put` is a row; `close` makes a record of the rows that wait."""

    def __init__(self, keep_acked: bool = True) -> None:
        self.streams: dict[str, _Stream] = {}
        self.open: dict[Lane, _Stream] = {}
        self.rows: dict[Lane, list[object]] = {Lane.ALARM: [], Lane.LIVE: []}
        self.keep_acked = keep_acked
        self.held: dict[str, int] = {}
        self.up = self.patient = False
        self.age_s = 0.0
        self.fills: list[tuple[str, str, int, int]] = []
        self.sealed: list[str] = []
        self.distrusted: list[str] = []
        self._wakes: list[Callable[[], None]] = []
        self._open(Lane.LIVE)

    def _open(self, lane: Lane) -> _Stream:
        stream = _Stream(lane)
        self.streams[stream.id] = self.open[lane] = stream
        return stream

    def put(self, row: object, lane: Lane = Lane.LIVE) -> None:
        self.rows[lane].append(row)
        self.wake()

    def wake(self) -> None:
        for wake in self._wakes:
            wake()

    def unacked(self) -> list[Record]:
        return [r for s in self.streams.values() for r in s.records.values() if r.upto > s.free]

    # ── the port ─────────────────────────────────────────────────────────────────────────────────────────────────

    def offers(self) -> tuple[StreamOffer, ...]:
        opened = [self.open[lane] for lane in (Lane.ALARM, Lane.LIVE) if lane in self.open]
        sealed = [s for s in self.streams.values() if s.sealed and s.free < s.next - 1]
        sealed.sort(key=lambda s: s.lane is Lane.LIVE)
        return tuple(StreamOffer(s.id, s.lane, min(s.free + 1, s.next), s.next, s.sealed) for s in (*opened, *sealed))

    def holds(self) -> Collection[str]:
        return self.streams.keys()

    def waiting(self) -> tuple[int, float]:
        return len(self.unacked()), self.age_s

    def close(self, lane: Lane) -> bool:
        rows, self.rows[lane] = self.rows[lane], []
        if not rows:
            return False
        stream = self.open.get(lane) or self._open(lane)
        stream.add(RecordKind.BATCH, msgspec.json.encode({"rows": rows}))
        return True

    async def fetch(self, stream: str, seq: int, max_bytes: int) -> Sequence[Record]:
        assert max_bytes > 0
        await asyncio.sleep(0)
        found: list[Record] = []
        records = self.streams[stream].records
        for number in sorted(records):
            record = records[number]
            if record.upto < seq or (not self._kept(self.streams[stream], record)):
                continue
            if found and sum(len(r.body) for r in found) + len(record.body) > max_bytes:
                break
            found.append(record)
        return found

    def _kept(self, stream: _Stream, record: Record) -> bool:
        return self.keep_acked or record.kind is RecordKind.GAP or record.upto > stream.free

    def hold(self, stream: str, upto: int) -> None:
        self.held[stream] = upto

    def ack(self, sink: str, stream: str, seq: int) -> None:
        known = self.streams[stream]
        assert 0 < seq < known.next, "an ack of what was never made"
        known.acked[sink] = max(seq, known.acked.get(sink, 0))

    async def fill(self, sink: str, stream: str, lane: Lane, first: int, last: int) -> int:
        self.fills.append((sink, stream, first, last))
        known = self.streams[stream]
        if any(other != sink and mark >= last for other, mark in known.acked.items()):
            return last
        body = msgspec.json.encode(GapBody(GapReason.UNSENT))
        for number in [n for n in known.records if first <= n <= last]:
            del known.records[number]
        known.records[first] = Record(stream, known.lane, first, RecordKind.GAP, body, last=last)
        return first - 1

    def seal(self, lane: Lane) -> None:
        self.close(lane)
        stream = self.open.pop(lane, None)
        if stream is not None:
            stream.add(RecordKind.END, b"")
            stream.sealed = True
            self.sealed.append(stream.id)
        if lane is Lane.LIVE:
            self._open(lane)

    async def distrust(self, stream: str) -> None:
        self.distrusted.append(stream)
        gone = self.streams.pop(stream)
        self.open.pop(gone.lane, None)
        fresh = self._open(gone.lane)
        for record in gone.records.values():
            if record.upto > gone.free and record.kind is RecordKind.BATCH:
                fresh.add(record.kind, record.body)
        self.wake()

    def online(self, up: bool, patient: bool = False) -> None:
        self.up, self.patient = up, patient

    def listen(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)


class MemoryCommands:
    def __init__(self) -> None:
        self.received: list[Command] = []
        self.missed: list[str] = []
        self.open_results: dict[str, Result] = {}
        self._wake: Callable[[], None] = lambda: None

    def finish(self, result: Result) -> None:
        self.open_results[result.id] = result
        self._wake()

    def receive(self, command: Command) -> None:
        self.received.append(command)

    def missing(self, open_ids: Sequence[str]) -> None:
        self.missed += open_ids

    def results(self) -> Sequence[Result]:
        return list(self.open_results.values())

    def acked(self, command_id: str) -> None:
        self.open_results.pop(command_id, None)

    def listen(self, wake: Callable[[], None]) -> None:
        self._wake = wake
