"""Sparkplug B: edge nodes are born, speak and die.

The payloads were encoded by the Protocol Buffers compiler's Python from `sparkplug_b.proto` of Eclipse Tahu, with the
values that stand beside them here; what they mean is said in the Sparkplug specification 3.0.0, chapters 5 and 6.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Rig, device, eventually  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.mqtt import sparkplug, tahu
from gateway.connectors.mqtt.devices import Mapped
from gateway.connectors.mqtt.mapping import Mapper
from gateway.connectors.mqtt.sparkplug import REBIRTH
from gateway.errors import DecodeError
from gateway.model import DeviceState, Sample, Status

T = 1486144502122
"""The time stamp of the specification's examples."""
VECTORS = {
    "NBIRTH": (
        "08eaf2f5a8a02b12120a05626453657118eaf2f5a8a02b2008580712210a144e6f646520436f6e74726f6c2f526562697274"
        "6818eaf2f5a8a02b200b700012200a0e537570706c7920566f6c74616765100118eaf2f5a8a02b2009659a99414112300a06"
        "557074696d65100218eaf2f5a8a02b20084a100a07656e67556e69741205080c42017358ffffffffffffffffff011800"
    ),
    "DBIRTH": (
        "08ebf2f5a8a02b12150a026938100a18ebf2f5a8a02b200150fbffffff0f12160a03693136100b18ebf2f5a8a02b200250d4"
        "fdffff0f12160a03693332100c18ebf2f5a8a02b20035090ddfbff0f121b0a03693634100d18ebf2f5a8a02b200458fbffff"
        "ffffffffffff0112120a027538100e18ebf2f5a8a02b200550c80112140a03753136100f18ebf2f5a8a02b200650ffff0312"
        "160a03753332101018ebf2f5a8a02b200750ffffffff0f12170a047533326c101118ebf2f5a8a02b200758ffffffff0f121b"
        "0a03753634101218ebf2f5a8a02b200858ffffffffffffffffff0112130a0166101318ebf2f5a8a02b200965cdcca8411217"
        "0a0164101418ebf2f5a8a02b200a699a9999999999b93f12100a0162101518ebf2f5a8a02b200b700112150a0173101618eb"
        "f2f5a8a02b200c7a056772c3bc6e12160a026474101718ebf2f5a8a02b200d58eaf2f5a8a02b12140a0174101818ebf2f5a8"
        "a02b200e7a047465787412130a0175101918ebf2f5a8a02b200f7a03612d6212160a076e6f7468696e67102818ebf2f5a8a0"
        "2b200a380112190a036e616e102918ebf2f5a8a02b200a69000000000000f87f12160a03726177102a18ebf2f5a8a02b2011"
        "82010361626312230a03626164102b18ebf2f5a8a02b20034a0f0a075175616c697479120408031800500112260a05737461"
        "6c65102c18ebf2f5a8a02b20034a100a075175616c6974791205080318f40350011801"
    ),
    "DDATA": ("08ecf2f5a8a02b120e101318ecf2f5a8a02b656666aa41120d100d18e2cbf5a8a02b2801582a1802"),
    "NDATA": ("08edf2f5a8a02b120e100118edf2f5a8a02b6566663e411803"),
    "DDEATH": ("08eef2f5a8a02b1804"),
    "NDEATH": ("08eaf2f5a8a02b12120a05626453657118eaf2f5a8a02b20085807"),
    "REBIRTH": ("08e807121d0a144e6f646520436f6e74726f6c2f5265626972746818e807200b7001"),
    "WRITE_FLOAT": ("08e807120e0a02737018e8072009650000ac41"),
    "WRITE_INT16": ("08e807120e0a016e18e807200250fdffffff0f"),
}
MESSAGE = {name: bytes.fromhex(text) for name, text in VECTORS.items()}
NODE = {"name": "{node}", "format": "sparkplug", "topic": "spBv1.0/Plant/+/{node}"}
PRESS = {"name": "{node}.{device}", "format": "sparkplug", "topic": "spBv1.0/Plant/+/{node}/{device}"}


def topic(kind: str) -> bytes:
    return f"spBv1.0/Plant/{kind}/edge{'/press' if kind.startswith('D') else ''}".encode()


def say(mapper: Mapper, *kinds: str, at_ns: int = 5) -> Mapped:
    for kind in kinds:
        mapped = mapper.map(topic(kind), MESSAGE[kind], False, at_ns, None)
    return mapped


def readings(sample: Sample) -> dict[str, Any]:
    status = sample.status or (Status.GOOD,) * len(sample.points)
    return {
        point: value if quality is Status.GOOD else quality.value
        for point, value, quality in zip(sample.points, sample.values, status, strict=True)
    }


