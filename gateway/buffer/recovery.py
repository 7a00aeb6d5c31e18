"""Pure: what the flight ring of an earlier process says, sorted out.

Records keep their identity. Rows that a record covers are in that record; the others are loose and will get a new
identity. A gap stands for the records that it covers, a record that was moved for what it was before. An entry that
cannot be understood is given back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from gateway.buffer.entries import (
    ACKER,
    DISTRUST,
    MOVED,
    ORIGINS,
    RECORDS,
    ROWS,
    SESSION,
    Covers,
    Flown,
    decode_acker,
    decode_distrust,
    decode_origins,
    decode_records,
    decode_rows,
)
from gateway.buffer.ring import Entry, Found
from gateway.errors import DecodeError
from gateway.model import Lane, Origin, Record, RecordKind, Row


class Loose(NamedTuple):
    """Rows that are in no record."""

    entry: Entry
    lane: Lane
    rows: list[Row]


class Recovered(NamedTuple):
    """Everything in order of age."""

    records: Sequence[tuple[Entry, Sequence[Flown]]]
    loose: Sequence[Loose]
    origins: Sequence[tuple[Entry, tuple[Origin, ...]]]
    ackers: Sequence[tuple[Entry, str, str]]
    """Streams, and the sinks that have acked something of them."""
    sessions: Mapping[bytes, Entry]
    distrusted: Sequence[tuple[Entry, str, int]]
    """Streams, and up to where they had been acked."""
    useless: Sequence[Entry]
    damaged: int
    """Entries that have a good checksum and make no sense: another version wrote them."""

    def behind(self) -> Recovered:
        """A process that did not have this ring came after it: what it says of sources need not be so any more.

        The broker may use a number again, even for an equal message, and what is known by mistake would be lost.
        """
        gone = [entry for entry, _ in self.origins] + list(self.sessions.values())
        return self._replace(
            records=[
                (entry, [Flown(msgspec.structs.replace(record, origins=()), at_ms) for record, at_ms in flown])
                for entry, flown in self.records
            ],
            loose=[
                each._replace(rows=[msgspec.structs.replace(row, origin=None) for row in each.rows])
                for each in self.loose
            ],
            origins=(),
            sessions={},
            useless=[*self.useless, *gone],
        )


def sort_out(found: Sequence[Found], stored: Mapping[Lane, int]) -> Recovered:
    """`stored`: rows of a lane up to this entry number are in the store."""
    records: list[tuple[Entry, list[Flown]]] = []
    rows: list[Loose] = []
    origins: list[tuple[Entry, tuple[Origin, ...]]] = []
    ackers: list[tuple[Entry, str, str]] = []
    sessions: dict[bytes, Entry] = {}
    distrusted: list[tuple[Entry, str, int]] = []
    moved: set[int] = set()
    useless: list[Entry] = []
    covered: list[tuple[Lane, Covers]] = []
    damaged = 0
    for entry, kind, payload in found:
        try:
            if kind == ROWS:
                rows.append(Loose(entry, *decode_rows(payload)))
            elif kind in (RECORDS, MOVED):
                flown, covers = decode_records(payload)
                records.append((entry, flown))
                if kind == MOVED:
                    moved.add(covers.first)
                else:
                    covered += [(each.record.lane, covers) for each in flown[:1]]
            elif kind == ORIGINS:
                origins.append((entry, decode_origins(payload)))
            elif kind == ACKER:
                ackers.append((entry, *decode_acker(payload)))
            elif kind == SESSION:
                sessions[payload] = entry
            elif kind == DISTRUST:
                distrusted.append((entry, *decode_distrust(payload)))
            else:
                raise DecodeError(f"entries of kind {kind} are not known")
        except DecodeError:
            damaged += 1
            useless.append(entry)
    valid = []
    gaps: list[Record] = []
    for entry, flown in reversed(records):  # the newest first: only what is newer stands for something
        left = [each for each in flown if not any(_stands_for(gap, each.record) for gap in gaps)]
        left = left if entry.number not in moved else []
        gaps += [each.record for each in left if each.record.kind is RecordKind.GAP]
        if left:
            valid.append((entry, left))
        else:
            useless.append(entry)
    valid.reverse()
    loose = []
    for each in rows:
        if each.entry.number <= stored.get(each.lane, 0) or any(
            lane is each.lane and span.first <= each.entry.number <= span.last for lane, span in covered
        ):
            useless.append(each.entry)
        else:
            loose.append(each)
    return Recovered(valid, loose, origins, ackers, sessions, distrusted, useless, damaged)


def _stands_for(gap: Record, record: Record) -> bool:
    return gap.stream == record.stream and gap.seq <= record.seq and record.upto <= gap.upto
