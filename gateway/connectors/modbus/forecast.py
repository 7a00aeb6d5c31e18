"""Pure: what a configuration makes of a Modbus bus: its requests, the time that they take, and what may go wrong.

The same arithmetic serves the planner, the connector's share of the line and what `gateway check` says. A request takes
the silence before it, its own bytes, the device's thinking time, and the bytes of the answer; on TCP only the thinking
time counts. Thinking time is assumed here; the connector measures it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from gateway.connectors.modbus.config import AnyBus, ModbusDevice, RtuBus, Spot, broadcasts, character_s, gap_s, spot
from gateway.connectors.modbus.framing import ASCII, RTU
from gateway.connectors.modbus.planner import Cost, Item, Limits, Read, Table, plan
from gateway.settings import duration_text

LATENCY_S = 0.005
"""What a device needs before it answers. Unknown before it is measured; 5 ms is quick for a meter."""
LOAD_MAX = 0.9
"""Of the bus's time. Beyond this a retry or a command makes a read late, and then the next one."""
_NAMES_SHOWN = 3


def wire_s(bus: AnyBus, table: Table, quantity: int) -> float:
    """A read and its answer on the line."""
    size = (ASCII if bus.kind.startswith("modbus-ascii") else RTU).size
    # five bytes of PDU there, two and two for each register (one for eight bits) back
    return character_s(bus) * (size(5) + size(2 + (-(-quantity // 8) if table.bits else 2 * quantity)))


def cost(bus: AnyBus, device: ModbusDevice) -> Cost:
    """What the planner makes small. On TCP a register costs next to nothing."""
    nothing, one = wire_s(bus, Table.HOLDING, 0), wire_s(bus, Table.HOLDING, 1)
    return Cost(gap_s(bus, device) + LATENCY_S + nothing, one - nothing or 1e-6)


def limits(device: ModbusDevice, table: Table) -> Limits:
    """How the device lets this table be read."""
    places = [each.place(device.address_base) for each in device.forbidden]
    forbidden = tuple(sorted((first, stop) for where, first, stop in places if where is table))
    if table.bits:
        return Limits(device.max_gap_bits, device.max_read_bits, forbidden)
    return Limits(device.max_gap, device.max_read, forbidden)


def reads(bus: AnyBus, device: ModbusDevice) -> list[tuple[float, Read[Spot]]]:
    """Every request that the device needs, with its interval in seconds."""
    if broadcasts(bus, device):
        return []
    groups: dict[tuple[float, Table, tuple[int, ...]], list[Item[Spot]]] = {}
    for point in device.points:
        where = spot(bus.byte_order, device, point)
        # models of SunSpec lie apart, nobody knows where
        groups.setdefault((point.interval or device.interval, where.table, point.model), []).append(where.item)
    return [
        (interval, read)
        for (interval, table, _), items in groups.items()
        for read in plan(table, items, limits(device, table), cost(bus, device))
    ]


class Request(NamedTuple):
    """One line of the plan."""

    interval: float
    read: Read[Spot]
    takes_s: float

    @property
    def load(self) -> float:
        return self.takes_s / self.interval


def requests(bus: AnyBus, device: ModbusDevice) -> list[Request]:
    price = cost(bus, device)
    return [Request(interval, read, price.of(read.table, read.quantity)) for interval, read in reads(bus, device)]


def load(bus: AnyBus, devices: Sequence[ModbusDevice]) -> float:
    """The share of its time that the bus is asked for."""
    return sum(each.load for device in devices for each in requests(bus, device))


# ---- warnings


def warnings(bus: AnyBus, devices: Sequence[ModbusDevice]) -> list[str]:
    """About the bus as a whole."""
    return [
        *_load_warnings(bus, devices),
        *_port_warnings(bus),
        *_twice(bus, devices),
        *(text for device in devices for text in _device_warnings(bus, device)),
    ]


def _load_warnings(bus: AnyBus, devices: Sequence[ModbusDevice]) -> Iterator[str]:
    asked = load(bus, devices)
    if asked > LOAD_MAX:
        assumed = "" if isinstance(bus, RtuBus) else f" if each answer takes {1000 * LATENCY_S:.0f} ms"
        remedy = f"read less, or less often (intervals {asked / LOAD_MAX + 0.05:.1f} times as long would do)"
        remedy += ", or raise the baud rate" if isinstance(bus, RtuBus) else ""
        yield f"bus {bus.name} is asked for {asked:.0%} of its time{assumed}; {remedy}"
    shortest = min((point.interval or device.interval for device in devices for point in device.points), default=0.0)
    dead_s = sum(device.timeout or bus.timeout for device in devices)
    if len(devices) > 1 and dead_s > shortest:
        yield (
            f"bus {bus.name}: if all {len(devices)} devices are silent, asking each once takes "
            f"{_time(dead_s)}, longer than the shortest interval of {duration_text(shortest)}"
        )


def _port_warnings(bus: AnyBus) -> Iterator[str]:
    if isinstance(bus, RtuBus) and bus.port.startswith(("/dev/ttyUSB", "/dev/ttyACM")):
        yield f"bus {bus.name}: {bus.port} may be another adapter after replugging; use its /dev/serial/by-id path"
    if isinstance(bus, RtuBus) and bus.port == "/dev/ttyS0":
        yield f"bus {bus.name}: on a Raspberry Pi /dev/ttyS0 is the mini-UART, whose baud rate follows the core clock"


def _twice(bus: AnyBus, devices: Sequence[ModbusDevice]) -> Iterator[str]:
    """Registers that are read twice; devices whose unit id somebody forgot to change."""
    places: dict[tuple[int, Table, tuple[int, ...], int, int, int], str] = {}
    first: dict[int, str] = {}
    for device in devices:
        unit, said = device.unit_id, []
        for point in device.points:
            where = spot(bus.byte_order, device, point)
            mine = f"{device.name}/{point.name}"
            key = (unit, where.table, point.model, where.address, where.word.bit, where.word.mask)
            other = places.setdefault(key, mine)
            if other != mine:
                said.append(f"{mine} reads the same {where.table.value} {where.address} of unit {unit} as {other}")
        owner = first.setdefault(unit, device.name)
        if owner != device.name and len(said) > _NAMES_SHOWN:
            values = f"{len(said)} values of unit {unit} that {owner} reads already"
            yield f"{device.name} reads {values}; is its unit_id right?"
        elif owner != device.name and not said and bus.kind != "modbus-tcp" and not broadcasts(bus, device):
            yield f"{device.name} is unit {unit}, as {owner} is: right only if both are parts of one device"
        else:
            yield from said


def _device_warnings(bus: AnyBus, device: ModbusDevice) -> Iterator[str]:
    if broadcasts(bus, device):
        unread = ", ".join(point.name for point in device.points if point.write is None)
        if unread:
            yield f"device {device.name} is unit 0, everybody on the line: it is written and never read ({unread})"
    elif bus.kind != "modbus-tcp" and device.unit_id > 247:
        yield f"device {device.name}: unit {device.unit_id} cannot answer on a serial line; units are 1 to 247"
    for point in device.points:
        table, _ = point.place()
        start = {Table.HOLDING: 40001, Table.INPUT: 30001}.get(table, 65536)
        if isinstance(point.address, int) and start <= point.address < start + 9999:
            yield (
                f"{device.name}/{point.name}: address {point.address} is sent as it stands; if that is the manual's "
                f'reference (the first {table.value} being {start}), write address = "{point.address}"'
            )


# ---- the plan in words


def explained(bus: AnyBus, devices: Sequence[ModbusDevice]) -> list[str]:
    """Every request in columns, equal devices once, and what it comes to."""
    planned = [(device, requests(bus, device)) for device in devices]
    alike: dict[object, list[ModbusDevice]] = {}
    for device, asked in planned:
        alike.setdefault(_signature(asked), []).append(device)
    plans = {_signature(asked): asked for _, asked in planned}
    rows = [_row(each, len(group)) for key, group in alike.items() for each in plans[key]]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    lines, remaining = [], iter(rows)
    for key, group in alike.items():
        lines.append(_whom(group))
        for _ in plans[key]:
            every, what, count, takes, share, names = next(remaining)
            cells = (f"{every:{widths[0]}}", f"{what:{widths[1]}}", f"{count:>{widths[2]}}", f"{takes:>{widths[3]}}",
                     f"{share:>{widths[4]}}", names)  # fmt: skip
            lines.append("  " + "  ".join(cells))
    return [*lines, _sum(bus, [each for _, asked in planned for each in asked])]


def _signature(asked: Sequence[Request]) -> object:
    """What two devices have in common that are read alike."""
    return tuple((each.interval, each.takes_s, str(each.read), _names(each.read)) for each in asked)


def _names(read: Read[Spot]) -> tuple[str, ...]:
    return tuple(item.key.point.name for item in read.items)


def _sum(bus: AnyBus, asked: Sequence[Request]) -> str:
    share = _percent(sum(each.load for each in asked))
    values, takes = sum(len(each.read.items) for each in asked), _time(sum(each.takes_s for each in asked))
    return f"{share} of its time{_terms(bus)}; everything once: {len(asked)} requests, {values} values, {takes}"


def _row(each: Request, devices: int) -> tuple[str, str, str, str, str, str]:
    read = each.read
    thing = ("bit" if read.table.bits else "register") + ("s" if read.quantity > 1 else "")
    names = _names(read)
    more = len(names) - _NAMES_SHOWN
    shown = names if more <= 1 else [*names[:_NAMES_SHOWN], f"{more} more"]
    return (
        f"every {duration_text(each.interval)}",
        _place(read),
        f"{read.quantity} {thing:9}".rstrip() if read.quantity == 1 else f"{read.quantity} {thing}",
        _time(each.takes_s),
        _percent(devices * each.load),
        ", ".join(shown),
    )


def _place(read: Read[Spot]) -> str:
    """`holding 0…9`; `model 101/102/103 2…9` where the device says where that is."""
    model = read.items[0].key.point.model
    return str(read).replace(read.table.value, f"model {'/'.join(map(str, model))}", 1) if model else str(read)


def _whom(group: Sequence[ModbusDevice]) -> str:
    """`meter-1 (unit 7)`, or `meter-01 … meter-32 (32 devices, units 1–32)`."""
    if len(group) == 1:
        return f"{group[0].name} (unit {group[0].unit_id})"
    names = [device.name for device in group]
    shown = f"{names[0]} … {names[-1]}" if len(names) > _NAMES_SHOWN else ", ".join(names)
    return f"{shown} ({len(group)} devices, units {_runs(sorted({device.unit_id for device in group}))})"


def _runs(numbers: Sequence[int]) -> str:
    """`1–3, 7, 9–12`."""
    runs = []
    for _, same in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in same]
        runs.append(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]))
    return ", ".join(runs)


def _terms(bus: AnyBus) -> str:
    if isinstance(bus, RtuBus):
        return f" at {bus.baud_rate} {bus.data_bits}{bus.parity}{bus.stop_bits:g}"
    return f" if each answer takes {1000 * LATENCY_S:.0f} ms"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
