"""The connector over a real pseudo-terminal, against a slave with bad manners."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest

from gateway.connectors import schedule
from gateway.errors import CommandError, LinkError
from gateway.model import DeviceState, Outcome, Status, Write

from .bench import Bench, device, rtu
from .slave import Slave


def at(address: int, register: str = "holding", **more: object) -> dict[str, object]:
    return {"name": f"{register[0]}{address}", "address": address, "register": register, **more}


def test_what_is_polled_is_what_the_registers_hold(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.registers |= {(1, 10): 0x41A8, (1, 11): 0xCCCD, (1, 12): 0xFFFE}
        bench = Bench(
            rtu(slave.path),
            [
                device(
                    "meter",
                    1,
                    at(10, type="float32"),
                    at(12, type="int16"),
                    at(7, "input"),
                    at(3, "coil"),
                    at(4, "discrete"),
                    interval=0.1,
                )
            ],
        )
        async with bench.running():
            await bench.until(lambda: bool(bench.values("meter", "d4")))
        assert bench.values("meter", "h10")[0] == 21.1
        assert bench.values("meter", "h12")[0] == -2
        assert bench.values("meter", "i7")[0] == 5007
        assert bench.values("meter", "c3")[0] is True
        assert bench.values("meter", "d4")[0] is False
        assert bench.reports[0] == ("meter", DeviceState.ONLINE, "")
        merged = next(sample for sample in bench.samples if "h10" in sample.points)
        assert merged.points == ("h10", "h12")

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


# Each register holds its address, and an input register 5000 more: a value that is not the point's own is another's.
LATE = 0.35  # a reply to request 1; the timeout is 0.30


@pytest.mark.parametrize(
    ("first", "second", "late"),
    [
        (at(100, type="uint32"), at(200, type="uint32"), LATE),
        (at(100, type="uint64"), at(200, type="uint32"), LATE),
        (at(100, type="uint32"), at(200, "input", type="uint32"), LATE),
        # later than the late window, too: timeout 0.3 + window 0.6
        (at(100, type="uint32"), at(200, type="uint32"), 1.2),
        (at(100, type="uint32"), at(200, type="uint32"), 1.6),
    ],
    ids=["same count", "more registers", "another table", "behind the window", "far behind the window"],
)
def test_a_late_reply_never_becomes_another_registers_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, object], second: dict[str, object], late: float
) -> None:
    # a starved machine makes more replies late than the one: the device must not rest for half a minute then
    monkeypatch.setattr(schedule, "FIRST_PROBE_S", 0.2)
    monkeypatch.setattr(schedule, "LAST_PROBE_S", 0.2)

    async def scenario(slave: Slave) -> None:
        # without a retry the very next request is the other question
        bench = Bench(rtu(slave.path, retries=0, late_window=0.6), [device("meter", 1, first, second, interval=0.1)])
        names = [str(point["name"]) for point in (first, second)]
        async with bench.running():
            await bench.until(lambda: all(len(bench.values("meter", name)) >= 2 for name in names), 90)
        for name, address, wide in ((names[0], 100, first["type"]), (names[1], 200, second["type"])):
            start = address + (5000 if name.startswith("i") else 0)
            words = [start + i for i in range(4 if wide == "uint64" else 2)]
            right = int.from_bytes(b"".join(word.to_bytes(2, "big") for word in words), "big")
            assert set(bench.values("meter", name)) == {right}
        assert Status.COMM_TIMEOUT in bench.statuses("meter", names[0])
        assert bench.connector.status()["devices"]["meter"]["late_discarded"] >= (1 if late < 0.9 else 0)

    with Slave(tmp_path, delays=[late]) as slave:
        asyncio.run(scenario(slave))


def test_a_cancelled_command_leaves_no_reply_for_the_next_one(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        points = [at(100 + 50 * i, write={"verify": True}) for i in range(4)]
        bench = Bench(rtu(slave.path), [device("meter", 1, *points, interval=60, max_gap=0)])
        async with bench.running():
            await bench.until(lambda: len(bench.samples) == 4)
            slave.delays = [0.2]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await bench.connector.execute(Write("meter", "h100", 1))
            assert await bench.connector.execute(Write("meter", "h150", 2)) == 2
            # it had started when its caller left: it was carried out, whole
            await bench.until(lambda: slave.registers.get((1, 100)) == 1)
            await bench.until(lambda: bench.values("meter", "h150")[-1] == 2)
        assert set(bench.values("meter", "h200")) == {200}
        assert set(bench.values("meter", "h250")) == {250}

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_commands_cancelled_at_any_moment_spoil_no_value(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        dice = random.Random(3)
        points = [at(100 + 50 * i, write={"verify": True}) for i in range(4)]
        bench = Bench(rtu(slave.path, timeout=1), [device("meter", 1, *points, interval=0.05, max_gap=0)])
        async with bench.running():
            await bench.until(lambda: len(bench.samples) >= 4)
            slave.delays = [0.002 * dice.random() for _ in range(2000)]
            for number in range(150):
                point = f"h{100 + 50 * dice.randrange(3)}"
                try:
                    async with asyncio.timeout(0.02 * dice.random()):
                        await bench.connector.execute(Write("meter", point, number % 50))
                except TimeoutError:
                    pass
            await bench.until(lambda: bench.connector.status()["commands_waiting"] == 0)
            assert await bench.connector.execute(Write("meter", "h100", 49)) == 49
        written = set(range(50))
        for address in (100, 150, 200):
            assert set(bench.values("meter", f"h{address}")) <= {address} | written
        assert set(bench.values("meter", "h250")) == {250}
        assert bench.connector.status()["devices"]["meter"]["failed"] == 0

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_one_dead_unit_of_five_costs_the_others_no_more_than_a_twentieth_of_their_polls(tmp_path: Path) -> None:
    async def scenario(well: Slave, ill: Slave) -> None:
        devices = [device(f"unit-{unit}", unit, at(unit), interval=0.25) for unit in range(1, 6)]
        # side by side, so that a slow machine slows both
        healthy, bench = (Bench(rtu(slave.path, timeout=0.1), devices) for slave in (well, ill))
        async with healthy.running(), bench.running():
            await bench.until(lambda: len(healthy.values("unit-1", "h1")) >= 20, 60)
            polls = {
                unit: tuple(len(each.values(f"unit-{unit}", f"h{unit}")) for each in (healthy, bench))
                for unit in (1, 2, 4, 5)
            }
        for unit, (without, beside) in polls.items():
            assert beside >= 0.95 * without - 1, f"unit {unit}: {beside} of {without}"  # one may be under way
        assert ill.asked(3) <= 5
        assert bench.values("unit-3", "h3") == []
        assert set(bench.statuses("unit-3", "h3")) == {Status.COMM_TIMEOUT, Status.DEVICE_OFFLINE}
        # still said at every due time
        assert len(bench.statuses("unit-3", "h3")) >= 0.9 * len(healthy.values("unit-3", "h3")) - 2
        assert ("unit-3", DeviceState.OFFLINE, "comm_timeout") in bench.reports

    for name in ("well", "ill"):
        (tmp_path / name).mkdir()
    with Slave(tmp_path / "well", units=range(1, 6)) as well, Slave(tmp_path / "ill", units=(1, 2, 4, 5)) as ill:
        asyncio.run(scenario(well, ill))


def test_noise_before_and_behind_frames_and_split_reads_do_no_harm(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.prefix, slave.suffix, slave.split = b"\xff\x00\x01\x03", b"\x00", random.Random(7)
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10), at(90), interval=0.05)])
        async with bench.running():
            await bench.until(lambda: len(bench.values("meter", "h90")) >= 5)
        assert set(bench.values("meter", "h10")) == {10}
        assert set(bench.values("meter", "h90")) == {90}
        assert bench.connector.status()["devices"]["meter"]["failed"] == 0

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_spoilt_frame_is_asked_for_again_and_then_bad(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.corrupt = lambda number: number in (0, 2, 3)
        bench = Bench(rtu(slave.path, timeout=0.1), [device("meter", 1, at(10), interval=0.3)])
        async with bench.running():
            await bench.until(lambda: len(bench.samples) >= 3)
        assert bench.statuses("meter", "h10")[:3] == [Status.GOOD, Status.CRC, Status.GOOD]
        assert set(bench.values("meter", "h10")) == {10}

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_an_echo_is_found_out_by_the_first_read_and_a_dead_unit_does_not_acknowledge_a_write(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.echo = True
        points = [at(10, write={}), at(3, "coil", write={})]
        bench = Bench(rtu(slave.path), [device("meter", 1, *points, interval=60)])
        async with bench.running():
            await bench.until(lambda: len(bench.samples) == 2)
            assert bench.connector.status()["local_echo"] is True
            assert await bench.connector.execute(Write("meter", "h10", 77)) is None
            assert slave.registers[1, 10] == 77
            slave.units.clear()
            for point in ("h10", "c3"):
                with pytest.raises(CommandError) as caught:
                    await bench.connector.execute(Write("meter", point, 1))
                assert caught.value.outcome is Outcome.UNKNOWN

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_nothing_is_written_before_the_echo_is_known(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.echo = True
        slave.units.clear()
        bench = Bench(rtu(slave.path, timeout=0.1), [device("meter", 1, at(10, write={}), interval=60)])
        async with bench.running():
            await bench.until(lambda: bench.connector.status()["open"])
            with pytest.raises(CommandError) as caught:
                await bench.connector.execute(Write("meter", "h10", 5))
            assert caught.value.outcome in (Outcome.UNAVAILABLE, Outcome.UNKNOWN)
        reads_before = [frame[1] for _, frame in slave.requests]
        assert reads_before[0] == 3

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_forbidden_hole_splits_the_read_once_and_every_other_value_stays(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.holes = {13}
        points = [at(10), at(11), at(12), at(15), at(16)]
        bench = Bench(rtu(slave.path), [device("meter", 1, *points, interval=0.1)])
        async with bench.running():
            await bench.until(lambda: len(bench.values("meter", "h16")) >= 3)
        for address in (10, 11, 12, 15, 16):
            assert set(bench.values("meter", f"h{address}")) == {address}
            assert set(bench.statuses("meter", f"h{address}")) == {Status.GOOD}
        assert sum(frame[2:6] == b"\x00\x0a\x00\x07" for _, frame in slave.requests) == 1

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_register_that_does_not_exist_is_a_fault_of_the_configuration_and_asked_for_once(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.holes = {11}
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10), at(11), at(12), interval=0.05)])
        async with bench.running():
            await bench.until(lambda: len(bench.values("meter", "h12")) >= 4)
        assert set(bench.statuses("meter", "h11")) == {Status.CONFIG}
        assert len(bench.statuses("meter", "h11")) >= 3
        assert set(bench.values("meter", "h10")) == {10}
        assert sum(frame[2:6] == b"\x00\x0b\x00\x01" for _, frame in slave.requests) == 1

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_busy_device_is_asked_again_after_a_pause(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.exceptions = [6, 5, 4]
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10), interval=60)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
        assert bench.samples[0].status == (Status.EXCEPTION,)  # 4 came after the tries were used up
        times = [when for when, _ in slave.requests]
        assert times[1] - times[0] >= 0.19
        assert times[2] - times[1] >= 0.19

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_gateway_without_its_target_counts_as_the_unit_being_away(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.exceptions = [11] * 20
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10), interval=0.05)])
        async with bench.running():
            await bench.until(lambda: Status.DEVICE_OFFLINE in bench.statuses("meter", "h10"))
        assert bench.statuses("meter", "h10")[:3] == [Status.EXCEPTION] * 3
        assert bench.reports[-1][1] is DeviceState.OFFLINE

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_device_that_needs_its_pause_gets_it(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.min_gap_s = 0.1
        points = [at(10 + 50 * i) for i in range(5)]
        slow = device("slow", 1, *points, interval=60, delay_between_requests="130ms")
        bench = Bench(rtu(slave.path), [slow])
        async with bench.running():
            await bench.until(lambda: len(bench.samples) == 5)
        assert all(sample.status is None for sample in bench.samples)
        times = [when for when, _ in slave.requests]
        assert len(times) == 5
        assert all(after - before >= 0.1 for before, after in itertools.pairwise(times))

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


WRITABLE = [
    at(10, type="int16", scale=0.1, write={}),
    at(11, type="uint16", write={"fc": 16}),
    at(20, type="float32", byte_order="CDAB", write={}),
    at(30, type="string", length=5, write={}),
    at(40, type="uint16", enum={"0": "off", "1": "eco", "2": "comfort"}, write={}),
    at(50, type="bool", write={}),
    at(5, "coil", write={}),
    at(6, "coil", write={"fc": 15}),
]


def test_writes_arrive_in_the_points_own_type_scale_and_order_and_read_back_the_same(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("meter", 1, *WRITABLE, interval=60)])
        async with bench.running():
            await bench.until(lambda: len(bench.samples) >= 2)

            async def write(point: str, value: object) -> object:
                return await bench.connector.execute(Write("meter", point, value, verify=True))  # type: ignore[arg-type]

            assert await write("h10", 21.5) == 21.5
            assert slave.registers[1, 10] == 215
            assert await write("h10", -0.3) == -0.3
            assert slave.registers[1, 10] == 0xFFFD
            assert await write("h11", 65535) == 65535
            assert await write("h20", 21.1) == 21.1
            assert (slave.registers[1, 20], slave.registers[1, 21]) == (0xCCCD, 0x41A8)
            assert await write("h30", "abc") == "abc"
            assert await write("h40", "comfort") == "comfort"
            assert slave.registers[1, 40] == 2
            assert await write("h50", True) is True
            assert slave.registers[1, 50] == 1
            assert await write("c5", True) is True
            assert await write("c6", False) is False
            assert slave.coils == {(1, 5): True, (1, 6): False}
            functions = {frame[1] for _, frame in slave.requests if frame[1] in (5, 6, 15, 16)}
            assert functions == {5, 6, 15, 16}
            await bench.until(lambda: bench.values("meter", "h40")[-1] == 2)  # read again at once, not in a minute

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


@pytest.mark.parametrize(
    ("point", "value"),
    [("h10", 4000), ("h11", -1), ("h20", 1e39), ("h30", "too long"), ("h40", "turbo"), ("h11", "5"), ("c5", 7)],
)
def test_what_a_register_cannot_hold_is_rejected_before_anything_is_sent(
    tmp_path: Path, point: str, value: float | str
) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("meter", 1, *WRITABLE, interval=60)])
        async with bench.running():
            await bench.until(lambda: bench.connector.status()["open"])
            with pytest.raises(CommandError) as caught:
                await bench.connector.execute(Write("meter", point, value))
        assert caught.value.outcome is Outcome.REJECTED
        assert all(frame[1] < 5 for _, frame in slave.requests)

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_write_whose_reply_is_lost_is_unknown_and_sent_once(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10, write={}), interval=60)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            slave.silent_after_write = True
            with pytest.raises(CommandError) as caught:
                await bench.connector.execute(Write("meter", "h10", 5))
            assert caught.value.outcome is Outcome.UNKNOWN
            assert sum(frame[1] == 6 for _, frame in slave.requests) == 1
            # reading back says what became of it
            assert await bench.connector.execute(Write("meter", "h10", 6, verify=True)) == 6

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_write_that_is_refused_or_does_not_take_failed(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10, write={}), at(11), interval=60)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            slave.exceptions = [3]
            with pytest.raises(CommandError, match="illegal data value") as caught:
                await bench.connector.execute(Write("meter", "h10", 5))
            assert caught.value.outcome is Outcome.FAILED
            slave.exceptions = [6]
            await bench.connector.execute(Write("meter", "h10", 5))
            assert slave.registers[1, 10] == 5
            with pytest.raises(CommandError) as caught:
                await bench.connector.execute(Write("meter", "h11", 5))
            assert caught.value.outcome is Outcome.UNSUPPORTED

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_an_adapter_that_is_pulled_out_ends_the_run_and_works_again_when_it_is_back(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        setup = rtu(slave.path), [device("meter", 1, at(10, write={}), interval=0.05)]
        bench = Bench(*setup)
        async with bench.running() as run:
            await bench.until(lambda: len(bench.samples) >= 2)
            await asyncio.to_thread(slave.unplug)
            with pytest.raises(LinkError, match="bus"):
                await asyncio.wait_for(asyncio.shield(run), 5)
        assert bench.statuses("meter", "h10")[-1] is Status.DEVICE_OFFLINE
        assert bench.reports[-1] == ("meter", DeviceState.OFFLINE, "the bus is gone")
        with pytest.raises(CommandError) as caught:
            await bench.connector.execute(Write("meter", "h10", 5))
        assert caught.value.outcome is Outcome.UNAVAILABLE

        again = Bench(*setup)
        with pytest.raises(LinkError, match="bus"):
            await asyncio.wait_for(again.connector.run(again.emit), 5)
        slave.plug()
        again = Bench(*setup)
        async with again.running():
            await again.until(lambda: len(again.values("meter", "h10")) >= 2)

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_write_that_nobody_waits_for_any_more_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10, write={}), interval=60)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            slave.exceptions = [6]  # busy: not carried out, to be tried again
            given_up = asyncio.create_task(bench.connector.execute(Write("meter", "h10", 1)))
            await bench.until(lambda: slave.requests[-1][1][1] == 6)
            given_up.cancel()
            await bench.connector.execute(Write("meter", "h10", 2))
        assert [frame[5] for _, frame in slave.requests if frame[1] == 6] == [1, 2]

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_whoever_cancels_a_second_time_waits_no_longer_and_the_port_is_free(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path, timeout=30), [device("meter", 1, at(10))])
        slave.delays = [60.0]
        task = asyncio.create_task(bench.connector.run(bench.emit))
        await bench.until(lambda: slave.asked(1) == 1)
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        assert not task.done()  # an answer may still come
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait([task])
        assert not bench.connector.status()["open"]
        assert {each.get_name() for each in asyncio.all_tasks()}.isdisjoint({"modbus bus"})

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_write_under_way_when_the_bus_goes_is_unknown_and_one_that_waits_is_unavailable(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path, timeout=5), [device("meter", 1, at(10, write={}), interval=60)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            slave.delays = [10.0]
            first = asyncio.create_task(bench.connector.execute(Write("meter", "h10", 5)))
            await bench.until(lambda: slave.requests[-1][1][1] == 6)
            second = asyncio.create_task(bench.connector.execute(Write("meter", "h10", 6)))
            await bench.until(lambda: bench.connector.status()["commands_waiting"] == 1)
            await asyncio.to_thread(slave.unplug)
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [outcome.outcome for outcome in outcomes if isinstance(outcome, CommandError)] == [
            Outcome.UNKNOWN,
            Outcome.UNAVAILABLE,
        ]

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_line_on_which_nobody_answers_is_opened_again(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path, timeout=0.05), [device("meter", 1, at(10), interval=0.05)])
        async with bench.running():
            await bench.until(lambda: bench.connector.status()["reopened"] == 1)
            assert bench.connector.status()["devices"]["meter"]["state"] == "offline"

    with Slave(tmp_path, units=()) as slave:
        asyncio.run(scenario(slave))
