"""Both sides of the protocol against each other, while everything between and below them fails at random.

The sink must end with every row exactly once, each stream in order and without holes, whatever was dropped, cut, sent
over two sessions, restarted or rolled back; and it must end: left alone it comes to rest with nothing un-acked.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RemoteProtocolError
from gateway.model import ClockState, Lane, RecordKind, Trust
from gateway.protocol import outputs, schema, server
from gateway.protocol.client import ClientSession
from gateway.protocol.entry import Entry
from gateway.protocol.manifest import Manifest
from gateway.protocol.marks import Mark, Streams
from gateway.protocol.messages import Nack, Window, decode_from_gateway, decode_from_server, encode
from gateway.protocol.server import ServerSession
from tests.uplink.memory import MemoryOutbox

CLOCK = ClockState("0" * 32, 0, 1, Trust.SYNCED)
GATEWAY = "gw"


class Sink:
    """Commits in one transaction, or not at all."""

    def __init__(self, name: str) -> None:
        self.id = (name.encode().hex() * 32)[:32]
        self.stored: dict[str, list[tuple[int, int, RecordKind, bytes]]] = {}
        self.streams = Streams()
        self.group: list[Entry] = []
        self.pairs: list[Pair] = []

    def mark(self, stream: str) -> int:
        return self.stored[stream][-1][1] if self.stored.get(stream) else 0

    def known(self, stream: str) -> Mark:
        rows = self.stored.get(stream)
        return Mark(rows[-1][1], None, rows[-1][2] is RecordKind.END) if rows else Mark()

    def commit(self) -> None:
        group, self.group = self.group, []
        answers = []
        for entry in group:
            mark = self.mark(entry.stream)
            if entry.seq <= mark + 1 and entry.last > mark:
                rows = self.stored.setdefault(entry.stream, [])
                rows.append((mark + 1, entry.last, entry.kind, entry.raw))
            answers.append((entry, self.mark(entry.stream)))
        for entry, mark in answers:
            self.streams.settle(entry, mark)
        self.flush()

    def fail(self) -> None:
        group, self.group = self.group, []
        self.streams.failed(group)
        self.flush()

    def flush(self) -> None:
        for pair in self.pairs:
            pair.answer(pair.server.flush())

    def restart(self) -> None:
        """What waits is lost; what is committed stays."""
        self.group = []
        self.streams = Streams()
        for pair in list(self.pairs):
            pair.cut()

    def rows(self) -> list[object]:
        bodies = [msgspec.json.decode(raw) for rows in self.stored.values() for _, _, kind, raw in rows if raw]
        return [row for body in bodies if "rows" in body for row in body["rows"]]


class Pair:
    """One connection; what is on the way in either direction."""

    def __init__(self, sink: Sink, house: House) -> None:
        self.sink = sink
        self.house = house
        self.client = ClientSession(house.manifest, "cloud", standby=True)
        self.server = ServerSession(GATEWAY, "1", sink.streams, 0.0, Window(house.window, 1 << 20))
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.open = True
        sink.pairs.append(self)
        hello = self.client.hello(house.process, "test", CLOCK, house.outbox.offers(), {}, house.now)
        self.up.extend(output.frame for output in hello if isinstance(output, outputs.Send))
        house.said.extend(self.up)

    def cut(self) -> None:
        self.open = False
        self.sink.pairs.remove(self)
        if self in self.house.pairs:
            self.house.pairs.remove(self)

    def answer(self, outputs: list[server.Output]) -> None:
        """What the server's driver does."""
        for output in outputs:
            match output:
                case server.Send(message):
                    if isinstance(message, Nack):
                        self.house.nacks += 1
                    self.down.append(encode(message))
                    self.house.heard.append(self.down[-1])
                case server.Greet(hello):
                    marks = {offer.stream: self.sink.known(offer.stream) for offer in hello.streams}
                    self.answer(self.server.welcome(self.sink.id, marks, (), 0, self.house.now))
                case server.LookUp(stream):
                    self.answer(self.server.learned(stream, self.sink.known(stream)))
                case server.Store(entry):
                    self.sink.group.append(entry)

    def arrive_up(self) -> None:
        if self.up:
            self.answer(self.server.receive(decode_from_gateway(self.up.popleft())))
            self.answer(self.server.flush())

    async def arrive_down(self) -> None:
        if self.down:
            message = decode_from_server(self.down.popleft())
            try:
                wanted = self.client.receive(message, self.house.now)
            except RemoteProtocolError as error:
                if error.code != 4410:  # the store failed three times over one record [A7]
                    raise
                self.cut()
            else:
                await self.perform(wanted)

    async def perform(self, wanted: list[outputs.Output]) -> None:
        """What the gateway's driver does."""
        outbox = self.house.outbox
        for output in wanted:
            match output:
                case outputs.Send(frame):
                    self.up.append(frame)
                    self.house.said.append(frame)
                case outputs.Fill(stream, lane, first, last):
                    self.client.filled(stream, await outbox.fill(self.client.sink, stream, lane, first, last))
                case outputs.Acked(stream, seq):
                    outbox.ack(self.client.sink, stream, seq)
                case outputs.Seal(lane):
                    outbox.seal(lane)
                case outputs.Distrust(stream):
                    await outbox.distrust(stream)
                case outputs.Dead():
                    raise AssertionError("time stands still")

    async def send(self, fetches: int) -> None:
        if not self.client.sink:
            return
        if not self.client.active:
            self.client.update(self.house.outbox.offers())
            await self.perform(self.client.activate(self.house.now))
        for lane in Lane:
            if self.client.idle(lane):
                self.house.outbox.close(lane)
        for _ in range(fetches):
            self.client.update(self.house.outbox.offers())
            fetch = self.client.want()
            if fetch is None:
                return
            records = await self.house.outbox.fetch(fetch.stream, fetch.seq, fetch.max_bytes)
            await self.perform(self.client.fetched(fetch, records, self.house.now))


