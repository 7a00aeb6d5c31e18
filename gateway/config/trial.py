"""Pure: what a profile would do on a bus of its own, before anybody has such a device."""

from __future__ import annotations

import tomllib
from typing import Any

from gateway.config.library import Profile
from gateway.config.load import Report, check_document
from gateway.config.problems import Source
from gateway.connectors.base import AnyKind
from gateway.connectors.registry import Registry
from gateway.settings import Field, Table, fields

NAME = "device"


class _Only:
    """A library of one profile."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def names(self) -> list[str]:
        return [self._profile.name]

    def find(self, name: str) -> Profile | None:
        return self._profile if name == self._profile.name else None


def trial(profile: Profile, kind: AnyKind, registry: Registry) -> Report:
    """A configuration of one device with this profile, and nothing else, on a bus of this kind."""
    document = {
        "bus": [_bus(profile, kind)],
        "device": [{"name": NAME, "bus": "bus", "profile": profile.name}],
    }
    return check_document(document, Source(f"a device on {kind.name}"), {}, registry, _Only(profile))


def _bus(profile: Profile, kind: AnyKind) -> dict[str, Any]:
    """A bus that says what it must, with the serial settings of a new device."""
    table: type[Table] = kind.bus
    declared = fields(table)
    bus = {field.name: _example(field) for field in declared if field.required}
    serial = profile.head.serial
    if serial is not None and any(field.name == "baud_rate" for field in declared):
        bus |= {"baud_rate": serial.baud_rate, "parity": serial.parity, "stop_bits": serial.stop_bits}
    return {**bus, "name": "bus", "kind": kind.name}


def _example(field: Field) -> Any:
    return tomllib.loads(f"value = {field.key.example}")["value"] if field.key.example else "bus"
