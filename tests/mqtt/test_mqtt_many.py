"""Payloads about many devices, uplinks of LoRaWAN devices, and what each convention adds to its plainest form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from conftest import Rig, device, eventually  # type: ignore[import-not-found]

from gateway.connectors.mqtt.devices import Mapped
from gateway.connectors.mqtt.mapping import Mapper
from gateway.connectors.mqtt.writing import publication
from gateway.model import DeviceState, Sample, Status
from gateway.testing.broker import Mosquitto

S = 10**9


def heard(mapper: Mapper, topic: str, payload: Any, retained: bool = False, at_ns: int = 5) -> Mapped:
    raw = payload if isinstance(payload, str) else json.dumps(payload)
    return mapper.map(topic.encode(), raw.encode(), retained, at_ns, None)


def told(mapped: Mapped) -> dict[str, dict[str, Any]]:
    assert not mapped.rejected, mapped.rejected
    return {sample.device: readings(sample) for sample in mapped.samples}


def readings(sample: Sample) -> dict[str, Any]:
    status = sample.status or (Status.GOOD,) * len(sample.points)
    return {
        point: value if quality is Status.GOOD else quality.value
        for point, value, quality in zip(sample.points, sample.values, status, strict=True)
    }


# ── many devices in one payload ──────────────────────────────────────────────────────────────────────────────────────


def test_a_list_of_objects_with_an_id() -> None:
    mapper = Mapper(
        [
            device(
                name="{site}-{id}",
                topic="plant/{site}/all",
                each="data.sensors",
                id="serial",
                timestamp={"path": "ts"},
                points=[{"name": "t", "path": "v.t"}],
            )
        ]
    )
    payload = {"ts": 1715843121, "data": {"sensors": [
        {"serial": "a1", "v": {"t": 21.5}}, {"serial": 7, "v": {"t": 22}, "ts": 1715843100}]}}  # fmt: skip
    mapped = heard(mapper, "plant/hall/all", payload)
    assert told(mapped) == {"hall-a1": {"t": 21.5}, "hall-7": {"t": 22}}
    assert [sample.source_ms for sample in mapped.samples] == [1715843121000, 1715843100000]
    assert {sample.rule for sample in mapped.samples} == {"{site}-{id}"}


def test_an_object_of_objects_by_its_keys_and_tasmotas_zigbee() -> None:
    mapper = Mapper([device(name="{id}", topic="tele/bridge/SENSOR", format="tasmota", each="ZbReceived")])
    payload = {"ZbReceived": {"0x2C1F": {"Device": "0x2C1F", "Temperature": 20.5, "LinkQuality": 70}}}
    mapped = heard(mapper, "tele/bridge/SENSOR", payload)
    assert told(mapped) == {"0x2C1F": {"Temperature": 20.5, "LinkQuality": 70}}
    values = Mapper([device(name="{id}", topic="t", each="*")])
    assert told(heard(values, "t", {"a": 1, "b": {"v": 2}})) == {"a": {"value": 1}, "b": {"v": 2}}


def test_a_payload_that_names_its_own_device_and_lists_of_them() -> None:
    # as rtl_433 publishes: one event, one object
    mapper = Mapper([device(name="{id}", topic="rtl_433/events", id="id", points=[{"name": "temperature_C"}])])
    one = {"model": "Acurite-Tower", "id": 12087, "temperature_C": 23.4}
    assert told(heard(mapper, "rtl_433/events", one)) == {"12087": {"temperature_C": 23.4}}
    assert set(told(heard(mapper, "rtl_433/events", [one, {**one, "id": 3}]))) == {"12087", "3"}


def test_one_entry_that_makes_no_sense_does_not_take_the_others_with_it() -> None:
    mapper = Mapper([device(name="{id}", topic="t", each="list", id="id")])
    mapped = heard(mapper, "t", {"list": [{"v": 1}, {"id": "b", "v": 2}, 5, {"id": True, "v": 3}, {"id": "??"}]})
    assert [sample.device for sample in mapped.samples] == ["b"]
    assert len(mapped.rejected) == 4
    assert heard(mapper, "t", {"list": "x"}).rejected
    assert heard(mapper, "t", {"other": 1}) == Mapped([], [], [], True)


def test_the_will_of_a_bridge_takes_all_its_devices_offline_and_only_them() -> None:
    mapper = Mapper([device(name="{site}.{id}", topic="g/{site}/all", each="*", availability="g/{site}/LWT")])
    for site in ("north", "south"):
        heard(mapper, f"g/{site}/all", {"a": {"v": 1}, "b": {"v": 2}})
    gone = heard(mapper, "g/north/LWT", "offline")
    assert told(gone) == {"north.a": {"v": "bad:device_offline"}, "north.b": {"v": "bad:device_offline"}}
    assert heard(mapper, "g/north/LWT", "offline").samples == [], "told once"
    assert [each.device for each in mapper.tick(9)] == ["north.a", "north.b"], "and then from time to time"
    back = heard(mapper, "g/north/LWT", "online")
    assert [change.state for change in back.changes] == [DeviceState.ONLINE] * 2


# ── The Things Stack ─────────────────────────────────────────────────────────────────────────────────────────────────

# thethingsindustries.com/docs/integrations/data-formats, "Uplink messages"
UPLINK = {
    "end_device_ids": {
        "device_id": "dev1", "application_ids": {"application_id": "app1"}, "dev_eui": "0004A30B001C0530",
        "join_eui": "800000000000000C", "dev_addr": "00BCB929",
    },
    "correlation_ids": ["as:up:01E0WZGT6Y7657CPFPE5WEYDSQ"],
    "received_at": "2020-02-12T15:15:45.787Z",
    "uplink_message": {
        "session_key_id": "AXA50tHUrxc5lXFpXWXoTw==", "f_cnt": 12, "f_port": 10, "frm_payload": "AWcBNgJoHg==",
        "decoded_payload": {"temperature": 31, "door": {"open": True}, "text": "x"},
        "rx_metadata": [
            {"gateway_ids": {"gateway_id": "gtw1"}, "rssi": -35, "snr": 5.2, "timestamp": 2463457000},
            {"gateway_ids": {"gateway_id": "gtw2"}, "rssi": -97, "snr": -3},
        ],
        "settings": {"data_rate": {"lora": {"bandwidth": 125000, "spreading_factor": 7}}},
        "received_at": "2020-02-12T15:15:45.123456789Z",
    },
}  # fmt: skip
WOOD = {"name": "{device}", "format": "ttn", "topic": "v3/app1@ttn/devices/{device}/up"}
UP = "v3/app1@ttn/devices/dev1/up"


def uplink(**message: Any) -> dict[str, Any]:
    return {**UPLINK, "uplink_message": {**UPLINK["uplink_message"], **message}}


def test_an_uplink_is_what_the_formatter_made_and_what_the_radio_says_with_the_time_of_the_network() -> None:
    mapper = Mapper([device(**WOOD)])
    (sample,) = heard(mapper, UP, UPLINK).samples
    assert (sample.device, sample.source_ms) == ("dev1", 1581520545123)
    assert readings(sample) == {
        "lorawan.f_cnt": 12, "lorawan.f_port": 10, "lorawan.rssi": -35, "lorawan.snr": 5.2, "lorawan.gateways": 2,
        "lorawan.spreading_factor": 7, "temperature": 31, "door.open": True,
    }  # fmt: skip
    assert dict(zip(sample.points, sample.units or (), strict=True))["lorawan.rssi"] == "dBm"


def test_the_same_frame_again_is_no_news_and_a_counter_that_begins_anew_is() -> None:
    mapper = Mapper([device(**WOOD)])
    assert heard(mapper, UP, UPLINK).samples
    assert heard(mapper, UP, {**UPLINK, "received_at": "2020-02-12T15:15:46Z"}, at_ns=2 * S).samples == []
    assert heard(mapper, UP, uplink(f_cnt=13), at_ns=3 * S).samples
    first = uplink(session_key_id="new")
    del first["uplink_message"]["f_cnt"]  # 0 is absent
    assert readings(heard(mapper, UP, first, at_ns=4 * S).samples[0])["lorawan.f_cnt"] == 0
    assert heard(mapper, UP, first, at_ns=200 * S).samples, "minutes later it is another one"


def test_joins_downlinks_and_empty_uplinks_are_no_readings_and_a_missing_formatter_is_said() -> None:
    mapper = Mapper([device(name="dev1", format="ttn", topic="v3/app1@ttn/devices/dev1/#", availability="")])
    for tail in ("join", "down/queued", "down/sent", "down/ack", "down/nack", "down/failed", "location/solved"):
        assert heard(mapper, f"v3/app1@ttn/devices/dev1/{tail}", {"join_accept": {}}) == Mapped([], [], [], True)
    only_mac = uplink()
    for key in ("f_port", "frm_payload", "decoded_payload"):
        del only_mac["uplink_message"][key]
    assert heard(mapper, UP, only_mac) == Mapped([], [], [], True)
    raw = uplink()
    del raw["uplink_message"]["decoded_payload"]
    assert "payload formatter" in heard(mapper, UP, raw).rejected[0]


def test_a_simulated_uplink_is_no_measurement() -> None:
    mapper = Mapper([device(**WOOD, points=[{"name": "temperature"}])])
    (sample,) = heard(mapper, UP, {**UPLINK, "simulated": True}).samples
    assert readings(sample) == {"temperature": "uncertain:substituted"}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"f_port": 15}, '{"downlinks": [{"f_port": 15, "decoded_payload": {"led": "on"}}]}'),
        ({}, '{"downlinks": [{"decoded_payload": {"led": "on"}}]}'),
    ],
)
def test_a_downlink_is_queued(extra: dict[str, Any], expected: str) -> None:
    points = [{"name": "led", "write": {"values": ["on", "off"]}}]
    mapper = Mapper([device(name="dev1", format="ttn", topic=UP, points=points, **extra)])
    message = publication(mapper.devices["dev1"], "led", "on")
    assert (message.topic, message.payload.decode()) == ("v3/app1@ttn/devices/dev1/down/push", expected)


# ── the others ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tasmota_answers_hold_what_telemetry_holds_and_other_talk_is_none() -> None:
    # tasmota.github.io/docs/JSON-Status-Responses
    mapper = Mapper([device(topic="stat/plug/+", format="tasmota")])
    assert set(mapper.filters) == {"stat/plug/+", "tele/plug/LWT"}
    sensor = {"StatusSNS": {"Time": "2018-02-15T01:00:50", "AM2301": {"Temperature": 21.5}, "TempUnit": "C"}}
    (sample,) = heard(mapper, "stat/plug/STATUS8", sensor).samples
    assert (readings(sample), sample.units) == ({"AM2301.Temperature": 21.5}, ("Cel",))
    assert told(heard(mapper, "stat/plug/STATUS11", {"StatusSTS": {"POWER": "ON"}})) == {"dev": {"POWER": True}}
    assert told(heard(mapper, "stat/plug/RESULT", {"POWER": "OFF"})) == {"dev": {"POWER": False}}
    for tail, payload in {"STATUS2": {"StatusFWR": {"Boot": 31}}, "LOGGING": "00:00:01 MQT", "INFO1": "{}"}.items():
        assert heard(mapper, f"stat/plug/{tail}", payload) == Mapped([], [], [], True)


def test_tasmota_values_of_each_phase_and_the_other_order_of_topics() -> None:
    mapper = Mapper([device(topic="meter/tele/SENSOR", format="tasmota")])
    assert set(mapper.filters) == {"meter/tele/SENSOR", "meter/tele/LWT"}
    (sample,) = heard(mapper, "meter/tele/SENSOR", {"ENERGY": {"Voltage": [230, 231], "Power": [1, 2]}}).samples
    assert dict(zip(sample.points, sample.units or (), strict=True)) == {
        "ENERGY.Voltage.0": "V", "ENERGY.Voltage.1": "V", "ENERGY.Power.0": "W", "ENERGY.Power.1": "W",
    }  # fmt: skip


def test_the_bridge_of_zigbee2mqtt_speaks_for_all_its_devices() -> None:
    # zigbee2mqtt.io, "MQTT topics and messages": bridge/state, and the older form of it
    mapper = Mapper([device(name="{device}", topic="zigbee2mqtt/{device}", format="zigbee2mqtt")])
    for name in ("lamp", "group_hall"):
        heard(mapper, f"zigbee2mqtt/{name}", {"state": "ON"})
    gone = heard(mapper, "zigbee2mqtt/bridge/state", {"state": "offline"})
    assert {change.device for change in gone.changes} == {"lamp", "group_hall"}
    heard(mapper, "zigbee2mqtt/lamp/availability", {"state": "offline"})
    heard(mapper, "zigbee2mqtt/bridge/state", "online")
    assert mapper.devices["lamp"].offline, "it has said so itself"
    assert not mapper.devices["group_hall"].offline


@pytest.mark.parametrize("config", [{"name": "{device}", "topic": "zigbee2mqtt/{device}"},
                                    {"name": "lamp", "topic": "zigbee2mqtt/lamp"}])  # fmt: skip
def test_a_bridge_that_is_there_is_no_sign_of_life_of_its_devices(config: dict[str, Any]) -> None:
    mapper = Mapper([device(format="zigbee2mqtt", **config)])
    heard(mapper, "zigbee2mqtt/lamp", {"state": "ON"}, retained=True)
    assert heard(mapper, "zigbee2mqtt/bridge/state", {"state": "online"}).changes == []
    (change,) = heard(mapper, "zigbee2mqtt/lamp/availability", {"state": "online"}).changes
    assert change.state is DeviceState.ONLINE


def test_sensors_behind_a_shelly_gateway_and_a_full_status() -> None:
    # shelly-api-docs.shelly.cloud, "BTHomeSensor", "BTHomeDevice", "Notifications"
    mapper = Mapper([device(topic="gw/events/rpc", format="shelly")])
    frame = {"src": "gw", "method": "NotifyFullStatus", "params": {
        "ts": 1680962879.62, "ble": {}, "sys": {"uptime": 3, "cfg_rev": 10, "unixtime": None},
        "bthomesensor:200": {"id": 200, "value": 21.5, "last_updated_ts": 1680962870},
        "bthomedevice:200": {"id": 200, "rssi": -66, "battery": 100, "packet_id": 12, "last_updated_ts": 1680962870},
    }}  # fmt: skip
    (sample,) = heard(mapper, "gw/events/rpc", frame).samples
    assert readings(sample) == {
        "sys.uptime": 3, "bthomesensor:200.value": 21.5, "bthomedevice:200.rssi": -66, "bthomedevice:200.battery": 100,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "topic", "path", "value", "expected"),
    [
        ("tasmota", "tele/b/+", "POWER1", True, "cmnd/b/POWER1 ON"),
        ("shelly-gen1", "shellies/p/#", "relay/0", False, "shellies/p/relay/0/command off"),
        ("shelly", "p/events/rpc", "switch:0.output", True, "p/command/switch:0 on"),
        ("shelly", "p/status/+", "switch:1.output", False, "p/command/switch:1 off"),
        ("esphome", "k/+/+/state", "switch/pump", True, "k/switch/pump/command ON"),
        ("esphome", "k/+/+/state", "number/limit", 5, "k/number/limit/command 5"),
    ],
)
def test_where_a_convention_takes_commands(form: str, topic: str, path: str, value: Any, expected: str) -> None:
    mapper = Mapper([device(format=form, topic=topic, points=[{"name": "p", "path": path, "write": {}}])])
    message = publication(mapper.devices["dev"], "p", value)
    assert f"{message.topic} {message.payload.decode()}" == expected


def test_two_brokers_with_the_same_topics_are_two_buses(rig: Rig, tmp_path: Any) -> None:
    async def scenario() -> None:
        (tmp_path / "other").mkdir()
        with Mosquitto(tmp_path / "other") as second:
            other = Rig(second)
            other.store = rig.store
            north = rig.connector({"name": "north-{device}", "topic": "plant/{device}"})
            south = other.connector({"name": "south-{device}", "topic": "plant/{device}"})
            async with rig.running(north), other.running(south):
                await rig.publish("plant/boiler", '{"n": 1}')
                await other.publish("plant/boiler", '{"n": 1}')
                await eventually(lambda: len(rig.store.samples) == 2, "both, though packet id and content are equal")
            assert {sample.device for sample in rig.store.samples} == {"north-boiler", "south-boiler"}
            other.close()

    asyncio.run(scenario())