def test_a_birth_tells_values_units_and_times_and_nothing_that_steers() -> None:
    mapper = Mapper([device(**NODE)])
    assert mapper.filters == ("spBv1.0/Plant/+/+/#",)
    mapped = say(mapper, "NBIRTH")
    (sample,) = mapped.samples
    assert (sample.device, sample.source_ms) == ("edge", T)
    assert readings(sample) == {"Supply_Voltage": 12.1, "Uptime": 2**64 - 1}
    assert sample.units == ("", "s")
    assert [change.state for change in mapped.changes] == [DeviceState.ONLINE]


def test_every_datatype_is_read_with_its_sign_and_its_width() -> None:
    points = [{"name": n} for n in ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u32l", "u64", "f", "d", "b", "s")]
    points += [{"name": n} for n in ("dt", "t", "u", "nothing", "nan", "raw", "bad", "stale")]
    mapper = Mapper([device(**PRESS, points=points)])
    (sample,) = say(mapper, "NBIRTH", "DBIRTH").samples
    assert (sample.device, sample.source_ms) == ("edge.press", T + 1)
    assert readings(sample) == {
        "i8": -5, "i16": -300, "i32": -70000, "i64": -5, "u8": 200, "u16": 65535, "u32": 4294967295,
        "u32l": 4294967295, "u64": 2**64 - 1, "f": 21.1, "d": 0.1, "b": True, "s": "grün", "dt": T, "t": "text",
        "u": "a-b", "nothing": "bad:sensor_fault", "nan": "bad:sensor_fault", "raw": "bad:decode",
        "bad": "bad:sensor_fault", "stale": "bad:stale",
    }  # fmt: skip


def test_an_alias_means_what_the_birth_said_and_history_has_its_own_time() -> None:
    mapper = Mapper([device(**PRESS, points=[{"name": "f"}, {"name": "i64"}])])
    now, history = say(mapper, "NBIRTH", "DBIRTH", "DDATA").samples
    assert (readings(now), now.source_ms) == ({"f": 21.3}, T + 2)
    assert (readings(history), history.source_ms) == ({"i64": 42}, T - 5000)


def test_a_number_that_is_missing_ends_the_trust_in_aliases_until_the_next_birth() -> None:
    mapper = Mapper([device(**NODE), device(**PRESS)])
    say(mapper, "NBIRTH", "DBIRTH")
    lost = say(mapper, "NDATA")  # 3 after 1: DDATA has not come
    assert lost.samples == []
    assert lost.rebirths == (("Plant", "edge"),)
    assert "does not follow" in lost.refused[0]
    assert say(mapper, "NDATA").rebirths == (), "asked once, not with every message"
    assert say(mapper, "NDATA", at_ns=31 * 10**9).rebirths, "and again when nothing came of it"
    assert [each.device for each in say(mapper, "NBIRTH").samples] == ["edge"]
    assert [each.device for each in say(mapper, "DBIRTH").samples] == ["edge.press"]
    assert say(mapper, "DDATA").samples


def test_who_comes_late_asks_for_a_birth_and_guesses_nothing() -> None:
    mapper = Mapper([device(**NODE)])
    mapped = say(mapper, "NDATA")
    assert (mapped.samples, mapped.rebirths) == ([], (("Plant", "edge"),))


def test_death_takes_node_and_devices_offline_and_an_old_will_does_not() -> None:
    mapper = Mapper([device(**NODE), device(**PRESS)])
    say(mapper, "NBIRTH", "DBIRTH")
    old = tahu.encode("bdSeq", 8, 6, T)
    assert mapper.map(topic("NDEATH"), old, False, 5, None).samples == []
    mapped = say(mapper, "NDEATH")
    assert {change.device: change.state for change in mapped.changes} == {
        "edge": DeviceState.OFFLINE,
        "edge.press": DeviceState.OFFLINE,
    }
    assert {s for sample in mapped.samples for s in sample.status or ()} == {Status.DEVICE_OFFLINE}
    assert say(mapper, "NBIRTH").changes[0].state is DeviceState.ONLINE


def test_the_death_of_a_device_is_its_own() -> None:
    mapper = Mapper([device(**NODE), device(**PRESS)])
    mapped = say(mapper, "NBIRTH", "DBIRTH", "DDATA", "NDATA", "DDEATH")
    assert [change.device for change in mapped.changes] == ["edge.press"]
    assert not mapped.rebirths


def test_commands_states_and_stored_copies_are_no_reports() -> None:
    mapper = Mapper([device(**NODE)])
    for other in (b"spBv1.0/Plant/NCMD/edge", b"spBv1.0/STATE/scada", b"spBv1.0/Plant/NDATA"):
        assert mapper.map(other, MESSAGE["REBIRTH"], False, 5, None).samples == []
    assert mapper.map(topic("NBIRTH"), MESSAGE["NBIRTH"], True, 5, None).samples == []


@pytest.mark.parametrize(
    ("vector", "name", "datatype", "value"),
    [("REBIRTH", REBIRTH, 11, True), ("WRITE_FLOAT", "sp", 9, 21.5), ("WRITE_INT16", "n", 2, -3)],
)
def test_commands_are_encoded_as_the_compiler_does(vector: str, name: str, datatype: int, value: Any) -> None:
    assert tahu.encode(name, datatype, value, 1000) == MESSAGE[vector]


@pytest.mark.parametrize(
    ("datatype", "value"), [(5, 256), (1, -129), (3, 1.5), (11, 1), (12, 5), (9, "x"), (9, 1e300), (17, 1), (99, 1)]
)
def test_what_does_not_fit_its_datatype_is_not_written(datatype: int, value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        tahu.encode("n", datatype, value, 1000)


def test_a_write_needs_a_birth_and_goes_to_its_device() -> None:
    mapper = Mapper([device(**PRESS, points=[{"name": "speed", "path": "i16", "write": {}}])])
    say(mapper, "NBIRTH")
    say(mapper, "DBIRTH")
    message = mapper.publication(mapper.devices["edge.press"], "speed", -3, 1000)
    assert message.topic == "spBv1.0/Plant/DCMD/edge/press"
    (metric,) = tahu.decode(message.payload).metrics
    assert (metric.name, tahu.value(metric, metric.datatype)) == ("i16", (-3, Status.GOOD))


payloads = st.binary(max_size=80) | st.builds(
    lambda base, at, byte: base[: at % len(base)] + bytes((byte,)) + base[at % len(base) + 1 :],
    st.sampled_from(list(MESSAGE.values())),
    st.integers(0, 10_000),
    st.integers(0, 255),
)
KINDS = [topic(kind) for kind in ("NBIRTH", "DBIRTH", "NDATA", "DDATA", "NDEATH", "DDEATH")]


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(st.sampled_from(KINDS), payloads), max_size=6))
def test_no_payload_breaks_the_mapper_and_every_value_is_one_that_can_travel(said: list[tuple[bytes, bytes]]) -> None:
    mapper = Mapper([device(**NODE), device(**PRESS)])
    for where, payload in said:
        for sample in mapper.map(where, payload, False, 5, None).samples:
            assert len(set(sample.points)) == len(sample.points) == len(sample.values)
            status = sample.status or (Status.GOOD,) * len(sample.values)
            for value, quality in zip(sample.values, status, strict=True):
                assert (value is None) == (quality.quality == "bad")


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=60))
def test_the_decoder_ends_in_a_payload_or_a_decode_error(data: bytes) -> None:
    try:
        said = tahu.decode(data)
    except DecodeError:
        return
    for metric in said.metrics:
        for datatype in range(24):
            tahu.value(metric, datatype)


