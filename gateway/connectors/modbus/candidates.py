"""Pure: in which order a scan for Modbus units tries what it has to try.

The likeliest comes first: the low unit ids under every setting of the line, before any setting is tried with all. One
stop bit is enough to try: a receiver looks at one only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from gateway.connectors.modbus.config import AnyBus, RtuBus, TcpBus, character_s, gap_s

Parity = Literal["N", "E", "O"]

SETTINGS: tuple[tuple[int, Parity], ...] = (
    (9600, "N"),
    (19200, "E"),  # what the standard asks for
    (9600, "E"),
    (19200, "N"),
    (38400, "N"),
    (115200, "N"),
    (4800, "N"),
    (2400, "N"),
    (57600, "N"),
)
"""Baud rates and parities, the most common first."""
UNITS = tuple(range(1, 248))
LIKELY = tuple(range(1, 17))
"""Units on a line: people count from one."""
LIKELY_TCP = (1, 0, 255, 247, 126, *range(2, 11))
"""What TCP devices are met under; 126 and 247 are inverters'."""
NETWORK = (1, 255, 0)
"""Units that each host of a network is asked for."""
TIMEOUT_S = 0.1
TCP_TIMEOUT_S = 0.5


class Step(NamedTuple):
    """Units to ask on one bus; later steps of other buses are left out once one has found any."""

    bus: AnyBus
    units: tuple[int, ...]

    @property
    def longest_s(self) -> float:
        """If nobody answers: 8 characters asked, 5 in the shortest answer."""
        return len(self.units) * (self.bus.timeout + gap_s(self.bus) + 13 * character_s(self.bus))


def port_steps(
    port: str,
    settings: Sequence[tuple[int, Parity]] = SETTINGS,
    units: Sequence[int] = UNITS,
    timeout_s: float = TIMEOUT_S,
    stop_bits: Literal[1, 2] = 1,
    ascii_: bool = False,
) -> list[Step]:
    """Every setting with the likely units, then with the others. ASCII has seven data bits where it is met."""
    buses = [
        RtuBus(
            name="rs485",
            kind="modbus-ascii" if ascii_ else "modbus-rtu",
            data_bits=7 if ascii_ else 8,
            port=port,
            baud_rate=baud_rate,
            parity=parity,
            stop_bits=stop_bits,
            timeout=timeout_s,
            late_window=timeout_s,
        )
        for baud_rate, parity in settings
    ]
    return _steps(buses, LIKELY, units)


def host_steps(
    host: str, tcp_port: int = 502, units: Sequence[int] | None = None, timeout_s: float = TCP_TIMEOUT_S
) -> list[Step]:
    """Modbus TCP; and RTU frames through TCP, as some serial servers want them."""
    buses = [
        TcpBus(name="modbus", kind=kind, host=host, tcp_port=tcp_port, timeout=timeout_s, late_window=timeout_s)
        for kind in ("modbus-tcp", "modbus-rtu-over-tcp")
    ]
    if units is not None:
        return _steps(buses, LIKELY_TCP, units)
    return _steps(buses, LIKELY_TCP, LIKELY_TCP) + _steps(buses[:1], LIKELY_TCP, UNITS)[1:]


def _steps(buses: Sequence[AnyBus], likely: Sequence[int], units: Sequence[int]) -> list[Step]:
    first = tuple(unit for unit in likely if unit in units)
    rest = tuple(unit for unit in units if unit not in likely)
    return [Step(bus, some) for some in (first, rest) for bus in buses if some]


def longest_s(steps: Iterable[Step]) -> float:
    """How long a scan that finds nobody takes, about."""
    return sum(step.longest_s for step in steps)


def named(bus: AnyBus) -> str:
    """`9600 8N1`, or `192.168.1.50:502`."""
    if isinstance(bus, RtuBus):
        return f"{bus.baud_rate} {bus.data_bits}{bus.parity}{bus.stop_bits}"
    return f"{bus.host}:{bus.tcp_port}"
