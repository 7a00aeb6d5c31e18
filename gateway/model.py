"""Pure: the words that every stage shares.

A connector emits a `Sample`: one acquisition of one device, several points at one instant. The normaliser turns it
into a `Row` of the same width: scaled values, units and quality, points that did not change left out. Rows become a
batch. They stay arrays the whole way; a `Reading`, one object for one value, exists only where a person or another
program looks at it.

Instants are `at_ns`: nanoseconds of CLOCK_BOOTTIME, which runs through suspend and is never stepped. UTC is attached
to the batch (`ClockState`), so that a stamp taken before the clock was set can be put right later.
"""

from __future__ import annotations

import re
from enum import Enum, StrEnum
from typing import Annotated, Any, Final, NamedTuple

import msgspec

Value = int | float | bool | str
"""What a point can hold. Integers are exact to 64 bits; NaN and infinities never get this far."""

Json = Any
"""A decoded JSON document."""


STATUS_PATTERN: Final = "good|(uncertain|bad):[!-~]{1,48}"
_STATUS_WORD: Final = re.compile(STATUS_PATTERN)


class Quality(StrEnum):
    """OPC UA Part 8: can the value be used?"""

    GOOD = "good"
    UNCERTAIN = "uncertain"
    BAD = "bad"


class Status(StrEnum):
    """Quality and reason of one value, as they travel: `quality:reason`.

    A bad value is always `None`: there is no made-up zero. A later version may have reasons that this one does not
    know: every word of that form is a status, and is passed on as it is.
    """

    GOOD = "good"
    # uncertain: there is a value, and a reason to look twice
    OUT_OF_RANGE = "uncertain:out_of_range"
    RETAINED = "uncertain:retained"
    """A broker's stored message: true once, nobody knows when."""
    REDELIVERED = "uncertain:redelivered"
    """Its source sent it again, and a power cut took the knowledge of what had come: perhaps it is there twice."""
    SUBSTITUTED = "uncertain:substituted"
    COUNTER_JUMP = "uncertain:counter_jump"
    # bad: there is no value
    COMM_TIMEOUT = "bad:comm_timeout"
    CRC = "bad:crc"
    EXCEPTION = "bad:exception"
    """The device answered with a protocol-level refusal (a Modbus exception, an ATT error)."""
    DEVICE_OFFLINE = "bad:device_offline"
    """The device rests after repeated failures, or its bus is gone, or its last will was published."""
    SENSOR_FAULT = "bad:sensor_fault"
    """A sentinel, NaN or infinity: the device itself says that it has no value."""
    DECODE = "bad:decode"
    STALE = "bad:stale"
    """Nothing came for `expire_after`."""
    CONFIG = "bad:config"
    """The device refuses this point for good: the configuration does not fit it."""
    KEY_ERROR = "bad:key_error"
    """Encrypted, and the key is missing or wrong."""

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        if not isinstance(value, str) or not _STATUS_WORD.fullmatch(value):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word

    @property
    def quality(self) -> Quality:
        return Quality(self.value.partition(":")[0])

    @property
    def reason(self) -> str:
        return self.value.partition(":")[2]


class Lane(StrEnum):
    """Alarms never wait behind readings."""

    ALARM = "alarm"
    LIVE = "live"


class Trust(StrEnum):
    """How sure the gateway is of its own UTC."""

    SYNCED = "synced"
    HOLDOVER = "holdover"
    """Was synchronised in this boot, is not at the moment."""
    SERVER = "server"
    """Never synchronised in this boot: the time that the servers tell, to within its error."""
    UNSYNCED = "unsynced"

    @property
    def own(self) -> bool:
        """This machine's own clock: nothing is ever given up for its age by anybody else's."""
        return self in (Trust.SYNCED, Trust.HOLDOVER)


class ClockState(msgspec.Struct, frozen=True):
    """What is known of UTC at one moment of one boot: UTC = boot time + offset."""

    boot: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^[0-9a-f]{32}$"})]
    """The kernel's boot id, 32 hex digits."""
    offset_ms: int
    error_ms: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": -1})]
    """Half the width of the interval that the true offset is believed to be in; -1 when nothing is known."""
    trust: Trust


