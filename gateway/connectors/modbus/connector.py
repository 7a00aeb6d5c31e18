"""One Modbus bus, driven by one task.

The task owns the line: polls and commands are transactions in one queue, never two at once. Callers of `execute` wait
for a future, so cancelling one takes back a write that is not yet out and never cuts a transaction in two.

A device that does not answer rests (`Schedule`) while its neighbours go on. A line on which no device at all answers is
closed and opened again before the next probe (`Keeper`). The medium going away ends `run` with `LinkError`, after every
point has been marked `bad:device_offline`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from functools import partial

import msgspec

from gateway.connectors.base import Emit, Tools
from gateway.connectors.modbus.client import WINDOW_GROWTH_MAX, Reply
from gateway.connectors.modbus.commands import Commands, Waiting
from gateway.connectors.modbus.config import (
    AnyBus,
    ModbusDevice,
    Spot,
    TcpBus,
    broadcasts,
    gap_s,
    late_window_s,
    spot,
)
from gateway.connectors.modbus.forecast import cost, load, requests, wire_s
from gateway.connectors.modbus.keeper import Keeper
from gateway.connectors.modbus.link import Acquired
from gateway.connectors.modbus.models import Walk, at_once, by_model, placed
from gateway.connectors.modbus.planner import split
from gateway.connectors.modbus.questions import Questions, read, told
from gateway.connectors.modbus.request import BUSY, BUSY_PAUSE_S, GATEWAY, Request
from gateway.connectors.modbus.tally import Account
from gateway.connectors.modbus.values import Block, raw_of, read_request, reason_of, write_request
from gateway.connectors.modbus.writing import BUSY_TRIES, carry_out
from gateway.connectors.schedule import FAILURES_TO_REST, Job, Next, Schedule, Turn
from gateway.errors import CommandError, GatewayError, LinkError
from gateway.model import DeviceState, Json, Outcome, Sample, Status, Value, Write

log = logging.getLogger(__name__)

_LAST_ANSWER_S = 1.0
"""Beyond the timeout: for the wire, and for the buffer to take the answer."""
_BEAT_S = 30.0
_REFUSED_S = 3600.0
"""A point that the device refuses for good is asked for again so often: firmware may be updated, a map corrected."""

_Job = Job[Block]
_REFUSED_FOR_GOOD = (1, 2, 3)


class ModbusConnector:
    """See the module."""

    def __init__(self, bus: AnyBus, devices: Sequence[ModbusDevice], tools: Tools) -> None:
        self._bus = bus
        self._tools = tools
        self._devices = {device.name: device for device in devices}
        self._spots = {
            (device.name, point.name): spot(bus.byte_order, device, point)
            for device in devices
            for point in device.points
            if not point.model
        }
        """Of the points whose places are known."""
        self._units = {device.name: device.unit_id for device in devices}
        self._gaps = {device.name: gap_s(bus, device) for device in devices}
        self._timeouts = {device.name: device.timeout or bus.timeout for device in devices}
        self._everybody = {device.name for device in devices if broadcasts(bus, device)}
        self._accounts = {device.name: Account() for device in devices}
        self._commands = Commands()
        self._questions = Questions()
        self._wake = asyncio.Event()
        self._stopping = self._in_transaction = False
        self._schedule: Schedule[Block] | None = None
        self._line = Keeper(bus, tools, self._wake.set, self._beat)
        self._load = load(bus, devices)
        self._refused_until: dict[_Job, float] = {}
        self._walked_from: dict[str, ModbusDevice] = {}
        """Devices whose models have been found, with the points in them as they were said."""
        # the longest that one step can take: connecting, or waiting for a unit's quarantine and its answer
        connecting_s = bus.connect_delay if isinstance(bus, TcpBus) else 0.0
        self._longest_s = max(self._timeouts.values(), default=bus.timeout)
        self._beat_s = _BEAT_S + connecting_s + self._longest_s + WINDOW_GROWTH_MAX * late_window_s(bus)

    # ---- what others call

    async def run(self, emit: Emit) -> None:
        """Raises LinkError. Cancelling waits for the transaction under way: an answer that the device gave is told."""
        bus = asyncio.create_task(self._own_the_bus(emit), name=f"modbus {self._bus.name}")
        try:
            await asyncio.shield(bus)
        finally:
            self._stopping = True
            try:
                if self._in_transaction:
                    await asyncio.wait([bus], timeout=self._longest_s + _LAST_ANSWER_S)
            finally:  # who cancels again waits no longer, and the port is free all the same
                bus.cancel()
                await asyncio.gather(bus, return_exceptions=True)

    async def _own_the_bus(self, emit: Emit) -> None:
        clock = self._tools.clock
        jobs = [
            job for device in self._devices.values() for job in (*self._jobs(at_once(device)), *self._walks(device))
        ]
        self._schedule = schedule = Schedule(jobs, clock.monotonic())
        try:
            await self._line.open()
            while not self._stopping:
                self._beat()
                self._wake.clear()
                # everybody was asked twice and more without an answer: the fault may be the medium's
                silent = schedule.all_offline() and self._line.unanswered >= 2 * len(self._devices)
                await self._line.keep(silent)
                now = clock.monotonic()
                may_go = partial(schedule.command_may_go, now, self._free_at)
                if (waiting := self._commands.take(now, self._free_at, may_go)) is not None:
                    self._in_transaction = True
                    await self._obey(waiting)
                elif (question := self._questions.take(now, self._line.free_at)) is not None:
                    self._in_transaction = True
                    question.answer((await self._line.ask(question.request, gap_s(self._bus), self._bus.timeout)).reply)
                elif (turn := schedule.pick(now, self._free_at)) is not None:
                    self._in_transaction = True
                    await self._take(turn, emit)
                else:
                    self._in_transaction = False
                    if self._line.hangs_up:
                        self._line.close()
                    next_at = min(schedule.next_at(self._free_at), self._commands.next_at(self._free_at))
                    next_at = min(next_at, self._questions.next_at(self._line.free_at))
                    await self._sleep(min(next_at, now + _BEAT_S / 2))
        except LinkError:
            await self._all_offline(emit)
            raise
        finally:
            self._in_transaction = False
            self._line.close()
            self._commands.refuse_all("the bus is gone")
            self._questions.refuse_all("the bus is gone")
            self._schedule = None

    async def execute(self, write: Write) -> Value | None:
        target = self._spots.get((write.device, write.point))
        if target is None or target.point.write is None:
            raise CommandError(Outcome.UNSUPPORTED, f"{write.device}/{write.point} cannot be written")
        if not self._is_open():
            raise CommandError(Outcome.UNAVAILABLE, "the bus is not open")
        if self._state(write.device) is DeviceState.OFFLINE:
            raise CommandError(Outcome.UNAVAILABLE, f"{write.device} is offline")
        try:
            write_request(0, target, raw_of(target, write.value))
        except ValueError as error:
            raise CommandError(Outcome.REJECTED, str(error)) from error
        done = self._commands.add(write, target)
        self._wake.set()
        return await done

    async def inquire(self, question: Mapping[str, Json]) -> Json:
        """Reads registers that the configuration does not name; see `questions.py`."""
        request = read(question)
        if not self._is_open():
            raise GatewayError("the bus is not open")
        done = self._questions.add(request)
        self._wake.set()
        return told(await done)

    def status(self) -> dict[str, Json]:
        schedule = self._schedule
        late = self._line.late_discarded()
        refused: dict[str, list[str]] = {}
        for job in self._refused_until:
            refused.setdefault(job.device, []).extend(job.work.names)
        return {
            "open": self._is_open(),
            "utilisation": round(self._line.busy.share(self._tools.clock.monotonic()), 4),
            "load": round(self._load, 4),
            "skipped": schedule.skipped if schedule else 0,
            "reopened": self._line.reopened,
            "commands_waiting": len(self._commands),
            "local_echo": self._line.echo,
            "requests": len(schedule.jobs) if schedule else 0,
            "devices": {
                name: {
                    "unit": self._units[name],
                    "state": str(self._state(name)),
                    **account.told(),
                    "refused": refused.get(name, []),
                    "late_discarded": late.get(self._units[name], 0),
                }
                for name, account in self._accounts.items()
            },
        }

    # ---- the line

    def _beat(self) -> None:
        self._tools.beat(self._beat_s)

    def _is_open(self) -> bool:
        return self._schedule is not None and (self._line.is_open or self._line.hangs_up)

    def _free_at(self, device: str) -> float:
        return self._line.free_at(self._units[device])

    def _state(self, device: str) -> DeviceState:
        if device in self._everybody:
            return DeviceState.WAITING if self._is_open() else DeviceState.OFFLINE  # it never answers
        return self._schedule.state(device) if self._schedule else DeviceState.OFFLINE

    async def _ask(self, device: str, request: Request) -> Acquired:
        return await self._line.ask(request, self._gaps[device], self._timeouts[device])

    async def _quiet(self, device: str) -> None:
        """Until it may be asked: a unit that owes an answer is in quarantine."""
        while (wait := self._free_at(device) - self._tools.clock.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait)  # bytes that come meanwhile move the goal

    async def _sleep(self, until: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, until - self._tools.clock.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            pass

    # ---- polls

    def _jobs(self, device: ModbusDevice) -> list[_Job]:
        return [Job(device.name, each.interval, Block(each.read), each.takes_s) for each in requests(self._bus, device)]

    def _walks(self, device: ModbusDevice) -> list[_Job]:
        """What stands for the points of SunSpec models until these are found; none without such points."""
        points = by_model(device).points
        if not points or device.name in self._everybody:
            return []
        walk = Walk(by_model(device))
        cost_s = cost(self._bus, device).of(walk.read.table, walk.read.quantity)
        return [Job(device.name, min(point.interval or device.interval for point in points), walk, cost_s)]

    async def _walked(self, job: _Job, walk: Walk, data: bytes | None, at_ns: int, emit: Emit) -> None:
        """One step through the models of a device; after the last one its points have places."""
        assert self._schedule is not None
        schedule, now = self._schedule, self._tools.clock.monotonic()
        self._answered(job.device)
        over, found = walk.step(data)
        if not over:
            schedule.expedite(job, now)
            return
        models = found.models if found else ()
        points, missing = placed(walk.device, models)
        there = ", ".join(str(model.id) for model in models) if found else "none: it does not speak SunSpec"
        if not points:
            if job not in self._refused_until:
                log.warning("%s has none of its points; SunSpec models: %s", job.device, there)
            self._refused_until[job] = now + _REFUSED_S
            schedule.advance(job, now)
            await self._emit_bad(emit, job, Status.CONFIG, at_ns)
            return
        log.info("%s: SunSpec models %s; not there: %s", job.device, there, ", ".join(missing) or "nothing")
        self._walked_from[job.device] = walk.device
        self._refused_until.pop(job, None)
        device = msgspec.structs.replace(walk.device, points=points)
        self._spots |= {(device.name, point.name): spot(self._bus.byte_order, device, point) for point in points}
        known = at_once(self._devices[device.name]).points
        self._devices[device.name] = msgspec.structs.replace(device, points=(*known, *points))
        self._load = load(self._bus, [*self._devices.values()])
        schedule.replace(job, self._jobs(device))

    def _walk_again(self, name: str) -> None:
        """Who was away may come back with other firmware, and its models elsewhere."""
        assert self._schedule is not None
        schedule, points = self._schedule, self._walked_from.pop(name).points
        lost = {point.name for point in points}
        self._spots = {key: each for key, each in self._spots.items() if key[0] != name or key[1] not in lost}
        known = [point for point in self._devices[name].points if point.name not in lost]
        self._devices[name] = device = msgspec.structs.replace(self._devices[name], points=(*known, *points))
        for number, job in enumerate(self._jobs_of(name, lost)):
            schedule.replace(job, () if number else self._walks(device))
            self._refused_until.pop(job, None)

    def _jobs_of(self, name: str, points: Set[str]) -> list[_Job]:
        assert self._schedule is not None
        return [job for job in self._schedule.jobs if job.device == name and points & {*job.work.names}]

    async def _take(self, turn: Next[Block], emit: Emit) -> None:
        assert self._schedule is not None
        schedule, job, clock = self._schedule, turn.job, self._tools.clock
        if turn.turn is Turn.OFFLINE:
            await self._emit_bad(emit, job, Status.DEVICE_OFFLINE, clock.boot_ns())
            schedule.advance(job, clock.monotonic())
            return
        if self._refused_until.get(job, 0.0) > clock.monotonic() and turn.turn is Turn.READ:
            await self._emit_bad(emit, job, Status.CONFIG, clock.boot_ns())
            schedule.advance(job, clock.monotonic())
            return
        read = job.work.read
        acquired = await self._ask(job.device, read_request(self._units[job.device], read))
        reply, now = acquired.reply, clock.monotonic()
        if reply.doubtful:
            return  # still due; the client knows when to ask again
        if isinstance(job.work, Walk) and (reply.data is not None or reply.code in _REFUSED_FOR_GOOD):
            await self._walked(job, job.work, reply.data, acquired.at_ns, emit)
        elif reply.data is not None:
            self._thought(job.device, acquired.took_s - wire_s(self._bus, read.table, read.quantity))
            self._refused_until.pop(job, None)
            job.work.unanswered = None
            self._answered(job.device)
            schedule.advance(job, now)
            values, status = job.work.decode(reply.data)
            await emit([Sample(job.device, job.work.names, values, acquired.at_ns, status)])
        elif reply.code:
            await self._refused(turn, reply.code, acquired.at_ns, emit)
        else:
            await self._silent(turn, reply.fault or Status.COMM_TIMEOUT, acquired.at_ns, emit)

    def _thought(self, device: str, seconds: float) -> None:
        timeout_s = self._timeouts[device]
        usual_s = self._accounts[device].answered(seconds, timeout_s)
        if usual_s is not None:
            log.warning(
                "%s takes up to %.0f ms to answer, and timeout is %.0f ms: raise it to twice that or more",
                device, 1000 * usual_s, 1000 * timeout_s,
            )  # fmt: skip

    async def _refused(self, turn: Next[Block], code: int, at_ns: int, emit: Emit) -> None:
        """The device answered with an exception."""
        assert self._schedule is not None
        schedule, job, now = self._schedule, turn.job, self._tools.clock.monotonic()
        self._accounts[job.device].exceptions += 1
        if code in GATEWAY:
            await self._silent(turn, Status.EXCEPTION, at_ns, emit, reason_of(code))
            return
        self._answered(job.device)
        if code in (2, 3) and len(job.work.names) > 1:
            self._cut(job, reason_of(code))
            return
        if code in BUSY and job.tries < BUSY_TRIES:
            schedule.again(job, now + BUSY_PAUSE_S)
            return
        if code not in (*_REFUSED_FOR_GOOD, *BUSY) and job.tries < self._bus.retries:
            schedule.again(job, now)
            return
        status = Status.EXCEPTION
        if code in _REFUSED_FOR_GOOD:
            status = Status.CONFIG
            if job not in self._refused_until:
                log.warning("%s refuses %s: %s", job.device, ", ".join(job.work.names), reason_of(code))
            self._refused_until[job] = now + _REFUSED_S
        schedule.advance(job, now)
        await self._emit_bad(emit, job, status, at_ns)

    async def _silent(self, turn: Next[Block], status: Status, at_ns: int, emit: Emit, why: str = "") -> None:
        """The device did not answer, or not intelligibly."""
        assert self._schedule is not None
        schedule, job, now = self._schedule, turn.job, self._tools.clock.monotonic()
        self._accounts[job.device].failed += 1
        # only a device that was well is asked again: the tries for a dead one would be paid by its neighbours
        if turn.turn is Turn.READ and schedule.failures(job.device) == 0 and job.tries < self._bus.retries:
            schedule.again(job, now)
            return
        if schedule.failed(job.device, now):
            self._tools.report(job.device, schedule.state(job.device), why or status.reason)
        if turn.turn is Turn.READ:
            schedule.advance(job, now)
            await self._emit_bad(emit, job, status, at_ns)
            if self._is_deaf_to(job):
                self._cut(job, "no answer, while there is one to others")
        if job.device in self._walked_from and schedule.state(job.device) is DeviceState.OFFLINE:
            self._walk_again(job.device)

    def _is_deaf_to(self, job: _Job) -> bool:
        """Some devices do not refuse a read that is too long for them, they ignore it: one that never was answered,
        though the device is heard of in between."""
        block = job.work
        if block.unanswered is None or isinstance(block, Walk) or len(block.names) == 1:
            return False
        block.unanswered += 1
        return block.unanswered >= FAILURES_TO_REST and self._state(job.device) is not DeviceState.OFFLINE

    def _cut(self, job: _Job, why: str) -> None:
        """Reads a block in two parts from now on."""
        assert self._schedule is not None
        halves = split(job.work.read)
        self._accounts[job.device].cuts.append(f"{job.work.read} → {' + '.join(map(str, halves))}")
        log.info("%s does not take %s (%s): cut in two", job.device, job.work.read, why)
        price = cost(self._bus, self._devices[job.device])
        parts = [Job(job.device, job.interval, Block(half), price.of(half.table, half.quantity)) for half in halves]
        self._schedule.replace(job, parts)

    def _answered(self, device: str) -> None:
        assert self._schedule is not None
        if self._schedule.succeeded(device, self._tools.clock.monotonic()):
            self._tools.report(device, DeviceState.ONLINE, "")

    async def _emit_bad(self, emit: Emit, job: _Job, status: Status, at_ns: int) -> None:
        names = job.work.names
        await emit([Sample(job.device, names, (None,) * len(names), at_ns, (status,) * len(names))])

    async def _all_offline(self, emit: Emit) -> None:
        assert self._schedule is not None
        for device in self._devices.keys() - self._everybody:
            self._tools.report(device, DeviceState.OFFLINE, "the bus is gone")
        for job in self._schedule.jobs:
            await self._emit_bad(emit, job, Status.DEVICE_OFFLINE, self._tools.clock.boot_ns())

    # ---- commands

    async def _obey(self, waiting: Waiting) -> None:
        try:
            waiting.succeed(await self._write(waiting))
        except CommandError as error:
            waiting.fail(error)
        except BaseException:
            waiting.fail(CommandError(Outcome.UNKNOWN, "the bus went away during the write"))
            raise

    async def _write(self, waiting: Waiting) -> Value | None:
        assert self._schedule is not None
        write, target = waiting.write, waiting.target
        if self._state(write.device) is DeviceState.OFFLINE:
            raise CommandError(Outcome.UNAVAILABLE, f"{write.device} is offline")
        if not self._line.is_open:
            try:
                await self._line.open()
            except LinkError as error:
                waiting.fail(CommandError(Outcome.UNAVAILABLE, str(error)))
                raise

        async def ask(request: Request) -> Reply:
            if request.writes:
                await self._quiet(write.device)
                if waiting.done.done():
                    raise CommandError(Outcome.EXPIRED, "nobody waits for it any more")
            return (await self._ask(write.device, request)).reply

        def echo() -> bool | None:
            return self._line.echo

        verify = write.verify or (target.point.write is not None and target.point.write.verify)
        try:
            everybody = write.device in self._everybody
            return await carry_out(ask, echo, self._units[write.device], target, write.value, verify, everybody)
        finally:
            self._expedite(target)

    def _expedite(self, target: Spot) -> None:
        """Whatever became of a write, the point is read at once, so that everybody sees it."""
        assert self._schedule is not None
        for job in self._schedule.jobs:
            if any(item.key.point is target.point for item in job.work.read.items):
                self._schedule.expedite(job, self._tools.clock.monotonic())
