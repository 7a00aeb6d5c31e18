"""One serial line: listens, cuts frames, and gives each to the device that it belongs to.

The port hands over bytes whenever they come; frames wait in a bounded queue until the gateway has taken those before.
When it is full the oldest goes, counted: a line cannot be asked to wait, and the newest value is worth most.

A write is as honest as the line allows. With a `reply` it is ok when that frame came in time; otherwise it is
`unknown`: the text was sent, and that is all that anybody knows.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Sequence

from gateway.connectors.base import Emit, Tools
from gateway.connectors.port import SerialPort
from gateway.connectors.serial.config import SerialBus, SerialDevice, SerialPoint
from gateway.connectors.serial.frames import Reader, Values, owner
from gateway.connectors.serial.framing import Framer
from gateway.errors import CommandError, DecodeError, LinkError
from gateway.model import DeviceState, Json, Outcome, Sample, Status, Value, Write

log = logging.getLogger(__name__)

_QUEUE_FRAMES = 1000
_BATCH_FRAMES = 100  # in one call of `emit`
_BEAT_S = 10.0
_FAILING_AFTER = 3  # rejected frames in a row; a single one is noise


class _Tally:
    """One device as far as it was heard."""

    def __init__(self) -> None:
        self.frames = self.rejected = self.in_a_row = 0
        self.last_error = ""
        self.seen: dict[str, None] = {}


class _Reply:
    """What confirms a write that was sent."""

    def __init__(self, expected: re.Pattern[str], came: asyncio.Future[None]) -> None:
        self.expected = expected
        self.came = came
        """Cancelled when the line is lost."""
        self.late_until = 0.0
        """Monotonic; a write that was given up may still be answered until then."""


class SerialConnector:
    """See the module."""

    def __init__(self, bus: SerialBus, devices: Sequence[SerialDevice], tools: Tools) -> None:
        self._bus = bus
        self._tools = tools
        self._readers = [Reader(device) for device in devices]
        self._tallies = {device.name: _Tally() for device in devices}
        self._points = {(device.name, point.name): point for device in devices for point in device.named}
        for reader in self._readers:
            self._tallies[reader.device.name].seen = dict.fromkeys(reader.known)
        self._start = re.compile(bus.frame.start) if bus.frame.start else None
        self._port: SerialPort | None = None
        self._framer = self._new_framer()
        self._frames: deque[tuple[bytes, int]] = deque()
        self._news = asyncio.Event()
        self._lost: LinkError | None = None
        self._writing = asyncio.Lock()
        self._reply: _Reply | None = None
        self._bytes = self._unowned = self._undecodable = self._overrun = 0

    def _new_framer(self) -> Framer:
        frame = self._bus.frame
        delimiter = frame.delimiter.encode(self._bus.encoding)
        return Framer(delimiter, frame.max_length, frame.idle_flush, self._tools.clock.monotonic())

    async def run(self, emit: Emit) -> None:
        """See `connectors.base.Connector`."""
        port = SerialPort(self._bus, self._received, self._hung_up)
        try:
            port.open()
            self._framer = self._new_framer()
            self._port = port
            while self._lost is None or self._frames:
                self._tools.beat(3 * _BEAT_S)
                await self._wait()
                await self._deliver(emit)
            raise self._lost
        except LinkError as error:
            await self._tell_offline(emit, str(error))
            raise
        finally:
            self._port = None
            port.close()
            if self._reply is not None:
                self._reply.came.cancel()

    def _received(self, data: bytes) -> None:
        clock = self._tools.clock
        self._bytes += len(data)
        self._queue(self._framer.feed(data, clock.monotonic()), clock.boot_ns())

    def _hung_up(self, error: LinkError) -> None:
        self._lost = error
        self._news.set()

    def _queue(self, frames: list[bytes], at_ns: int) -> None:
        for frame in frames:
            if self._reply is not None and not self._reply.came.done():
                self._confirm(self._reply, frame)
            if len(self._frames) >= _QUEUE_FRAMES:
                self._frames.popleft()
                if self._overrun == 0:
                    log.warning("%s: frames come faster than they are taken; the oldest are dropped", self._bus.name)
                self._overrun += 1
            self._frames.append((frame, at_ns))
        self._news.set()

    def _confirm(self, reply: _Reply, frame: bytes) -> None:
        """Here and not behind the queue: a reply must not wait for the buffer."""
        text = self._text(frame)
        if text is not None and reply.expected.search(text):
            reply.came.set_result(None)

    async def _wait(self) -> None:
        """Until there is something to do; silence may be it."""
        now, due = self._tools.clock.monotonic(), self._framer.deadline()
        pause_s = _BEAT_S if due is None else min(_BEAT_S, max(due - now, 0))
        if not self._frames and self._lost is None:
            self._news.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
            except TimeoutError:
                pass
        clock = self._tools.clock
        self._queue(self._framer.tick(clock.monotonic()), clock.boot_ns())

    async def _deliver(self, emit: Emit) -> None:
        """One batch: a line that never falls silent must not keep the loop from saying that it is alive."""
        taken = [self._frames.popleft() for _ in range(min(_BATCH_FRAMES, len(self._frames)))]
        samples = [sample for frame, at_ns in taken if (sample := self._sample(frame, at_ns)) is not None]
        if samples:
            await emit(samples)

    def _sample(self, frame: bytes, at_ns: int) -> Sample | None:
        text = self._text(frame)
        if text is None:
            self._undecodable += 1
            return None
        reader = owner(self._readers, text)
        if reader is None:
            self._unowned += 1
            return None
        name = reader.device.name
        tally = self._tallies[name]
        try:
            values = reader.read(text)
        except DecodeError as error:
            self._reject(name, tally, str(error))
            return None
        tally.frames += 1
        tally.in_a_row = 0
        self._tools.report(name, DeviceState.ONLINE, "")
        if values is None:
            return None
        return self._emitted(name, tally, values, at_ns)

    def _emitted(self, name: str, tally: _Tally, values: Values, at_ns: int) -> Sample:
        if len(tally.seen) < _QUEUE_FRAMES:
            tally.seen.update(dict.fromkeys(values.points))
        return Sample(name, values.points, values.values, at_ns, units=values.units)

    def _text(self, frame: bytes) -> str | None:
        """None: it is not text of this encoding, or does not have the start that every frame has."""
        try:
            text = frame.decode(self._bus.encoding)
        except UnicodeError:
            return None
        text = text.rstrip("\r") if self._bus.frame.delimiter == "\n" else text
        if self._start is None:
            return text
        match = self._start.search(text)
        return text[match.start() :] if match else None

    def _reject(self, name: str, tally: _Tally, why: str) -> None:
        tally.rejected += 1
        tally.in_a_row += 1
        tally.last_error = why
        if tally.in_a_row == _FAILING_AFTER:
            self._tools.report(name, DeviceState.FAILING, why)

    async def _tell_offline(self, emit: Emit, why: str) -> None:
        """Nothing of this line can be known any more."""
        at_ns = self._tools.clock.boot_ns()
        samples = []
        for name, tally in self._tallies.items():
            self._tools.report(name, DeviceState.OFFLINE, why)
            points = tuple(tally.seen)
            if points:
                nothing = (None,) * len(points)
                samples.append(Sample(name, points, nothing, at_ns, (Status.DEVICE_OFFLINE,) * len(points)))
        if samples:
            await emit(samples)

    async def execute(self, write: Write) -> Value | None:
        """See `connectors.base.Connector`. One write at a time: replies carry no number."""
        point = self._points.get((write.device, write.point))
        if point is None or point.write is None:
            raise CommandError(Outcome.UNSUPPORTED, f"{write.device}.{write.point} cannot be written")
        data = self._command(point, write.value)
        async with self._writing:
            if not point.reply:
                self._line().write(data)
                raise CommandError(Outcome.UNKNOWN, "sent; this device confirms nothing")
            await self._let_late_reply_pass()
            line = self._line()
            self._reply = _Reply(re.compile(point.reply), asyncio.get_running_loop().create_future())
            line.write(data)
            await self._confirmed(self._reply)
        return None

    def _line(self) -> SerialPort:
        if self._port is None or not self._port.is_open:
            raise CommandError(Outcome.UNAVAILABLE, f"{self._bus.port} is not open")
        return self._port

    async def _confirmed(self, reply: _Reply) -> None:
        try:
            done, _ = await asyncio.wait([reply.came], timeout=self._bus.write_timeout)
        finally:
            reply.late_until = self._tools.clock.monotonic() + self._bus.write_timeout
        if not done:
            raise CommandError(Outcome.UNKNOWN, "sent, but no reply came")
        if reply.came.cancelled():
            raise CommandError(Outcome.UNKNOWN, "sent, but the line was lost before a reply came")

    async def _let_late_reply_pass(self) -> None:
        """The reply to a write that was given up must not confirm the next one."""
        if self._reply is not None and not self._reply.came.done():
            left_s = self._reply.late_until - self._tools.clock.monotonic()
            if left_s > 0:
                await asyncio.wait([self._reply.came], timeout=left_s)
        self._reply = None

    def _command(self, point: SerialPoint, value: Value) -> bytes:
        """The value as the device counts it, in its command."""
        try:
            raw = point.raw_of(value)
        except ValueError as error:
            raise CommandError(Outcome.REJECTED, str(error)) from error
        raw = int(raw) if isinstance(raw, float) and raw.is_integer() else raw
        text = str(raw).lower() if isinstance(raw, bool) else str(raw)
        if any(ord(character) < 32 for character in text):
            raise CommandError(Outcome.REJECTED, "control characters cannot be sent in a value")
        try:
            return point.command.replace("{value}", text).encode(self._bus.encoding)
        except UnicodeError as error:
            raise CommandError(Outcome.REJECTED, f"the value cannot be written in {self._bus.encoding}") from error

    def status(self) -> dict[str, Json]:
        """See `connectors.base.Connector`."""
        return {
            "port": self._bus.port,
            "open": self._port is not None and self._port.is_open,
            "bytes": self._bytes,
            "overlong": self._framer.overlong,
            "undecodable": self._undecodable,
            "unowned": self._unowned,
            "overrun": self._overrun,
            "devices": {
                name: {"frames": tally.frames, "rejected": tally.rejected, "last_error": tally.last_error}
                for name, tally in self._tallies.items()
            },
        }