class House:
    """A gateway, its sinks, and a schedule."""

    def __init__(self, seed: int, sinks: int, window: int, keep_acked: bool) -> None:
        self.random = random.Random(seed)
        self.window = window
        self.outbox = MemoryOutbox(keep_acked)
        self.sinks = [Sink(name) for name in "nsew"[:sinks]]
        self.pairs: list[Pair] = []
        self.put = 0
        self.nacks = 0
        self.said: deque[bytes] = deque(maxlen=300)
        """By gateways, and below: by servers; the last of it."""
        self.heard: deque[bytes] = deque(maxlen=300)
        self.now = 0.0
        self.start()

    def start(self) -> None:
        """A new process: streams of the old one are sealed without an end."""
        self.process = f"{self.random.getrandbits(128):032x}"
        self.manifest = Manifest()
        for pair in list(self.pairs):
            pair.cut()
        for lane in list(self.outbox.open):
            self.outbox.open.pop(lane).sealed = True
        self.outbox._open(Lane.LIVE)

    async def step(self, what: str) -> None:
        pair = self.random.choice(self.pairs) if self.pairs else None
        sink = self.random.choice(self.sinks)
        match what:
            case "put":
                self.outbox.put(self.put, self.random.choice([Lane.LIVE, Lane.LIVE, Lane.ALARM]))
                self.put += 1
            case "close":
                self.outbox.close(Lane.LIVE)
            case "seal":
                self.outbox.seal(Lane.LIVE)
            case "connect" if len(self.pairs) < 3:
                self.pairs.append(Pair(sink, self))
            case "cut" if pair:
                pair.cut()
            case "send" if pair:
                await pair.send(self.random.randint(1, 5))
            case "up" if pair:
                for _ in range(self.random.randint(1, 6)):
                    pair.arrive_up()
            case "down" if pair:
                for _ in range(self.random.randint(1, 6)):
                    await pair.arrive_down()
            case "commit":
                sink.commit()
            case "fail":
                sink.fail()
            case "restart server":
                sink.restart()
            case "restart gateway":
                self.start()

    async def settle(self) -> None:
        """Everything works from now on, over one connection to the first sink."""
        for pair in list(self.pairs):
            pair.cut()
        for sink in self.sinks:
            sink.commit()
        pair = Pair(self.sinks[0], self)
        for _ in range(2000):
            await pair.send(10)
            while pair.up:
                pair.arrive_up()
            self.sinks[0].commit()
            while pair.down:
                await pair.arrive_down()
            waits = any(self.outbox.rows.values()) or self.outbox.unacked() or pair.client.in_flight[0]
            if pair.client.active and not waits:
                return
        raise AssertionError("it does not come to rest")


