"""A server that means harm, or has lost its mind, against the gateway's side of a session.

Seeded and repeatable: message by message, most of them almost right, because nonsense is thrown out at the door. What
must hold whatever comes: nothing but `RemoteProtocolError` leaves the session, what it keeps in memory stays within
bounds, and nothing is freed that was not sent.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import Any

import pytest

from gateway.errors import RemoteProtocolError
from gateway.model import ClockState, Lane, Outcome, Record, RecordKind, Result, Trust
from gateway.protocol import outputs
from gateway.protocol.allowance import MAX_WINDOW
from gateway.protocol.client import ALARM_EXTRA, NACK_LIMIT, ClientSession
from gateway.protocol.manifest import MAX_SINKS, Manifest
from gateway.protocol.messages import (
    MAX_COMMAND_ID,
    MAX_DOWN_BYTES,
    Ack,
    CommandMessage,
    Flow,
    FromServer,
    Move,
    Nack,
    ResultAck,
    ServerError,
    StreamOffer,
    Welcome,
    Window,
    decode_from_gateway,
    decode_from_server,
    encode,
)
from gateway.protocol.pace import COMMAND_BURST, COMMANDS_PER_S

CLOCK = ClockState("0" * 32, 0, 1, Trust.SYNCED)
STREAMS = 40
"""Held by the gateway at a time, at most."""
EXTREME = (0, 1, 2, 3, 2**31, 2**32, 2**53, 2**63 - 1)


class Stream:
    def __init__(self, name: str, lane: Lane, own: bool) -> None:
        self.name = name
        self.lane = lane
        self.own = own
        self.sealed = not own
        self.next = 1
        self.free = 0
        """Acked by some sink, so no longer held."""
        self.sent = 0
        self.gaps: dict[int, int] = {}

    def offer(self) -> StreamOffer:
        return StreamOffer(self.name, self.lane, min(self.free + 1, self.next), self.next, self.sealed)


class Gateway:
    """The session with a buffer that keeps the contract of `fetch`, and nothing else."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.messages = 0
        self.ends: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.frames: list[bytes] = []
        self.sink = f"{self.random.getrandbits(128):032x}"
        self.nack = Nack(stream="", expected=1)
        self.stubborn = 0
        """So often the last nack comes again."""
        self.start()

    # ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """A new process, with what the last one left."""
        self.manifest = Manifest()
        self.streams: dict[str, Stream] = {}
        self.forgotten: dict[str, Stream] = {}
        """Nothing is held of them; a sink that was restored may still want them filled."""
        for _ in range(self.random.randrange(5)):
            old = self.open(self.random.choice(list(Lane)), own=False)
            old.next = self.random.randint(2, 60)
        self.open(Lane.LIVE)
        self.connect()

    def open(self, lane: Lane, own: bool = True) -> Stream:
        for each in self.streams.values():
            each.sealed |= own and each.lane is lane
        stream = Stream(f"{self.random.getrandbits(128):032x}", lane, own)
        self.streams[stream.name] = stream
        self.manifest.learn([stream.offer()])
        return stream

    def connect(self) -> None:
        self.session = ClientSession(self.manifest, "cloud", self.random.random() < 0.3)
        self.executed = 0
        self.opened_at = self.now
        self.results = [Result(str(n), Outcome.OK) for n in range(self.random.randrange(4))]
        self.manifest.keep(self.streams)
        self.perform(self.session.hello("f" * 32, "t", CLOCK, self.offers(), {}, self.now))

    def offers(self) -> list[StreamOffer]:
        for stream in list(self.streams.values()):
            if stream.sealed and stream.free >= stream.next - 1 and not stream.gaps:
                self.forgotten[stream.name] = self.streams.pop(stream.name)
        return [stream.offer() for stream in self.streams.values()]

    def known(self, name: str) -> Stream:
        return self.streams.get(name) or self.forgotten[name]

    def work(self) -> None:
        """What the driver does between messages."""
        for stream in self.streams.values():
            if not stream.sealed:
                stream.next += self.random.randrange(4)
        if len(self.streams) < STREAMS and self.random.random() < 0.02:
            self.open(self.random.choice(list(Lane)))
        if not self.session.sink:
            return
        if not self.session.active:
            self.perform(self.session.activate(self.now))
        self.perform(self.session.results(self.results))
        for _ in range(3):
            self.session.update(self.offers())
            fetch = self.session.want()
            if fetch is None:
                break
            before = self.session.in_flight
            made = self.session.fetched(fetch, self.fetch(fetch), self.now)
            self.within_window(before, fetch, made)
            self.perform(made)
        if self.random.random() < 0.05:
            self.perform(self.session.tick(self.now))

    def fetch(self, fetch: outputs.Fetch) -> list[Record]:
        stream = self.known(fetch.stream)
        assert 1 <= fetch.seq < stream.next, "asked for what was never made"
        at = fetch.seq
        found: list[Record] = []
        while at < stream.next and len(found) < 6:
            last = stream.gaps.get(at)
            if last is not None:
                found.append(Record(stream.name, stream.lane, at, RecordKind.GAP, b'{"reason":"unsent"}', last=last))
                at = last + 1
            elif at > stream.free:
                body = b'"' + b"x" * self.random.choice((10, 300, 3000)) + b'"'
                found.append(Record(stream.name, stream.lane, at, RecordKind.BATCH, body))
                at += 1
            else:
                at += 1
        return found

    def within_window(self, before: Any, fetch: outputs.Fetch, made: list[outputs.Output]) -> None:
        if not any(isinstance(output, outputs.Send) for output in made):
            return
        window = self.session._allowance.window
        records, size = self.session.in_flight
        extra = ALARM_EXTRA if self.known(fetch.stream).lane is Lane.ALARM else 0
        assert window.batches > 0
        assert records <= window.batches + extra
        assert extra or size <= window.bytes or records == 1

    # ── the driver ───────────────────────────────────────────────────────────────────────────────────────────────

    def perform(self, made: list[outputs.Output]) -> None:
        assert len(made) <= 16 + 4 * STREAMS + len(self.results)
        for output in made:
            match output:
                case outputs.Send(frame):
                    said = decode_from_gateway(frame)
                    if hasattr(said, "seq"):
                        stream = self.known(said.stream)
                        stream.sent = max(stream.sent, getattr(said, "last", said.seq))
                case outputs.Acked(name, seq):
                    self.acked(name, seq)
                case outputs.Fill(name, _, first, last):
                    stream = self.known(name)
                    assert 1 <= first <= last < stream.next
                    assert last <= stream.free, "never over what is held"
                    stream.gaps[first] = last
                    self.forgotten.pop(name, None)
                    self.streams[name] = stream
                case outputs.Hold(name, upto):
                    assert 0 <= upto < 2**63
                case outputs.Seal(lane):
                    self.open(lane)
                case outputs.Distrust(name):
                    if name in self.streams:
                        self.streams[name].free = self.streams[name].next - 1  # what is un-acked moves to a new one
                        self.streams[name].sealed = True
                        self.open(self.streams[name].lane)
                case outputs.Execute(command):
                    self.executed += 1
                    assert len(command.id) <= MAX_COMMAND_ID
                    assert self.executed <= COMMAND_BURST + COMMANDS_PER_S * (self.now - self.opened_at) + 1
                case outputs.Missing(ids):
                    assert len(ids) <= 256
                case outputs.Dead():
                    self.ends[0] += 1
                    self.connect()
                    return

    def acked(self, name: str, seq: int) -> None:
        stream = self.streams.get(name)
        if stream is not None:
            assert 1 <= seq < stream.next, "nothing is freed that was never made"
            assert not stream.own or seq <= stream.sent, "nor, of our own streams, what was never sent"
            stream.free = max(stream.free, seq)
            stream.gaps = {first: last for first, last in stream.gaps.items() if last > seq}

    # ── the server ───────────────────────────────────────────────────────────────────────────────────────────────

    def name(self) -> str:
        if self.streams and self.random.random() < 0.95:
            return self.random.choice(list(self.streams))
        return self.random.choice(("a" * 32, "", "x", f"{self.random.getrandbits(128):032x}"))

    def number(self, name: str) -> int:
        """Around what was sent, or anything."""
        stream = self.streams.get(name)
        if stream is not None and self.random.random() < 0.8:
            return max(0, self.random.choice((stream.sent, stream.free, stream.next)) + self.random.randint(-3, 1))
        return self.random.choice(EXTREME)

    def marks(self) -> dict[str, int]:
        count = 2000 if self.random.random() < 0.0005 else self.random.randrange(4)
        if count == 2000:
            return {f"{self.random.getrandbits(128):032x}": self.random.choice(EXTREME) for _ in range(1000)}
        names = [self.name() for _ in range(count)]
        if self.random.random() < 0.7:  # as a server would
            return {name: self.streams[name].sent for name in names if name in self.streams}
        return {name: self.number(name) for name in names}

    def window(self) -> Window:
        some = (0, 1, 4, 32, 2**53)
        return Window(self.random.choice(some), self.random.choice((0, 1, 1000, 1 << 20, 2**53)))

    def message(self) -> FromServer:
        if self.stubborn:
            self.stubborn -= 1
            return self.nack
        pick = self.random.random()
        if pick < 0.45:
            return Ack(marks=self.marks())
        if pick < 0.65:
            name = self.name()
            self.nack = Nack(stream=name, expected=self.number(name))
            self.stubborn = self.random.choice((0, 0, 0, 3))
            return self.nack
        if pick < 0.75:
            return Flow(window=Window() if self.random.random() < 0.5 else self.window())
        if pick < 0.92:
            return self.command()
        if pick < 0.95:
            return ResultAck(id=self.random.choice(("0", "1", "nobody", "x" * 500)))
        if pick < 0.97:
            return Move(
                deadline_ms=self.random.choice(EXTREME[:7]), spread_ms=0, reason="x" * self.random.randrange(99)
            )
        if pick < 0.985:
            return ServerError(reason="because")
        return self.welcome()

    def command(self) -> CommandMessage:
        times = (0, 1, -1, 10_000, 2**53, -(2**53))
        return CommandMessage(
            id=self.random.choice(("c", "x" * 128, "x" * 129, "")),
            device="d",
            op=self.random.choice(("write", "reboot")),
            ttl_ms=self.random.choice(times),
            sent_ms=self.random.choice(times),
            value=self.random.choice((None, 1, 2**70, 1e308, "x" * 100, True)),
        )

    def welcome(self) -> Welcome:
        pick = self.random.random()
        sink = self.sink if pick < 0.7 else f"{self.random.getrandbits(128):032x}"
        return Welcome(
            sink=sink,
            session="1",
            marks=self.marks() if pick > 0.2 else {},
            window=Window() if pick < 0.8 else self.window(),
            ack_budget_ms=self.random.choice((0, 100, 2**53)),
            mono_ms=self.random.choice((0, 2**53, -(2**53))),
            open_commands=("x",) * self.random.choice((0, 1, 1000)),
        )

    def frame(self) -> bytes:
        """Mostly a message; sometimes one of before; sometimes with a few bytes that are others."""
        waits = not self.session.sink
        frame = encode(self.welcome() if waits and self.random.random() < 0.8 else self.message())
        if self.frames and self.random.random() < 0.05:
            frame = self.random.choice(self.frames)
        if self.random.random() < 0.03:
            frame = self.mutated(frame)
        if self.random.random() < 0.01:
            self.frames = [*self.frames[-20:], frame]
        return frame

    def mutated(self, frame: bytes) -> bytes:
        spoiled = bytearray(frame)
        for _ in range(self.random.randint(1, 4)):
            at = self.random.randrange(len(spoiled))
            how = self.random.randrange(4)
            if how == 0:
                spoiled[at] = self.random.randrange(256)
            elif how == 1:
                del spoiled[at : at + self.random.randrange(8)]
            elif how == 2:
                spoiled[at:at] = self.random.choice(
                    (b"9" * 30, b"[" * 50, b"null", b"\x00", b"-", b"1e400", b"{}", b'"')
                )
            else:
                spoiled += spoiled[:at]
            if not spoiled:
                return b"{"
        return bytes(spoiled[:MAX_DOWN_BYTES])

    def receive(self) -> None:
        frame = self.frame()
        self.messages += 1
        try:
            message = decode_from_server(frame)
            self.kinds[type(message).__name__] += 1
            made = self.session.receive(message, self.now)
        except RemoteProtocolError as error:
            self.ends[error.code] += 1
            if self.random.random() < 0.02:
                self.start()
            else:
                self.connect()
            return
        self.perform(made)

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        session, manifest = self.session, self.manifest
        assert len(session._places) <= STREAMS + len(self.streams)
        assert len(session._results) <= len(self.results)
        assert len(session._offered) <= STREAMS + 2
        for place in session._places.values():
            assert 1 <= place.at <= max(place.next, 1), "it never asks for what does not exist"
            assert len(place.flights) <= MAX_WINDOW.batches + ALARM_EXTRA
            assert place.bytes == sum(flight.size for flight in place.flights)
            assert len(place.nacks) < NACK_LIMIT
            lasts = [flight.last for flight in place.flights]
            assert lasts == sorted(set(lasts)), "in order, each once"
            assert not lasts or lasts[-1] < place.at
        assert all(len(marks) <= MAX_SINKS for marks in manifest._marks.values())
        assert len(manifest._marks) <= STREAMS * 4
        assert len(session._known_before) <= STREAMS * 4 * MAX_SINKS

    def run(self, messages: int) -> None:
        while self.messages < messages:
            self.now += self.random.choice((0.0, 0.0, 0.001, 0.01, 0.1))
            self.work()
            for _ in range(self.random.randint(1, 6)):
                self.receive()
            self.check()


