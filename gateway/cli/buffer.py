"""`gateway buffer`: what waits on disk, for people. Changes nothing, and asks nothing of a gateway that runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from gateway.buffer import inspection
from gateway.cli import EXIT_FAILED
from gateway.cli.arguments import DEFAULT_CONFIG, count
from gateway.cli.terminal import output, printable
from gateway.clock import SystemClock
from gateway.errors import ConfigError, GatewayError, StoreError
from gateway.model import ClockState, Reading, Record, RecordKind, Trust
from gateway.settings import size_text

if TYPE_CHECKING:
    from gateway.buffer.inspection import Damage, RingFound, Store

FILE = "buffer.db"
RING = "flight.ring"
_SHOWN = 20
"""Damaged records that are told one by one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_subparsers(dest="way", metavar="stat|export|verify", required=True)
    for name, summary in (
        ("stat", "what waits: streams, records, readings, since when, what was given up"),
        ("export", "every reading that waits, as JSON lines"),
        ("verify", "check every record; exit code 1 when something is damaged"),
    ):
        way = ways.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        way.add_argument(
            "path", type=Path, nargs="?", metavar="FILE", help=f"a {FILE}, or the folder of one [of --config]"
        )
        way.add_argument("--ring", type=Path, metavar="FILE", help=f"the {RING} to look at too [of --config]")
        way.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="[%(default)s]")
        if name == "export":
            way.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of to stdout")
            way.add_argument("--device", metavar="DEVICE", help="only this one [all]")
            way.add_argument("--since", type=instant, metavar="TIME", help="UTC, like 2026-01-31T14:00")
            way.add_argument("--until", type=instant, metavar="TIME", help="the same, exclusive")
    parser.epilog = "Works while the gateway runs and when it does not, and on files that were set aside as damaged."


def main(arguments: argparse.Namespace) -> int:
    path, ring_path = _places(arguments)
    ring = _ring(ring_path, needed=arguments.ring is not None)
    ways: dict[str, Callable[[argparse.Namespace, Store, RingFound | None], int]] = {
        "stat": _stat,
        "export": _export,
        "verify": _verify,
    }
    with inspection.opened(path) as store:
        return ways[arguments.way](arguments, store, ring)


