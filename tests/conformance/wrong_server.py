"""A second server of the protocol, written from its text alone, that can be told to break one rule at a time.

`faults` names what it does wrong. Without any it keeps everything that can be seen from outside.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

NAME = "gateway.uplink.v1"
TOKEN = "the-token-of-the-conformance-test"
ID = re.compile(r"[0-9a-f]{32}")
TYPES = {
    "hello": {"process": str, "software": str, "clock": dict},
    "batch": {"stream": str, "lane": str, "seq": int},
    "gap": {"stream": str, "lane": str, "seq": int, "last": int},
    "clock": {"stream": str, "lane": str, "seq": int},
    "end": {"stream": str, "lane": str, "seq": int},
    "result": {"id": str, "outcome": str},
    "stats": {"values": dict},
    "bye": {},
}


class Close(Exception):
    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason


class Broken(Exception):
    """The server falls over: the library closes with 1011."""


class Store:
    """What outlives a restart."""

    def __init__(self) -> None:
        self.sink = "a" * 32
        self.marks: dict[str, int] = {}
        self.lanes: dict[str, str] = {}
        self.ended: set[str] = set()
        self.results: set[str] = set()


class Session:
    def __init__(self, ws: ServerConnection) -> None:
        self.ws = ws
        self.process = ""
        self.offered: set[str] = set()
        self.discarding: set[str] = set()
        self.closed: tuple[int, str] | None = None
        self.waiting: list[dict[str, Any]] = []
        """Acked and not yet stored: a fault."""

    async def say(self, **message: Any) -> None:
        await self.ws.send(json.dumps(message))

    async def close(self, code: int, reason: str = "") -> None:
        if self.closed is None:
            self.closed = code, reason
            await self.ws.close(code, reason)


class WrongServer:
    def __init__(self, store: Store, faults: set[str]) -> None:
        self.store = store
        self.faults = faults
        self.hello_within_s = 5.0
        self.sessions: list[Session] = []
        self.evicted: set[str] = set()
        self.url = ""

    # ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────

    def knock(self, ws: ServerConnection, request: Request) -> Response | None:
        known = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not known and not {"lets everybody in", "closes strangers with 1008"} & self.faults:
            status = HTTPStatus.NOT_FOUND if "answers strangers with 404" in self.faults else HTTPStatus.UNAUTHORIZED
            return ws.respond(status, "no\n")
        ws.username = "" if known else "stranger"
        return None

    def choose(self, _: ServerConnection, offered: list[Subprotocol]) -> Subprotocol | None:
        if "names the first subprotocol" in self.faults:
            return offered[0]
        if NAME not in offered and "takes any subprotocol" not in self.faults:
            raise NegotiationError(f"this server speaks {NAME}")
        return Subprotocol(NAME) if NAME in offered else None

    async def serve(self, ws: ServerConnection) -> None:
        session = Session(ws)
        if ws.username == "stranger" and "closes strangers with 1008" in self.faults:
            await ws.close(1008)
            return
        try:
            await self.converse(session)
        except Close as error:
            if "gives no reason" not in self.faults:
                await session.say(type="error", reason=error.reason)
            await session.close(1000 if "closes with 1000 always" in self.faults else error.code, error.reason)
        except ConnectionClosed:
            pass
        finally:
            if session in self.sessions:
                self.sessions.remove(session)

    async def converse(self, session: Session) -> None:
        if "welcomes before the hello" in self.faults:
            await session.say(type="result_ack", id="x")
        try:
            async with asyncio.timeout(None if "waits for ever" in self.faults else self.hello_within_s):
                first = self.read(await session.ws.recv())
        except TimeoutError:
            raise Close(4408, "no hello in time") from None
        if first["type"] != "hello" and "takes anything first" not in self.faults:
            raise Close(1002, "the first message is hello")
        if first["type"] == "hello":
            await self.greet(session, first)
        while True:
            frame = await session.ws.recv()
            if session.closed is not None:
                return
            message = self.read(frame)
            if message["type"] == "hello":
                if "takes a second hello" not in self.faults:
                    raise Close(1002, "hello comes once")
                await self.greet(session, message)
            elif message["type"] == "bye":
                await self.bye(session)
                return
            else:
                await self.take(session, message)

    def read(self, frame: str | bytes) -> dict[str, Any]:
        if isinstance(frame, bytes):
            if "takes binary frames" not in self.faults:
                raise Close(1003, "messages are text")
            frame = frame.decode()
        if "breaks at depth" in self.faults and frame.count("[") > 100:
            raise Broken
        try:
            message = json.loads(frame)
            wanted = TYPES[message["type"]]
            for name, kind in wanted.items():
                if not isinstance(message[name], kind):
                    raise TypeError(name)
            if message.get("lane", "live") not in ("live", "alarm"):
                raise ValueError("lane")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if "swallows the unreadable" in self.faults:
                return {"type": "stats", "values": {}}
            raise Close(1002 if "closes the unreadable with 1002" in self.faults else 1007, repr(error)[:80]) from error
        if "insists on known members" in self.faults and "colour" in json.dumps(message):
            raise Close(1007, "unknown member")
        return message  # type: ignore[no-any-return]

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def greet(self, session: Session, hello: dict[str, Any]) -> None:
        process = hello["process"]
        if not self.sessions:
            self.evicted.clear()
        if process in self.evicted and "lets the evicted back in" not in self.faults:
            raise Close(4409, "a newer process is here")
        others = [each for each in self.sessions if each.process != process]
        for other in others if "evicts nobody" not in self.faults else ():
            self.evicted.add(other.process)
            self.sessions.remove(other)
            if "eviction takes back" in self.faults:
                self.store.marks = dict.fromkeys(self.store.marks, 1)
            await other.close(4409, "a newer process is here")
        limit = 2 if "two sessions at most" in self.faults else 4
        if len(self.sessions) >= limit and "any number of sessions" not in self.faults:
            await self.sessions.pop(0).close(1000, "too many")
        session.process = process
        self.sessions.append(session)
        streams = [offer["stream"] for offer in hello["streams"]]
        session.offered = set(streams)
        if len(streams) > 32 and "refuses many offers" in self.faults:
            raise Close(1008, "too many streams")
        if hello.get("standby") and "tells a standby nothing" in self.faults:
            streams = []
        marks = {stream: self.store.marks[stream] for stream in streams if stream in self.store.marks}
        if "forgets the marks of a session" in self.faults:
            marks = {}
        if "makes up marks" in self.faults:
            marks = {stream: self.store.marks.get(stream, 7) for stream in streams}
        if "welcomes late" in self.faults:
            await asyncio.sleep(2.3)
        sink = "b" * 31 + str(time.monotonic_ns() % 10) if "changes the sink" in self.faults else self.store.sink
        welcome = {"type": "welcome", "sink": sink, "session": "1", "marks": marks, "ack_budget_ms": 100}
        if "welcomes with too much" in self.faults:
            welcome["pad"] = "x" * 66_000
        if "welcomes in another way" in self.faults:
            welcome["marks"] = []
        for _ in range(2 if "welcomes twice" in self.faults else 1):
            await session.say(**welcome)

    async def bye(self, session: Session) -> None:
        for record in session.waiting:
            self.keep(record)
        await session.close(1001 if "goes away on bye" in self.faults else 1000)

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def take(self, session: Session, message: dict[str, Any]) -> None:
        if message["type"] == "result":
            known = message["id"] in self.store.results
            self.store.results.add(message["id"])
            if known and "acks a result once" in self.faults:
                return
            if "acks no strange result" in self.faults:
                return
            if "knows ok and failed only" in self.faults and message["outcome"] not in ("ok", "failed"):
                raise Close(1007, "outcome")
            await session.say(type="result_ack", id=message["id"])
        elif message["type"] != "stats":
            await self.record(session, message)

    async def record(self, session: Session, record: dict[str, Any]) -> None:
        stream, seq = record["stream"], record["seq"]
        last = record.get("last", seq)
        if not (ID.fullmatch(stream) and 1 <= seq <= last) and "takes records that cannot be" not in self.faults:
            raise Close(1002, "no such record")
        if "takes offered streams only" in self.faults and stream not in session.offered:
            return
        mark = self.store.marks.get(stream, 0)
        if seq > mark + 1 and "stores beyond a hole" not in self.faults:
            await self.nack(session, stream, mark + 1)
            return
        if stream not in session.discarding or last > mark or "a duplicate ends nothing" not in self.faults:
            session.discarding.discard(stream)
        if last <= mark:
            await self.repeated(session, record, mark)
            return
        self.violations(record)
        if "refuses an overlapping gap" in self.faults and seq <= mark:
            return
        if "ends a session over poison" in self.faults and not self.readable(record):
            raise Close(1007, "body")
        if "forgets large bodies" in self.faults and len(json.dumps(record)) > 200_000:
            return
        if "counts readings to 1,000" in self.faults and self.readings(record) > 1000:
            raise Close(1009, "too many readings")
        if "leaves poison unacked" in self.faults and self.readings(record) > 4096:
            return
        if "takes half a window" in self.faults and seq > 16:
            raise Close(1008, "too much in flight")
        await self.store_and_ack(session, record, last)

    async def store_and_ack(self, session: Session, record: dict[str, Any], last: int) -> None:
        stream = record["stream"]
        if "acks before it stores" in self.faults:
            session.waiting.append(record)
            self.store.marks.setdefault(stream, 0)
            await session.say(type="ack", marks={stream: last})
            return
        self.keep(record)
        if "stores slowly" in self.faults:
            await asyncio.sleep(0.6)
        marks = {stream: self.store.marks[stream] + ("acks too high" in self.faults)}
        if "acks the first only" in self.faults and last > 1:
            return
        to = self.sessions if "acks everybody" in self.faults else [session]
        if "acks in one heap" in self.faults:
            marks[stream] = last
        for each in to:
            await each.say(type="ack", marks=marks)

    def keep(self, record: dict[str, Any]) -> None:
        stream = record["stream"]
        last = record.get("last", record["seq"])
        self.store.marks[stream] = max(last, self.store.marks.get(stream, 0))
        self.store.lanes.setdefault(stream, record["lane"])
        if record["type"] == "end":
            self.store.ended.add(stream)

    async def repeated(self, session: Session, record: dict[str, Any], mark: int) -> None:
        stream = record["stream"]
        if "refuses repeats" in self.faults:
            raise Close(1002, "twice")
        if "closes repeats behind an end" in self.faults and stream in self.store.ended:
            raise Close(4410, "after the end")
        if "stores repeats" in self.faults:
            self.store.marks[stream] = mark = mark + 1
        if "is silent about repeats" not in self.faults:
            await session.say(type="ack", marks={stream: mark})

    async def nack(self, session: Session, stream: str, expected: int) -> None:
        if "nacks nothing" in self.faults:
            return
        if stream not in session.discarding or "nacks again and again" in self.faults:
            session.discarding.add(stream)
            if "nacks too high" in self.faults:
                expected += 1_000
            if "nacks too low" in self.faults:
                expected = max(1, expected - 1)
            await session.say(type="nack", stream=stream, expected=expected)

    def violations(self, record: dict[str, Any]) -> None:
        stream = record["stream"]
        other_lane = self.store.lanes.get(stream, record["lane"]) != record["lane"]
        if other_lane and "follows a change of lane" not in self.faults:
            raise Close(4410, "another lane")
        if stream in self.store.ended and "goes on behind an end" not in self.faults:
            raise Close(4410, "after the end")

    def readable(self, record: dict[str, Any]) -> bool:
        body = record.get("body", {})
        return record["type"] != "batch" or (isinstance(body, dict) and "groups" in body)

    def readings(self, record: dict[str, Any]) -> int:
        if record["type"] != "batch" or not self.readable(record):
            return 0
        return sum(len(group["t"]) * len(group["points"]) for group in record["body"]["groups"])


class Deaf(ServerConnection):
    """Answers no ping."""

    def __init__(self, protocol: ServerProtocol, *args: Any, **kwargs: Any) -> None:
        answer = protocol.recv_frame
        protocol.recv_frame = lambda frame: None if frame.opcode is Opcode.PING else answer(frame)  # type: ignore[method-assign]
        super().__init__(protocol, *args, **kwargs)


def keep_context(_: ServerConnection, __: Request, response: Response) -> None:
    """An answer that leaves out what RFC 7692 demands."""
    if "Sec-WebSocket-Extensions" in response.headers:
        del response.headers["Sec-WebSocket-Extensions"]
        response.headers["Sec-WebSocket-Extensions"] = "permessage-deflate"


@asynccontextmanager
async def running(
    *faults: str, store: Store | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[WrongServer]:
    wrong = WrongServer(store or Store(), set(faults))
    deflate = ServerPerMessageDeflateFactory(server_no_context_takeover=True)
    server: Server = await serve(
        wrong.serve,
        "127.0.0.1",
        0,
        ssl=tls,
        process_request=wrong.knock,
        process_response=keep_context if "keeps its context" in faults else None,
        create_connection=Deaf if "answers no ping" in faults else ServerConnection,
        select_subprotocol=wrong.choose,
        extensions=[deflate],
        compression=None,
        max_size=300_000
        if "takes frames of any size" in faults
        else 100_000
        if "small frames only" in faults
        else 266_240,
        ping_interval=None,
        close_timeout=0.5,
    )
    try:
        host, port = server.sockets[0].getsockname()[:2]
        wrong.url = f"{'wss' if tls else 'ws'}://{host}:{port}/"
        yield wrong
    finally:
        server.close()
        await server.wait_closed()