WEIGHTS = {
    "put": 60,
    "send": 80,
    "up": 80,
    "down": 70,
    "commit": 50,
    "connect": 25,
    "close": 10,
    "fail": 5,
    "cut": 4,
    "seal": 2,
    "restart server": 2,
    "restart gateway": 1,
}


async def run(house: House, steps: int) -> None:
    for step in house.random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
        await house.step(step)
    await house.settle()


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 40), st.sampled_from([1, 2, 5, 32]), st.booleans(), st.integers(0, 500))
def test_one_sink_has_every_row_exactly_once_in_order(seed: int, window: int, keep_acked: bool, steps: int) -> None:
    """[R1, R2, A1-A7, M1-M3] Two or three sessions at a time with one sink: hedging, moving, overlapping."""

    async def main() -> None:
        house = House(seed, 1, window, keep_acked)
        await run(house, steps)
        (sink,) = house.sinks
        assert sorted(sink.rows()) == list(range(house.put)), "every row, once"
        for stream, rows in sink.stored.items():
            assert [first for first, _, _, _ in rows] == [1, *(last + 1 for _, last, _, _ in rows[:-1])]
            values = [row for _, _, _, raw in rows if raw for row in msgspec.json.decode(raw).get("rows", ())]
            assert values == sorted(values), "in the order in which they were put"
            assert not any(kind is RecordKind.GAP for _, _, kind, _ in rows), f"nothing was lost: {stream}"
        assert house.outbox.distrusted == []
        assert house.outbox.fills == []

    asyncio.run(main())


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 1 << 40), st.sampled_from([2, 32]), st.integers(0, 500))
def test_with_two_sinks_nothing_is_missing_and_each_sink_is_in_order(seed: int, window: int, steps: int) -> None:
    """[M5] A row may be at both; it is never at none, and a gap never hides one."""

    async def main() -> None:
        house = House(seed, 2, window, keep_acked=False)
        await run(house, steps)
        rows = [set(sink.rows()) for sink in house.sinks]
        assert rows[0] | rows[1] == set(range(house.put))
        for sink in house.sinks:
            assert len(sink.rows()) == len(set(sink.rows())), "never twice at one"
            for stored in sink.stored.values():
                assert [first for first, _, _, _ in stored] == [1, *(last + 1 for _, last, _, _ in stored[:-1])]
                gaps = [msgspec.json.decode(raw) for _, _, kind, raw in stored if kind is RecordKind.GAP]
                assert all(gap["reason"] == "stored_elsewhere" for gap in gaps)

    asyncio.run(main())


@pytest.mark.parametrize("window", [1, 4, 32])
def test_a_group_that_fails_is_sent_again_after_one_nack(window: int) -> None:
    """[A4, A5]"""

    async def main() -> None:
        house = House(1, 1, window, keep_acked=True)
        for _ in range(window):
            await house.step("put")
            house.outbox.close(Lane.LIVE)
            house.outbox.close(Lane.ALARM)
        pair = Pair(house.sinks[0], house)
        pair.arrive_up()
        await pair.arrive_down()
        await pair.send(10)
        while pair.up:
            pair.arrive_up()
        house.sinks[0].fail()
        lanes = len(house.outbox.open)
        assert 1 <= house.nacks <= lanes
        await house.settle()
        assert sorted(house.sinks[0].rows()) == list(range(window))

    asyncio.run(main())


@pytest.mark.parametrize("sinks", [1, 2])
def test_what_the_pair_says_conforms_to_the_schema(sinks: int) -> None:
    """[C5a] Both ways, at random; only the rows of these tests are none of the protocol's."""
    types = schema.schema()["$defs"]
    gateway, server = (
        jsonschema.Draft202012Validator({"$ref": f"#/$defs/{side}", "$defs": types})
        for side in ("FromGateway", "FromServer")
    )
    kinds = set()
    for seed in range(10):
        house = House(seed, sinks, 4, keep_acked=sinks == 1)
        asyncio.run(run(house, 300))
        for frame in house.said:
            message = msgspec.json.decode(frame)
            if "rows" in message.get("body", ()):
                message["body"] = {"clock": msgspec.to_builtins(CLOCK), "base_ms": 0, "groups": []}
            gateway.validate(message)
            kinds.add(message["type"])
        for frame in house.heard:
            server.validate(message := msgspec.json.decode(frame))
            kinds.add(message["type"])
    assert kinds >= {"hello", "batch", "end", "stats", "welcome", "ack", "nack"}
