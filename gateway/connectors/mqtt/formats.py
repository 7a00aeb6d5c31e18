"""Pure: from a payload to a document, for each convention of publishing.

Whatever the convention, the result is a document that paths point into, with the unit that each value has there. What
belongs to the convention but holds no reading (a `/set` of zigbee2mqtt, a `NotifyEvent` of a Shelly) is `ABSENT`.

    json         the payload
    value        one text; where the topic has wildcards: {tail: text}
    zigbee2mqtt  the payload; ON and OFF are true and false
    tasmota      the payload, of STATUS8 and 10 what is in it; ON and OFF likewise; units from TempUnit, PressureUnit
    shelly       {component: {…}} from `events/rpc` and `status/<component>`; a frame holds only what changed
    shelly-gen1  {what follows shellies/<id>: text}; energy counters, Watt-minutes there, are Wh here
    esphome      {component/object, or what wildcards took: text} of the `…/state` topics
    ttn          what the payload formatter made, and the radio under `lorawan`; see `ttn.py`

Sparkplug B and Home Assistant's discovery are no documents: see `sparkplug.py`, `homeassistant.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime

from gateway.codec.document import decode_json
from gateway.codec.path import ABSENT, Step
from gateway.connectors.mqtt import ttn
from gateway.connectors.mqtt.config import ANNOUNCED_FORMATS, TEXT_FORMATS, Format, TimeFormat
from gateway.errors import DecodeError
from gateway.model import Json, Status, Value

MAX_PAYLOAD_BYTES = 262_144
"""As much as a batch may hold; a larger message cannot be a reading."""
_MAX_TEXT = 1_024
"""Characters of a text value: a state, not a log file."""
_LEAST_INT, _MOST_INT = -(2**63), 2**64 - 1
_EARLIEST_MS, _LATEST_MS = 946_684_800_000, 4_102_444_800_000  # 2000-01-01, 2100-01-01

_SWITCHES = frozenset((Format.ZIGBEE2MQTT, Format.TASMOTA, *TEXT_FORMATS))
"""Conventions in which the words ON and OFF are a switch."""
_WORDS: Mapping[str, bool] = {"on": True, "off": False, "true": True, "false": False}
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_NOT_A_NUMBER = frozenset(("nan", "+nan", "-nan", "inf", "+inf", "-inf", "infinity", "-infinity"))


def decode_text(payload: bytes) -> str:
    """A payload that is one value as text. Raises DecodeError."""
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError as error:
        raise DecodeError("not UTF-8", error.start) from error
    if not text:
        raise DecodeError("empty")
    return text


def document(form: Format, topic: str, tail: str, payload: bytes) -> Json:
    """The document of one message, or `ABSENT` when it holds none. Raises DecodeError."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DecodeError(f"{len(payload)} bytes or more, the limit is {MAX_PAYLOAD_BYTES}")
    if form is Format.JSON:
        return decode_json(payload)
    if form is Format.VALUE:
        return _keyed(tail, decode_text(payload))
    if form in ANNOUNCED_FORMATS:
        return ABSENT
    return _CONVENTIONS[form](topic, tail, payload)


def _keyed(key: str, value: Json) -> Json:
    return {key: value} if key else value


def _object(payload: bytes) -> dict[str, Json]:
    found = decode_json(payload)
    if not isinstance(found, dict):
        raise DecodeError("not a JSON object")
    return found


def _zigbee2mqtt(topic: str, tail: str, payload: bytes) -> Json:
    if topic.endswith(("/set", "/get", "/availability")) or tail.startswith("bridge/"):
        return ABSENT
    return _object(payload)


def _tasmota(topic: str, tail: str, payload: bytes) -> Json:
    levels = topic.split("/")
    last = levels[-1]
    if last in _TASMOTA_TALK or "cmnd" in levels[:-1]:
        return ABSENT
    if last.startswith("POWER"):
        return {last: decode_text(payload)}
    found = _object(payload)
    if _TASMOTA_STATUS.fullmatch(last):
        # the answer to `Status 8`, `10` or `11` holds what SENSOR or STATE would say
        inner = found.get("StatusSNS", found.get("StatusSTS"))
        return inner if isinstance(inner, dict) else ABSENT
    return found


_TASMOTA_TALK = frozenset(("LWT", "INFO1", "INFO2", "INFO3", "LOGGING"))
_TASMOTA_STATUS = re.compile(r"STATUS\d{0,2}")


def _shelly(topic: str, tail: str, payload: bytes) -> Json:
    if topic.endswith("/events/rpc"):
        frame = _object(payload)
        if frame.get("method") not in ("NotifyStatus", "NotifyFullStatus"):
            return ABSENT
        found = frame.get("params")
        if not isinstance(found, dict):
            raise DecodeError("a notification without params")
        return found
    before, _, component = topic.rpartition("/")
    if not before.endswith("/status"):
        return ABSENT
    return {component: _object(payload)}