def _places(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """The file, and the ring beside which it is used."""
    if arguments.path is not None:
        path = arguments.path / FILE if arguments.path.is_dir() else arguments.path
        return path, arguments.ring
    from gateway.config.load import check

    config = check(arguments.config, os.environ).config
    if config is None:
        raise ConfigError((f"{arguments.config} cannot be used (`gateway check` tells why); name the file itself",))
    return config.gateway.state_dir / FILE, arguments.ring or config.gateway.runtime_dir / RING


def _ring(path: Path | None, *, needed: bool) -> RingFound | None:
    try:
        return inspection.ring(path) if path is not None else None
    except StoreError:
        if needed or (path is not None and path.exists()):
            raise
        return None  # no gateway has run since the machine was started


def instant(text: str) -> int:
    """UTC in milliseconds."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 2026-01-31T14:00") from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def utc_text(utc_ms: int) -> str:
    moment = datetime.fromtimestamp(utc_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc_ms % 1000:03d}Z"


# ── stat ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Sum:
    """Of some records."""

    def __init__(self) -> None:
        self.records = self.readings = self.bytes = 0
        self.first: Record | None = None
        self.last: Record | None = None

    def add(self, record: Record) -> None:
        self.records += 1
        self.readings += record.readings
        self.bytes += len(record.body)
        if record.kind is RecordKind.BATCH:
            self.first = self.first or record
            self.last = record

    def text(self, clocks: dict[str, ClockState]) -> Text:
        line = Text(f"{count(self.records, 'record')}, {count(self.readings, 'reading')}, {_size(self.bytes)}")
        if self.first is not None and self.last is not None:
            first, last = (tuple(inspection.readings(each, clocks)) for each in (self.first, self.last))
            begin, end = (choose(each.utc_ms for each in some) for choose, some in ((min, first), (max, last)))
            worst = max((each.trust for each in first + last), key=list(Trust).index)
            line.append(f", {utc_text(begin)} to {utc_text(end)}")
            line.append(f", clock {worst}", "" if worst is Trust.SYNCED else "yellow")
        return line


def _stat(_: argparse.Namespace, store: Store, ring: RingFound | None) -> int:
    console, clocks, gaps, damaged = output(), store.clocks(), inspection.Gaps(), 0
    size, free = store.space()
    _title(console, str(store.path), f"{_size(size)}, {_size(free)} of it free, tables of version {store.version}")
    streams = store.readable_streams()
    _title(console, "Streams", "" if streams else "none: nothing waits")
    for stream in streams:
        found = _Sum()
        for each in store.records(stream):
            if isinstance(each, inspection.Damage):
                damaged += 1
            else:
                found.add(each.record)
                gaps.add(each.record)
        console.print(Text(f"  {stream.lane:5}  {stream.name}  ").append_text(found.text(clocks)), soft_wrap=True)
    for reason in sorted(gaps.count):
        unknown = f", {count(gaps.unknown[reason], 'gap')} of unknown size" if gaps.unknown[reason] else ""
        lost = f"{count(gaps.count[reason], 'gap')}, {count(gaps.readings[reason], 'reading')}{unknown}"
        _title(console, f"Given up, {reason}", lost)
    if damaged:
        console.print(Text(f"{count(damaged, 'record')} cannot be read: `gateway buffer verify` tells which", "red"))
    if ring is not None:
        _stat_ring(console, ring, clocks)
    return 0


def _stat_ring(console: Console, ring: RingFound, clocks: dict[str, ClockState]) -> None:
    found = _Sum()
    for each in inspection.flown(ring):
        found.add(each.record)
    recovered = ring.recovered
    loose = sum(len(row.values) for each in recovered.loose for row in each.rows)
    known = sum(len(origins) for _, origins in recovered.origins)
    line = Text.assemble(("Flight ring", "bold"), "  ", found.text(clocks))
    line.append(f", {count(loose, 'reading')} in no record yet, {count(known, 'message')} remembered")
    console.print(line, soft_wrap=True)


def _title(console: Console, title: str, said: str) -> None:
    console.print(Text(title, "bold").append(f"  {said}" if said else "", "not bold"), soft_wrap=True)


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 100_000 else size_text(number)


# ── export ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _export(arguments: argparse.Namespace, store: Store, ring: RingFound | None) -> int:
    damaged: list[Damage] = []
    clocks = store.clocks()
    with _written(arguments.output) as file:
        for reading in _all_readings(store, ring, clocks, damaged):
            if _wanted(arguments, reading):
                file.write(_line(reading))
    if damaged:
        print(f"{count(len(damaged), 'record')} cannot be read: `gateway buffer verify` tells which", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _all_readings(
    store: Store, ring: RingFound | None, clocks: dict[str, ClockState], damaged: list[Damage]
) -> Iterator[Reading]:
    """Of the store, then of the ring what is not in the store."""
    ours = {(each.record.stream, each.record.seq) for each in inspection.flown(ring)} if ring is not None else set()
    stored: set[tuple[str, int]] = set()
    for stream in store.readable_streams():
        for each in store.records(stream):
            if isinstance(each, inspection.Damage):
                damaged.append(each)
                continue
            yield from inspection.readings(each.record, clocks)
            if (identity := (each.record.stream, each.record.seq)) in ours:
                stored.add(identity)
    if ring is None:
        return
    for flown in inspection.flown(ring):
        if (flown.record.stream, flown.record.seq) not in stored:
            yield from inspection.readings(flown.record, clocks)
    for loose in ring.recovered.loose:
        yield from inspection.loose_readings(loose.rows, SystemClock().state())


def _wanted(arguments: argparse.Namespace, reading: Reading) -> bool:
    return (
        (arguments.device is None or reading.device == arguments.device)
        and (arguments.since is None or reading.utc_ms >= arguments.since)
        and (arguments.until is None or reading.utc_ms < arguments.until)
    )


def _line(reading: Reading) -> str:
    import msgspec

    said = {
        "utc": utc_text(reading.utc_ms),
        "clock": reading.trust,
        "device": reading.device,
        "point": reading.point,
        "value": reading.value,
        "unit": reading.unit,
        "quality": reading.status,
    }
    return msgspec.json.encode(said).decode() + "\n"


@contextmanager
def _written(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w") as file:
            yield file
    except OSError as error:
        raise GatewayError(f"{path}: {error.strerror}") from error


# ── verify ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _verify(_: argparse.Namespace, store: Store, ring: RingFound | None) -> int:
    records = readings = 0
    damaged: list[Damage] = []
    wrong: list[str] = []
    try:
        store.streams()
    except StoreError as error:
        wrong.append(f"{error}: their records are lost")
    for stream in store.readable_streams():
        for each in store.records(stream, understand=True):
            if isinstance(each, inspection.Damage):
                damaged.append(each)
            else:
                records += 1
                readings += each.record.readings
    if ring is not None and ring.damaged:
        wrong.append("the flight ring holds something that cannot be read")
    in_ring = inspection.flown(ring) if ring is not None else []
    batches = sum(each.record.kind is RecordKind.BATCH for each in in_ring)
    beside = f", and {count(batches, 'batch', 'batches')} in the flight ring" if ring is not None else ""
    good = f"{count(records, 'record')} with {count(readings, 'reading')} in order{beside}"
    if not damaged and not wrong:
        print(f"{store.path}: {good}")
        return 0
    _complain(store, wrong, damaged, good)
    return EXIT_FAILED


def _complain(store: Store, wrong: Iterable[str], damaged: list[Damage], good: str) -> None:
    console = output()
    lines = [*wrong, *(f"{each.stream.lane} stream {each.stream.name}: {each.what}" for each in damaged[:_SHOWN])]
    if len(damaged) > _SHOWN:
        lines.append(f"and {count(len(damaged) - _SHOWN, 'further place')}")
    for line in lines:
        console.print(Text(printable(line), "red"), soft_wrap=True)
    lost = sum(each.readings for each in damaged)
    said = f"at least {count(lost, 'reading')}, as far as they can still be counted"
    console.print(Text(f"{store.path}: {good}; lost with the rest: {said}", "bold"), soft_wrap=True)
