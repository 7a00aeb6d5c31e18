"""A sink that stores nothing and acks at once: what it takes away from the machine is small, and it counts.

    counting_sink.py [ACK_AFTER_S]

Prints its port as one line of JSON, and for each line on its input what came so far: for each batch the time
(CLOCK_MONOTONIC), the bytes that all sockets had brought by then (frames, masks and compression included; no TCP/IP
headers) and the rows of each device.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.protocol import State
from websockets.typing import Subprotocol

from gateway.protocol import batch
from gateway.protocol.messages import (
    SUBPROTOCOL,
    Ack,
    Batch,
    ClockRecord,
    End,
    Gap,
    Hello,
    Welcome,
    decode_from_gateway,
    encode,
)


class Sink:
    """What came so far."""

    def __init__(self, ack_after_s: float) -> None:
        self.received_bytes = 0
        self.batches: list[tuple[float, int, dict[str, int]]] = []
        self._ack_after_s = ack_after_s
        self._marks: dict[str, int] = {}

    async def converse(self, session: ServerConnection) -> None:
        try:
            async for frame in session:
                now = time.monotonic()
                match decode_from_gateway(frame):
                    case Hello():
                        await session.send(encode(self._welcome(now)), text=True)
                    case Batch() as message:
                        self._take(message, now)
                        self._acknowledge(session, message.stream, message.seq)
                    case Gap() as message:
                        self._acknowledge(session, message.stream, message.last)
                    case ClockRecord() | End() as message:
                        self._acknowledge(session, message.stream, message.seq)
        except ConnectionClosed:
            pass

    def _welcome(self, now: float) -> Welcome:
        return Welcome(sink="5" * 32, session="0" * 32, marks=dict(self._marks), mono_ms=int(now * 1000))

    def _take(self, message: Batch, now: float) -> None:
        rows: dict[str, int] = {}
        for group in batch.decode(message.body).groups:
            rows[group.device] = rows.get(group.device, 0) + len(group.t)
        self.batches.append((now, self.received_bytes, rows))

    def _acknowledge(self, session: ServerConnection, stream: str, seq: int) -> None:
        self._marks[stream] = max(seq, self._marks.get(stream, 0))
        asyncio.get_running_loop().call_later(self._ack_after_s, self._send_ack, session, {stream: self._marks[stream]})

    def _send_ack(self, session: ServerConnection, marks: dict[str, int]) -> None:
        if session.state is State.OPEN:
            session.protocol.send_text(encode(Ack(marks=marks)))
            session.send_data()


class Counted(ServerConnection):
    """Counts what the socket brings."""

    def __init__(self, sink: Sink, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sink = sink

    def data_received(self, data: bytes) -> None:
        self._sink.received_bytes += len(data)
        super().data_received(data)


async def main() -> None:
    sink = Sink(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
    async with serve(
        sink.converse, "127.0.0.1", 0, subprotocols=[Subprotocol(SUBPROTOCOL)],
        create_connection=partial(Counted, sink), ping_interval=None, compression=None,
        extensions=[ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_max_window_bits=15)],
    ) as server:  # fmt: skip
        print(json.dumps(next(iter(server.sockets)).getsockname()[1]), flush=True)
        while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            print(json.dumps(sink.batches), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
