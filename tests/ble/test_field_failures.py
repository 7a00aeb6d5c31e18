"""What goes wrong with Bluetooth in the field, each failure with its test.

The evidence is public: discovery that stalls without an error (bluez issue 1554), a bluetoothd that restarts under a
scanner, StopDiscovery and StartDiscovery that answer InProgress (bleak issue 2021), connects aborted by the controller
(bleak issue 1858), decoder libraries that log a line for every packet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.connectors.ble import bthome, decoders, link, peripheral
from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.connector import BleConnector
from gateway.connectors.ble.radio import Heard
from gateway.model import DeviceState, Status
from gateway.testing.bluez import FakeBluez, PrivateBus

from .conftest import FRIDGE, GATT, POINTS, PROBE, TEMPERATURE, Rig, Start, advertise, bus, device, show_probe

KEY = "231d39c1d7cc1ab1aee224cd096db932"  # https://bthome.io/encryption
SEALED = bytes.fromhex("41a47266c95f730011223378237214")
SEALER = "54:48:E6:8F:80:A5"


# ── bluetoothd restarts and nobody is told ───────────────────────────────────────────────────────────────────────────


def test_after_a_restart_of_bluetoothd_the_scan_runs_again_within_ten_seconds(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE, min_interval="0s")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            before = rig.bluez.count("StartDiscovery")
            await rig.bluez.restart()
            assert not rig.bluez.scanning
            async with asyncio.timeout(10):
                await rig.until(lambda: rig.bluez.count("StartDiscovery") > before)
            await rig.until(lambda: rig.samples, nudge=advertise(rig))
            assert rig.connector.status()["restarts"] == 1

    asyncio.run(main())


# ── discovery stalls silently ────────────────────────────────────────────────────────────────────────────────────────


def test_a_scan_that_hears_nothing_is_started_again(start: Start) -> None:
    async def main() -> None:
        settings = bus(silence="300ms")
        async with start([device("fridge", FRIDGE, min_interval="0s")], settings, spacing_s=0.5) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            rig.bluez.deaf = True
            before = rig.bluez.count("StartDiscovery")
            await rig.until(lambda: rig.bluez.count("StartDiscovery") >= before + 2)
            assert rig.bluez.count("StopDiscovery") >= 2, "the stalled scan is ended first"
            assert rig.bluez.count("Set") == 0, "nothing was ever heard here: it may be a quiet place"
            rig.bluez.deaf = False
            await rig.until(lambda: rig.samples, nudge=advertise(rig))

    asyncio.run(main())


def test_a_controller_that_restarts_do_not_help_is_switched_off_and_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_POWER_PAUSE_S", 0.05)

    async def main() -> None:
        settings = bus(silence="300ms")
        async with start([device("fridge", FRIDGE, min_interval="0s")], settings, spacing_s=0.2) as rig:
            await rig.until(lambda: rig.samples, nudge=advertise(rig))
            rig.bluez.deaf = rig.bluez.reset_helps = True
            await rig.until(lambda: rig.connector.status()["resets"] == 1)
            await rig.until(lambda: rig.values("fridge", "temperature")[-1:] == [25.5], nudge=advertise(rig, "02F609"))
            assert rig.bluez.count("Set") == 2
            assert rig.connector.status()["wedged"] == ""

    asyncio.run(main())


def test_a_controller_that_nothing_helps_is_told_once_and_tried_on(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link, "_POWER_PAUSE_S", 0.05)

    async def main() -> None:
        settings = bus(silence="200ms")
        async with start([device("fridge", FRIDGE, min_interval="0s")], settings, spacing_s=0.1) as rig:
            await rig.until(lambda: rig.samples, nudge=advertise(rig))
            rig.bluez.deaf = True
            await rig.until(lambda: rig.connector.status()["wedged"])
            before = rig.bluez.count("StartDiscovery")
            await rig.until(lambda: rig.bluez.count("StartDiscovery") > before + 2)
            assert rig.connector.status()["resets"] == 1
            rig.bluez.deaf = False
            await rig.until(lambda: not rig.connector.status()["wedged"], nudge=advertise(rig, "02F609"))

    with caplog.at_level(logging.INFO, "gateway"):
        asyncio.run(main())
    assert len([r for r in caplog.records if r.levelno == logging.WARNING and "hears nothing" in r.message]) == 1
    assert "the adapter hears again" in caplog.text


def test_a_reset_never_cuts_a_connection_that_works(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connected device does not advertise: where all are connected, the air is silent and all is well."""
    monkeypatch.setattr(link, "_POWER_PAUSE_S", 0.05)

    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)
        async with start([probe], bus(silence="200ms"), spacing_s=0.1) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            await rig.until(lambda: int(str(rig.connector.status()["restarts"])) >= 5)
            assert rig.bluez.count("Set") == 0
            assert rig.bluez.notifying(PROBE, TEMPERATURE)
            assert rig.connector.status()["wedged"] == ""

    asyncio.run(main())