def _shelly_gen1(topic: str, tail: str, payload: bytes) -> Json:
    key = "/".join(topic.split("/")[2:])
    last = key.rpartition("/")[2]
    if last in ("online", "announce", "info", "command") or payload[:1] in (b"{", b"["):
        return ABSENT
    value: Json = decode_text(payload)
    if last in _WATT_MINUTES and _NUMBER.fullmatch(value):
        value = float(value) / 60
    return _keyed(key, value)


def _ttn(topic: str, tail: str, payload: bytes) -> Json:
    found = ttn.uplink(topic, payload)
    return ABSENT if found is None else found.found


def _esphome(topic: str, tail: str, payload: bytes) -> Json:
    if not topic.endswith("/state"):
        return ABSENT
    key = tail.removesuffix("state").removesuffix("/") if tail else "/".join(topic.split("/")[-3:-1])
    return _keyed(key, decode_text(payload))


_CONVENTIONS = {
    Format.ZIGBEE2MQTT: _zigbee2mqtt,
    Format.TASMOTA: _tasmota,
    Format.SHELLY: _shelly,
    Format.SHELLY_GEN1: _shelly_gen1,
    Format.ESPHOME: _esphome,
    Format.TTN: _ttn,
}


def scalar(form: Format, raw: Json) -> tuple[Value | None, Status]:
    """What a document holds at one place, as a value. Never raises, never makes one up."""
    kind = type(raw)
    if kind is float:
        return (raw, Status.GOOD) if math.isfinite(raw) else (None, Status.SENSOR_FAULT)
    if kind is bool:
        return raw, Status.GOOD
    if kind is int:
        return (raw, Status.GOOD) if _LEAST_INT <= raw <= _MOST_INT else (None, Status.DECODE)
    if raw is None:
        return None, Status.SENSOR_FAULT
    if kind is str:
        return _text(form, raw)
    return None, Status.DECODE


def _text(form: Format, raw: str) -> tuple[Value | None, Status]:
    if len(raw) > _MAX_TEXT or not _encodable(raw):
        return None, Status.DECODE
    if form in TEXT_FORMATS:
        if _INTEGER.fullmatch(raw):
            return scalar(form, int(raw))
        if _NUMBER.fullmatch(raw):
            return scalar(form, float(raw))
        if raw.lower() in _NOT_A_NUMBER:
            return None, Status.SENSOR_FAULT
    if form in _SWITCHES:
        return _WORDS.get(raw.lower(), raw) if form in TEXT_FORMATS else _SPELLED.get(raw, raw), Status.GOOD
    return raw, Status.GOOD


_SPELLED: Mapping[str, bool] = {"ON": True, "OFF": False}


