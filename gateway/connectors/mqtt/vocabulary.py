"""Pure: the words of Home Assistant's MQTT discovery that mean something here: components, where each of them says its
values and takes commands, and the abbreviations of keys.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Form(Enum):
    """What a part of an entity says."""

    ANY = "any"
    NUMBER = "number"
    SWITCH = "switch"


class Part(NamedTuple):
    """One value of a component: where it says what it is, and where it takes it."""

    suffix: str
    state: str
    template: str
    command: str = ""
    form: Form = Form.ANY
    unit: str = ""


def _switch(template: str = "value_template") -> Part:
    return Part("", "state_topic", template, "command_topic", Form.SWITCH)


def _plain(form: Form = Form.ANY) -> Part:
    return Part("", "state_topic", "value_template", "command_topic", form)


def _degrees(suffix: str, of: str, command: str = "") -> Part:
    state, template = (f"{of}_topic", f"{of}_template")
    return Part(suffix, state, template, command, Form.NUMBER, "degrees")


def _percent(suffix: str, state: str, template: str, command: str = "") -> Part:
    return Part(suffix, state, template, command, Form.NUMBER, "%")


_CLIMATE = (
    Part("mode", "mode_state_topic", "mode_state_template", "mode_command_topic"),
    Part("action", "action_topic", "action_template"),
    _degrees("current_temperature", "current_temperature"),
    _degrees("temperature", "temperature_state", "temperature_command_topic"),
    _percent("current_humidity", "current_humidity_topic", "current_humidity_template"),
)
COMPONENTS: dict[str, tuple[Part, ...]] = {
    "sensor": (_plain(),),
    "binary_sensor": (_switch(),),
    "switch": (_switch(),),
    "number": (_plain(Form.NUMBER),),
    "select": (_plain(),),
    "text": (_plain(),),
    "lock": (_plain(),),
    "valve": (_plain(), _percent("position", "position_topic", "position_template")),
    "cover": (
        _plain(),
        _percent("position", "position_topic", "position_template", "set_position_topic"),
    ),
    "light": (
        _switch("state_value_template"),
        Part("brightness", "brightness_state_topic", "brightness_value_template", "brightness_command_topic",
              Form.NUMBER),
    ),
    "fan": (
        _switch("state_value_template"),
        _percent("percentage", "percentage_state_topic", "percentage_value_template", "percentage_command_topic"),
    ),
    "humidifier": (
        _switch("state_value_template"),
        _percent("current_humidity", "current_humidity_topic", "current_humidity_template"),
        _percent("target_humidity", "target_humidity_state_topic", "target_humidity_state_template",
                 "target_humidity_command_topic"),
    ),
    "climate": _CLIMATE,
    "water_heater": _CLIMATE,
}  # fmt: skip

SHORT = {
    "act_t": "action_topic", "act_tpl": "action_template", "avty": "availability", "avty_mode": "availability_mode",
    "avty_t": "availability_topic", "avty_tpl": "availability_template", "bri_cmd_t": "brightness_command_topic",
    "bri_stat_t": "brightness_state_topic", "bri_val_tpl": "brightness_value_template", "cmd_t": "command_topic",
    "cmd_tpl": "command_template", "cmps": "components", "curr_hum_t": "current_humidity_topic",
    "curr_hum_tpl": "current_humidity_template", "curr_temp_t": "current_temperature_topic",
    "curr_temp_tpl": "current_temperature_template", "dev": "device", "dev_cla": "device_class",
    "exp_aft": "expire_after", "hum_cmd_t": "target_humidity_command_topic",
    "hum_stat_t": "target_humidity_state_topic", "hum_stat_tpl": "target_humidity_state_template",
    "hum_state_tpl": "target_humidity_state_template",
    "mode_cmd_t": "mode_command_topic", "mode_stat_t": "mode_state_topic", "mode_stat_tpl": "mode_state_template",
    "o": "origin", "p": "platform", "pct_cmd_t": "percentage_command_topic", "pct_stat_t": "percentage_state_topic",
    "pct_val_tpl": "percentage_value_template", "pl_avail": "payload_available",
    "pl_not_avail": "payload_not_available", "pl_off": "payload_off", "pl_on": "payload_on", "pos_t": "position_topic",
    "pos_tpl": "position_template", "ret": "retain", "set_pos_t": "set_position_topic", "stat_cla": "state_class",
    "stat_off": "state_off", "stat_on": "state_on", "stat_t": "state_topic", "stat_tpl": "state_template",
    "stat_val_tpl": "state_value_template", "t": "topic", "temp_cmd_t": "temperature_command_topic",
    "temp_stat_t": "temperature_state_topic", "temp_stat_tpl": "temperature_state_template",
    "temp_unit": "temperature_unit", "unit_of_meas": "unit_of_measurement", "val_tpl": "value_template",
}  # fmt: skip
SHORT_DEVICE = {"ids": "identifiers", "cns": "connections"}

JSON_LIGHT = (
    Part("", "state_topic", "state", "", Form.SWITCH),
    Part("brightness", "state_topic", "bright", "", Form.NUMBER),
)