# ── InProgress ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_busy_controller_is_asked_again(start: Start) -> None:
    async def main() -> None:
        def busy(bluez: FakeBluez) -> None:
            bluez.fail("StartDiscovery", "InProgress", "Operation already in progress", times=2)

        async with start([device("fridge", FRIDGE)], prepare=busy) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            assert rig.bluez.count("StartDiscovery") == 3
            await advertise(rig)()
            await rig.until(lambda: rig.samples)

    asyncio.run(main())


def test_a_stop_that_is_refused_does_not_keep_the_scan_from_starting_again(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE, min_interval="0s")], bus(silence="300ms")) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            rig.bluez.fail("StopDiscovery", "InProgress", times=2)
            before = rig.bluez.count("StartDiscovery")
            await rig.until(lambda: rig.bluez.count("StopDiscovery") >= 2)
            await rig.until(lambda: rig.bluez.count("StartDiscovery") > before + 1)
            await rig.until(lambda: rig.samples, nudge=advertise(rig))

    asyncio.run(main())


# ── the D-Bus daemon restarts ────────────────────────────────────────────────────────────────────────────────────────


def test_when_dbus_ends_the_connector_ends_and_a_new_one_works(start: Start) -> None:
    """The daemon is ended by its process id; this process lives, and the supervisor builds a new connector."""

    async def main() -> None:
        async with start([device("fridge", FRIDGE)]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await rig.dbus.stop()
            assert "D-Bus" in str(await rig.link_error())
            await rig.bluez.stop()
            await rig.dbus.start()
            await rig.bluez.start()
            rig.connector = rig.build(rig)
            rig.running = asyncio.create_task(rig.connector.run(rig.emit))
            await rig.until(lambda: rig.samples, nudge=advertise(rig))

    asyncio.run(main())


# ── storms of connects ───────────────────────────────────────────────────────────────────────────────────────────────


def test_connects_aborted_by_the_controller_are_tried_until_one_succeeds(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)]) as rig:
            rig.bluez.fail("Connect", "Failed", "le-connection-abort-by-local", times=3)
            await show_probe(rig)
            await rig.until(lambda: rig.values("probe", "temperature") == [25.0])
            assert rig.bluez.count("Connect") == 4

    asyncio.run(main())


def test_a_connect_that_hangs_is_bounded_and_does_not_stop_the_neighbours(start: Start) -> None:
    async def main() -> None:
        devices = [
            device("probe", PROBE, connect={"mode": "notify"}, points=POINTS),
            device("fridge", FRIDGE, min_interval="0s"),
        ]
        async with start(devices, bus(connect_timeout="300ms")) as rig:
            rig.bluez.hang("Connect")
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.count("Connect") >= 2)
            await advertise(rig)()
            await rig.until(lambda: rig.values("fridge", "temperature") == [25.0])
            assert ("probe", DeviceState.FAILING) in {(name, state) for name, state, _ in rig.reports}
            rig.bluez.heal("Connect")
            await rig.until(lambda: rig.values("probe", "temperature") == [25.0])

    asyncio.run(main())