def test_a_node_that_is_not_known_is_asked_for_its_birth_through_a_real_broker(rig: Rig) -> None:
    import asyncio

    import paho.mqtt.client as mqtt

    async def scenario() -> None:
        got: list[tuple[str, bytes]] = []
        node = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="edge")
        node.on_message = lambda client, data, message: got.append((message.topic, message.payload))
        await asyncio.to_thread(node.connect, "127.0.0.1", rig.broker.port)
        node.loop_start()
        node.subscribe("spBv1.0/Plant/NCMD/edge", 1)
        async with rig.running(rig.connector(NODE)):
            await rig.publish(topic("NDATA").decode(), MESSAGE["NDATA"], qos=0)
            await eventually(lambda: got, "the request")
            (asked,) = got
            assert asked[0] == "spBv1.0/Plant/NCMD/edge"
            (metric,) = tahu.decode(asked[1]).metrics
            assert (metric.name, tahu.value(metric, metric.datatype)) == (REBIRTH, (True, Status.GOOD))
            await rig.publish(topic("NBIRTH").decode(), MESSAGE["NBIRTH"], qos=0)
            await eventually(lambda: rig.store.values("Supply_Voltage") == [12.1], "born again")
        node.disconnect()
        node.loop_stop()

    asyncio.run(scenario())


def test_what_nodes_announce_is_bounded_and_each_birth_replaces_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparkplug, "MAX_METRICS", 30)
    mapper = Mapper([device(**PRESS)])
    for _ in range(5):
        assert say(mapper, "NBIRTH", "DBIRTH").samples
    other = mapper.map(b"spBv1.0/Plant/DBIRTH/other/x", MESSAGE["DBIRTH"], False, 5, None)
    assert "more than 30 metrics" in other.rejected[0]
