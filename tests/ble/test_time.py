"""What takes minutes, in virtual time: the connector on a radio that replays."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Collection, Sequence

import pytest

from gateway.connectors.base import Tools
from gateway.connectors.ble import bthome
from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.config import BleBus, BleDevice
from gateway.connectors.ble.connector import BleConnector
from gateway.connectors.ble.radio import Heard, PassiveUnsupported
from gateway.errors import DeviceError, LinkError
from gateway.model import DeviceState, Sample, Status
from gateway.testing.loop import VirtualClock, run

from .conftest import Ledger, bus, device

FRIDGE = "A4:C1:38:8D:18:B2"
PROBE = "F0:F1:F2:F3:F4:F5"
POINTS = [{"name": "temperature", "characteristic": "2a6e"}]


class Replay:
    """A `Radio` that is what a test makes of it; only it and the clock are not the real thing."""

    def __init__(self) -> None:
        self.starts: list[tuple[float, bool]] = []
        self.resets = 0
        self.connects: list[float] = []
        self.heard: Heard = lambda _: None
        self.passive_works = True
        self.refuses_passive = False
        self.reachable = True
        self.connected = 0
        self.stops = asyncio.Event()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def stop(self) -> None: ...

    async def start(self, passive: bool, _fresh: bool, heard: Heard) -> None:
        if passive and self.refuses_passive:
            raise PassiveUnsupported("no monitors")
        self.starts.append((asyncio.get_running_loop().time(), passive))
        self.heard = heard if self.passive_works or not passive else lambda _: None

    async def reset(self) -> None:
        self.resets += 1

    async def upset(self) -> str:
        await self.stops.wait()
        raise LinkError("unplugged")

    async def connect(self, address: str, timeout_s: float, pair: bool, on_lost: Callable[[], None]) -> Replay:
        self.connects.append(asyncio.get_running_loop().time())
        if not self.reachable:
            await asyncio.sleep(timeout_s)
            raise DeviceError("no answer", Status.COMM_TIMEOUT)
        self.connected += 1
        return self

    def properties(self, uuid: str) -> Collection[str] | None:
        return ("read",)

    async def read(self, uuid: str) -> bytes:
        await asyncio.sleep(1.0)
        return bytes.fromhex("C409")

    async def write(self, uuid: str, data: bytes) -> None: ...

    async def subscribe(self, uuid: str, on_value: Callable[[bytes], None]) -> None: ...

    async def disconnect(self) -> None:
        self.connected -= 1

    def say(self, address: str = FRIDGE, objects: str = "02C409") -> None:
        self.heard(Advertisement(address, "", -60, {bthome.UUID: bytes.fromhex("40" + objects)}, {}))


class Air:
    """A running connector on a replayed radio."""

    def __init__(self, devices: Sequence[BleDevice], settings: BleBus) -> None:
        self.radio = Replay()
        self.samples: list[Sample] = []
        self.reports: list[tuple[str, DeviceState, str]] = []
        self.beats: list[tuple[float, float]] = []
        self.open = asyncio.Event()
        self.open.set()
        clock = VirtualClock()
        tools = Tools(
            clock,
            Ledger(),
            lambda seconds: self.beats.append((clock.monotonic(), seconds)),
            lambda *said: self.reports.append(said),
        )
        self.connector = BleConnector(settings, devices, tools, self.radio, random.Random(3))
        self.task = asyncio.create_task(self.connector.run(self.emit))

    async def emit(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        await self.open.wait()
        self.samples += samples

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


def test_passive_scanning_that_hears_nothing_for_a_minute_becomes_active() -> None:
    async def main() -> None:
        air = Air([device("fridge", FRIDGE)], bus(scan_mode="auto"))
        air.radio.passive_works = False
        await asyncio.sleep(59)
        air.radio.say()
        assert air.connector.status()["scan"] == "passive"
        await asyncio.sleep(2)
        assert air.connector.status()["scan"] == "active"
        air.radio.say()
        await asyncio.sleep(0.1)
        assert len(air.samples) == 1
        assert [passive for _, passive in air.radio.starts] == [True, False]
        await air.end()

    run(main())


def test_passive_scanning_that_hears_something_stays_passive() -> None:
    async def main() -> None:
        air = Air([device("fridge", FRIDGE)], bus(scan_mode="auto"))
        for _ in range(60):
            await asyncio.sleep(10)
            air.radio.say()
        assert [passive for _, passive in air.radio.starts] == [True]
        await air.end()

    run(main())


def test_a_quiet_site_is_not_restarted_more_than_once_in_silence() -> None:
    async def main() -> None:
        air = Air([device("fridge", FRIDGE)], bus())
        await asyncio.sleep(3600)
        times = [at for at, _ in air.radio.starts]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(times) == 3600 // 90
        assert min(gaps) >= 90
        await air.end()

    run(main())


def test_a_scan_that_falls_silent_climbs_the_ladder_in_known_times() -> None:
    async def main() -> None:
        air = Air([device("fridge", FRIDGE)], bus())
        await asyncio.sleep(0.1)
        air.radio.say()
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3600)
        after = [round(at - began) for at, _ in air.radio.starts[1:]]
        assert after[:3] == [90, 180, 270], "started again, started again, switched off and on"
        assert air.radio.resets == 1 + (3600 // 90 - 3) // 10
        assert air.connector.status()["wedged"]
        air.radio.say()
        await asyncio.sleep(20)
        assert not air.connector.status()["wedged"]
        await air.end()

    run(main())


def test_the_loop_says_that_it_is_alive_before_its_promise_ends() -> None:
    async def main() -> None:
        air = Air([device("fridge", FRIDGE)], bus())
        await asyncio.sleep(600)
        for (at, promise), (later, _) in zip(air.beats, air.beats[1:], strict=False):
            assert later - at < promise
        assert len(air.beats) >= 60
        await air.end()

    run(main())


def test_an_unreachable_device_is_tried_with_growing_waits_and_is_offline_after_three() -> None:
    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "poll", "interval": "5m"}, points=POINTS)
        air = Air([probe], bus())
        air.radio.reachable = False
        await asyncio.sleep(0.1)
        for _ in range(360):
            air.radio.say(PROBE)
            await asyncio.sleep(10)
        states = [state for _, state, _ in air.reports]
        assert states[:3] == [DeviceState.FAILING, DeviceState.FAILING, DeviceState.OFFLINE]
        # each attempt takes 20 s; with the longest wait of 120 s there are at least 25 in an hour, with none 180
        assert 25 <= len(air.radio.connects) <= 100
        air.radio.reachable = True
        for _ in range(20):
            air.radio.say(PROBE)
            await asyncio.sleep(10)
        assert air.samples[-1].values == (25.0,)
        assert air.reports[-1][1] is DeviceState.ONLINE
        await air.end()

    run(main())


def test_polling_stays_on_its_grid() -> None:
    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "poll", "interval": "5m"}, points=POINTS)
        air = Air([probe], bus(silence="10h"))
        await asyncio.sleep(0.1)
        air.radio.say(PROBE)
        await asyncio.sleep(3590)
        times = air.radio.connects
        assert len(times) == 12
        assert all(abs(at - times[0] - 300 * n) < 1 for n, at in enumerate(times)), (
            "a read takes 1 s and shifts nothing"
        )
        assert air.radio.connected == 0
        await air.end()

    run(main())


def test_when_nothing_takes_the_samples_the_oldest_go_and_are_counted() -> None:
    async def main() -> None:
        air = Air([device("fridge", FRIDGE, min_interval="0s")], bus())
        await asyncio.sleep(0.1)
        air.open.clear()
        for number in range(5000):
            air.radio.say(objects=f"02{number.to_bytes(2, 'little').hex()}")
            if number == 0:
                await asyncio.sleep(0.1)  # the first is on its way into the gateway
        air.open.set()
        await asyncio.sleep(0.1)
        values = [sample.values[0] for sample in air.samples]
        assert values[0] == 0
        assert values[1:] == [number / 100 for number in range(5000 - 4096, 5000)]
        assert air.connector.status()["dropped"] == 5000 - 4096 - 1
        await air.end()

    run(main())


def test_when_the_adapter_goes_its_devices_are_offline_and_the_error_is_plain() -> None:
    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)
        air = Air([probe, device("fridge", FRIDGE)], bus())
        await asyncio.sleep(0.1)
        air.radio.say(PROBE)
        air.radio.say(FRIDGE)
        await asyncio.sleep(10)
        air.radio.stops.set()
        with pytest.raises(LinkError, match="unplugged"):
            await air.task
        told = {(sample.device, sample.status is None): sample for sample in air.samples}
        assert len(air.samples) == 4
        for name in ("probe", "fridge"):
            assert told[name, True].values == (25.0,)
            assert told[name, False].status == (Status.DEVICE_OFFLINE,)
            assert told[name, False].points == ("temperature",)
        assert {name for name, state, _ in air.reports if state is DeviceState.OFFLINE} == {"probe", "fridge"}

    run(main())


def test_an_adapter_that_cannot_be_opened_makes_its_points_bad_as_one_that_goes() -> None:
    async def main() -> None:
        air = Air([device("fridge", FRIDGE, points=[{"name": "temperature"}])], bus())

        async def no_adapter() -> None:
            raise LinkError("no Bluetooth adapter")

        air.radio.open = no_adapter  # type: ignore[method-assign]
        with pytest.raises(LinkError, match="no Bluetooth adapter"):
            await air.task
        assert [(s.points, s.values, s.status) for s in air.samples] == [
            (("temperature",), (None,), (Status.DEVICE_OFFLINE,))
        ]

    run(main())


def test_a_device_that_was_visited_and_is_heard_no_more_is_offline_though_no_connection_fails() -> None:
    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "poll", "interval": "5m"}, points=POINTS)
        air = Air([probe], bus())
        await asyncio.sleep(0.1)
        air.radio.say(PROBE)
        await asyncio.sleep(1000)  # the watchdog has started the scan again, and nothing was heard since
        assert [sample.status for sample in air.samples] == [None, (Status.DEVICE_OFFLINE,)]
        assert air.reports[-1] == ("probe", DeviceState.OFFLINE, "it is not heard any more")
        air.radio.say(PROBE)
        await asyncio.sleep(10)
        assert air.samples[-1].values == (25.0,)
        await air.end()

    run(main())