def test_a_bluetoothd_that_answers_nothing_at_all_is_bounded_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """bleak waits without a limit for the answer to its own Disconnect."""
    monkeypatch.setattr(peripheral, "_GRACE_S", 0.3)

    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)
        async with start([probe], bus(connect_timeout="300ms")) as rig:
            rig.bluez.hang("Connect")
            rig.bluez.hang("Disconnect")
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.count("Connect") >= 2)

    asyncio.run(main())


def test_no_more_connections_than_the_adapter_bears(start: Start) -> None:
    async def main() -> None:
        addresses = [f"F0:F1:F2:F3:F4:{number:02X}" for number in range(4)]
        devices = [
            device(f"d{number}", address, connect={"mode": "notify"}, points=POINTS)
            for number, address in enumerate(addresses)
        ]
        async with start(devices, bus(max_connections=2)) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            for address in addresses:
                rig.bluez.give_gatt(address, GATT)
                await rig.bluez.advertise(address)
            await rig.until(lambda: len({sample.device for sample in rig.samples}) == 2)
            await rig.bluez.drop(next(address for address in addresses if rig.bluez.notifying(address, TEMPERATURE)))
            await rig.until(lambda: len({sample.device for sample in rig.samples}) == 3)
            assert rig.bluez.most_connected == 2

    asyncio.run(main())


