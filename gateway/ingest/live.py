"""Pure: what a person sees of the running server: gateways, the newest value of each point, short trails.

"Newest" is by acquisition: a backlog that arrives late never moves a value back. Viewers are told what changed since
the version that they have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from gateway.model import ClockState, GapReason, Status, Value
from gateway.protocol.batch import Body, Group
from gateway.protocol.entry import Entry
from gateway.protocol.messages import GapBody, Hello

TRAIL: Final = 60
"""Points of a sparkline: at one value a second, a minute."""
MAX_SERIES: Final = 20_000
"""With its trail, one takes about 1 KiB; what is beyond is stored all the same, only not shown live."""
MAX_NAME: Final = 256
"""Characters of gateway, device and point together; longer ones are not shown live either."""
MAX_TEXT: Final = 200
"""Characters of a text value that are kept for viewers."""
_RATE_OVER_MS: Final = 5_000

_Shape = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""Gateway, device, points, units."""


class GatewayView(msgspec.Struct):
    """One gateway as viewers are told."""

    name: str
    online: bool = False
    endpoints: list[str] = []
    standbys: int = 0
    software: str = ""
    since_ms: int | None = None
    seen_ms: int | None = None
    lag_ms: int | None = None
    """Acquisition to store of the newest batch; only where the gateway's clock is trusted."""
    trust: str = ""
    readings: int = 0
    """Since the server started."""
    rate: float = 0.0
    """Readings a second over the last seconds."""
    gaps: int = 0
    lost: int = 0
    lost_unknown: bool = False
    stats: dict[str, Any] = {}


class Seed(NamedTuple):
    """The newest acquisition of one point, as the store has it."""

    gateway: str
    device: str
    point: str
    unit: str
    value: Value | None
    status: str
    ts_ms: int


class SeriesView(msgspec.Struct):
    """One point as viewers are told."""

    gateway: str
    device: str
    point: str
    unit: str
    text: str
    """The value exactly; JavaScript numbers end at 2^53."""
    number: float | None
    """For the trail."""
    status: str
    ts_ms: int
    trust: str


class _Series:
    """One point as it stands. What viewers are told is made when they ask: most values are never looked at."""

    __slots__ = ("device", "gateway", "point", "status", "trail", "trust", "ts_ms", "unit", "value", "version")

    def __init__(self, gateway: str, device: str, point: str, unit: str) -> None:
        self.gateway, self.device, self.point, self.unit = gateway, device, point, unit
        self.value: Value | None = None
        self.status: str = Status.GOOD
        self.ts_ms = -(2**63)
        self.trust = ""
        self.version = 0
        self.trail: deque[Value | None] = deque(maxlen=TRAIL)

    def view(self) -> SeriesView:
        text, number = shown(self.value)
        status = str(self.status)
        where = (self.gateway, self.device, self.point, self.unit)
        return SeriesView(*where, text, number, status, self.ts_ms, str(self.trust))


