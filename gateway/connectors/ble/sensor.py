"""Pure: what is known of one device that advertises, and which samples its advertisements make.

A device with a key is believed only where the key fits: what comes unsealed, or sealed and recorded, is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Quantity
from gateway.connectors.ble.config import BleDevice
from gateway.connectors.ble.decoders import Thinning, decode
from gateway.connectors.ble.replay import Replays
from gateway.errors import DecodeError
from gateway.model import DeviceState, Json, Sample, Status
from gateway.settings import duration_text

_DOUBT_S = 60.0
"""Some devices send formats in turn that not all can be read: while one is, the device is not failing."""
_PAYLOAD = "payload"
"""The point that carries `bad:key_error` when nobody said which points there are."""


class Sensor:
    """Advertisement in, sample or nothing out."""

    def __init__(self, device: BleDevice, report: Callable[[str, DeviceState, str], None], now: float) -> None:
        self._device = device
        # of a device that is connected to, the session tells how it is; two voices would contradict each other
        self._report = report if device.connect is None else _nobody
        self._wanted = tuple(point.name for point in device.advertised)
        self.listens = bool(self._wanted) or not device.named
        """False: only its characteristics are of interest."""
        self._hear: Callable[[Advertisement], Decoded | None] = lambda heard: decode(device.decoder, heard)
        self._keyed = False
        self._problem = ""
        self._before: Mapping[int, bytes] | None = None
        self._replays = Replays()
        self._thinning = Thinning(device.min_interval)
        self._points = self._wanted
        self._news_at = now
        self._good_at = -math.inf
        self._silent = False
        self._locked = False
        self._rssi: int | None = None
        self._decoder = ""
        self._heard = self._rejected = self._encrypted = self._replayed = 0

    def equip(self, hear: Callable[[Advertisement], Decoded | None], keyed: bool, problem: str) -> None:
        """How its advertisements are read, whether with a key, and what is missing for that; before the first one."""
        self._hear, self._keyed, self._problem = hear, keyed, problem

    def take(self, heard: Advertisement, now: float, at_ns: int) -> Sample | None:
        """The sample that this advertisement makes, if it is news."""
        self._heard += 1
        self._rssi = heard.rssi
        if not self.listens:
            return None
        try:
            decoded = self._hear(self._with_changes(heard))
            if decoded is not None and self._keyed and decoded.quantities and not decoded.sealed:
                raise DecodeError("it is not encrypted, though there is a key for it")
        except DecodeError as error:
            self._rejected += 1
            if now - self._good_at > _DOUBT_S:
                self._report(self._device.name, DeviceState.FAILING, str(error))
            return None
        if decoded is None:
            return None
        if decoded.counter is not None and not self._replays.fresh(decoded.counter, now):
            self._replayed += 1
            return None
        self._decoder = decoded.decoder
        self._news_at, self._silent = now, False
        if decoded.encrypted:
            self._encrypted += 1
            return self._no_key(at_ns) if now - self._good_at > _DOUBT_S else None
        self._locked = False
        self._good_at = now
        self._report(self._device.name, DeviceState.ONLINE, "")
        news = self._thinning.news(decoded, now)
        return None if news is None else self._sample(news, at_ns)

    def _with_changes(self, heard: Advertisement) -> Advertisement:
        before, self._before = self._before, heard.manufacturer_data
        if before is None or not heard.manufacturer_data:
            return heard
        news = frozenset(company for company, data in heard.manufacturer_data.items() if before.get(company) != data)
        return heard._replace(changed=news)

    def _sample(self, news: Decoded, at_ns: int) -> Sample | None:
        said: tuple[Quantity, ...] = news.quantities
        if self._wanted:
            said = tuple(quantity for quantity in said if quantity.point in self._wanted)
        else:
            self._points = tuple(dict.fromkeys((*self._points, *(quantity.point for quantity in said))))
        if not said:
            return None
        status = tuple(quantity.status for quantity in said)
        return Sample(
            device=self._device.name,
            points=tuple(quantity.point for quantity in said),
            values=tuple(quantity.value for quantity in said),
            at_ns=at_ns,
            status=None if all(each is Status.GOOD for each in status) else status,
            units=tuple(quantity.unit for quantity in said),
        )

    def _no_key(self, at_ns: int) -> Sample | None:
        """Once, until it can be read again; the count goes on."""
        why = "the key does not fit" if self._keyed else self._problem or "there is no key that opens them"
        self._report(self._device.name, DeviceState.FAILING, f"its advertisements are encrypted: {why}")
        if self._locked:
            return None
        self._locked = True
        return self._bad(self._points or (_PAYLOAD,), Status.KEY_ERROR, at_ns)

    def expires_at(self) -> float | None:
        """Monotonic seconds at which `expire` has something to say."""
        if self._device.expire_after is None or self._silent or not self.listens:
            return None
        return self._news_at + self._device.expire_after

    def expire(self, now: float, at_ns: int) -> Sample | None:
        """Once, when nothing came for `expire_after`: all its points are stale."""
        due = self.expires_at()
        if due is None or now < due or self._device.expire_after is None:
            return None
        self._silent = True
        why = f"nothing heard for {duration_text(self._device.expire_after)}"
        self._report(self._device.name, DeviceState.OFFLINE, why)
        return self._bad(self._points, Status.STALE, at_ns) if self._points else None

    def gone(self, at_ns: int) -> Sample | None:
        """The adapter through which it was heard is gone."""
        self._silent = True
        return self._bad(self._points, Status.DEVICE_OFFLINE, at_ns) if self.listens and self._points else None

    def _bad(self, points: tuple[str, ...], status: Status, at_ns: int) -> Sample:
        return Sample(self._device.name, points, (None,) * len(points), at_ns, (status,) * len(points))

    def status(self) -> dict[str, Json]:
        return {
            "address": self._device.address.upper(),
            "rssi": self._rssi,
            "decoder": self._decoder,
            "heard": self._heard,
            "rejected": self._rejected,
            "encrypted": self._encrypted,
            "replayed": self._replayed,
        }


def _nobody(_device: str, _state: DeviceState, _why: str) -> None: ...