def attack(seed: int, messages: int) -> Gateway:
    gateway = Gateway(seed)
    gateway.run(messages)
    return gateway


@pytest.mark.parametrize("seed", range(4))
def test_nothing_a_server_says_breaks_a_session(seed: int) -> None:
    gateway = attack(seed, 5_000)
    assert {1002, 1007, 4410} <= set(gateway.ends), "it was left for each of the reasons"
    assert len(gateway.kinds) == 8, "every kind of message came through"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nothing_a_server_says_breaks_a_session_a_million_times() -> None:
    """Seed by `HOSTILE_SEED`; it is printed."""
    first = int(os.environ.get("HOSTILE_SEED", "1"))
    began, ends, kinds, messages = time.process_time(), Counter[int](), Counter[str](), 0
    for seed in range(first, first + 50):
        gateway = attack(seed, 20_000)
        ends += gateway.ends
        kinds += gateway.kinds
        messages += gateway.messages
    took = time.process_time() - began
    print(f"\n{messages:,} messages, seeds {first} to {first + 49}: {messages / took:,.0f} a second of one core")
    print(f"sessions ended {dict(ends)}, read {dict(kinds)}")
    assert messages >= 1_000_000


def test_a_server_of_a_thousand_names_fills_no_memory() -> None:
    """Every welcome says another sink, and acks a little."""
    manifest, offers = Manifest(), [StreamOffer("a" * 32, Lane.LIVE, 1, 100)]
    for number in range(1000):
        session = ClientSession(manifest, "cloud", False)
        session.hello("f" * 32, "t", CLOCK, offers, {}, 0.0)
        session.receive(Welcome(sink=f"{number:032x}", session="1", marks={}), 0.0)
        session.activate(0.0)
    assert len(manifest.marks()) <= MAX_SINKS
