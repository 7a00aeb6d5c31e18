"""Pure: how batches that were given up become gaps, and gaps become one."""

from __future__ import annotations

import msgspec

from gateway.buffer.schema import Stored
from gateway.model import GapReason, Lane, Record, RecordKind
from gateway.protocol.messages import GapBody


class Run:
    """Neighbouring records that become one gap."""

    def __init__(self, reason: GapReason) -> None:
        self.reason = reason
        self.first = self.last = 0
        self.batches = 0
        self.lost = 0
        self._readings = 0
        self._at_ms = 0
        self._since: int | None = None
        self._until: int | None = None

    def follows(self, seq: int) -> bool:
        return self.first == 0 or seq == self.last + 1

    def add(self, seq: int, readings: int, at_ms: int, utc_ms: int | None) -> None:
        self.batches += 1
        self.lost += readings
        self._extend(seq, seq, readings, at_ms, utc_ms, utc_ms)

    def absorb(self, seq: int, last: int, body: GapBody, at_ms: int) -> None:
        self._extend(seq, last, body.readings or 0, at_ms, body.since_utc_ms, body.until_utc_ms)

    def _extend(self, seq: int, last: int, readings: int, at_ms: int, since: int | None, until: int | None) -> None:
        self.first = self.first or seq
        self.last = last
        self._readings += readings
        self._at_ms = at_ms
        self._since = min((s for s in (self._since, since) if s is not None), default=None)
        self._until = max((u for u in (self._until, until) if u is not None), default=None)

    def gap(self, stream: str, lane: Lane) -> Stored:
        body = GapBody(self.reason, self._readings, "", self._since, self._until)
        return gap_record(stream, lane, self.first, self.last, body, self._at_ms, self._until)


def gap_record(stream: str, lane: Lane, seq: int, last: int, body: GapBody, at_ms: int, utc_ms: int | None) -> Stored:
    record = Record(stream, lane, seq, RecordKind.GAP, msgspec.json.encode(body), 0, last)
    return Stored(record, at_ms, utc_ms)


def gap_body(body: bytes) -> GapBody | None:
    try:
        return msgspec.json.decode(body, type=GapBody)
    except msgspec.MsgspecError:
        return None
