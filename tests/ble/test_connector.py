"""The whole way: fake bluetoothd, D-Bus, unmodified bleak, connector, samples."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.connectors.ble import link, ruuvi
from gateway.errors import CommandError
from gateway.model import DeviceState, Outcome, Status, Write

from .conftest import (
    FRIDGE,
    LED,
    POINTS,
    PROBE,
    RAW_V2,
    TAG,
    TEMPERATURE,
    Rig,
    Start,
    advertise,
    bus,
    device,
    show_probe,
)

# ── listening ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_advertisements_of_two_sensors_become_samples(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE), device("tag", TAG)]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await advertise(rig)()
            await rig.bluez.advertise(TAG, manufacturer_data={ruuvi.COMPANY: RAW_V2}, address_type="random")
            await rig.until(lambda: len(rig.samples) == 2)
            fridge, tag = sorted(rig.samples, key=lambda sample: sample.device)
            assert (fridge.device, fridge.points, fridge.values) == (
                "fridge",
                ("temperature", "humidity"),
                (25.0, 50.55),
            )
            assert fridge.units == ("Cel", "%RH")
            assert tag.device == "tag"
            assert tag.values[tag.points.index("pressure")] == 100044
            assert rig.reports[-1][1] is DeviceState.ONLINE

    asyncio.run(main())


def test_only_the_points_that_are_configured_are_passed_on(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE.lower(), points=[{"name": "humidity"}])]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await advertise(rig)()
            await rig.until(lambda: rig.samples)
            assert rig.samples[0].points == ("humidity",)

    asyncio.run(main())


def test_a_device_whose_signal_fades_was_not_heard(start: Start) -> None:
    """BlueZ tells of it with the payload of long ago; believing that would keep a dead sensor alive."""

    async def main() -> None:
        async with start([device("fridge", FRIDGE, min_interval="0s")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await advertise(rig)()
            await rig.bluez.fade(FRIDGE)
            await advertise(rig, "02C509")()
            await rig.until(lambda: rig.values("fridge", "temperature")[-1:] == [25.01])
            assert rig.connector.status()["heard"] == 2
            assert len(rig.samples) == 2

    asyncio.run(main())


def test_bytes_that_make_no_sense_are_counted_and_make_no_sample(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            with caplog.at_level(logging.INFO):
                for last in range(50):
                    await advertise(rig, f"03BF1302{last:02x}")()
                await rig.until(lambda: rig.connector.status()["devices"]["fridge"]["rejected"] == 50)
            assert rig.samples == []
            assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    asyncio.run(main())


def test_a_sensor_that_falls_silent_is_stale_once(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE, expire_after="300ms")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await advertise(rig)()
            await rig.until(lambda: Status.STALE in rig.statuses("fridge", "temperature"))
            assert rig.values("fridge", "temperature") == [25.0, None]
            assert rig.reports[-1] == ("fridge", DeviceState.OFFLINE, "nothing heard for 300ms")
            await advertise(rig, "02C509")()
            await rig.until(lambda: rig.values("fridge", "temperature")[-1] == 25.01)
            assert rig.reports[-1][1] is DeviceState.ONLINE

    asyncio.run(main())


# ── the scan stays alive ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_that_is_replugged_is_used_again(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE, min_interval="0s")]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await rig.bluez.unplug()
            await asyncio.sleep(0)
            await rig.bluez.plug()
            await rig.until(lambda: rig.bluez.scanning)
            await rig.until(lambda: rig.samples, nudge=advertise(rig))

    asyncio.run(main())


def test_passive_scanning_is_used_where_it_works(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)], bus(scan_mode="auto")) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            assert rig.bluez.count("RegisterMonitor") == 1
            assert rig.bluez.count("StartDiscovery") == 0
            await advertise(rig)()
            await rig.until(lambda: rig.samples)
            assert rig.connector.status()["scan"] == "passive"

    asyncio.run(main())


def test_a_passive_scan_asks_for_no_more_patterns_than_bluetoothd_survives() -> None:
    """With eight, bluetoothd 5.66 answers "invalid parameters" and dies: its length of a command has eight bits."""
    assert 1 + 34 * len(link._PATTERNS) <= 255


def test_without_passive_scanning_the_scan_is_active_and_status_says_so(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)], bus(scan_mode="auto"), monitors=False) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            assert rig.bluez.count("StartDiscovery") == 1
            await rig.until(lambda: rig.connector.status()["scan"] == "active")

    asyncio.run(main())


def test_passive_scanning_that_is_insisted_on_and_missing_says_what_to_do(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)], bus(scan_mode="passive"), monitors=False) as rig:
            assert "--experimental" in str(await rig.link_error())

    asyncio.run(main())


def test_a_device_that_measures_in_the_company_is_scanned_for_actively_and_without_memory(start: Start) -> None:
    async def main() -> None:
        meter = device("meter", FRIDGE, decoder="thermopro", min_interval="0s")
        async with start([meter], bus(scan_mode="auto")) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            assert rig.bluez.forgets, "BlueZ was asked to clear before it adds"
            for company in (0xD4C2, 0xD5C2, 0xD4C2):
                await rig.bluez.advertise(FRIDGE, name="TP393", manufacturer_data={company: b"\x00\x37\x02\x2c"})
            await rig.until(lambda: len(rig.samples) == 3)
            assert rig.values("meter", "temperature") == [21.2, 21.3, 21.2]

    asyncio.run(main())


# ── no medium ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_an_adapter_the_error_says_what_to_look_at(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)], bus(adapter="hci7")) as rig:
            assert "hci7; there is hci0" in str(await rig.link_error())

    asyncio.run(main())


def test_an_adapter_that_is_switched_off_is_not_a_riddle(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)], powered=False) as rig:
            assert "bluetoothctl power on" in str(await rig.link_error())

    asyncio.run(main())


def test_without_bluetoothd_the_error_says_so(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE)], service=False) as rig:
            assert "bluetooth.service" in str(await rig.link_error())

    asyncio.run(main())


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_notified_values_become_samples(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            await rig.bluez.set_value(PROBE, TEMPERATURE, bytes.fromhex("18FC"))
            await rig.until(lambda: rig.values("probe", "temperature") == [25.0, -10.0])
            await rig.bluez.set_value(PROBE, TEMPERATURE, bytes.fromhex("0080"))
            await rig.until(lambda: len(rig.samples) == 3)
            assert rig.statuses("probe", "temperature")[-1] is Status.SENSOR_FAULT
            await rig.bluez.set_value(PROBE, TEMPERATURE, b"\x00\x00\x00")
            await rig.until(lambda: len(rig.samples) == 4)
            assert rig.statuses("probe", "temperature")[-1] is Status.DECODE
            assert rig.values("probe", "led") == [0]

    asyncio.run(main())


def test_polled_values_are_read_on_their_interval(start: Start) -> None:
    async def main() -> None:
        polled = device("probe", PROBE, connect={"mode": "poll", "interval": "100ms"}, points=POINTS)
        async with start([polled]) as rig:
            await show_probe(rig)
            await rig.until(lambda: len(rig.values("probe", "temperature")) >= 3)
            await rig.bluez.set_value(PROBE, TEMPERATURE, bytes.fromhex("18FC"))
            await rig.until(lambda: rig.values("probe", "temperature")[-1] == -10.0)
            assert rig.bluez.count("Connect") == 1, "polled this often, it stays connected"

    asyncio.run(main())


def test_a_device_polled_rarely_is_left_alone_in_between(start: Start) -> None:
    async def main() -> None:
        polled = device("probe", PROBE, connect={"mode": "poll", "interval": "5m"}, points=POINTS)
        async with start([polled]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.values("probe", "temperature") == [25.0])
            await rig.until(lambda: not rig.bluez.connected(PROBE))
            assert rig.statuses("probe", "temperature") == [Status.GOOD]

    asyncio.run(main())


def test_one_characteristic_that_is_refused_does_not_take_the_others_with_it(start: Start) -> None:
    async def main() -> None:
        points = [*POINTS, {"name": "humidity", "characteristic": "2a6f"}]
        polled = device("probe", PROBE, connect={"mode": "poll", "interval": "100ms"}, points=points)
        async with start([polled]) as rig:
            rig.bluez.fail("ReadValue", "Failed", "Operation failed with ATT error: 0x05")
            await show_probe(rig)
            await rig.until(lambda: Status.GOOD in rig.statuses("probe", "temperature"))
            assert rig.statuses("probe", "temperature")[0] is Status.EXCEPTION
            assert set(rig.statuses("probe", "led")) == {Status.GOOD}
            assert set(rig.statuses("probe", "humidity")) == {Status.CONFIG}, "it has no such characteristic"

    asyncio.run(main())


def test_a_lost_connection_is_offline_once_and_made_again(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            await rig.bluez.drop(PROBE)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            await rig.until(lambda: len(rig.samples) == 3)
            assert rig.statuses("probe", "temperature") == [Status.GOOD, Status.DEVICE_OFFLINE, Status.GOOD]
            assert rig.bluez.count("Connect") == 2
            await rig.bluez.set_value(PROBE, TEMPERATURE, bytes.fromhex("18FC"))
            await rig.until(lambda: rig.values("probe", "temperature")[-1] == -10.0)

    asyncio.run(main())


def test_a_connection_that_bluetoothd_took_with_it_is_made_again(start: Start) -> None:
    """bleak believes such a connection alive for ever: no signal ends it."""

    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            await rig.bluez.restart()
            await rig.until(lambda: Status.DEVICE_OFFLINE in rig.statuses("probe", "temperature"))
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            await rig.until(lambda: rig.values("probe", "temperature")[-1] == 25.0)

    asyncio.run(main())


def test_without_bluetoothctl_connections_work_all_the_same(start: Start) -> None:
    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)
        async with start([probe], bluetoothctl=None) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.values("probe", "temperature") == [25.0])

    asyncio.run(main())


def test_a_bluez_that_bleak_refuses_is_named_as_the_reason(start: Start) -> None:
    async def main() -> None:
        devices = [device("probe", PROBE, connect={"mode": "notify"}, points=POINTS), device("fridge", FRIDGE)]
        async with start(devices, bluetoothctl="6.0") as rig:
            await show_probe(rig)
            await rig.until(lambda: any("BlueZ" in why for name, _, why in rig.reports if name == "probe"))
            await advertise(rig)()
            await rig.until(lambda: rig.values("fridge", "temperature") == [25.0])

    asyncio.run(main())


PULSE = "00002a37-0000-1000-8000-00805f9b34fb"


def test_fields_of_one_characteristic_are_one_subscription_and_one_sample(start: Start) -> None:
    async def main() -> None:
        points = [
            {"name": "pulse", "characteristic": "2a37"},
            {"name": "energy", "characteristic": "2a37", "field": "energy_expended"},
        ]
        async with start([device("belt", PROBE, connect={"mode": "notify"}, points=points)]) as rig:
            rig.bluez.give_gatt(PROBE, {PULSE: (b"", ["notify"])})
            await rig.until(lambda: rig.bluez.scanning)
            await rig.bluez.advertise(PROBE)
            await rig.until(lambda: rig.bluez.notifying(PROBE, PULSE))
            await rig.bluez.set_value(PROBE, PULSE, bytes.fromhex("0048"))
            await rig.until(lambda: rig.samples)
            await rig.bluez.set_value(PROBE, PULSE, bytes.fromhex("08496400"))
            await rig.until(lambda: len(rig.samples) == 2)
            assert [(sample.points, sample.values) for sample in rig.samples] == [
                (("pulse",), (72,)),
                (("pulse", "energy"), (73, 100)),
            ]
            assert rig.bluez.count("StartNotify") == 1
            assert rig.bluez.count("ReadValue") == 0

    asyncio.run(main())


def test_a_point_that_no_value_can_come_of_says_so(start: Start) -> None:
    async def main() -> None:
        points = [{"name": "pulse", "characteristic": "2a37"}, {"name": "battery", "characteristic": "2a19"}]
        polled = device("belt", PROBE, connect={"mode": "poll", "interval": "5m"}, points=points)
        async with start([polled]) as rig:
            battery = "00002a19-0000-1000-8000-00805f9b34fb"
            rig.bluez.give_gatt(PROBE, {PULSE: (b"", ["notify"]), battery: (b"\x63", ["read"])})
            await rig.until(lambda: rig.bluez.scanning)
            await rig.bluez.advertise(PROBE)
            await rig.until(lambda: rig.values("belt", "battery") == [99])
            assert rig.statuses("belt", "pulse") == [Status.CONFIG]
            assert 'pulse cannot be read; mode = "notify" may do' in rig.reports[-1][2]

    asyncio.run(main())


def test_a_device_that_wants_to_be_paired_is_paired_where_that_is_asked(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify", "pair": True}, points=POINTS)]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.values("probe", "temperature") == [25.0])
            assert rig.bluez.count("Pair") == 1
            await rig.bluez.drop(PROBE)
            await rig.until(lambda: rig.values("probe", "temperature")[-1:] == [25.0] and len(rig.samples) == 3)
            assert rig.bluez.count("Pair") == 1, "once is enough"

    asyncio.run(main())


def test_a_pairing_that_needs_a_person_says_what_the_person_does(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify", "pair": True}, points=POINTS)]) as rig:
            rig.bluez.fail("Pair", "AuthenticationFailed", "Authentication Failed", times=50)
            await show_probe(rig)
            await rig.until(lambda: any("bluetoothctl" in why for name, _, why in rig.reports if name == "probe"))
            assert rig.samples == []

    asyncio.run(main())


def test_a_characteristic_that_wants_pairing_says_so_and_the_others_are_read(start: Start) -> None:
    async def main() -> None:
        polled = device("probe", PROBE, connect={"mode": "poll", "interval": "5m"}, points=POINTS)
        async with start([polled]) as rig:
            rig.bluez.fail("ReadValue", "Failed", "Operation failed with ATT error: 0x05")
            await show_probe(rig)
            await rig.until(lambda: rig.samples)
            assert rig.statuses("probe", "temperature") == [Status.EXCEPTION]
            assert rig.values("probe", "led") == [0]
            name, state, why = rig.reports[-1]
            assert (name, state) == ("probe", DeviceState.ONLINE)
            assert f"pair {PROBE}" in why

    asyncio.run(main())


def test_another_adapter_than_the_first_is_used_where_it_is_named(start: Start) -> None:
    async def main() -> None:
        probe = device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)
        async with start([probe, device("fridge", FRIDGE)], bus(adapter="hci1"), adapter="hci1") as rig:
            await show_probe(rig)
            await advertise(rig)()
            await rig.until(lambda: rig.values("probe", "temperature") == [25.0])
            await rig.until(lambda: rig.values("fridge", "temperature") == [25.0])
            assert rig.bluez.path(PROBE).startswith("/org/bluez/hci1/")

    asyncio.run(main())


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_write_goes_out_with_response_and_is_read_back(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            assert await rig.connector.execute(Write("probe", "led", 1)) is None
            assert await rig.connector.execute(Write("probe", "led", 7, verify=True)) == 7
            assert rig.bluez.written == [(LED, b"\x01", "request"), (LED, b"\x07", "request")]

    asyncio.run(main())


def test_a_write_means_engineering_units(start: Start) -> None:
    async def main() -> None:
        led = {
            "name": "brightness",
            "characteristic": "ff01",
            "type": "uint8",
            "scale": 0.5,
            "offset": -10,
            "write": {},
        }
        async with start([device("probe", PROBE, connect={"mode": "notify"}, points=[led])]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.connected(PROBE))
            assert await rig.connector.execute(Write("probe", "brightness", 15.5, verify=True)) == 15.5
            assert rig.bluez.written[-1][1] == b"\x33"

    asyncio.run(main())


def test_a_write_connects_to_a_device_that_is_not_connected_and_leaves_it(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, points=[POINTS[1]])]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.connector.status()["devices"]["probe"]["heard"])
            await rig.connector.execute(Write("probe", "led", 1))
            assert rig.bluez.written == [(LED, b"\x01", "request")]
            await rig.until(lambda: not rig.bluez.connected(PROBE))

    asyncio.run(main())


def outcome_of(rig: Rig, write: Write) -> object:
    async def execute() -> Outcome:
        with pytest.raises(CommandError) as caught:
            await rig.connector.execute(write)
        return caught.value.outcome

    return execute()


def test_writes_that_cannot_be_done_end_in_the_outcome_that_fits(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, points=[*POINTS[1:], {"name": "humidity"}])]) as rig:
            assert await outcome_of(rig, Write("nobody", "led", 1)) is Outcome.UNSUPPORTED
            assert await outcome_of(rig, Write("probe", "nothing", 1)) is Outcome.UNSUPPORTED
            assert await outcome_of(rig, Write("probe", "humidity", 1)) is Outcome.UNSUPPORTED
            await rig.until(lambda: rig.bluez.scanning)
            assert await outcome_of(rig, Write("probe", "led", 1)) is Outcome.UNAVAILABLE, "never heard of"
            await show_probe(rig)
            await rig.until(lambda: rig.connector.status()["devices"]["probe"]["heard"])
            assert await outcome_of(rig, Write("probe", "led", 256)) is Outcome.REJECTED
            assert await outcome_of(rig, Write("probe", "led", "on")) is Outcome.REJECTED
            assert rig.bluez.written == []
            rig.bluez.fail("WriteValue", "Failed", "Operation failed with ATT error: 0x03")
            assert await outcome_of(rig, Write("probe", "led", 1)) is Outcome.FAILED
            rig.bluez.read_only.add(LED)
            assert await outcome_of(rig, Write("probe", "led", 9, verify=True)) is Outcome.FAILED

    asyncio.run(main())


def test_a_write_whose_connect_hangs_is_unavailable_in_time(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, points=[POINTS[1]])], bus(connect_timeout="300ms")) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.connector.status()["devices"]["probe"]["heard"])
            rig.bluez.hang("Connect")
            async with asyncio.timeout(10):
                assert await outcome_of(rig, Write("probe", "led", 1)) is Outcome.UNAVAILABLE
            assert rig.bluez.written == []

    asyncio.run(main())


def test_a_write_that_the_link_swallowed_is_unknown_and_not_repeated(start: Start) -> None:
    async def main() -> None:
        async with start([device("probe", PROBE, connect={"mode": "notify"}, points=POINTS)]) as rig:
            await show_probe(rig)
            await rig.until(lambda: rig.bluez.notifying(PROBE, TEMPERATURE))
            rig.bluez.fail("WriteValue", "Failed", "Not connected")
            assert await outcome_of(rig, Write("probe", "led", 1)) is Outcome.UNKNOWN
            assert rig.bluez.count("WriteValue") == 1

    asyncio.run(main())
