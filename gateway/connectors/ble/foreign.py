"""Decoder packages of the Bluetooth-Devices project (https://github.com/Bluetooth-Devices), all through one class.

They are an extra (`pip install 'gateway[ble-decoders]'`) for devices that no decoder here reads. `sensorpush-ble` is
imported as `sensorpush_ble`, and its class is the one whose name ends in `BluetoothDeviceData`.

What they do that a gateway cannot bear, and what happens here: they hand out every value ever heard again with every
packet, so what was said before is wiped out before each one. They may raise anything, so all that is not an exit is a
`DecodeError`. They may write a line for every packet, so each message of theirs is logged once in an hour.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from gateway.codec import units
from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Nature, Quantity
from gateway.errors import DecodeError, DeviceError
from gateway.model import Status, Value

_SUFFIX: Final = "BluetoothDeviceData"
_MEMORIES: Final = ("_sensor_values_updates", "_binary_sensor_values_updates")
"""Where sensor-state-data keeps what was said; private, so its absence is looked for."""
_FOREIGN: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_QUIET_S: Final = 3600.0
_LIBRARIES: Final = ("bluetooth_sensor_state_data", "sensor_state_data", "habluetooth", "bluetooth_data_tools")
_SIGNAL_STRENGTH: Final = "signal_strength"
_PERCENT: Final = {"humidity": "%RH", "battery": "%EL"}


class Foreign:
    """One device, decoded by one package."""

    def __init__(self, package: str, secret: bytes | None) -> None:
        """Imports; slow. Raises DeviceError when the package is not there, or not of that kind."""
        module = package.replace("-", "_")
        try:
            parser = _parser(importlib.import_module(module))
            self._heard_by: Callable[..., Any] = importlib.import_module("habluetooth").BluetoothServiceInfoBleak
        except (ImportError, *_FOREIGN) as error:
            raise DeviceError(f"package {package}: {error}; pip install {package}", Status.CONFIG) from error
        keyed = secret is not None and "bindkey" in inspect.signature(parser).parameters
        self._package = package
        self._data: Any = parser(bindkey=secret) if keyed else parser()
        if not all(hasattr(self._data, memory) for memory in _MEMORIES):
            raise DeviceError(f"package {package} is of a version that is not known here", Status.CONFIG)
        for name in (module, *_LIBRARIES):
            _quieten(name)

    def hear(self, heard: Advertisement, _key: Key | None = None) -> Decoded | None:
        """What the advertisement says; None: nothing that the package knows. Raises DecodeError."""
        for memory in _MEMORIES:
            getattr(self._data, memory).clear()
        try:
            update = self._data.update(self._service_info(heard))
        except (struct.error, *_FOREIGN) as error:
            raise DecodeError(f"{self._package}: {error!r}") from error
        payload = b"".join((*heard.service_data.values(), *heard.manufacturer_data.values()))
        if getattr(self._data, "bindkey_verified", True) is False and self._encrypted():
            return Decoded(self._package, payload, (), encrypted=True)
        said = tuple(_quantities(update))
        return Decoded(self._package, payload, said) if said else None

    def _encrypted(self) -> bool:
        scheme = getattr(self._data, "encryption_scheme", None)
        return scheme is not None and getattr(scheme, "value", "none") != "none"

    def _service_info(self, heard: Advertisement) -> Any:
        return self._heard_by(
            name=heard.name or heard.address,
            address=heard.address,
            rssi=heard.rssi,
            manufacturer_data=dict(heard.manufacturer_data),
            service_data=dict(heard.service_data),
            service_uuids=list(heard.service_data),
            source="gateway",
            device=None,
            advertisement=None,
            connectable=False,
            time=time.monotonic(),
            tx_power=None,
        )


def _parser(module: Any) -> Callable[..., Any]:
    """The class that decodes. Raises ImportError."""
    found = [kind for name, kind in inspect.getmembers(module, inspect.isclass) if name.endswith(_SUFFIX)]
    if len(found) != 1:
        raise ImportError(f"{module.__name__} has no class that decodes advertisements")
    parser: Callable[..., Any] = found[0]
    return parser


def _quantities(update: Any) -> Iterator[Quantity]:
    for key, value in update.entity_values.items():
        if key.key != _SIGNAL_STRENGTH and (native := _value(value.native_value)) is not None:
            yield Quantity(_point(key), native, _unit(update.entity_descriptions.get(key)))
    for key, value in update.binary_entity_values.items():
        if isinstance(value.native_value, bool | int):
            yield Quantity(_point(key), bool(value.native_value), nature=Nature.STATE)
    for key, event in update.events.items():
        yield Quantity(_point(key), str(event.event_type), nature=Nature.EVENT)


def _point(key: Any) -> str:
    return str(key.key) if key.device_id is None else f"{key.key}_{key.device_id}"


def _value(native: Any) -> Value | None:
    """They say "error" as a text where a number would stand: that is no value."""
    if native is None or native == "error" or (isinstance(native, float) and not math.isfinite(native)):
        return None
    return native if isinstance(native, bool | int | float | str) else str(native)


def _unit(description: Any) -> str:
    unit = getattr(description, "native_unit_of_measurement", None)
    if unit is None:
        return ""
    text = str(getattr(unit, "value", unit))
    kind = str(getattr(getattr(description, "device_class", None), "value", ""))
    return _PERCENT.get(kind, "%") if text == "%" else units.symbol(text)


class _OnceInAWhile(logging.Filter):
    """Lets each place that logs through once in an hour; its next line says how many were held back."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        at, held_back = self._said.get(place, (-_QUIET_S, 0))
        if record.created - at < _QUIET_S:
            self._said[place] = (at, held_back + 1)
            return False
        self._said[place] = (record.created, 0)
        if held_back:
            record.msg, record.args = f"{record.getMessage()} (and {held_back} more like it)", ()
        return True


def _quieten(name: str) -> None:
    """For the logger of a library and those below it, which pass a filter of their parent by."""
    loggers: Mapping[str, Any] = logging.Logger.manager.loggerDict
    for each in (name, *(other for other in loggers if other.startswith(f"{name}."))):
        logger = logging.getLogger(each)
        if not any(isinstance(known, _OnceInAWhile) for known in logger.filters):
            logger.addFilter(_OnceInAWhile())
