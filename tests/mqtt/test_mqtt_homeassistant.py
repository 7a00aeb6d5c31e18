"""Home Assistant's MQTT discovery: the announcements of its documentation, and of programs that announce themselves.

home-assistant.io/integrations/mqtt: "MQTT discovery", "Device discovery payload", "Using abbreviations and base topic".
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from conftest import Rig, device, eventually  # type: ignore[import-not-found]

from gateway.codec.path import ABSENT
from gateway.connectors.mqtt import connector as connector_module
from gateway.connectors.mqtt.devices import Mapped
from gateway.connectors.mqtt.mapping import Mapper
from gateway.connectors.mqtt.templates import Refused, Template
from gateway.errors import DecodeError
from gateway.model import DeviceState, Sample, Status

HOUSE = {"name": "{id}", "format": "homeassistant", "topic": "homeassistant/#"}

# "Sensors": two entities of one device that read one topic
BEDROOM = {
    "device_class": "temperature", "state_topic": "homeassistant/sensor/sensorBedroom/state",
    "unit_of_measurement": "°C", "value_template": "{{ value_json.temperature}}", "unique_id": "temp01ae",
    "device": {"identifiers": ["bedroom01ae"], "name": "Bedroom", "manufacturer": "Example sensors Ltd."},
}  # fmt: skip
HUMIDITY = {**BEDROOM, "device_class": "humidity", "unit_of_measurement": "%", "unique_id": "hum01ae",
            "value_template": "{{ value_json.humidity}}"}  # fmt: skip
# "Device discovery payload", abbreviated
KITCHEN = {
    "dev": {"ids": "ea334450945afc", "name": "Kitchen", "mf": "Bla electronics", "mdl": "xya", "sw": "1.0"},
    "o": {"name": "bla2mqtt", "sw": "2.1", "url": "https://bla2mqtt.example.com/support"},
    "cmps": {
        "some_unique_component_id1": {
            "p": "sensor", "device_class": "temperature", "unit_of_measurement": "°C",
            "value_template": "{{ value_json.temperature }}", "unique_id": "temp01ae_t",
        },
        "some_unique_id2": {
            "p": "sensor", "device_class": "humidity", "unit_of_measurement": "%",
            "value_template": "{{ value_json.humidity }}", "unique_id": "temp01ae_h",
        },
        "bla1": {"p": "device_automation", "automation_type": "trigger", "topic": "t", "type": "x", "subtype": "y"},
        "gone": {"p": "sensor"},
    },
    "state_topic": "sensorBedroom/state",
    "qos": 2,
}  # fmt: skip
# "Using abbreviations and base topic"
LIGHT = {
    "~": "homeassistant/light/kitchen", "name": "Kitchen", "uniq_id": "kitchen_light", "cmd_t": "~/set",
    "stat_t": "~/state", "schema": "json", "dev": {"ids": "kl", "name": "Kitchen light"}, "brightness": True,
}  # fmt: skip
# as zigbee2mqtt announces (zigbee2mqtt.io, "Home Assistant")
CONTACT = {
    "availability": [
        {"topic": "zigbee2mqtt/bridge/state", "value_template": "{{ value_json.state }}"},
        {"topic": "zigbee2mqtt/door/availability", "value_template": "{{ value_json.state }}"},
    ],
    "availability_mode": "all", "device": {"identifiers": ["zigbee2mqtt_0x00158d0001"], "name": "door"},
    "device_class": "door", "payload_off": True, "payload_on": False, "state_topic": "zigbee2mqtt/door",
    "value_template": "{{ value_json.contact }}",
}  # fmt: skip


def heard(mapper: Mapper, topic: str, payload: Any, retained: bool = False, at_ns: int = 5) -> Mapped:
    raw = payload if isinstance(payload, str) else json.dumps(payload)
    return mapper.map(topic.encode(), raw.encode(), retained, at_ns, None)


def readings(sample: Sample) -> dict[str, Any]:
    status = sample.status or (Status.GOOD,) * len(sample.points)
    units = sample.units or ("",) * len(sample.points)
    return {
        point: (value if quality is Status.GOOD else quality.value, unit)
        for point, value, quality, unit in zip(sample.points, sample.values, status, units, strict=True)
    }


def test_two_entities_of_one_message_are_one_sample_of_one_device() -> None:
    mapper = Mapper([device(**HOUSE)])
    first = heard(mapper, "homeassistant/sensor/sensorBedroomT/config", BEDROOM, retained=True)
    assert first.subscribe == ("homeassistant/sensor/sensorBedroom/state",)
    heard(mapper, "homeassistant/sensor/sensorBedroomH/config", HUMIDITY, retained=True)
    assert mapper.filters == ("homeassistant/#",), "the other topic is among them"
    (sample,) = heard(
        mapper, "homeassistant/sensor/sensorBedroom/state", {"temperature": 23.20, "humidity": 43.70}
    ).samples
    assert (sample.device, sample.rule) == ("bedroom01ae", "{id}")
    assert readings(sample) == {"sensorBedroomT": (23.2, "°C"), "sensorBedroomH": (43.7, "%")}


def test_a_device_announces_all_its_components_at_once() -> None:
    mapper = Mapper([device(**{**HOUSE, "name": "{device}"})])
    mapped = heard(mapper, "homeassistant/device/0AFFD2/config", KITCHEN, retained=True)
    assert (mapped.subscribe, mapped.refused) == (("sensorBedroom/state",), ())
    (sample,) = heard(mapper, "sensorBedroom/state", {"temperature": 21.5, "humidity": 48}).samples
    assert sample.device == "Kitchen"
    assert readings(sample) == {"some_unique_component_id1": (21.5, "°C"), "some_unique_id2": (48, "%")}
    assert heard(mapper, "sensorBedroom/state", {"temperature": 22}).samples[0].points == ("some_unique_component_id1",)


def test_abbreviations_a_base_topic_and_a_light_in_json() -> None:
    points = [{"name": "light", "path": "light.kitchen"}, {"name": "level", "path": "light.kitchen.brightness"}]
    mapper = Mapper([device(**HOUSE, points=points)])
    heard(mapper, "homeassistant/light/kitchen/config", LIGHT, retained=True)
    (sample,) = heard(mapper, "homeassistant/light/kitchen/state", {"state": "ON", "brightness": 130}).samples
    assert readings(sample) == {"light": (True, ""), "level": (130, "")}


def test_words_of_a_switch_are_those_that_were_announced() -> None:
    mapper = Mapper([device(**HOUSE)])
    heard(mapper, "homeassistant/binary_sensor/0x00158d0001/contact/config", CONTACT, retained=True)
    (sample,) = heard(mapper, "zigbee2mqtt/door", {"contact": False, "battery": 97}).samples
    assert sample.device == "zigbee2mqtt_0x00158d0001"
    assert readings(sample) == {"binary_sensor.contact": (True, "")}, "open is what this device class calls on"
    (sample,) = heard(mapper, "zigbee2mqtt/door", {"contact": "ajar"}).samples
    assert readings(sample) == {"binary_sensor.contact": ("bad:decode", "")}


def test_availability_of_all_topics_and_the_way_back() -> None:
    mapper = Mapper([device(**HOUSE)])
    topics = heard(mapper, "homeassistant/binary_sensor/0x00158d0001/contact/config", CONTACT, retained=True).subscribe
    assert set(topics) == {"zigbee2mqtt/door", "zigbee2mqtt/bridge/state", "zigbee2mqtt/door/availability"}
    heard(mapper, "zigbee2mqtt/bridge/state", {"state": "online"})
    heard(mapper, "zigbee2mqtt/door/availability", {"state": "online"})
    heard(mapper, "zigbee2mqtt/door", {"contact": True})
    gone = heard(mapper, "zigbee2mqtt/bridge/state", {"state": "offline"})
    assert [change.state for change in gone.changes] == [DeviceState.OFFLINE]
    assert readings(gone.samples[0]) == {"binary_sensor.contact": ("bad:device_offline", "")}
    assert readings(mapper.tick(9)[0]) == {"binary_sensor.contact": ("bad:device_offline", "")}
    assert heard(mapper, "zigbee2mqtt/door", {"contact": True}, retained=True).samples == [], "a stored copy"
    back = heard(mapper, "zigbee2mqtt/bridge/state", {"state": "online"})
    assert [change.state for change in back.changes] == [DeviceState.ONLINE]
    assert mapper.tick(9) == []
    assert heard(mapper, "zigbee2mqtt/door/availability", {"state": "??"}).rejected


def test_a_device_is_there_while_one_of_its_entities_is() -> None:
    mapper = Mapper([device(**HOUSE)])
    for name in ("a", "b"):
        said = {"state_topic": f"x/{name}", "unit_of_measurement": "V", "availability_topic": f"x/{name}/there",
                "device": {"identifiers": "x"}}  # fmt: skip
        heard(mapper, f"homeassistant/sensor/x/{name}/config", said)
        heard(mapper, f"x/{name}/there", "online")
        heard(mapper, f"x/{name}", "1")
    one = heard(mapper, "x/a/there", "offline")
    assert readings(one.samples[0]) == {"a": ("bad:device_offline", "")}
    assert one.changes == []
    assert heard(mapper, "x/b/there", "offline").changes[0].state is DeviceState.OFFLINE


def test_expire_after_makes_a_point_stale() -> None:
    mapper = Mapper([device(**HOUSE)])
    heard(mapper, "homeassistant/sensor/w/t/config", {"state_topic": "w/t", "state_class": "measurement",
                                                     "expire_after": 120})  # fmt: skip
    heard(mapper, "w/t", "7", at_ns=10)
    assert mapper.tick(100 * 10**9) == []
    assert readings(mapper.tick(121 * 10**9)[0]) == {"t": ("bad:stale", "")}


def test_an_empty_announcement_takes_back_and_another_one_replaces() -> None:
    mapper = Mapper([device(**HOUSE)])
    where = "homeassistant/sensor/w/t/config"
    heard(mapper, where, {"state_topic": "w/old", "state_class": "measurement"})
    heard(mapper, where, {"state_topic": "w/new", "state_class": "measurement"})
    assert mapper.filters == ("homeassistant/#", "w/new")
    heard(mapper, where, "")
    assert mapper.filters == ("homeassistant/#",)
    assert heard(mapper, "w/new", "7").samples == []


@pytest.mark.parametrize(
    ("payload", "expected"),
    [("21.5", 21.5), ("7", 7), ("nan", "bad:sensor_fault"), ("unavailable", "bad:sensor_fault"), ("x", "bad:decode"),
     ("", "bad:sensor_fault")],
)  # fmt: skip
def test_a_sensor_with_a_unit_is_a_number_or_bad(payload: str, expected: Any) -> None:
    mapper = Mapper([device(**HOUSE, points=[{"name": "t"}])])
    heard(mapper, "homeassistant/sensor/w/t/config", {"state_topic": "w", "unit_of_measurement": "V"})
    (sample,) = heard(mapper, "w", payload).samples
    assert readings(sample) == {"t": (expected, "V")}


def test_a_climate_has_several_points_and_degrees() -> None:
    mapper = Mapper([device(**HOUSE)])
    said = {
        "current_temperature_topic": "trv", "current_temperature_template": "{{ value_json.local_temperature }}",
        "temperature_state_topic": "trv", "temperature_state_template": "{{ value_json.setpoint }}",
        "mode_state_topic": "trv", "mode_state_template": "{{ value_json.mode }}",
        "temperature_command_topic": "trv/set", "temperature_unit": "C",
    }  # fmt: skip
    heard(mapper, "homeassistant/climate/trv/climate/config", said)
    (sample,) = heard(mapper, "trv", {"local_temperature": 20.5, "setpoint": 21, "mode": "heat"}).samples
    assert readings(sample) == {
        "climate.climate.current_temperature": (20.5, "Cel"),
        "climate.climate.temperature": (21, "Cel"),
    }


def test_what_is_announced_can_be_written() -> None:
    points = [
        {"name": "pump", "path": "switch.pump", "write": {}},
        {"name": "limit", "path": "number.limit", "write": {"max": 5}},
        {"name": "odd", "path": "select.odd", "write": {}},
        {"name": "later", "path": "switch.later", "write": {}},
    ]
    mapper = Mapper([device(name="dev", format="homeassistant", topic="homeassistant/+/well/+/config", points=points)])
    block = {"device": {"identifiers": "w"}}
    pump = {"state_topic": "w/p", "command_topic": "w/p/set", "payload_on": "1", "payload_off": "0", **block}
    heard(mapper, "homeassistant/switch/well/pump/config", pump)
    heard(mapper, "homeassistant/number/well/limit/config", {"stat_t": "w/l", "cmd_t": "w/l/set", "ret": True, **block})
    heard(mapper, "homeassistant/select/well/odd/config",
          {"stat_t": "w/o", "cmd_t": "w/o/set", "cmd_tpl": "{{ value | upper }}", **block})  # fmt: skip
    dev = mapper.devices["dev"]
    assert tuple(mapper.publication(dev, "pump", True, 0)) == ("w/p/set", b"1", False)
    assert tuple(mapper.publication(dev, "limit", 3, 0)) == ("w/l/set", b"3", True)
    for point, why in (("odd", "template"), ("later", "announced")):
        with pytest.raises(ValueError, match=why):
            mapper.publication(dev, point, "x", 0)


# ── templates: what is read, and what is refused by name ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "payload", "expected"),
    [
        ("{{ value }}", "21.5", "21.5"),
        ("{{value|float}}", "21.5", 21.5),
        ("{{ value | int }}", " 7 ", 7),
        ("{{ value_json.a.b }}", '{"a": {"b": 1}}', 1),
        ("{{ value_json['update']['state'] }}", '{"update": {"state": "idle"}}', "idle"),
        ('{{ value_json["x y"][1] }}', '{"x y": [1, 2]}', 2),
        ("{{- value_json[0].t -}}", '[{"t": 5}]', 5),
        ("{{ value_json.params['switch:0'].apower }}", '{"params": {"switch:0": {"apower": 4.5}}}', 4.5),
        ("{{ value_json.tempc | is_defined }}", '{"tempc": 3}', 3),
        ("{{ value_json.tempc | is_defined }}", "{}", ABSENT),
        ("{{ value_json.v | float / 1000 }}", '{"v": "2500"}', 2.5),
        ("{{ (value_json.v / 1000) | round(2) }}", '{"v": 2346}', 2.35),
        ("{{ value_json.v | float | multiply(3.6) | round(1) }}", '{"v": 10}', 36.0),
        ("{{ value_json.a + value_json.b * 2 - 1 }}", '{"a": 1, "b": 3}', 6),
        ("{{ value_json.s | string | upper }}", '{"s": true}', "TRUE"),
        ("{{ value_json.n }}", '{"n": null}', None),
        ("{{ value_json.a + 1 }}", "{}", ABSENT),
        ("{{ value_json.a.b }}", '{"a": 5}', ABSENT),
    ],
)
def test_a_template_points_into_the_payload(text: str, payload: str, expected: Any) -> None:
    found = Template(text).of(payload)
    assert (found.found, found.made) == (expected, False)
    assert type(found.found) is type(expected)


@pytest.mark.parametrize("text", ["{{ value_json.x | default(0) }}", "{{ value_json.x | float(0) }}",
                                  "{{ value_json.x | int(0) }}"])  # fmt: skip
def test_a_default_is_no_measurement(text: str) -> None:
    assert Template(text).of("{}") == (0, True)
    mapper = Mapper([device(**HOUSE)])
    heard(mapper, "homeassistant/sensor/w/t/config", {"state_topic": "w", "unit_of_measurement": "V", "val_tpl": text})
    assert readings(heard(mapper, "w", "{}").samples[0]) == {"t": ("uncertain:substituted", "V")}
    assert readings(heard(mapper, "w", '{"x": 3}').samples[0]) == {"t": (3, "V")}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{% if value == 'x' %}1{% endif %}", "block"),
        ("{{ 'ON' if value_json.x else 'OFF' }}", "`'ON'`"),
        ("{{ value_json.x if value_json.y else 0 }}", "`if`"),
        ("{{ states('sensor.x') }}", "`states`"),
        ("{{ value_json.x | timestamp_local }}", "filter `timestamp_local`"),
        ("{{ value_json.get('x') }}", "function `get`"),
        ("{{ value_json.__class__() }}", "function `__class__`"),
        ("{{ value_json.x == 1 }}", "`=`"),
        ("{{ value_json.x | round(1, 'floor', 3) }}", "3 arguments"),
        ("{{ value_json.x }} V", "text around"),
        ("V", "text around"),
        ("{{ }}", "an end"),
        ("{{ " + "(" * 50 + "value" + ")" * 50 + " }}", "too many"),
        ("{{ value" + " " * 2000 + "}}", "characters"),
    ],
)
def test_whatever_is_beyond_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(Refused, match=r".") as refused:
        Template(text)
    assert named in str(refused.value)
    mapper = Mapper([device(**HOUSE)])
    mapped = heard(mapper, "homeassistant/sensor/w/t/config", {"state_topic": "w", "value_template": text})
    assert mapped.subscribe == ()
    assert named in mapped.refused[0]


@pytest.mark.parametrize(
    ("text", "payload"),
    [("{{ value_json.x }}", "not json"), ("{{ value | float }}", "x"), ("{{ value_json.x * 2 }}", '{"x": "3"}'),
     ("{{ value_json.x / 0 }}", '{"x": 1}'), ("{{ value_json.x | round }}", '{"x": []}'),
     ("{{ value_json.x | abs }}", '{"x": {}}')],
)  # fmt: skip
def test_a_payload_that_does_not_fit_is_a_decode_error(text: str, payload: str) -> None:
    with pytest.raises(DecodeError):
        Template(text).of(payload)


def test_what_is_announced_is_heard_through_a_real_broker_also_by_the_next_connection(rig: Rig) -> None:
    async def scenario() -> None:
        where = "homeassistant/sensor/sensorBedroomT/config"
        await rig.publish(where, json.dumps(BEDROOM), retain=True)
        await rig.publish(BEDROOM["state_topic"], '{"temperature": 20}', retain=True)
        line = rig.line(HOUSE)
        async with rig.running(line()):
            await eventually(lambda: rig.store.values() == [20], "the stored value of an announced topic")
            assert rig.store.samples[0].status == (Status.RETAINED,)
            await rig.publish(BEDROOM["state_topic"], '{"temperature": 21}')
            await eventually(lambda: rig.store.values() == [20, 21], "a live one")
        async with rig.running(line()):
            await rig.publish(BEDROOM["state_topic"], '{"temperature": 22}')
            await eventually(lambda: rig.store.values() == [20, 21, 22], "the announcement was not forgotten")

    asyncio.run(scenario())


def test_who_announces_without_end_is_not_listened_to_without_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector_module, "_MOST_TOPICS", 5)

    async def scenario() -> None:
        connector = rig.connector(HOUSE)
        async with rig.running(connector):
            for number in range(20):
                await rig.publish("homeassistant/sensor/w/t/config", json.dumps({"state_topic": f"w/{number}"}))
            await eventually(lambda: "…" in connector.status()["refused_subscriptions"], "it is told")
            assert len(connector._listening) <= 5

    asyncio.run(scenario())