class Origin(NamedTuple):
    """Where a sample came from when its source keeps it until we acknowledge: one MQTT message."""

    session: bytes
    """8 bytes: names the source's session."""
    packet_id: int
    """16 bits, as the source counts them."""
    fingerprint: bytes
    """16 bytes over topic and payload: the same packet id with another fingerprint is another message."""


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One acquisition as the connector saw it: typed raw values, before scale and limits."""

    device: str
    """The id that readings will carry."""
    points: tuple[str, ...]
    values: tuple[Value | None, ...]
    at_ns: int
    """CLOCK_BOOTTIME at the last byte of the acquisition."""
    status: tuple[Status, ...] | None = None
    """One per value; None when all are good."""
    rule: str = ""
    """The configured device whose points apply, when one rule makes many devices; empty: `device` itself."""
    units: tuple[str, ...] | None = None
    """What the source itself says (`""` = nothing); the configuration wins."""
    source_ms: int | None = None
    """The device's own UTC stamp in milliseconds, where the configuration trusts it."""
    origin: Origin | None = None


class Shape(msgspec.Struct, frozen=True, eq=False):
    """What rows of one kind have in common. Compared by identity: the normaliser makes each shape once."""

    device: str
    points: tuple[str, ...]
    units: tuple[str, ...]
    lane: Lane = Lane.LIVE


class Row(msgspec.Struct, frozen=True, gc=False):
    """One normalised acquisition: `len(shape.points)` readings."""

    shape: Shape
    at_ms: int
    """CLOCK_BOOTTIME in milliseconds."""
    values: tuple[Value | None, ...]
    status: tuple[Status, ...] | None = None
    source_ms: int | None = None
    origin: Origin | None = None


class Reading(msgspec.Struct, frozen=True):
    """One value for the eyes of a person or another program."""

    device: str
    point: str
    value: Value | None
    unit: str
    status: Status
    utc_ms: int
    trust: Trust


class RecordKind(Enum):
    """What takes a number in a stream."""

    BATCH = 1
    GAP = 2
    CLOCK = 3
    END = 4


class Record(msgspec.Struct, frozen=True, gc=False):
    """One numbered entry of a stream. `body` is encoded once: the stored bytes are the sent bytes."""

    stream: str
    """128 random bits, 32 hex digits."""
    lane: Lane
    seq: int
    """Counts from 1."""
    kind: RecordKind
    body: bytes
    readings: int = 0
    last: int = 0
    """Highest number that it covers: `seq`, but for a gap that covers several."""
    origins: tuple[Origin, ...] = ()

    @property
    def upto(self) -> int:
        return self.last or self.seq


class GapReason(StrEnum):
    """Why readings were given up."""

    EVICTED = "evicted"
    EXPIRED = "expired"
    CORRUPT = "corrupt"
    OVERSIZE = "oversize"
    OVERFLOW = "overflow"
    POISON = "poison"
    UNSENT = "unsent"
    """The sink went back to an older state, and these are no longer held."""
    STORED_ELSEWHERE = "stored_elsewhere"
    """Another sink has them: nothing is lost."""


class Outcome(StrEnum):
    """How a command ended."""

    OK = "ok"
    FAILED = "failed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    INTERRUPTED = "interrupted"
    """Started before a crash; whether it took effect is not known, and it is never started again."""
    UNKNOWN = "unknown"
    """The machine did not answer: it may or may not have acted."""


class Write(msgspec.Struct, frozen=True):
    """One value for one point, as the caller means it (engineering units, not register bits)."""

    device: str
    point: str
    value: Value
    verify: bool = False


class Command(msgspec.Struct, frozen=True):
    """What the cloud side asks for, as it came out of a session."""

    id: str
    device: str
    op: str
    point: str = ""
    value: Value | None = None
    expires_at: float = 0.0
    """Monotonic seconds; computed from the server's clock and the session's smallest offset, so that one that sat
    in a socket buffer is expired all the same."""
    source: str = ""
    """Who asked: an endpoint's name, or `local`."""


class Result(msgspec.Struct, frozen=True):
    """How a command ended."""

    id: str
    outcome: Outcome
    reason: str = ""
    value: Value | None = None
    """Read back, where that was asked."""
    utc_ms: int | None = None


class DeviceState(StrEnum):
    """What status says of a device."""

    WAITING = "waiting"
    """Nothing has been heard of it yet."""
    ONLINE = "online"
    FAILING = "failing"
    OFFLINE = "offline"