def _encodable(text: str) -> bool:
    """Lone surrogates are legal in JSON escapes and in no encoding."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def time_ms(form: TimeFormat, raw: Json) -> int | None:
    """UTC milliseconds, or None for what is no time, has no zone, or lies outside 2000 to 2100."""
    try:
        if form is TimeFormat.ISO8601:
            moment = datetime.fromisoformat(raw)
            found = None if moment.tzinfo is None else round(moment.timestamp() * 1000)
        elif isinstance(raw, bool):
            found = None
        else:
            found = round(float(raw) * (1000 if form is TimeFormat.UNIX else 1))
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found is not None and _EARLIEST_MS <= found <= _LATEST_MS else None


def alive(payload: bytes) -> bool:
    """What an availability topic says: online, Online, true, 1, {"state": "online"}. Raises DecodeError."""
    if len(payload) > _MAX_TEXT:
        raise DecodeError("neither online nor offline")
    text = decode_text(payload)
    if text.startswith("{"):
        text = str(_object(payload).get("state", ""))
    word = text.lower()
    if word in ("online", "true", "1", "on"):
        return True
    if word in ("offline", "false", "0", "off"):
        return False
    raise DecodeError("neither online nor offline")


# --- units

_WATT_MINUTES = frozenset(("energy", "returned_energy"))
_UNITS: Mapping[Format, Mapping[str, str]] = {
    Format.ZIGBEE2MQTT: {
        "temperature": "Cel", "device_temperature": "Cel", "local_temperature": "Cel", "humidity": "%RH",
        "soil_moisture": "%RH", "pressure": "hPa", "battery": "%", "voltage": "", "illuminance": "lx",
        "illuminance_lux": "lx", "co2": "ppm", "power": "W", "energy": "kWh", "current": "A",
        "occupied_heating_setpoint": "Cel", "current_heating_setpoint": "Cel",
    },
    Format.TASMOTA: {
        "Humidity": "%RH", "Illuminance": "lx", "CarbonDioxide": "ppm", "eCO2": "ppm", "TVOC": "ppb", "Power": "W",
        "ApparentPower": "VA", "ReactivePower": "var", "Factor": "/", "Voltage": "V", "Current": "A",
        "Frequency": "Hz", "Total": "kWh", "Yesterday": "kWh", "Today": "kWh", "RSSI": "%", "Signal": "dBm",
        "UptimeSec": "s",
    },
    Format.SHELLY: {
        "apower": "W", "act_power": "W", "aprt_power": "VA", "voltage": "V", "current": "A", "pf": "/", "freq": "Hz",
        "total": "Wh", "total_act_energy": "Wh", "total_act_ret_energy": "Wh", "total_act": "Wh",
        "total_act_ret": "Wh", "tC": "Cel", "tF": "degF", "rh": "%RH", "lux": "lx", "V": "V", "percent": "%",
        "rssi": "dBm", "uptime": "s", "brightness": "%", "current_pos": "%", "battery": "%", "n_current": "A",
        "total_current": "A", "total_act_power": "W", "total_aprt_power": "VA", "ret_energy": "Wh",
    },
    Format.TTN: {"rssi": "dBm", "snr": "dB"},
    Format.SHELLY_GEN1: {
        "power": "W", "reactive_power": "var", "voltage": "V", "current": "A", "pf": "/", "energy": "Wh",
        "returned_energy": "Wh", "total": "Wh", "total_returned": "Wh", "temperature": "Cel", "temperature_f": "degF",
        "humidity": "%RH", "battery": "%", "lux": "lx", "pos": "%",
    },
}  # fmt: skip
_TASMOTA_TEMPERATURES = frozenset(("Temperature", "DewPoint", "HeatIndex"))
_TASMOTA_PRESSURES = frozenset(("Pressure", "SeaPressure"))
_TASMOTA_WORDS: Mapping[str, str] = {"C": "Cel", "F": "degF", "hPa": "hPa", "mmHg": "mmHg", "inHg": "inHg"}
_SHELLY_NOT_READINGS = frozenset(
    (
        "id",
        "ts",
        "minute_ts",
        "by_minute",
        "unixtime",
        "cfg_rev",
        "kvs_rev",
        "schedule_rev",
        "webhook_rev",
        "btrelay_rev",
        "last_updated_ts",
        "packet_id",
        "last_sync_ts",
    )
)


def unit(form: Format, steps: tuple[Step, ...], found: Json) -> str:
    """The unit that the convention gives a place of this document; empty when it gives none."""
    table = _UNITS.get(form)
    if table is None or not steps:
        return ""
    # of a list (a value for each phase) its name
    last = next((step for step in reversed(steps) if isinstance(step, str)), "")
    if form is Format.TTN and steps[0] != "lorawan":
        return ""
    if form is Format.TASMOTA:
        if last in _TASMOTA_TEMPERATURES:
            return _TASMOTA_WORDS.get(str(found.get("TempUnit")), "")
        if last in _TASMOTA_PRESSURES:
            return _TASMOTA_WORDS.get(str(found.get("PressureUnit")), "")
    if form is Format.SHELLY_GEN1:
        last = last.rpartition("/")[2]
    return table.get(last, "")


def is_reading(form: Format, steps: tuple[Step, ...]) -> bool:
    """Whether `points = "auto"` takes a place of this document: counters of frames and ids are no quantities."""
    return form is not Format.SHELLY or not any(step in _SHELLY_NOT_READINGS for step in steps)


# --- where a convention puts its last will


def availability(form: Format, topic: str) -> tuple[str, ...]:
    """The availability topics (templates, as `topic` is) that go with a topic: one of the device, one of its bridge."""
    levels = topic.split("/")
    found: list[list[str]] = []
    if form is Format.ZIGBEE2MQTT:
        found = [[*levels, "availability"], [levels[0], "bridge", "state"]]
    elif form is Format.TASMOTA and {"tele", "stat"} & set(levels[:-1]):
        found = [[*("tele" if level == "stat" else level for level in levels[:-1]), "LWT"]]
    elif form is Format.SHELLY and len(levels) > 2 and levels[-2] in ("events", "status"):
        found = [[*levels[:-2], "online"]]
    elif form is Format.SHELLY and len(levels) > 1 and levels[-1] == "#":
        found = [[*levels[:-2], "online"] if levels[-2] in ("events", "status") else [*levels[:-1], "online"]]
    elif form is Format.SHELLY_GEN1 and len(levels) > 2:
        found = [[*levels[:2], "online"]]
    elif form is Format.ESPHOME:
        wild = next((i for i, level in enumerate(levels) if level in ("+", "#")), len(levels) - 1)
        known = {"sensor", "binary_sensor", "switch", "light", "number", "text_sensor", "climate", "cover", "fan"}
        prefix = next((i for i, level in enumerate(levels[:wild]) if i and level in known), wild)
        found = [[*levels[:prefix], "status"]] if prefix else []
    return tuple("/".join(each) for each in found if not {"+", "#"} & set(each) and each[0][:1] != "{")
