"""A gateway that means harm, or has lost its mind, against the server's side of its sessions.

Three sessions of one gateway over one store that commits late, fails, and forgets what was not committed. What must
hold whatever comes: nothing but `RemoteProtocolError` leaves a session, memory stays within bounds, nothing is stored
behind an end, and no ack or welcome is ahead of the store.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from typing import Any

import pytest

from gateway.errors import RemoteProtocolError
from gateway.model import Lane, RecordKind
from gateway.protocol.entry import Entry
from gateway.protocol.marks import MAX_STREAMS, Mark, Streams
from gateway.protocol.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    Nack,
    Welcome,
    decode_from_gateway,
    decode_from_server,
    encode,
)
from gateway.protocol.server import Greet, LookUp, Output, Send, ServerSession, Store, StoreResult

STREAMS = 12
"""Known to the gateway at a time; now and then it makes up thousands."""
UNDER_WAY = 64
"""Entries that the driver lets wait for the store."""
EXTREME = (0, -1, 1, 2, 2**31, 2**53, 2**63 - 1, 2**63, 2**70)
CLOCK = {"boot": "b" * 32, "offset_ms": 0, "error_ms": -1, "trust": "unsynced"}


class House:
    """A store, its sessions, and the gateway that attacks them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.messages = 0
        self.ends: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.frames: list[bytes] = []
        self.stored: dict[str, tuple[int, Lane, bool]] = {}
        """Stream → mark, lane, ended: what is committed."""
        self.names = [self.id() for _ in range(STREAMS)]
        self.sent: Counter[str] = Counter()
        self.restart()

    def id(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    # ── the server ───────────────────────────────────────────────────────────────────────────────────────────────

    def restart(self) -> None:
        """What waits is lost; what is committed stays."""
        self.streams = Streams()
        self.group: list[Entry] = []
        self.sessions = [ServerSession("g", str(n), self.streams, self.now) for n in range(3)]

    def mark(self, stream: str) -> Mark:
        return Mark(*self.stored[stream]) if stream in self.stored else Mark()

    def act(self, session: ServerSession, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Greet(hello):
                    marks = {offer.stream: self.mark(offer.stream) for offer in hello.streams}
                    self.act(session, session.welcome("c" * 32, marks, (), 0, self.now))
                case LookUp(stream):
                    self.act(session, session.learned(stream, self.mark(stream)))
                case Store(entry):
                    self.group.append(entry)
                case StoreResult(result):
                    self.act(session, session.result_stored(result.id))
                case Send(message):
                    self.said(decode_from_server(encode(message)))

    def said(self, message: object) -> None:
        match message:
            case Ack(marks=marks):
                assert marks
                for stream, mark in marks.items():
                    assert 0 < mark <= self.mark(stream).number, "no ack is ahead of the store"
            case Nack(stream=stream, expected=expected):
                assert self.mark(stream).number < expected < 2**63
                if self.random.random() < 0.7:  # it does as it is told
                    self.sent[stream] = expected - 1
            case Welcome(marks=marks):
                for stream, mark in marks.items():
                    assert mark == self.mark(stream).number

    def commit(self) -> None:
        """One transaction, or none; a store that was restored would say another mark, which is for another test."""
        group, self.group = self.group, []
        if self.random.random() < 0.1:
            self.streams.failed(group)
        else:
            for entry in group:
                known = self.mark(entry.stream).number
                if entry.seq <= known + 1 and entry.last > known:
                    assert not self.mark(entry.stream).ended, "nothing is stored behind an end"
                    ended = entry.kind is RecordKind.END
                    self.stored[entry.stream] = (entry.last, entry.lane, ended)
            for entry in group:
                self.streams.settle(entry, self.mark(entry.stream).number)
        for session in self.sessions:
            self.act(session, session.flush())

    # ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────

    def name(self) -> str:
        pick = self.random.random()
        if pick < 0.99:
            return self.random.choice(self.names)
        return self.random.choice(("", "x", "A" * 32, "g" * 32, self.id(), "0" * 31))

    def number(self, stream: str) -> int:
        if self.random.random() < 0.98:
            return max(0, self.sent[stream] + self.random.choice((1, 1, 1, 1, 1, 0, -2, 2, 5)))
        return self.random.choice(EXTREME)

    def body(self) -> Any:
        group = {
            "device": "d",
            "points": ["p"],
            "units": ["V"],
            "t": [0],
            "v": [[self.random.choice((1, 2**70, None))]],
        }
        return self.random.choice(
            (
                {"clock": CLOCK, "base_ms": self.random.choice((0, 2**62)), "groups": [group]},
                {"clock": CLOCK, "base_ms": 0, "groups": [{**group, "t": [0] * 5000, "v": [[1] * 5000]}]},
                {"clock": CLOCK, "base_ms": 0, "groups": [{**group, "v": [[1, 2]]}]},
                {
                    "reason": self.random.choice(("evicted", "because")),
                    "readings": self.random.choice((1, 2**80, None)),
                },
                {},
                [],
                None,
                CLOCK,
                {"x": [[[[[[]]]]]]},
            )
        )

    def record(self) -> dict[str, Any]:
        stream = self.name()
        seq = self.number(stream)
        kind = self.random.choices(("batch", "gap", "clock", "end"), (80, 10, 5, 0.5))[0]
        lane = "live" if self.random.random() < 0.995 else "alarm"
        message = {"type": kind, "stream": stream, "lane": lane, "seq": seq, "body": self.body()}
        if kind == "gap":
            message["last"] = seq + self.random.choice((0, 0, 0, 1, 1, 1, 3, 3, -1, 2**40))
        if kind == "end":
            del message["body"]
            if self.random.random() < 0.5:  # else it goes on behind the end
                self.names[self.random.randrange(STREAMS)] = self.id()
        if 0 < seq < 2**40 and message.get("last", seq) < 2**40:
            self.sent[stream] = message.get("last", seq)
        if len(self.sent) > 1000:
            self.sent.clear()
        return message

    def hello(self) -> dict[str, Any]:
        streams = [
            {"stream": self.name(), "lane": "live", "first": 1, "next": self.random.choice(EXTREME)}
            for _ in range(self.random.choice((0, 1, 2, 5, 5, 64, 65)))
        ]
        if self.random.random() < 0.8:
            streams = [offer for offer in streams if offer["stream"] in self.names]
        process = "f" * 32 if self.random.random() < 0.98 else self.name()
        return {
            "type": "hello",
            "process": process,
            "software": "t",
            "clock": CLOCK,
            "streams": streams,
            "standby": self.random.random() < 0.3,
        }

    def message(self) -> dict[str, Any]:
        pick = self.random.random()
        if pick < 0.9:
            return self.record()
        if pick < 0.93:
            ids = self.random.choice(("c", "x" * 1000, ""))
            return {"type": "result", "id": ids, "outcome": "ok", "utc_ms": self.random.choice((None, *EXTREME))}
        if pick < 0.97:
            return {"type": "stats", "values": {"x": self.random.choice((1, [[[]]], "y" * 50))}}
        return self.hello() if pick < 0.975 else {"type": "bye"}

    def frame(self, session: ServerSession) -> bytes:
        greeting = session.hello is None and self.random.random() < 0.95
        frame = json.dumps(self.hello() if greeting else self.message()).encode()
        if self.frames and self.random.random() < 0.02:
            frame = self.random.choice(self.frames)
        if self.random.random() < 0.02:
            frame = self.mutated(frame)
        if self.random.random() < 0.01:
            self.frames = [*self.frames[-20:], frame]
        return frame

    def mutated(self, frame: bytes) -> bytes:
        spoiled = bytearray(frame)
        for _ in range(self.random.randint(1, 4)):
            at = self.random.randrange(len(spoiled) or 1)
            how = self.random.randrange(3)
            if how == 0 and spoiled:
                spoiled[at] = self.random.randrange(256)
            elif how == 1:
                del spoiled[at : at + self.random.randrange(8)]
            else:
                spoiled[at:at] = self.random.choice(
                    (b"9" * 30, b"[" * 50, b"null", b"\x00", b"-", b"1e400", b"{}", b'"')
                )
        return bytes(spoiled[:MAX_MESSAGE_BYTES])

    def many_streams(self) -> list[dict[str, Any]]:
        """Thousands, each out of order, or each with one record."""
        seq = self.random.choice((1, 2))
        return [
            {"type": "batch", "stream": self.id(), "lane": "live", "body": {}, "seq": seq}
            for _ in range(MAX_STREAMS + 99)
        ]

    def receive(self, at: int, frame: bytes) -> None:
        session = self.sessions[at]
        self.messages += 1
        try:
            message = decode_from_gateway(frame)
            self.kinds[type(message).__name__] += 1
            self.act(session, session.receive(message))
            self.act(session, session.flush())
        except RemoteProtocolError as error:
            self.ends[error.code] += 1
            self.sessions[at] = ServerSession("g", "new", self.streams, self.now)
        if len(self.group) >= UNDER_WAY or self.random.random() < 0.1:
            self.commit()

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        busy = sum(state.pending != state.committed or bool(state.attempt) for state in self.streams._streams.values())
        assert len(self.streams._streams) <= MAX_STREAMS + busy + UNDER_WAY
        for session in self.sessions:
            assert len(session._discarding) <= MAX_STREAMS
            assert len(session._under_way) <= UNDER_WAY * len(self.sessions) + 1
            assert len(session._told) <= len(session._under_way)

    def run(self, messages: int) -> None:
        while self.messages < messages:
            at = self.random.randrange(len(self.sessions))
            self.now += 0.001
            if self.random.random() < 0.00005:
                for message in self.many_streams():
                    self.receive(at, json.dumps(message).encode())
            if self.random.random() < 0.0005:
                self.restart()
            self.receive(at, self.frame(self.sessions[at]))
            if self.messages % 50 == 0:
                self.check()
        self.check()


@pytest.mark.parametrize("seed", range(4))
def test_nothing_a_gateway_says_breaks_the_server(seed: int) -> None:
    house = House(seed)
    house.run(5_000)
    assert {1002, 1007, 1008, 4410} <= set(house.ends), "it was closed for each of the reasons"
    assert len(house.kinds) == 8, "every kind of message came through"
    assert sum(mark for mark, _, _ in house.stored.values()) > 500, "and what was right was stored"


def test_thousands_of_streams_fill_no_memory() -> None:
    """Stored ones are put out again; ones that are out of order end the session when they are too many."""
    house = House(1)
    house.sessions[0].receive(decode_from_gateway(json.dumps({**house.hello(), "process": "f" * 32, "streams": []})))
    house.act(house.sessions[0], house.sessions[0].welcome("c" * 32, {}, (), 0, 0.0))
    for seq in (1, 2):
        for _ in range(3 * MAX_STREAMS):
            message = {"type": "batch", "stream": house.id(), "lane": "live", "body": {}, "seq": seq}
            house.receive(0, json.dumps(message).encode())
            if house.ends:
                break
        house.check()
    assert house.ends[1008] == 1


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nothing_a_gateway_says_breaks_the_server_a_million_times() -> None:
    """Seed by `HOSTILE_SEED`; it is printed."""
    first = int(os.environ.get("HOSTILE_SEED", "1"))
    began, ends, kinds, messages = time.process_time(), Counter[int](), Counter[str](), 0
    for seed in range(first, first + 50):
        house = House(seed)
        house.run(20_000)
        ends += house.ends
        kinds += house.kinds
        messages += house.messages
    took = time.process_time() - began
    print(f"\n{messages:,} messages, seeds {first} to {first + 49}: {messages / took:,.0f} a second of one core")
    print(f"sessions ended {dict(ends)}, read {dict(kinds)}")
    assert messages >= 1_000_000
