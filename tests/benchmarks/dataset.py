"""The data set `plant-20x5`: what twenty devices of a plant say in ten minutes, five metrics each, once a second.

| metric        | unit | how it is written                   | how it moves                                    |
|---------------|------|-------------------------------------|-------------------------------------------------|
| `temperature` | Cel  | two decimals                        | drifts by hundredths, from 18 to 60             |
| `humidity`    | %RH  | one decimal                         | drifts by tenths                                |
| `voltage`     | V    | one decimal                         | jitters around 230                              |
| `power`       | W    | a float32, as its shortest decimal  | noise of 2 % around a load that is switched     |
| `energy`      | Wh   | an integer                          | counts up with the power, from some millions    |

Stamps are boot time in milliseconds: a device is asked once a second, at its own moment, give or take a few
milliseconds. Everything comes from one seed; the checksum says that it is the same on every machine.
"""

from __future__ import annotations

import hashlib
import random
import struct
from typing import Final, NamedTuple

NAME: Final = "plant-20x5"
DEVICES: Final = 20
SECONDS: Final = 600
METRICS: Final = ("temperature", "humidity", "voltage", "power", "energy")
UNITS: Final = ("Cel", "%RH", "V", "W", "Wh")
BOOT_MS: Final = 81_234_567
_SHA256: Final = "43058de6020e20f19ddb998333367a1f0b125fcd0c3eeffcf2681dd212dcf2dd"


class Said(NamedTuple):
    """One device at one moment."""

    device: str
    at_ms: int
    values: tuple[float | int, ...]


class _Device:
    def __init__(self, name: str, dice: random.Random) -> None:
        self.name = name
        self._dice = dice
        self._phase_ms = dice.randrange(1000)
        self._temperature, self._humidity = dice.uniform(18, 60), dice.uniform(25, 75)
        self._loads_w = [dice.uniform(5, 80), dice.uniform(400, 2500)]
        self._load = 0
        self._energy_wh = dice.uniform(1e6, 9e6)

    def say(self, second: int) -> Said:
        dice = self._dice
        self._temperature += dice.gauss(0, 0.03)
        self._humidity += dice.gauss(0, 0.08)
        if dice.random() < 0.02:
            self._load = 1 - self._load
        power_w = _float32(self._loads_w[self._load] * dice.gauss(1, 0.02))
        self._energy_wh += power_w / 3600
        at_ms = BOOT_MS + 1000 * second + self._phase_ms + dice.randrange(8)
        values = (
            round(self._temperature, 2), round(self._humidity, 1), round(dice.gauss(230, 0.8), 1), power_w,
            int(self._energy_wh),
        )  # fmt: skip
        return Said(self.name, at_ms, values)


def _float32(value: float) -> float:
    """What a meter's register gives, as the shortest decimal that means it."""
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    for digits in range(6, 10):
        short = float(f"{single:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", single):
            return short
    raise AssertionError("nine digits are always enough")


def said() -> list[Said]:
    """All of it, second after second, each second in the order in which the devices are asked."""
    dice = random.Random(20_5)
    devices = [_Device(f"meter-{i:02}", dice) for i in range(1, DEVICES + 1)]
    made = [
        each for second in range(SECONDS) for each in sorted((d.say(second) for d in devices), key=lambda s: s.at_ms)
    ]
    digest = hashlib.sha256(repr([tuple(each) for each in made]).encode()).hexdigest()
    if digest != _SHA256:
        raise RuntimeError(f"this is not {NAME}: {digest}")
    return made
