"""One raw WebSocket connection to the server under test: says what it is told, right or wrong, and keeps what it hears.

It keeps no rule of the protocol by itself: no hello, no window, no answer to a nack. What never comes ends after
its patience, and what a server says is bounded by what it is asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.typing import Subprotocol

from gateway.conformance import says
from gateway.conformance.register import Failed
from gateway.conformance.says import Message
from gateway.conformance.witness import Witness, short
from gateway.errors import GatewayError

QUIET_S: Final = 0.25
"""How long nothing more must come, after an answer to something later has come."""
CLOSE_S: Final = 2.0
_MAX_HEARD: Final = 1 << 20
"""A frame beyond the server's limit is to be seen, not to be refused by the library."""


class Refused(GatewayError):
    """No connection. `status`: of HTTP, 0 where it did not get that far."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class _Connect(connect):
    """Follows no redirect: a token is for one server."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def dial(
    url: str,
    headers: dict[str, str],
    context: ssl.SSLContext | None,
    subprotocols: Sequence[str],
    compress: bool,
    patience_s: float,
) -> ClientConnection:
    """Raises Refused."""
    deflate = ClientPerMessageDeflateFactory(server_no_context_takeover=True, client_max_window_bits=15)
    try:
        return await _Connect(
            url,
            subprotocols=[Subprotocol(name) for name in subprotocols],
            additional_headers=headers,
            extensions=[deflate] if compress else None,
            compression=None,
            ssl=context,
            proxy=None,
            open_timeout=patience_s,
            ping_interval=None,
            close_timeout=CLOSE_S,
            max_size=_MAX_HEARD,
            user_agent_header="gateway conformance",
        )
    except InvalidStatus as error:
        raise Refused(f"HTTP {error.response.status_code}", error.response.status_code) from error
    except InvalidMessage as error:
        raise Refused("something answers, but not with HTTP/1.1: it is no WebSocket server") from error
    except (InvalidHandshake, ConnectionClosed) as error:
        raise Refused(str(error)) from error
    except TimeoutError as error:
        raise Refused(f"no connection within {patience_s:g} s") from error
    except OSError as error:
        raise Refused(f"no connection: {_why(error)}") from error


def _why(error: OSError) -> str:
    """asyncio's own words name the call and the address, not what happened."""
    if isinstance(error, ssl.SSLError) or error.errno is None:
        return str(error)
    return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)


