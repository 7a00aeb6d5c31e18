"""Pure: what can be said of a Modbus bus, and what follows from it: where each point lies, which requests read them.

Entry points name the kinds at the end. The words are those of the field: `slave_id`, `slave` and `unit` are
read as `unit_id`, an address in quotes (`"40001"`) is the 1-based reference of a manual, a number is the address as it
travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

from gateway.codec.words import Family, Word, parse, parse_order
from gateway.connectors.base import Connect, Kind
from gateway.connectors.modbus.planner import Cost, Item, Limits, Read, Table, plan
from gateway.connectors.port import SerialSettings
from gateway.points import Bus, Device, Point, WriteLimits, name_mistakes
from gateway.settings import Duration, Key, Mistake, duration_text

_REFERENCES = {"0": Table.COIL, "1": Table.DISCRETE, "3": Table.INPUT, "4": Table.HOLDING}
_LOAD_WARNING = 0.9
# What a device needs before it answers. Unknown before it is measured; 5 ms is quick for a meter, so loads are a floor.
_LATENCY_S = 0.005
_MAX_READ = 125  # registers in one answer: 253 bytes of PDU less 2, halved (V1.1b3 §6.3)
_MAX_READ_BITS = 2000

Timeout = Annotated[Duration, Key("wait for an answer, beyond the time that it takes on the wire", min=0.01, max=60)]
Retries = Annotated[int, Key("ask again so often before a value is bad", min=0, max=5)]
Pause = Annotated[Duration, Key("pause before each request, since the last byte on the line", max=10)]
ByteOrder = Annotated[
    str, Key("ABCD, CDAB, BADC or DCBA (or big, word, byte, little); default of all points below", alias=("swap",))
]
LateWindow = Annotated[
    Duration | None,
    Key("a unit that did not answer is asked nothing for so long, but its late reply ends that; default 2 × timeout"),
]


class RtuBus(SerialSettings, frozen=True, kw_only=True):
    """Modbus RTU on a serial port."""

    timeout: Timeout = 0.5
    retries: Retries = 1
    delay_between_requests: Pause = 0.005
    byte_order: ByteOrder = "ABCD"
    late_window: LateWindow = None
    local_echo: Annotated[
        Literal["auto", True, False], Key("does the adapter return what is sent? auto finds out with the first read")
    ] = "auto"

    def mistakes(self) -> Iterable[Mistake]:
        if self.data_bits != 8:
            yield Mistake(("data_bits",), "Modbus RTU has 8 data bits")
        yield from _order_mistakes(self.byte_order)


class TcpBus(Bus, frozen=True, kw_only=True):
    """Modbus TCP, or RTU frames through a serial server. One connection serves all devices of the bus."""

    host: Annotated[str, Key("name or address", example='"192.168.1.50"')]
    tcp_port: Annotated[int, Key("TCP port", min=1, max=65535, alias=("port",))] = 502
    timeout: Timeout = 0.5
    retries: Retries = 1
    delay_between_requests: Pause = 0.0
    byte_order: ByteOrder = "ABCD"
    late_window: LateWindow = None
    connect_delay: Annotated[
        Duration, Key("pause after connecting; some devices ignore what comes at once", max=60)
    ] = 0

    def mistakes(self) -> Iterable[Mistake]:
        yield from _order_mistakes(self.byte_order)


AnyBus = RtuBus | TcpBus


class ModbusWrite(WriteLimits, frozen=True, kw_only=True):
    """Makes a point writable, within limits."""

    fc: Annotated[
        Literal[5, 6, 15, 16] | None, Key("function code to write with; default 5 or 6 for one, 15 or 16 for more")
    ] = None


class ModbusPoint(Point, frozen=True, kw_only=True):
    """One value in the registers of a device."""

    address: Annotated[
        int | str, Key('address as it travels, from 0; in quotes a 1-based reference: "40001"', min=0, max=65535)
    ]
    register: Annotated[
        Literal["holding", "input", "coil", "discrete"] | None,
        Key("which table; default holding, or what a quoted reference says", alias=("register_type", "input_type")),
    ] = None
    type: Annotated[
        str, Key("int8 … int64, uint8 … uint64, float16, float32, float64, string, bit, bool", alias=("data_type",))
    ] = ""
    byte_order: Annotated[str, Key("as for the bus, for this point", alias=("swap",))] = ""
    bit: Annotated[int | None, Key("which bit of the register, 0 the least significant", min=0, max=15)] = None
    length: Annotated[int, Key("bytes of a string", min=1, max=2 * _MAX_READ)] = 0
    interval: Annotated[Duration | None, Key("read so often; default that of the device", min=0.01)] = None
    write: Annotated[ModbusWrite | None, Key("allows commands to write this point, within limits")] = None

    def place(self) -> tuple[Table, int]:
        """Table and zero-based address.

        Raises:
            ValueError: a quoted reference that is none, or one of another table.
        """
        told = Table(self.register) if self.register else None
        if isinstance(self.address, int):
            return told or Table.HOLDING, self.address
        digits = self.address.strip()
        table = _REFERENCES.get(digits[:1])
        if table is None or not digits.isdecimal() or len(digits) not in (5, 6) or not 1 <= int(digits[1:]) <= 65536:
            raise ValueError(f'"{digits}" is no reference such as "40001"; an address from 0 is written without quotes')
        if told not in (None, table):
            raise ValueError(f'"{digits}" is a reference to {table.value}, but register says {self.register}')
        return table, int(digits[1:]) - 1

    def word(self, default_order: str = "") -> Word:
        """How its bytes are laid out; `default_order` where the point itself says nothing.

        Raises:
            ValueError: type, order, length or bit do not fit together.
        """
        name = self.type or ("bool" if self.place()[0].bits else "bit" if self.bit is not None else "uint16")
        return parse(name, self.byte_order or default_order, length=self.length, bit=self.bit)

    def sentinels(self, word: Word) -> frozenset[int]:
        """What `invalid` says in bits, as the numbers that the type makes of them, and the other way round.

        Manuals write 0x8000 where an int16 reads -32768, and -1 where a uint16 reads 65535.
        """
        if not word.integral:
            return frozenset()
        span = 1 << 8 * word.size
        said = [int(each) for each in self.invalid if not isinstance(each, str)]
        if word.family is Family.INT:
            return frozenset(each - span for each in said if each >= span // 2)
        return frozenset(each + span for each in said if each < 0)

    def mistakes(self) -> Iterable[Mistake]:
        yield from super().mistakes()
        try:
            table, address = self.place()
        except ValueError as error:
            yield Mistake(("address",), str(error))
            return
        try:
            word = self.word()
        except ValueError as error:
            yield Mistake(("byte_order",) if "byte order" in str(error) else ("type",), str(error))
            return
        if table.bits and word.family is not Family.BOOL:
            yield Mistake(("type",), f"a {table.value} is one bit: type bool, not {self.type}")
        if word.size % 2 and word.size > 1 and word.family is not Family.STRING:
            yield Mistake(("type",), f"{word} does not fill whole registers")
        if not table.bits and address + word.registers > 65536:
            yield Mistake(("address",), f"{word} at {address} ends behind the last register, 65535")
        span = 1 << 8 * word.size
        for i, each in enumerate(self.invalid):
            if word.integral and (isinstance(each, str) or each % 1 or not -span // 2 <= each < span):
                yield Mistake(("invalid", i), f"{each!r} can never be read as {word}")
        if self.write is not None:
            yield from self._write_mistakes(table, word)

    def _write_mistakes(self, table: Table, word: Word) -> Iterator[Mistake]:
        assert self.write is not None
        if table in (Table.INPUT, Table.DISCRETE):
            yield Mistake(("write",), f"{table.value} registers cannot be written")
        elif not table.bits and (word.family is Family.BIT or (word.size == 1 and word.family is not Family.BOOL)):
            yield Mistake(("write",), f"a {word} shares its register with others; write the whole register")
        elif self.write.fc is not None and (self.write.fc in (5, 15)) is not table.bits:
            yield Mistake(("write", "fc"), f"function {self.write.fc} does not write a {table.value}")
        elif self.write.fc == 6 and word.registers > 1:
            yield Mistake(("write", "fc"), f"function 6 writes one register, {word} has {word.registers}")


class ModbusDevice(Device, frozen=True, kw_only=True):
    """One unit on the bus."""

    unit_id: Annotated[int, Key("its address on the bus", min=0, max=255, alias=("slave_id", "slave", "unit"))] = 1
    interval: Annotated[Duration, Key("read so often", min=0.01)] = 10.0
    max_gap: Annotated[int, Key("registers nobody asked for that a read may bridge", min=0, max=_MAX_READ)] = 8
    max_gap_bits: Annotated[int, Key("the same for coils and discrete inputs", min=0, max=_MAX_READ_BITS)] = 64
    max_read: Annotated[int, Key("registers in one request", min=1, max=_MAX_READ)] = _MAX_READ
    max_read_bits: Annotated[int, Key("coils or discrete inputs in one request", min=1, max=_MAX_READ_BITS)] = 2000
    delay_between_requests: Annotated[
        Duration | None, Key("longer pause before requests to this device only", max=10)
    ] = None
    byte_order: Annotated[str, Key("as for the bus, for this device", alias=("swap",))] = ""
    points: Annotated[tuple[ModbusPoint, ...], Key("what is read from it")] = ()

    def mistakes(self) -> Iterable[Mistake]:
        yield from _order_mistakes(self.byte_order)
        yield from name_mistakes(self.points)
        for number, point in enumerate(self.points):
            if not point.place()[0].bits and point.word().registers > self.max_read:
                yield Mistake(("points", number), f"{point.name} is larger than max_read = {self.max_read}")
        if not self.points:
            yield Mistake((), "a device without points: nothing would be read")


def _order_mistakes(text: str) -> Iterator[Mistake]:
    try:
        parse_order(text)
    except ValueError as error:
        yield Mistake(("byte_order",), str(error))


class Spot(NamedTuple):
    """A point and where it lies."""

    point: ModbusPoint
    table: Table
    address: int
    word: Word
    sentinels: frozenset[int] = frozenset()
    """Raw values that are none, beside those that the normaliser finds in `invalid`."""

    @property
    def width(self) -> int:
        """Registers, or bits."""
        return 1 if self.table.bits else self.word.registers


def spot(bus: AnyBus, device: ModbusDevice, point: ModbusPoint) -> Spot:
    """Fills in what bus and device say for all points."""
    order = parse_order(device.byte_order or bus.byte_order).value
    word = point.word(order)
    return Spot(point, *point.place(), word, point.sentinels(word))


def late_window_s(bus: AnyBus) -> float:
    return 2 * bus.timeout if bus.late_window is None else bus.late_window


def character_s(bus: AnyBus) -> float:
    """Seconds on the wire that we know of; none on TCP."""
    return bus.character_s if isinstance(bus, RtuBus) else 0.0


def gap_s(bus: AnyBus, device: ModbusDevice | None = None) -> float:
    """Silence before a request: 3.5 characters, at least 1.75 ms (Serial Line V1.02 §2.5.1.1), or what is asked for."""
    framing = max(3.5 * bus.character_s, 0.00175) if isinstance(bus, RtuBus) else 0.0
    own = device.delay_between_requests if device and device.delay_between_requests is not None else 0.0
    return max(framing, bus.delay_between_requests, own)


def cost(bus: AnyBus, device: ModbusDevice) -> Cost:
    """A read is 8 characters there, 5 and two for each register back; TCP counts round trips only."""
    return Cost(gap_s(bus, device) + _LATENCY_S + 13 * character_s(bus), 2 * character_s(bus) or 1e-6)


def reads(bus: AnyBus, device: ModbusDevice) -> list[tuple[float, Read[Spot]]]:
    """Every request that the device needs, with its interval in seconds."""
    groups: dict[tuple[float, Table], list[Item[Spot]]] = {}
    for point in device.points:
        where = spot(bus, device, point)
        group = groups.setdefault((point.interval or device.interval, where.table), [])
        group.append(Item(where, where.address, where.width))
    found = []
    for (interval, table), items in groups.items():
        limits = (device.max_gap_bits, device.max_read_bits) if table.bits else (device.max_gap, device.max_read)
        found += [(interval, read) for read in plan(table, items, Limits(*limits), cost(bus, device))]
    return found


def _load(bus: AnyBus, devices: Sequence[ModbusDevice]) -> float:
    return sum(
        cost(bus, device).of(read.table, read.quantity) / interval
        for device in devices
        for interval, read in reads(bus, device)
    )


def check(bus: AnyBus, devices: Sequence[ModbusDevice]) -> Sequence[str]:
    """Warnings about the bus as a whole."""
    return [*_bus_warnings(bus, devices), *(text for device in devices for text in _device_warnings(bus, device))]


def _bus_warnings(bus: AnyBus, devices: Sequence[ModbusDevice]) -> Iterator[str]:
    load = _load(bus, devices)
    if load > _LOAD_WARNING:
        yield f"bus {bus.name} is asked for {load:.0%} of its time; read less often or less, or raise the baud rate"
    shortest = min((interval for device in devices for interval, _ in reads(bus, device)), default=0.0)
    dead_s = bus.timeout * len(devices)
    if len(devices) > 1 and dead_s > shortest:
        yield (
            f"bus {bus.name}: if all {len(devices)} devices are silent, asking each once takes "
            f"{duration_text(dead_s)}, longer than the shortest interval of {duration_text(shortest)}"
        )
    if isinstance(bus, RtuBus) and bus.port.startswith(("/dev/ttyUSB", "/dev/ttyACM")):
        yield f"bus {bus.name}: {bus.port} may be another adapter after replugging; use its /dev/serial/by-id path"
    if isinstance(bus, RtuBus) and bus.port == "/dev/ttyS0":
        yield f"bus {bus.name}: on a Raspberry Pi /dev/ttyS0 is the mini-UART, whose baud rate follows the core clock"
    places: dict[tuple[int, Table, int, int], str] = {}
    for device in devices:
        for point in device.points:
            where = spot(bus, device, point)
            mine = f"{device.name}/{point.name}"
            other = places.setdefault((device.unit_id, where.table, where.address, point.bit or 0), mine)
            if other != mine and where.word.family is not Family.BIT:
                yield f"{mine} reads the same {where.table.value} {where.address} of unit {device.unit_id} as {other}"


def _device_warnings(bus: AnyBus, device: ModbusDevice) -> Iterator[str]:
    if isinstance(bus, RtuBus) and not 1 <= device.unit_id <= 247:
        yield f"device {device.name}: unit {device.unit_id} cannot answer on a serial line; units are 1 to 247"
    for point in device.points:
        table, address = point.place()
        start = {Table.HOLDING: 40001, Table.INPUT: 30001}.get(table, 65536)
        if isinstance(point.address, int) and start <= address < start + 9999:
            yield (
                f"{device.name}/{point.name}: address {address} is sent as it stands; if that is the manual's "
                f'reference (the first {table.value} being {start}), write address = "{address}"'
            )


def explain(bus: AnyBus, devices: Sequence[ModbusDevice]) -> Sequence[str]:
    """The request plan, one line for each request, and the load."""
    lines = []
    for device in devices:
        for interval, read in reads(bus, device):
            what = ("bit" if read.table.bits else "register") + "s" * (read.quantity > 1)
            last = f"…{read.address + read.quantity - 1}" if read.quantity > 1 else ""
            names = ", ".join(item.key.point.name for item in read.items)
            seconds = cost(bus, device).of(read.table, read.quantity)
            lines.append(
                f"{device.name} (unit {device.unit_id}) every {duration_text(interval)}: {read.table.value} "
                f"{read.address}{last}, {read.quantity} {what}, "
                f"about {1000 * seconds:.0f} ms: {names}"
            )
    return [*lines, f"bus {bus.name}: {_load(bus, devices):.1%} of its time"]


def _load_rtu() -> Connect[RtuBus, ModbusDevice]:
    from gateway.connectors.modbus.connector import ModbusConnector

    return ModbusConnector


def _load_tcp() -> Connect[TcpBus, ModbusDevice]:
    from gateway.connectors.modbus.connector import ModbusConnector

    return ModbusConnector


RTU = Kind("modbus-rtu", RtuBus, ModbusDevice, _load_rtu, check, explain)
TCP = Kind("modbus-tcp", TcpBus, ModbusDevice, _load_tcp, check, explain)
RTU_OVER_TCP = Kind("modbus-rtu-over-tcp", TcpBus, ModbusDevice, _load_tcp, check, explain)
