"""Finds what is on a bus: Modbus units behind a port, a host, or the hosts of a network.

Read-only: a unit is asked for one register, and whatever it says in a valid frame, a refusal included, means that it is
there. Then it is asked who it is, in every way that there is (functions 43/14 and 17, SunSpec), and told as TOML that
can be pasted into the configuration.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from gateway.clock import Clock
from gateway.connectors.modbus.candidates import NETWORK, Step, host_steps, longest_s, named
from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.config import AnyBus, TcpBus
from gateway.connectors.modbus.findings import INPUT, Finding
from gateway.connectors.modbus.identity import identify, server_id, text
from gateway.connectors.modbus.link import Line
from gateway.connectors.modbus.request import GATEWAY, Function, Request
from gateway.connectors.modbus.sunspec import Found as SunSpec
from gateway.connectors.modbus.sunspec import walk
from gateway.connectors.modbus.sweep import Bite
from gateway.connectors.modbus.trace import frames
from gateway.connectors.modbus.values import reason_of
from gateway.connectors.tap import Event, Tap, What
from gateway.errors import LinkError

HOSTS_AT_ONCE = 32
_CONNECT_S = 1.5
"""For a host of a network; one retransmission of a SYN fits in."""
_PATIENT_S = 0.5
"""For who is known to be there."""
_IDENTIFIED = 32
"""Units that are asked who they are."""


class Progress(NamedTuple):
    """How far a scan is."""

    share: float
    what: str
    findings: int


class Result(NamedTuple):
    """What a scan ends with."""

    findings: list[Finding]
    remarks: tuple[str, ...] = ()


class _Ear(Tap):
    """Hears everything that comes, the late and the senseless too."""

    def __init__(self) -> None:
        super().__init__()
        self._sent = b""
        self._heard = b""

    def __bool__(self) -> bool:
        return True

    def show(self, event: Event) -> None:
        if event.what is What.SENT:
            self._sent += event.data
        elif event.what is What.RECEIVED:
            self._heard += event.data

    def take(self, kind: str) -> tuple[set[int], bool]:
        """Units that answered to what is asked here, whenever; whether there was more than echoes and frames. Since it
        was asked last."""
        heard = self._heard.replace(self._sent, b"") if self._sent else self._heard
        found = list(frames(kind, heard))
        rest = len(heard) - sum(frame.end - frame.start for frame in found)
        self._sent = self._heard = b""
        return {frame.unit for frame in found if _is_answer(frame.pdu)}, rest > 0


def _is_answer(pdu: bytes) -> bool:
    """To the question for one holding register, from a unit itself."""
    return pdu[:2] == b"\x03\x02" or (pdu[0] == 0x83 and len(pdu) == 2 and pdu[1] not in GATEWAY)


class Scan:
    """One scan; what was found so far is in `findings`."""

    def __init__(
        self, steps: Sequence[Step], clock: Clock, progress: Callable[[Progress], None], stop: asyncio.Event
    ) -> None:
        self._steps = list(steps)
        self._clock = clock
        self._progress = progress
        self._stop = stop
        self._total_s = longest_s(steps)
        self._done_s = 0.0
        self._noise: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self._alike = False
        self._ear = _Ear()
        self._line: Line | None = None
        self._bus: AnyBus | None = None

    async def run(self) -> Result:
        """Until everything was asked, something was found, or `stop` is set. Cancelling is safe; the port is closed.

        Raises:
            LinkError: the port or host cannot be opened.
        """
        try:
            for number, step in enumerate(self._steps):
                if self._stop.is_set() or self._alike:
                    break
                if not self.findings or step.bus == self.findings[0].bus:
                    await self._take(step)
                    self._look_alike(step)
                self._done_s = longest_s(self._steps[: number + 1])
            await self._identify()
        finally:
            if self._line is not None:
                self._line.close()
        self._progress(Progress(1.0, "done", len(self.findings)))
        return Result(self.findings, tuple(self._remarks()))

    async def _line_of(self, bus: AnyBus) -> Line:
        """The open line, opened anew where it is another bus's or was hung up on, as some gateways do for a unit that
        they do not know."""
        if self._line is None or self._bus != bus or self._line.lost:
            if self._line is not None:
                self._line.close()
            self._line, self._bus = await opened(bus, self._clock, self._ear), bus
        return self._line

    async def _take(self, step: Step) -> None:
        for count, unit in enumerate(step.units):
            if self._stop.is_set():
                return
            done_s = self._done_s + step.longest_s * count / len(step.units)
            what = f"{named(step.bus)}, unit {unit}"
            self._progress(Progress(done_s / self._total_s, what, len(self.findings)))
            line = await self._line_of(step.bus)
            answer = await _answer(line, unit)
            spoke, noise = self._ear.take(step.bus.kind)
            if answer:
                self.findings.append(Finding(step.bus, unit, answer))
            self._late(step, spoke)
            if noise and not answer and not spoke:
                self._noise[named(step.bus)] += 1

    def _late(self, step: Step, spoke: set[int]) -> None:
        """Units whose answer came after their time, while another was asked."""
        known = {finding.unit for finding in self.findings}
        said = f"answers later than {1000 * step.bus.timeout:.0f} ms"
        self.findings += (Finding(step.bus, unit, said) for unit in sorted(spoke - known) if unit in step.units)

    def _look_alike(self, step: Step) -> None:
        """A device that does not look at the unit id answers to all, to those too that nobody would set."""
        if isinstance(step.bus, TcpBus) and len(self.findings) == len(step.units) >= 8:
            self._alike = True
            del self.findings[1:]

    async def _identify(self) -> None:
        if not self.findings or self._stop.is_set():
            return
        for number, finding in enumerate(self.findings[:_IDENTIFIED]):
            self._progress(Progress(1.0, f"who is unit {finding.unit}?", len(self.findings)))
            if self._stop.is_set():
                return
            identity, sunspec = await _asked_who(await self._line_of(finding.bus), finding.unit)
            self.findings[number] = finding._replace(identity=identity, sunspec=sunspec)

    def _remarks(self) -> Iterable[str]:
        if self._alike:
            yield f"Every unit id is answered: {named(self.findings[0].bus)} is one device that does not look at it."
        if self._noise and not self.findings:
            settings = ", ".join(each for each, _ in self._noise.most_common(3))
            yield f"Something came that is no Modbus (at {settings}): another baud rate or parity, or another protocol."


async def scan_network(
    hosts: Sequence[str], tcp_port: int, clock: Clock, progress: Callable[[Progress], None], stop: asyncio.Event
) -> Result:
    """Asks each host for a few units, some hosts at a time. Cancelling is safe."""
    findings: list[Finding] = []
    refusing: list[str] = []
    done = 0
    turns = asyncio.Semaphore(HOSTS_AT_ONCE)

    async def ask(host: str) -> None:
        nonlocal done
        async with turns:
            if not stop.is_set():
                bus = host_steps(host, tcp_port)[0].bus
                try:
                    found = await _first(bus, clock)
                    findings.extend(found)
                    refusing.extend([] if found else [host])
                except (LinkError, TimeoutError):
                    pass  # nothing listens there
        done += 1
        progress(Progress(done / len(hosts), host, len(findings)))

    async with asyncio.TaskGroup() as tasks:
        for host in hosts:
            tasks.create_task(ask(host), name=f"scan {host}")
    findings.sort(key=lambda finding: hosts.index(finding.bus.host) if isinstance(finding.bus, TcpBus) else 0)
    remarks = [f"{host} takes the connection, and no unit answers: gateway scan modbus {host}" for host in refusing]
    return Result(findings, tuple(remarks))


async def _first(bus: AnyBus, clock: Clock) -> list[Finding]:
    async with asyncio.timeout(_CONNECT_S):
        line = await opened(bus, clock)
    try:
        for unit in NETWORK:
            answer = await _answer(line, unit)
            if answer:
                identity, sunspec = await _asked_who(line, unit)
                return [Finding(bus, unit, answer, identity, sunspec)]
    finally:
        line.close()
    return []


async def opened(bus: AnyBus, clock: Clock, tap: Tap | None = None) -> Line:
    """An open line.

    Raises:
        LinkError: the port or host cannot be opened.
    """
    line = Line(bus, clock, lambda: None, *([tap] if tap is not None else []))
    try:
        await line.open()
    except BaseException:
        line.close()
        raise
    return line


async def _answer(line: Line, unit: int) -> str:
    """What the unit said; empty when it is not there."""
    try:
        reply = (await line.ask(Request(unit, Function.READ_HOLDING_REGISTERS))).reply
        if reply.code == 1:
            inputs = (await line.ask(Request(unit, Function.READ_INPUT_REGISTERS))).reply
            if inputs.data is not None:
                return f"{INPUT} holds {int.from_bytes(inputs.data, 'big')}"
            if inputs.code > 1:
                return f"{INPUT}: {reason_of(inputs.code)}"
    except LinkError:
        return ""
    if reply.data is not None:
        return f"register 0 holds {int.from_bytes(reply.data, 'big')}"
    if reply.code in GATEWAY:
        return ""  # a gateway answered, for a unit that it does not reach
    return reason_of(reply.code) if reply.code else ""


async def _asked_who(line: Line, unit: int) -> tuple[str, SunSpec | None]:
    """Who the unit says that it is."""

    async def ask(request: Request) -> Reply:
        return (await line.ask(request, timeout=_PATIENT_S)).reply

    try:
        objects = await identify(ask, unit)
        words = [text(objects[each]) for each in (0, 4, 5, 1, 2) if each in objects]
        if not words and (data := (await ask(server_id(unit))).data):
            words = [f"server id {text(data)}"]
        sunspec = await _walked(ask, unit)
        if sunspec is not None and sunspec.texts:
            words = [word for word in sunspec.texts if word]
    except LinkError:
        return "", None
    return " ".join(dict.fromkeys(filter(None, words))), sunspec


async def _walked(ask: Callable[[Request], Awaitable[Reply]], unit: int) -> SunSpec | None:
    steps = walk()
    said: list[int] | None = None
    try:
        bite: Bite = next(steps)
        while True:
            data = (await ask(Request(unit, Function.READ_HOLDING_REGISTERS, *bite))).data
            said = [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)] if data else None
            bite = steps.send(said)
    except StopIteration as end:
        found: SunSpec | None = end.value
        return found
