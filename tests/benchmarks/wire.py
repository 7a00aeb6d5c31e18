"""Bytes on the wire for each reading, WebSocket framing and compression included: `python tests/benchmarks/wire.py`.

The data set `plant-20x5` (`dataset.py`) goes through the encoder, the uplink's own connection and a real socket to a
sink that counts what its socket brings (no TCP or IP headers, no TLS): in messages of 2, 25 and 100 readings. Two
readings are two metrics of one device, or the last of one and the first of the next; 25 are five devices, 100 all of
them. The handshake and the first message are not in it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

import dataset
import msgspec
from figures import Figure, doing, finish
from rig import Tool

from gateway.model import ClockState, Lane, Record, RecordKind, Row, Shape, Trust
from gateway.protocol import batch
from gateway.protocol.messages import Hello, encode, encode_record
from gateway.uplink.auth import Credentials
from gateway.uplink.config import Endpoint
from gateway.uplink.link import open_link

AIMS: Final = {2: 12.0, 25: 6.5, 100: 5.0}
_CLOCK: Final = ClockState("8b7f3a52c4e94d1ea0b65f1d2c3e4a59", 1_763_829_000_000, 12, Trust.SYNCED)
_STREAM: Final = "9b1c0d7e52f84a63b1c9e0a4d5f6278b"


class Sent(NamedTuple):
    wire_bytes: int
    frame_bytes: int
    """Before compression."""
    messages: int
    readings: int


def messages(per_message: int) -> Iterator[bytes]:
    """Frames of exactly so many readings, in the order of the data set; what of one device fits in is one row."""
    flat = [(said, metric) for said in dataset.said() for metric in range(len(dataset.METRICS))]
    for seq in range(1, len(flat) // per_message + 1):
        portion = flat[(seq - 1) * per_message : seq * per_message]
        rows = [
            Row(_shape(said.device, first, end), said.at_ms, said.values[first:end])
            for said, metrics in groupby(portion, key=itemgetter(0))
            for first, end in [_span([metric for _, metric in metrics])]
        ]
        body = batch.encode(rows, _CLOCK)
        yield encode_record(Record(_STREAM, Lane.LIVE, seq, RecordKind.BATCH, body, per_message))


def _span(metrics: Sequence[int]) -> tuple[int, int]:
    return metrics[0], metrics[-1] + 1


@cache
def _shape(device: str, first: int, end: int) -> Shape:
    return Shape(device, dataset.METRICS[first:end], dataset.UNITS[first:end])


async def sent(per_message: int) -> Sent:
    endpoint = Endpoint(url="ws://127.0.0.1:1/", name="sink")
    frames = list(messages(per_message))
    async with Tool("counting_sink.py") as sink:
        endpoint = msgspec.structs.replace(endpoint, url=f"ws://127.0.0.1:{sink.said}/")
        link = await open_link(endpoint, Credentials(endpoint).read())
        link.send(encode(Hello(process="1" * 32, software="benchmark", clock=_CLOCK)))
        await link.receive()
        link.send(frames[0])
        await link.receive()
        for frame in frames[1:]:
            link.send(frame)
            if link.full:
                await link.drain()
        mark = 0
        while mark < len(frames):
            mark = msgspec.json.decode(await link.receive())["marks"][_STREAM]
        batches = await sink.ask()
        await link.close(1000, "")
    count = len(frames) - 1
    return Sent(batches[-1][1] - batches[0][1], sum(map(len, frames[1:])), count, per_message * count)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    arguments = parser.parse_args()
    figures = []
    for per_message, aim in AIMS.items():
        doing(f"{per_message} readings a message")
        got = asyncio.run(sent(per_message))
        beside = f"{got.messages:,} messages, {got.frame_bytes / got.readings:.1f} before compression"
        what = f"{dataset.NAME}: bytes per reading on the wire, {per_message} per message"
        figures.append(Figure(what, got.wire_bytes / got.readings, f"<= {aim}", beside, counted=True))
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