class LiveState:
    """Fed by the server on its event loop."""

    def __init__(self) -> None:
        self.gateways: dict[str, GatewayView] = {}
        self.version = 0
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._shapes: dict[_Shape, tuple[_Series | None, ...]] = {}
        self._cells = 0
        """Points in all of them."""
        self._counted: dict[str, deque[tuple[int, int]]] = {}

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def gateway(self, name: str) -> GatewayView:
        return self.gateways.setdefault(name, GatewayView(name))

    def sessions(self, name: str, endpoints: list[str], standbys: int, now_ms: int) -> None:
        """Which sessions it has now."""
        view = self.gateway(name)
        if bool(endpoints) != view.online:
            view.since_ms = now_ms
        view.online, view.endpoints, view.standbys = bool(endpoints), endpoints, standbys

    def hello(self, name: str, hello: Hello) -> None:
        view = self.gateway(name)
        view.software, view.trust = hello.software, hello.clock.trust.value

    def stats(self, name: str, values: Mapping[str, Any]) -> None:
        self.gateway(name).stats = dict(values)

    def stored(self, entry: Entry, offset_ms: int | None, now_ms: int) -> None:
        """The entry has been committed; `offset_ms` is what its stamps were made with."""
        view = self.gateway(entry.gateway)
        view.seen_ms = now_ms
        match entry.body:
            case Body() if offset_ms is not None:
                self._batch(view, entry.body, offset_ms, now_ms)
            case GapBody() if entry.body.reason is not GapReason.STORED_ELSEWHERE:
                self.gaps(entry.gateway, 1, entry.body.readings or 0, entry.body.readings is None)
            case ClockState():
                view.trust = entry.body.trust.value

    def gaps(self, name: str, count: int, lost: int, unknown: bool) -> None:
        """So many more gaps with so many readings; `unknown`: and nobody knows how many besides."""
        view = self.gateway(name)
        view.gaps += count
        view.lost += lost
        view.lost_unknown |= unknown

    def seed(self, readings: Iterable[Seed]) -> None:
        """What the store knows when the server starts."""
        for gateway, device, point, unit, value, status, ts_ms in readings:
            self.gateway(gateway)
            [series] = self._of(gateway, device, (point,), (unit,))
            if series is not None:
                series.value, series.status, series.ts_ms = _kept(value), status, ts_ms
                series.trail.append(series.value)

    def _batch(self, view: GatewayView, body: Body, offset_ms: int, now_ms: int) -> None:
        self.version += 1
        view.trust = body.clock.trust.value
        newest, readings = 0, 0
        for group in body.groups:
            if group.t:
                newest = max(newest, self._group(view.name, group, body, offset_ms))
                readings += len(group.t) * len(group.points)
        if body.clock.error_ms >= 0 and newest:
            view.lag_ms = max(0, now_ms - newest)
        view.readings += readings
        self._counted.setdefault(view.name, deque(maxlen=4096)).append((now_ms, readings))

    def _group(self, gateway: str, group: Group, body: Body, offset_ms: int) -> int:
        at_ms = body.base_ms + offset_ms
        newest, row = -(2**63), 0
        for k, step in enumerate(group.t):
            at_ms += step
            own = group.source_ms[k] if group.source_ms is not None else None
            stamp = at_ms if own is None else own
            if stamp >= newest:
                newest, row = stamp, k
        version, trust = self.version, body.clock.trust
        for i, series in enumerate(self._of(gateway, group.device, group.points, group.units)):
            if series is not None and newest >= series.ts_ms:
                column = group.q[i] if group.q is not None else None
                series.value = value = _kept(group.v[i][row])
                series.status = Status.GOOD if column is None else column[row]
                series.ts_ms, series.trust, series.version = newest, trust, version
                series.trail.append(value)
        return newest

    def _of(
        self, gateway: str, device: str, points: tuple[str, ...], units: tuple[str, ...]
    ) -> tuple[_Series | None, ...]:
        """The series of one shape; None where there are too many already."""
        shape = (gateway, device, points, units)
        known = self._shapes.get(shape)
        if known is None:
            known = tuple(self._find(gateway, device, point, unit) for point, unit in zip(points, units, strict=True))
            if points and None not in known and max(map(len, units)) <= MAX_NAME:  # else there is no end of names
                self._remember(shape, known)
        return known

    def _remember(self, shape: _Shape, series: tuple[_Series | None, ...]) -> None:
        if self._cells + len(series) > 4 * MAX_SERIES:  # somebody makes up shapes: begin again
            self._shapes.clear()
            self._cells = 0
        self._shapes[shape] = series
        self._cells += len(series)

    def _find(self, gateway: str, device: str, point: str, unit: str) -> _Series | None:
        series = self._series.get((gateway, device, point))
        fits = len(self._series) < MAX_SERIES and len(gateway) + len(device) + len(point) <= MAX_NAME
        if series is None and fits:
            series = self._series[gateway, device, point] = _Series(gateway, device, point, unit)
        if series is not None:
            series.unit = unit[:MAX_TEXT]
        return series

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def gateways_at(self, now_ms: int) -> list[GatewayView]:
        """By name, rates brought up to date."""
        for name, view in self.gateways.items():
            counted = self._counted.get(name)
            while counted and counted[0][0] < now_ms - _RATE_OVER_MS:
                counted.popleft()
            view.rate = sum(n for _, n in counted) * 1000 / _RATE_OVER_MS if counted else 0.0
        return [self.gateways[name] for name in sorted(self.gateways)]

    def series(self) -> list[tuple[SeriesView, list[float | None]]]:
        """All of them with their trails, in order of their names."""
        found = [self._series[key] for key in sorted(self._series)]
        return [(each.view(), [shown(value)[1] for value in each.trail]) for each in found]

    def changed(self, since: int) -> list[SeriesView]:
        """Those that a viewer who has version `since` does not know yet."""
        return [each.view() for each in self._series.values() if each.version > since]


def _kept(value: Value | None) -> Value | None:
    """Of a long text the beginning: viewers need no more, and memory is bounded."""
    return value[:MAX_TEXT] if isinstance(value, str) else value


def shown(value: Value | None) -> tuple[str, float | None]:
    """As text, exact, and as a number where it is one."""
    if value is None:
        return "", None
    if isinstance(value, bool):
        return ("true" if value else "false"), float(value)
    if isinstance(value, str):
        return value, None
    return repr(value), float(value)
