"""Pure: what can be said of a Modbus bus, and where that puts each point. What it makes of the bus: `forecast`.

Entry points name the kinds at the end. The words are those of the field: `slave_id`, `slave` and `unit` are
read as `unit_id`, an address in quotes (`"40001"`) is the 1-based reference of a manual, a number is the address as it
travels (or one more, with `address_base = 1`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

from gateway.codec.words import Family, Word, parse, parse_order
from gateway.connectors.base import Connect, Kind
from gateway.connectors.modbus.planner import Item, Table
from gateway.connectors.modbus.request import BITS_MAX, REGISTERS_MAX
from gateway.connectors.port import SerialSettings
from gateway.model import Value
from gateway.points import Bus, Device, Point, WriteLimits, name_mistakes
from gateway.settings import Duration, Key, Mistake
from gateway.settings import Table as Settings

_REFERENCES = {"0": Table.COIL, "1": Table.DISCRETE, "3": Table.INPUT, "4": Table.HOLDING}

Address = int | str
"""A number as it travels, or a manual's reference in quotes."""

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
    """Modbus RTU or ASCII on a serial port."""

    timeout: Timeout = 0.5
    retries: Retries = 1
    delay_between_requests: Pause = 0.005
    byte_order: ByteOrder = "ABCD"
    late_window: LateWindow = None
    local_echo: Annotated[
        Literal["auto", True, False], Key("does the adapter return what is sent? auto finds out with the first read")
    ] = "auto"

    def mistakes(self) -> Iterable[Mistake]:
        if self.data_bits != 8 and self.kind == "modbus-rtu":
            yield Mistake(("data_bits",), "Modbus RTU has 8 data bits")
        yield from _order_mistakes(self.byte_order)


class TcpBus(Bus, frozen=True, kw_only=True):
    """Modbus TCP, or RTU or ASCII frames through a serial server. One connection serves all devices of the bus."""

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
    close_after_poll: Annotated[
        bool, Key("hang up while nothing is due: for devices that serve one client and have others")
    ] = False

    def medium(self) -> tuple[str, str] | None:
        return "host", f"{self.host.lower()}:{self.tcp_port}"

    def mistakes(self) -> Iterable[Mistake]:
        yield from _order_mistakes(self.byte_order)


AnyBus = RtuBus | TcpBus


class ModbusWrite(WriteLimits, frozen=True, kw_only=True):
    """Makes a point writable, within limits."""

    fc: Annotated[
        Literal[5, 6, 15, 16, 22, 23] | None,
        Key(
            "function code to write with; default 5 or 6 for one, 15 or 16 for more; 22 changes single bits of a"
            " register, 23 writes and reads back at once"
        ),
    ] = None


