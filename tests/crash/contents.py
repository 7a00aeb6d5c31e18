"""What a store holds, in a form that can be compared: the child dumps it, and so does whoever opens a crash image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.buffer.schema import Stored
from gateway.buffer.store import Store
from gateway.model import RecordKind
from gateway.protocol.messages import GapBody

ALL: Final = 1 << 40

Row = tuple[str, int, int, str, str]
"""Stream, number, last number, kind, what is in it."""


def row(stored: Stored) -> Row:
    record = stored.record
    digest = hashlib.blake2b(record.body + repr(record.origins).encode(), digest_size=8).hexdigest()
    if record.kind is RecordKind.GAP:
        body = msgspec.json.decode(record.body, type=GapBody)
        digest = f"{body.reason.value} {body.readings}"
    return record.stream, record.seq, record.upto, record.kind.name, digest


def rows(records: Sequence[Stored]) -> list[Row]:
    return [row(each) for each in records]


def contents(store: Store) -> list[Row]:
    """Everything, in order of stream and number."""
    found: list[Row] = []
    for name, disk in sorted(((store._records and store._records.disks) or {}).items()):
        at = 0
        while at <= disk.last and (chunk := Store.read(store, name, at, ALL)[0]):
            found += rows(chunk)
            at = chunk[-1].record.upto + 1
    return found
