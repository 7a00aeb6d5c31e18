"""What only shows on the wire: handshake, frames at their limits, pings and closes of the real gateway; and what our
server does below the messages."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

from gateway.ingest.connection import MAX_UNDER_WAY
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.model import ClockState, Lane, Trust
from gateway.protocol import schema
from gateway.protocol.messages import MAX_DOWN_BYTES, SUBPROTOCOL, Hello, StreamOffer
from gateway.uplink.config import Endpoint, UplinkSettings
from gateway.uplink.uplink import LIVE_FIRST_EVERY_S, LIVE_FIRST_RECORDS, About, Uplink
from tests.ingest.cloud import body, cloud, entry, gateway, stream_id
from tests.uplink.house import running, state_of, trouble_of, until
from tests.uplink.memory import MemoryCommands, MemoryOutbox
from tests.uplink.sink import Sink, Store

TEXT = (Path(schema.__file__).parent / "README.md").read_text()
WELCOME = {"type": "welcome", "sink": "c" * 32, "session": "1", "marks": {}}


class Recorder:
    """A server that keeps everything: requests, messages, close codes, raw frames."""

    def __init__(self, welcomes: bool = True) -> None:
        self.welcomes = welcomes
        self.requests: list[dict[str, str]] = []
        self.frames: list[str] = []
        self.opcodes: list[Opcode] = []
        """Of the first session."""
        self.sessions: list[ServerConnection] = []
        self.url = ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(frame) for frame in self.frames]

    async def serve(self, session: ServerConnection) -> None:
        assert session.request is not None
        self.requests.append(dict(session.request.headers.raw_items()))
        self.sessions.append(session)
        decoded = session.protocol.recv_frame

        def record(frame: Frame) -> None:
            if session is self.sessions[0]:
                self.opcodes.append(frame.opcode)
            decoded(frame)

        session.protocol.recv_frame = record  # type: ignore[method-assign]
        try:
            async for frame in session:
                assert isinstance(frame, str)
                self.frames.append(frame)
                await self.answer(session, json.loads(frame))
        except ConnectionClosed:
            pass

    async def answer(self, session: ServerConnection, message: dict[str, Any]) -> None:
        if message["type"] == "hello" and self.welcomes:
            await session.send(json.dumps(WELCOME))
        elif "seq" in message:
            marks = {message["stream"]: message.get("last", message["seq"])}
            await session.send(json.dumps({"type": "ack", "marks": marks}))


@asynccontextmanager
async def recorder(welcomes: bool = True, named: bool = True) -> AsyncIterator[Recorder]:
    made = Recorder(welcomes)
    names = [Subprotocol(SUBPROTOCOL)] if named else None
    async with serve(made.serve, "127.0.0.1", 0, subprotocols=names, ping_interval=None, close_timeout=0.5) as server:
        made.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/uplink"
        yield made


# ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_handshake_is_the_one_of_the_text(tmp_path: Path) -> None:
    """[C1a, C7a]"""

    async def main() -> dict[str, str]:
        (tmp_path / "token").write_text("s3cret")
        (tmp_path / "token").chmod(0o600)
        async with recorder() as server:
            endpoint = Endpoint(url=server.url, name="a", token_file=tmp_path / "token")
            async with running(MemoryOutbox(), endpoint):
                await until(lambda: server.requests)
            return server.requests[0]

    sent = asyncio.run(main())
    said = dict(re.findall(r"^([\w-]+): (.*?)(?:  +.*)?$", TEXT[: TEXT.index("HTTP/1.1 101")], re.MULTILINE))
    assert len(said) == 8
    for name, value in said.items():
        assert name in sent
        if "…" not in value and name != "Host":
            assert sent[name] == value
    assert sent["Authorization"] == "Bearer s3cret"


def test_an_answer_without_the_subprotocol_is_not_used() -> None:
    """[C1d]"""

    async def main() -> None:
        async with recorder(named=False) as server:
            async with running(MemoryOutbox(), Endpoint(url=server.url, name="a")) as uplink:
                await until(lambda: "does not speak" in trouble_of(uplink, "a"))
                assert state_of(uplink, "a") == "resting"
            assert server.frames == [], "not even a hello"

    asyncio.run(main())


def test_frames_of_the_server_are_read_up_to_their_limit() -> None:
    """[C6e] One byte more closes the session with 1009."""
    around = len(json.dumps({"type": "move", "reason": ""}))

    async def main(size: int) -> tuple[int | None, list[str]]:
        outbox = MemoryOutbox()
        async with recorder() as server, running(outbox, Endpoint(url=server.url, name="a")) as uplink:
            await until(lambda: outbox.up)
            (session,) = server.sessions
            await session.send(json.dumps({"type": "error", "reason": "x" * (size - around - 1)}))
            outbox.put(1)
            await until(lambda: (not outbox.unacked() and not outbox.rows[Lane.LIVE]) or session.close_code)
            return session.close_code, [state_of(uplink, "a")]

    assert len(json.dumps({"type": "error", "reason": ""})) == around + 1
    assert asyncio.run(main(MAX_DOWN_BYTES)) == (None, ["active"])
    assert asyncio.run(main(MAX_DOWN_BYTES + 1))[0] == 1009


def test_a_token_is_in_the_handshake_and_in_no_message(tmp_path: Path) -> None:
    """[C7c]"""
    token = "s3cret-s3cret-s3cret"

    async def main() -> Recorder:
        (tmp_path / "token").write_text(token)
        (tmp_path / "token").chmod(0o600)
        outbox = MemoryOutbox()
        async with recorder() as server:
            async with running(outbox, Endpoint(url=server.url, name="a", token_file=tmp_path / "token")) as uplink:
                for row in range(5):
                    outbox.put(row)
                await until(lambda: outbox.up and not outbox.unacked() and not outbox.rows[Lane.LIVE])
                uplink._active.stats({"x": 1})  # type: ignore[union-attr]
                await until(lambda: any(message["type"] == "stats" for message in server.messages))
            await until(lambda: server.messages[-1]["type"] == "bye")
            return server

    server = asyncio.run(main())
    assert token in server.requests[0]["Authorization"]
    assert {message["type"] for message in server.messages} >= {"hello", "batch", "stats", "bye"}
    assert not any(token in frame for frame in server.frames)


def test_a_ping_of_the_server_is_answered() -> None:
    """[C8b]"""

    async def main() -> None:
        outbox = MemoryOutbox()
        async with recorder() as server, running(outbox, Endpoint(url=server.url, name="a")):
            await until(lambda: outbox.up)
            async with asyncio.timeout(5):
                await (await server.sessions[0].ping(b"are you there"))

    asyncio.run(main())


def test_a_gateway_that_stops_says_bye_and_closes_with_1000() -> None:
    """[S4a]"""

    async def main() -> None:
        outbox = MemoryOutbox()
        async with recorder() as server:
            async with running(outbox, Endpoint(url=server.url, name="a")):
                outbox.put(1)
                await until(lambda: outbox.up and not outbox.unacked() and not outbox.rows[Lane.LIVE])
            (session,) = server.sessions
            await session.wait_closed()
            said = [message["type"] for message in server.messages]
            assert (said[0], said[-1], said.count("bye")) == ("hello", "bye", 1)
            assert session.close_code == 1000

    asyncio.run(main())


def test_what_the_server_complains_about_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """[S5b]"""

    async def main() -> None:
        outbox = MemoryOutbox()
        async with recorder() as server, running(outbox, Endpoint(url=server.url, name="a")):
            await until(lambda: outbox.up)
            await server.sessions[0].send('{"type":"error","reason":"a record after the end"}')
            await until(lambda: "a record after the end" in caplog.text)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    (record,) = [record for record in caplog.records if "a record after the end" in record.getMessage()]
    assert record.levelno == logging.WARNING


def test_a_session_taken_for_dead_is_cut_without_a_closing_handshake() -> None:
    """[T2] Nobody waits for the answer of somebody who does not answer."""

    async def main() -> Recorder:
        async with recorder(welcomes=False) as server:
            async with running(MemoryOutbox(), Endpoint(url=server.url, name="a")) as uplink:
                await until(lambda: trouble_of(uplink, "a") == "no welcome within 2 s")
                await until(lambda: server.sessions[0].state.name == "CLOSED")
            return server

    server = asyncio.run(main())
    assert server.opcodes == [Opcode.TEXT], "the hello, and nothing else"
    assert server.sessions[0].close_code == 1006


def test_a_stream_that_is_sealed_before_its_first_session_is_still_our_own() -> None:
    """[M4a] Live first seals it before the very first hello; a mark beyond what was sent is no ack all the same."""

    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        (stream,) = outbox.streams
        for row in range(LIVE_FIRST_RECORDS + 1):
            outbox.put(row)
            outbox.close(Lane.LIVE)
        store.marks[stream] = 10_000
        async with Sink(store) as sink, running(outbox, Endpoint(url=sink.url, name="a")):
            await until(lambda: outbox.distrusted == [stream])
            assert stream in outbox.sealed

    asyncio.run(main())


def test_a_backlog_is_sealed_off_once_a_minute_at_most() -> None:
    """[M6a, M6c]"""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

        def state(self) -> ClockState:
            return ClockState("0" * 32, 0, 1, Trust.SYNCED)

    clock, outbox = Clock(), MemoryOutbox()
    uplink = Uplink(UplinkSettings(), outbox, MemoryCommands(), clock, About("test 1"))  # type: ignore[arg-type]

    def backlog(records: int) -> None:
        for row in range(records):
            outbox.put(row)
            outbox.close(Lane.LIVE)

    backlog(LIVE_FIRST_RECORDS)
    uplink.live_first()
    assert len(outbox.sealed) == 0, "so much is no backlog yet"
    backlog(1)
    uplink.live_first()
    assert len(outbox.sealed) == 1
    backlog(LIVE_FIRST_RECORDS + 1)
    clock.now += LIVE_FIRST_EVERY_S - 0.1
    uplink.live_first()
    assert len(outbox.sealed) == 1
    clock.now += 0.1
    uplink.live_first()
    assert len(outbox.sealed) == 2


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reading_stops_while_the_store_takes_nothing(tmp_path: Path) -> None:
    """[W5] What a gateway sends beyond that waits in the sockets, and arrives when there is room."""
    large = body([secrets.token_urlsafe(75_000)])  # nothing that compression makes small

    async def main() -> None:
        stream, release = stream_id(), threading.Event()
        async with cloud(tmp_path) as server, gateway(server) as sender:
            await sender.hello(stream)
            await sender.batch(stream, 1, large)
            await sender.acked(stream, 1)
            (session,) = server.fleet
            for end, option in ((sender.ws, socket.SO_SNDBUF), (session.ws, socket.SO_RCVBUF)):
                end.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 64 * 1024)
            held = asyncio.create_task(server.committer.call(release.wait, 60.0))
            sending = asyncio.create_task(_send(sender, stream, large))
            try:
                await until(lambda: server.committer.waiting >= 16)
                waiting = 0
                while waiting < server.committer.waiting:  # until no more comes
                    waiting = server.committer.waiting
                    await asyncio.sleep(0.5)
                assert waiting <= MAX_UNDER_WAY
                assert not sending.done(), "the sender is held back"
            finally:
                release.set()
            await held
            await sending
            await sender.acked(stream, 100)

    asyncio.run(main())


async def _send(sender: Any, stream: str, content: bytes) -> None:
    for seq in range(2, 101):
        await sender.batch(stream, seq, content)


def test_a_mark_of_last_year_is_still_known(tmp_path: Path) -> None:
    """[R6a] Nothing that the store does by itself takes a mark away, however old it is."""
    stream, year_ms = "7" * 32, 366 * 24 * 3600 * 1000
    old = SqliteSink(tmp_path)
    old.commit([entry(stream, 1, body([1])), entry(stream, 2, None)], [], 0)
    old.close()
    sink = SqliteSink(tmp_path)
    other = Hello(process="d" * 32, software="t", clock=ClockState("0" * 32, 0, 1, Trust.SYNCED))
    sink.hello("g1", other, year_ms)
    sink.commit([entry("8" * 32, 1, body([1]))], [], year_ms)
    sink.probe(year_ms)
    sink.close()
    again = SqliteSink(tmp_path)
    offer = StreamOffer(stream, Lane.LIVE, 1, 3)
    asked = Hello(process="e" * 32, software="t", clock=other.clock, streams=(offer,))
    assert again.hello("g1", asked, year_ms)[0][stream].number == 2
    again.close()