# ── a key that is missing or wrong ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("written", [None, "not a key", "00112233445566778899aabbccddeeff"], ids=["no", "bad", "wrong"])
def test_without_the_right_key_there_is_one_status_no_value_and_no_flood(
    start: Start, folder: Path, written: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {}
    if written is not None:
        (folder / "key").write_text(written)
        keys = {"bindkey_file": str(folder / "key")}

    async def main() -> None:
        async with start([device("fridge", SEALER, points=[{"name": "temperature"}], **keys)]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            for counter in range(20):
                payload = SEALED[:7] + bytes([counter]) + SEALED[8:]
                await rig.bluez.advertise(SEALER, service_data={bthome.UUID: payload})
            await rig.until(lambda: rig.connector.status()["devices"]["fridge"]["encrypted"] == 20)
            assert rig.values("fridge", "temperature") == [None]
            assert rig.statuses("fridge", "temperature") == [Status.KEY_ERROR]
            assert {state for _, state, _ in rig.reports} == {DeviceState.FAILING}
            assert KEY not in str(rig.reports) + caplog.text

    asyncio.run(main())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING and "gateway" in record.name] == []


def test_with_the_right_key_values_come_and_a_plain_packet_is_not_believed(start: Start, folder: Path) -> None:
    (folder / "key").write_text(KEY + "\n")

    async def main() -> None:
        async with start([device("fridge", SEALER, bindkey_file=str(folder / "key"), min_interval="0s")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await rig.bluez.advertise(SEALER, service_data={bthome.UUID: SEALED})
            await rig.until(lambda: rig.values("fridge", "temperature") == [25.06])
            await advertise(rig, "02C409", SEALER)()
            await rig.until(lambda: rig.connector.status()["devices"]["fridge"]["rejected"] == 1)
            assert rig.values("fridge", "temperature") == [25.06]

    asyncio.run(main())


# ── a flood of advertisements ────────────────────────────────────────────────────────────────────────────────────────


def test_in_a_flood_of_strangers_only_the_own_device_is_decoded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 advertisements a second from 200 devices, each with something that could be decoded."""
    decoded = 0
    real = bthome.hear

    def counting(*heard: object) -> object:
        nonlocal decoded
        decoded += 1
        return real(*heard)  # type: ignore[arg-type]

    monkeypatch.setitem(decoders.DECODERS, decoders.DecoderName.BTHOME, counting)

    async def main() -> None:
        async with start([device("fridge", FRIDGE, decoder="bthome")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            for number in range(1000):
                await advertise(rig, "02C409", f"11:22:33:44:55:{number % 200:02X}")()
                if number % 20 == 0:
                    await rig.until(lambda seen=number: rig.connector.status()["foreign"] >= seen)
            await advertise(rig)()
            await rig.until(lambda: rig.samples)
            assert rig.connector.status()["foreign"] == 1000

    asyncio.run(main())
    assert decoded == 1


class Air:
    """A radio that hears what the test lets it hear."""

    def __init__(self) -> None:
        self.heard: Heard
        self.started = asyncio.Event()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def start(self, _passive: bool, _fresh: bool, heard: Heard) -> None:
        self.heard = heard
        self.started.set()

    async def stop(self) -> None: ...

    async def reset(self) -> None: ...

    async def upset(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def connect(self, *_: object) -> object:
        raise AssertionError("nobody connects here")


def test_a_stranger_costs_a_fraction_of_what_decoding_costs(folder: Path) -> None:
    def cost_s(hear: Callable[[int], None]) -> float:
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            for number in range(2000):
                hear(number)
            best = min(best, time.process_time() - began)
        return best

    async def main() -> tuple[float, float]:
        air = Air()
        rig = Rig(PrivateBus(folder), FakeBluez(""), lambda _: None)  # type: ignore[arg-type, return-value]
        connector = BleConnector(bus(), [device("fridge", FRIDGE, min_interval="0s")], rig.tools(), air)  # type: ignore[arg-type]
        running = asyncio.create_task(connector.run(rig.emit))
        await air.started.wait()
        heard = air.heard
        strangers = [Advertisement(f"11:22:33:44:55:{n:02X}", "", -60, {bthome.UUID: SEALED}, {}) for n in range(200)]
        own = [
            Advertisement(FRIDGE, "", -60, {bthome.UUID: b"\x40\x02" + n.to_bytes(2, "little")}, {})
            for n in range(2000)
        ]
        costs = cost_s(lambda n: heard(strangers[n % 200])), cost_s(lambda n: heard(own[n]))
        running.cancel()
        await asyncio.wait({running})
        return costs

    stranger_s, own_s = asyncio.run(main())
    assert stranger_s < own_s / 3


# ── packets heard again ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_packet_that_is_repeated_or_told_again_is_one_sample(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE, min_interval="0s")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            for rssi in range(-90, -40):
                await rig.bluez.advertise(FRIDGE, service_data={bthome.UUID: bytes.fromhex("40000902C409")}, rssi=rssi)
            await advertise(rig, "000A02C509")()
            await rig.until(lambda: 25.01 in rig.values("fridge", "temperature"))
            assert rig.values("fridge", "temperature") == [25.0, 25.01]

    asyncio.run(main())


def test_a_recorded_packet_that_is_played_again_is_dropped_and_counted(start: Start, folder: Path) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESCCM

    (folder / "key").write_text(KEY)
    seal = AESCCM(bytes.fromhex(KEY), tag_length=4).encrypt

    def packet(counter: int, objects: str) -> bytes:
        count = counter.to_bytes(4, "little")
        sealed = seal(bytes.fromhex("5448e68f80a5d2fc41") + count, bytes.fromhex(objects), None)
        return b"\x41" + sealed[:-4] + count + sealed[-4:]

    async def main() -> None:
        async with start([device("door", SEALER, bindkey_file=str(folder / "key"), min_interval="0s")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            closed, opened = packet(1000, "1A00"), packet(1001, "1A01")
            for payload in (closed, opened, closed, closed, packet(1002, "1A01")):
                await rig.bluez.advertise(SEALER, service_data={bthome.UUID: payload})
            await rig.until(lambda: rig.connector.status()["devices"]["door"]["heard"] == 5)
            assert rig.values("door", "door")[:2] == [False, True]
            assert False not in rig.values("door", "door")[2:]
            assert rig.connector.status()["devices"]["door"]["replayed"] == 2

    asyncio.run(main())


# ── libraries that log ───────────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_that_make_no_sense_are_counted_and_not_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            with caplog.at_level(logging.INFO):
                for last in range(1000):
                    await advertise(rig, f"03BF1302{last % 256:02x}")()
                    if last % 50 == 0:
                        await rig.until(
                            lambda seen=last: rig.connector.status()["devices"]["fridge"]["rejected"] >= seen
                        )
                await rig.until(lambda: rig.connector.status()["devices"]["fridge"]["rejected"] == 1000)
            assert rig.samples == []
            assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    asyncio.run(main())