class Peer:
    """An open connection. `log` gets one line, with its name, for everything that goes out or comes in."""

    def __init__(self, ws: ClientConnection, name: str, witness: Witness, log: list[str], patience_s: float) -> None:
        self.ws = ws
        self._name = name
        self.patience_s = patience_s
        self.welcome: dict[str, Any] = {}
        self.marks: dict[str, int] = {}
        """Stream → highest mark acked on this session."""
        self.nacks: list[Message] = []
        self.acks = 0
        self.errors: list[str] = []
        self.results: list[str] = []
        """Ids of acked results."""
        self.heard = 0
        self._sent: dict[str, int] = {}
        self._witness = witness
        self._log = log

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def say(self, *messages: Message) -> None:
        for message in messages:
            self._witness.sent(message)
            if "seq" in message:
                last: int = message.get("last") or message["seq"]
                self._sent[message["stream"]] = max(last, self._sent.get(message["stream"], 0))
            await self.say_raw(json.dumps(message, separators=(",", ":")), short(message))

    async def say_raw(self, frame: str | bytes, shown: str = "") -> None:
        """Any frame. A connection that has ended takes it without a word: what it said comes out of `closed`."""
        self._note("→", shown or (short(frame) if isinstance(frame, str) else f"{len(frame)} bytes, binary"))
        try:
            async with asyncio.timeout(self.patience_s):
                await self.ws.send(frame)
        except ConnectionClosed:
            pass
        except TimeoutError:
            raise Failed("it does not read what it is sent") from None

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def hear(self, within_s: float) -> Message | None:
        """The next message; None when nothing comes in this time. Raises Failed when the connection ends."""
        try:
            async with asyncio.timeout(within_s):
                frame = await self.ws.recv()
        except TimeoutError:
            return None
        except ConnectionClosed:
            self._note("←", self._end())
            raise Failed(f"it {self._end()}") from None
        message = self._witness.heard(frame)
        self._note("←", short(message if message is not None else repr(frame)))
        if message is not None:
            self._take(message)
        return message if message is not None else {}

    def _take(self, message: Message) -> None:
        if message["type"] != "error":
            if not self.heard:
                self._witness.first(message)
            self.heard += 1
        match message["type"]:
            case "welcome":
                self._witness.welcome(message, bool(self.welcome))
                self.welcome = message
            case "ack":
                self.acks += 1
                self._witness.ack(message["marks"])
                for stream, mark in message["marks"].items():
                    self.marks[stream] = max(mark, self.marks.get(stream, 0))
            case "nack":
                self.nacks.append(message)
                self._witness.nack(message, self._sent.get(message["stream"], 0))
            case "error":
                self.errors.append(message["reason"])
            case "result_ack":
                self.results.append(message["id"])

    async def until(self, true: Callable[[], object], what: str, within_s: float = 0.0) -> None:
        """Listens until it is. Raises Failed: it did not become so, or the connection ended before."""
        within_s = within_s or self.patience_s
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not true():
            if await self.hear(max(0.0, deadline - loop.time())) is None:
                raise Failed(f"{what} did not come within {within_s:g} s")

    async def acked(self, stream: str, seq: int) -> None:
        await self.until(lambda: self.marks.get(stream, 0) >= seq, f"an ack of {seq}")

    async def stored(self, stream: str, first: int, last: int = 0) -> None:
        """Sends one batch of one reading for each number, and waits for the ack."""
        last = last or first
        await self.say(*(says.batch(stream, seq) for seq in range(first, last + 1)))
        await self.acked(stream, last)

    async def nacked(self, stream: str, expected: int, so_far: int = 0) -> None:
        """Waits for the nack after the first `so_far` ones, and compares it."""
        await self.until(lambda: len(self.nacks) > so_far, "a nack")
        nack = self.nacks[so_far]
        if (nack["stream"], nack["expected"]) != (stream, expected):
            raise Failed(f"the nack expects {nack['expected']} instead of {expected}")

    async def settle(self, barrier: str) -> None:
        """Everything that was said before has been answered: `barrier` is a new stream, whose record is acked."""
        await self.stored(barrier, 1)
        while await self.hear(QUIET_S) is not None:
            pass

    async def ping(self) -> float:
        """Seconds to the pong. Raises Failed."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.patience_s):
                await (await self.ws.ping())
        except TimeoutError:
            raise Failed(f"no pong within {self.patience_s:g} s") from None
        except ConnectionClosed:
            raise Failed(f"it {self._end()}") from None
        return asyncio.get_running_loop().time() - began

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def closed(self, *codes: int, within_s: float = 0.0) -> None:
        """The server closes with one of these. Raises Failed: with another, or not at all."""
        within_s = within_s or self.patience_s
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        try:
            while await self.hear(max(0.0, deadline - loop.time())) is not None:
                pass
        except Failed:
            if self.ws.close_code in codes:
                return
            wanted = " or ".join(str(code) for code in codes)
            raise Failed(f"it {self._end()}, not with {wanted}") from None
        raise Failed(f"it keeps the session open for {within_s:g} s, where it should close with {codes[0]}")

    def _note(self, way: str, what: str) -> None:
        self._log.append(f"{self._name} {way} {what}")

    def _end(self) -> str:
        reason = f" ({short(self.ws.close_reason)})" if self.ws.close_reason else ""
        return f"closed with {self.ws.close_code}{reason}"

    async def leave(self) -> None:
        """Politely, where that is still possible."""
        try:
            async with asyncio.timeout(CLOSE_S):
                if self.welcome:
                    await self.ws.send('{"type":"bye"}')
                await self.ws.close(1000)
        except (ConnectionClosed, TimeoutError, OSError):
            self.ws.transport.abort()

    def abort(self) -> None:
        self._note("→", "cut")
        self.ws.transport.abort()