class ModbusPoint(Point, frozen=True, kw_only=True):
    """One value in the registers of a device."""

    address: Annotated[
        Address, Key('address as it travels, from 0; in quotes a 1-based reference: "40001"', min=0, max=65535)
    ]
    register: Annotated[
        Literal["holding", "input", "coil", "discrete"] | None,
        Key("which table; default holding, or what a quoted reference says", alias=("register_type", "input_type")),
    ] = None
    type: Annotated[
        str,
        Key(
            "int8 … int64, uint8 … uint64, float16, float32, float64, bcd8 … bcd64, string, bit, bits, bool",
            alias=("data_type",),
        ),
    ] = ""
    byte_order: Annotated[str, Key("as for the bus, for this point", alias=("swap",))] = ""
    bit: Annotated[int | None, Key("which bit of the register, 0 the least significant", min=0, max=15)] = None
    bits: Annotated[int | None, Key("type bits: a number of so many bits, from `bit` on", min=1, max=16)] = None
    mask: Annotated[
        int,
        Key("of an integer only these bits, moved down to the lowest of them", example="0x0FF0", alias=("bitmask",)),
    ] = 0
    shift: Annotated[int | None, Key("move them down so far instead; 0 leaves them", min=0, max=63)] = None
    length: Annotated[int, Key("bytes of a string", min=1, max=2 * REGISTERS_MAX)] = 0
    scale_register: Annotated[
        Address | None,
        Key("where the device keeps the power of ten to multiply with (SunSpec); read in the same request", max=65535),
    ] = None
    model: Annotated[
        tuple[Annotated[int, Key("SunSpec model", min=1, max=65534)], ...],
        Key(
            "SunSpec: it is in the first of these models that the device has, wherever that begins; `address` and"
            " `scale_register` count from the model's id",
            example="[101, 102, 103]",
        ),
    ] = ()
    interval: Annotated[Duration | None, Key("read so often; default that of the device", min=0.01)] = None
    write: Annotated[ModbusWrite | None, Key("allows commands to write this point, within limits")] = None

    def place(self, base: int = 0) -> tuple[Table, int]:
        """Table and zero-based address; `base` is what the device calls its first one.

        Raises:
            ValueError: a quoted reference that is none, or one of another table.
        """
        return located(self.address, self.register, base)

    def scale_place(self, base: int = 0) -> int | None:
        """Address of the scale factor, in the point's own table.

        Raises:
            ValueError: as for `place`.
        """
        if self.scale_register is None:
            return None
        return located(self.scale_register, self.place()[0].value, base)[1]

    def word(self, default_order: str = "") -> Word:
        """How its bytes are laid out; `default_order` where the point itself says nothing.

        Raises:
            ValueError: type, order, length or bit do not fit together.
        """
        name = self.type or ("bool" if self.place()[0].bits else "bit" if self.bit is not None else "uint16")
        order = self.byte_order or default_order
        return parse(
            name, order, length=self.length, bit=self.bit, bits=self.bits, mask=self.mask, shift=self.shift
        )  # fmt: skip

    def sentinels(self, word: Word) -> frozenset[int]:
        """What `invalid` says in bits, as the numbers that the type makes of them, and the other way round.

        Manuals write 0x8000 where an int16 reads -32768, and -1 where a uint16 reads 65535.
        """
        if not word.integral:
            return frozenset()
        said = [int(each) for each in self.invalid if not isinstance(each, str)]
        other = frozenset(each - word.span if each > 0 else each + word.span for each in said)
        # behind a scale register the normaliser no longer sees what was read
        known = () if self.scale_register is None else said
        return frozenset(each for each in (*other, *known) if word.low <= each < word.low + word.span)

    def raw_sentinels(self) -> frozenset[Value]:
        return super().raw_sentinels() if self.scale_register is None else frozenset()

    def mistakes(self) -> Iterable[Mistake]:
        yield from super().mistakes()
        try:
            table, address = self.place()
        except ValueError as error:
            yield Mistake(("address",), str(error))
            return
        try:
            self.scale_place()
        except ValueError as error:
            yield Mistake(("scale_register",), str(error))
            return
        try:
            word = self.word()
        except ValueError as error:
            yield Mistake(("byte_order",) if "byte order" in str(error) else ("type",), str(error))
            return
        if table.bits and word.family is not Family.BOOL:
            yield Mistake(("type",), f"a {table.value} is one bit: type bool, not {self.type}")
        if word.size % 2 and word.size > 1 and word.family is not Family.STRING:
            hint = f"; uint{8 * word.size + 8} with mask = {(1 << 8 * word.size) - 1:#x} reads the low bytes of two"
            yield Mistake(("type",), f"{word} does not fill whole registers{hint if word.size == 3 else ''}")
        if not table.bits and address + word.registers > 65536:
            yield Mistake(("address",), f"{word} at {address} ends behind the last register, 65535")
        lowest = 0 if word.family is Family.BCD else -(word.span // 2)
        for i, each in enumerate(self.invalid):
            if word.integral and (isinstance(each, str) or each % 1 or not lowest <= each < word.span):
                yield Mistake(("invalid", i), f"{each!r} can never be read as {word}")
        if self.scale_register is not None and (table.bits or not word.integral):
            yield Mistake(("scale_register",), "only an integer has a power of ten beside it")
        if self.model and (table is not Table.HOLDING or isinstance(self.address, str)):
            yield Mistake(("address",), "in a SunSpec model points are holding registers, counted from the model's id")
        if self.write is not None:
            yield from self._write_mistakes(table, word)

    def _write_mistakes(self, table: Table, word: Word) -> Iterator[Mistake]:
        assert self.write is not None
        fc = self.write.fc
        shares = not table.bits and (not word.whole or (word.size == 1 and word.family is not Family.BOOL))
        most = {6: 1, 22: 1, 23: 121}.get(fc or 16, 123)  # V1.1b3 §6.6, §6.16, §6.17, §6.12
        if table in (Table.INPUT, Table.DISCRETE):
            yield Mistake(("write",), f"{table.value} registers cannot be written")
        elif self.scale_register is not None:
            yield Mistake(("write",), "what a write means would change with scale_register; say a `scale` instead")
        elif shares and fc != 22:
            way_out = "`fc = 22` changes its bits alone, if the device knows that function"
            yield Mistake(("write",), f"a {word} shares its register with others: {way_out}")
        elif fc is not None and (fc in (5, 15)) is not table.bits:
            yield Mistake(("write", "fc"), f"function {fc} does not write a {table.value}")
        elif word.registers > most:
            many = "one register" if most == 1 else f"at most {most} registers"
            key = ("write", "fc") if fc else ("write",)
            yield Mistake(key, f"function {fc or 16} writes {many}, {word} has {word.registers}")


class Forbidden(Settings, frozen=True, kw_only=True):
    """Registers that no request may touch."""

    register: Annotated[Literal["holding", "input", "coil", "discrete"] | None, Key("which table, as for a point")] = (
        None
    )
    first: Annotated[Address, Key("the first of them, as a point's address", min=0, max=65535, example="100")]
    last: Annotated[Address | None, Key("the last of them; default only the first", min=0, max=65535)] = None

    def place(self, base: int = 0) -> tuple[Table, int, int]:
        """Table, and addresses from … up to and without …

        Raises:
            ValueError: no reference, or they are of two tables.
        """
        table, first = located(self.first, self.register, base)
        last = first if self.last is None else located(self.last, table.value, base)[1]
        if last < first:
            raise ValueError(f"the last one, {self.last}, lies before the first, {self.first}")
        return table, first, last + 1

    def mistakes(self) -> Iterable[Mistake]:
        try:
            self.place()
        except ValueError as error:
            yield Mistake(("first",), str(error))


class ModbusDevice(Device, frozen=True, kw_only=True):
    """One unit on the bus."""

    unit_id: Annotated[int, Key("its address on the bus", min=0, max=255, alias=("slave_id", "slave", "unit"))] = 1
    interval: Annotated[Duration, Key("read so often", min=0.01)] = 10.0
    max_gap: Annotated[int, Key("registers nobody asked for that a read may bridge", min=0, max=REGISTERS_MAX)] = 8
    max_gap_bits: Annotated[int, Key("the same for coils and discrete inputs", min=0, max=BITS_MAX)] = 64
    max_read: Annotated[int, Key("registers in one request", min=1, max=REGISTERS_MAX)] = REGISTERS_MAX
    max_read_bits: Annotated[int, Key("coils or discrete inputs in one request", min=1, max=BITS_MAX)] = BITS_MAX
    forbidden: Annotated[
        tuple[Forbidden, ...],
        Key("registers that no request may touch, not even to bridge them", example="[{ first = 100, last = 119 }]"),
    ] = ()
    address_base: Annotated[Literal[0, 1], Key("1: addresses without quotes count from 1, as in this manual")] = 0
    delay_between_requests: Annotated[
        Duration | None, Key("longer pause before requests to this device only", max=10)
    ] = None
    timeout: Annotated[Duration | None, Key("longer or shorter wait for this device only", min=0.01, max=60)] = None
    byte_order: Annotated[str, Key("as for the bus, for this device", alias=("swap",))] = ""
    points: Annotated[tuple[ModbusPoint, ...], Key("what is read from it")] = ()

    def mistakes(self) -> Iterable[Mistake]:
        yield from _order_mistakes(self.byte_order)
        yield from name_mistakes(self.points)
        for number, point in enumerate(self.points):
            for key, text in self._misplaced(point):
                yield Mistake(("points", number, key), text)
        for number, each in enumerate(self.forbidden):
            if self.address_base > min(a for a in (each.first, each.last, 1) if isinstance(a, int)):
                yield Mistake(("forbidden", number, "first"), "with address_base = 1 the first address is 1")
        if not self.points:
            yield Mistake((), "a device without points: nothing would be read")

    def _misplaced(self, point: ModbusPoint) -> Iterator[tuple[str, str]]:
        """Key and reason, where the device does not let a point lie or be read in one request."""
        for key, said in (("address", point.address), ("scale_register", point.scale_register)):
            if isinstance(said, int) and said < self.address_base:
                yield key, "with address_base = 1 the first address is 1"
                return
        item = spot("", self, point).item
        if not item.key.table.bits and item.width > self.max_read:
            together = "" if point.scale_register is None else " with its scale register"
            key = "type" if point.scale_register is None else "scale_register"
            yield key, f"{point.name} is larger{together} than one request: {item.width} registers of {self.max_read}"
        if point.model:
            return  # its place is not known before the device is asked
        for each in self.forbidden:
            table, first, stop = each.place(self.address_base)
            if table is item.key.table and first < item.end and item.address < stop:
                yield "address", f"{point.name} cannot be read without a forbidden register: {first} to {stop - 1}"


def located(said: Address, register: str | None, base: int) -> tuple[Table, int]:
    """Table and zero-based address of a number or a quoted reference.

    Raises:
        ValueError: it is none, or one of another table than `register` says.
    """
    told = Table(register) if register else None
    if isinstance(said, int):
        return told or Table.HOLDING, said - base
    digits = said.strip()
    table = _REFERENCES.get(digits[:1])
    if table is None or not digits.isdecimal() or len(digits) not in (5, 6) or not 1 <= int(digits[1:]) <= 65536:
        raise ValueError(f'"{digits}" is no reference such as "40001"; an address from 0 is written without quotes')
    if told not in (None, table):
        raise ValueError(f'"{digits}" is a reference to {table.value}, but register says {register}')
    return table, int(digits[1:]) - 1


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
    scale_at: int | None = None
    """Where its power of ten lies, in the same table."""

    @property
    def width(self) -> int:
        """Registers, or bits."""
        return 1 if self.table.bits else self.word.registers

    @property
    def item(self) -> Item[Spot]:
        """What has to be read at once: the value, and its scale factor with it."""
        at = self.address if self.scale_at is None else self.scale_at
        first = min(self.address, at)
        return Item(self, first, max(self.address + self.width, at + 1) - first)


def spot(bus_order: str, device: ModbusDevice, point: ModbusPoint) -> Spot:
    """Fills in what bus and device say for all points."""
    word = point.word(parse_order(device.byte_order or bus_order).value)
    base = 0 if point.model else device.address_base
    return Spot(point, *point.place(base), word, point.sentinels(word), point.scale_place(base))


def broadcasts(bus: AnyBus, device: ModbusDevice) -> bool:
    """Unit 0 of a serial line is everybody: it can be written and never read. Behind TCP it is a unit like others."""
    return device.unit_id == 0 and bus.kind != "modbus-tcp"


def late_window_s(bus: AnyBus) -> float:
    return 2 * bus.timeout if bus.late_window is None else bus.late_window


def character_s(bus: AnyBus) -> float:
    """Seconds on the wire that we know of; none on TCP."""
    return bus.character_s if isinstance(bus, RtuBus) else 0.0


def gap_s(bus: AnyBus, device: ModbusDevice | None = None) -> float:
    """Silence before a request: 3.5 characters, at least 1.75 ms (Serial Line V1.02 §2.5.1.1), or what is asked for."""
    framed_by_silence = isinstance(bus, RtuBus) and bus.kind == "modbus-rtu"
    framing = max(3.5 * character_s(bus), 0.00175) if framed_by_silence else 0.0
    own = device.delay_between_requests if device and device.delay_between_requests is not None else 0.0
    return max(framing, bus.delay_between_requests, own)


def _check(bus: AnyBus, devices: Sequence[ModbusDevice]) -> Sequence[str]:
    from gateway.connectors.modbus.forecast import warnings

    return warnings(bus, devices)


def _plan(bus: AnyBus, devices: Sequence[ModbusDevice]) -> Sequence[str]:
    from gateway.connectors.modbus.forecast import explained

    return explained(bus, devices)


def _load_rtu() -> Connect[RtuBus, ModbusDevice]:
    from gateway.connectors.modbus.connector import ModbusConnector

    return ModbusConnector


def _load_tcp() -> Connect[TcpBus, ModbusDevice]:
    from gateway.connectors.modbus.connector import ModbusConnector

    return ModbusConnector


RTU = Kind("modbus-rtu", RtuBus, ModbusDevice, _load_rtu, _check, _plan)
TCP = Kind("modbus-tcp", TcpBus, ModbusDevice, _load_tcp, _check, _plan)
RTU_OVER_TCP = Kind("modbus-rtu-over-tcp", TcpBus, ModbusDevice, _load_tcp, _check, _plan)
ASCII = Kind("modbus-ascii", RtuBus, ModbusDevice, _load_rtu, _check, _plan)
ASCII_OVER_TCP = Kind("modbus-ascii-over-tcp", TcpBus, ModbusDevice, _load_tcp, _check, _plan)
