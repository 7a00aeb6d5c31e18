"""Pure: what a connector is, and what it is given.

A connector speaks one protocol over one bus. It is a config struct for the bus, one for its devices, and an object
with `run`. No retry, no thread, no naming, no I/O at import: all of that comes from outside. `run` raises `LinkError`
when the medium is gone and the supervisor builds a new connector, for ever, backing off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from gateway.clock import Clock
from gateway.connectors.tap import NOBODY, Tap
from gateway.model import DeviceState, Json, Origin, Sample, Value, Write
from gateway.points import Bus, Device

B = TypeVar("B", bound=Bus)
D = TypeVar("D", bound=Device)
B_contra = TypeVar("B_contra", bound=Bus, contravariant=True)
D_contra = TypeVar("D_contra", bound=Device, contravariant=True)


class Emit(Protocol):
    """The way into the gateway."""

    async def __call__(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        """Hands samples over. When it returns they survive the death of this process (not yet of the machine).

        Samples with an origin come with `settled`, which is called once, on the event loop, as soon as all of them
        are on disk or acknowledged by the sink: the moment to acknowledge them to their source. All samples of one
        origin are given in one call. Waits when the buffer asks for patience; cancelling before it returns may or may
        not have handed over the samples.
        """


class Ledger(Protocol):
    """Remembers messages of sources that redeliver, across crashes of this process."""

    def seen(self, origin: Origin) -> bool:
        """True when this very message was handed over before and its source may not know it yet."""

    def settled(self, origin: Origin) -> bool:
        """True when a seen message is on disk or acknowledged: its source can be told at once."""

    def whole(self, session: bytes) -> bool:
        """True while every message of this session that was handed over and may come again is known. False after a
        power cut, until `keep_only`: what comes again and is not seen may have been handed over before."""

    def forget(self, origins: Sequence[Origin]) -> None:
        """The source has proved that it will not send these again."""

    def keep_only(self, session: bytes, origins: Collection[Origin]) -> None:
        """The source has proved that of this session it can send at most these again: all others are forgotten.

        Called with none when a source has lost its session; else what a killed process had acknowledged without
        living to see the proof would be remembered for ever.
        """


class Tools(NamedTuple):
    """The callables that a connector receives instead of the application."""

    clock: Clock
    ledger: Ledger
    beat: Callable[[float], None]
    """`beat(30)`: my loop is alive, and will say so again within 30 seconds, not counting the time that it waits in
    `emit`. The watchdog believes it."""
    report: Callable[[str, DeviceState, str], None]
    """`report(device, state, why)`: for status and the log; call it on every change, repeated calls are free."""
    hurry: Callable[[], None] = lambda: None
    """My source sends no more before it has acknowledgements: what was emitted goes to disk now."""
    tap: Tap = NOBODY
    """Shows what travels on the bus to who looks; ask whether anybody does before making anything up."""
    set_aside: Callable[[str, bytes, str], None] = lambda where, payload, why: None
    """`set_aside(where, payload, why)`: this made no sense; a person may want to look at it. Never waits, keeps few."""


class Connector(Protocol):
    """One bus, driven by one task."""

    async def run(self, emit: Emit) -> None:
        """Reads until cancelled.

        Raises:
            LinkError: the medium is gone or cannot be opened.
        """

    async def execute(self, write: Write) -> Value | None:
        """Writes one point; called while `run` runs. Returns the value read back, None when it was not read.

        Raises:
            CommandError: with the outcome that the caller shall see.
        """

    def status(self) -> dict[str, Json]:
        """Counters and states of this bus for `gateway status`; cheap, never blocks.

        `open` is always among them: true while the bus is up and listened to.
        """


@runtime_checkable
class Inquirable(Protocol):
    """A connector that looks something up for a person between its own work."""

    async def inquire(self, question: Mapping[str, Json]) -> Json:
        """Reads, and changes nothing; called while `run` runs.

        Raises:
            GatewayError: it cannot be asked that, or not now.
        """


class Connect(Protocol[B_contra, D_contra]):
    """Builds a connector. No I/O: that belongs into `run`."""

    def __call__(self, bus: B_contra, devices: Sequence[D_contra], tools: Tools, /) -> Connector: ...


class Kind(msgspec.Struct, Generic[B, D], frozen=True):
    """What the entry point of a connector names: `gateway.connectors` → `mqtt = "….config:MQTT"`."""

    name: str
    bus: type[B]
    device: type[D]
    load: Callable[[], Connect[B, D]]
    """Imports the connector and its driver library; called only when the configuration names this kind."""
    check: Callable[[B, Sequence[D]], Sequence[str]] | None = None
    """Warnings about this bus as a whole (load, overlaps), each a finished sentence; pure."""
    plan: Callable[[B, Sequence[D]], Sequence[str]] | None = None
    """Lines that explain what will be done on this bus, for `gateway check`; pure."""


AnyKind = Kind[Any, Any]
