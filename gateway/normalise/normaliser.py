"""Pure: from samples to rows; what of a sample is news.

For each kind of sample (rule, device, points, units) a plan is compiled once. Most samples are good and their points
ask for nothing: then the tuple of values goes through as it is, under one shared shape.

Invariants:
- A value that is told carries its own instant and origin. Rows of one point leave in the order of its samples.
- Bad quality is told once when it begins, whenever its reason changes, and then at most every `bad_heartbeat_s`. The
  first value after it is told at once, whatever deadband and intervals say; so is every change of status.
- `min_interval` delays the last change, it does not lose it: what is still news when the interval is over comes from
  `tick`, with the instant at which it was measured. It carries no origin any more, see below.
- `expire_after` counts from the last sample, or from `start_ns` for a point that the configuration names and that was
  never heard of. The row says the instant at which the point became stale.
- Memory is bounded: above `pairs` device/point pairs that no configuration names, the least recently heard are
  forgotten. A forgotten point that comes back is told as if it were new.

A sample whose every reading is no news gives no row. If it has an origin, its source can be told at once: nothing of it
waits to be stored. (What `min_interval` holds back lives in memory only: thinning was asked for.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gateway.errors import DecodeError
from gateway.model import ClockState, Lane, Row, Sample, Shape, Status, Value
from gateway.normalise.judge import INT_MAX, INT_MIN, Judge
from gateway.normalise.memory import NS_PER_S, Cell, Held, Home
from gateway.normalise.timebase import NS_PER_MS, source_stamp
from gateway.points import Point

_AUTO_PAIRS = 10_000
_PlanKey = tuple[str, str, tuple[str, ...], tuple[str, ...] | None]


class _Plan:
    """How samples of one kind are treated."""

    __slots__ = ("cells", "home", "judges", "shape", "simple", "used_ns", "watched")

    def __init__(self, home: Home, judges: tuple[Judge, ...], cells: tuple[Cell, ...], shape: Shape) -> None:
        self.home = home
        self.judges = judges
        self.cells = cells
        self.shape = shape
        """All points in one row; used when all of them are news and of one lane."""
        one_lane = len({cell.lane for cell in cells}) == 1
        self.simple = one_lane and all(j.plain for j in judges) and not any(c.thinned or c.counter for c in cells)
        """Good values of a device without trouble pass as they are."""
        self.watched = tuple(cell for cell in cells if cell.expire_ns is not None)
        self.used_ns = 0


class Normaliser:
    """See the module. `points` names the points of each configured device or rule (`Sample.rule`)."""

    def __init__(
        self,
        points: Mapping[str, Sequence[Point]],
        *,
        bad_heartbeat_s: float = 60.0,
        start_ns: int | None = None,
        pairs: int = _AUTO_PAIRS,
    ) -> None:
        self._points = {rule: {point.name: point for point in group} for rule, group in points.items()}
        self._heartbeat_ns = round(max(bad_heartbeat_s, 1.0) * NS_PER_S)
        self._limit = pairs + sum(len(group) for group in points.values())
        self._homes: dict[str, Home] = {}
        self._plans: dict[_PlanKey, _Plan] = {}
        self._width = 0
        self._judges: dict[tuple[str, str, str], Judge] = {}
        self._shapes: dict[tuple[str, tuple[str, ...], tuple[str, ...], Lane], Shape] = {}
        self._expiries: list[tuple[int, int, Cell]] = []
        self._holds: list[tuple[int, int, Cell]] = []
        self._pushed = 0  # heap entries never compare cells
        self.suppressed = 0
        """Readings that were no news."""
        self.forgotten = 0
        """Device/point pairs that were given up to keep memory bounded."""
        if start_ns is not None:
            for device, group in points.items():
                self._expect(device, group, start_ns)

    def _expect(self, device: str, group: Sequence[Point], start_ns: int) -> None:
        """A point that never comes is stale too. The name of a rule for many devices is no device."""
        if "{" in device:
            return
        for point in group:
            if point.expire_after is not None:
                cell = self._cell(device, device, point.name, start_ns)
                cell.unit = self._judge(device, point.name, "").unit

    def rows(self, sample: Sample, clock: ClockState) -> list[Row]:
        """What of this sample is news: no row, one, or one for each lane (alarm first).

        Raises:
            DecodeError: the sample contradicts itself (its tuples differ in length, a point comes twice) or cannot be
                encoded (text that is not Unicode). That is a bug of its connector.
        """
        key = (sample.rule, sample.device, sample.points, sample.units)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._compile(key, sample.at_ns)
        values, at_ns = sample.values, sample.at_ns
        if len(values) != len(plan.cells) or (sample.status is not None and len(sample.status) != len(values)):
            raise DecodeError(f"{sample.device}: {len(plan.cells)} points need as many values and statuses")
        plan.used_ns = at_ns
        at_ms = at_ns // NS_PER_MS
        source_ms = sample.source_ms
        if source_ms is not None:
            source_ms = source_stamp(source_ms, at_ms, clock)
        if not (plan.simple and sample.status is None and plan.home.troubled == 0 and _passable(values)):
            return self._judged(plan, sample, at_ms, source_ms)
        for cell in plan.watched:
            cell.heard_ns = at_ns
        return [Row(plan.shape, at_ms, values, None, source_ms, sample.origin)]

    def _judged(self, plan: _Plan, sample: Sample, at_ms: int, source_ms: int | None) -> list[Row]:
        at_ns = sample.at_ns
        said: Iterable[Status] = sample.status or (Status.GOOD,) * len(sample.values)
        values: list[Value | None] = []
        statuses: list[Status] = []
        news: dict[Lane, list[int]] = {}
        for i, (raw, status, judge, cell) in enumerate(zip(sample.values, said, plan.judges, plan.cells, strict=True)):
            value, status = judge(raw, status)
            if cell.counter and value is not None and cell.counter.jumps(value, at_ns) and status is Status.GOOD:
                status = Status.COUNTER_JUMP
            values.append(value)
            statuses.append(status)
            if cell.hear(value, status, at_ns, source_ms, self._heartbeat_ns):
                news.setdefault(cell.lane, []).append(i)
            elif cell.held is None:
                self.suppressed += 1
            else:
                self._wait(cell)
        if len(news) == 2:
            news = {Lane.ALARM: news[Lane.ALARM], Lane.LIVE: news[Lane.LIVE]}
        rows = []
        for lane, indices in news.items():
            if len(indices) == len(values):
                shape, told, why = plan.shape, tuple(values), tuple(statuses)
            else:
                whole = plan.shape
                units = tuple([whole.units[i] for i in indices])
                shape = self._shape(whole.device, tuple([whole.points[i] for i in indices]), units, lane)
                told, why = tuple([values[i] for i in indices]), tuple([statuses[i] for i in indices])
            rows.append(Row(shape, at_ms, told, None if _all_good(why) else why, source_ms, sample.origin))
        return rows

    def _wait(self, cell: Cell) -> None:
        if not cell.holding:
            cell.holding = True
            self._push(self._holds, cell.told_ns + (cell.min_ns or 0), cell)

    def _push(self, heap: list[tuple[int, int, Cell]], due_ns: int, cell: Cell) -> None:
        self._pushed += 1
        heapq.heappush(heap, (due_ns, self._pushed, cell))

    def deadline(self) -> int | None:
        """When to call `tick` next (CLOCK_BOOTTIME, ns). It may find nothing to say then; None: there is no need."""
        return min((heap[0][0] for heap in (self._holds, self._expiries) if heap), default=None)

    def tick(self, now_ns: int) -> list[Row]:
        """What time alone has made news: changes that `min_interval` held back, and points that became stale."""
        released: dict[tuple[str, Lane, int, int | None], list[tuple[Cell, Held]]] = {}
        for cell, held in self._released(now_ns):
            released.setdefault((cell.device, cell.lane, held.at_ns, held.source_ms), []).append((cell, held))
        rows = []
        for (_, _, at_ns, source_ms), same in released.items():
            values = tuple(held.value for _, held in same)
            why = tuple(held.status for _, held in same)
            shape = self._shape_of([cell for cell, _ in same])
            rows.append(Row(shape, at_ns // NS_PER_MS, values, None if _all_good(why) else why, source_ms))
        stale: dict[tuple[str, Lane, int], list[Cell]] = {}
        for cell, at_ns in self._expired(now_ns):
            stale.setdefault((cell.device, cell.lane, at_ns), []).append(cell)
        for (_, _, at_ns), cells in stale.items():
            width = len(cells)
            rows.append(Row(self._shape_of(cells), at_ns // NS_PER_MS, (None,) * width, (Status.STALE,) * width))
        return rows

    def _shape_of(self, cells: Sequence[Cell]) -> Shape:
        first = cells[0]
        return self._shape(first.device, tuple(c.point for c in cells), tuple(c.unit for c in cells), first.lane)

    def _shape(self, device: str, points: tuple[str, ...], units: tuple[str, ...], lane: Lane) -> Shape:
        """Each shape is made once, so that its rows share a group in the batch."""
        key = (device, points, units, lane)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= self._limit:
                self._shapes.clear()
            shape = self._shapes[key] = Shape(*key)
        return shape

    def _released(self, now_ns: int) -> Iterator[tuple[Cell, Held]]:
        while self._holds and self._holds[0][0] <= now_ns:
            cell = heapq.heappop(self._holds)[2]
            cell.holding = False
            held = cell.held
            if held is None:
                continue
            if cell.told_ns + (cell.min_ns or 0) > now_ns:
                self._wait(cell)  # something was told in between; this came after it
                continue
            cell.held = None
            cell.tell(held.value, held.status, now_ns)
            yield cell, held

    def _expired(self, now_ns: int) -> Iterator[tuple[Cell, int]]:
        """Cells to be told as stale, and the instant to say."""
        while self._expiries and self._expiries[0][0] <= now_ns:
            cell = heapq.heappop(self._expiries)[2]
            expire_ns = cell.expire_ns or 0
            at_ns = cell.heard_ns + expire_ns
            if cell.status is Status.STALE:
                at_ns = max(at_ns, cell.told_ns + self._heartbeat_ns)
            if at_ns <= now_ns:
                cell.held = None
                cell.tell(None, Status.STALE, now_ns)
                yield cell, at_ns
                at_ns = now_ns + self._heartbeat_ns
            # never later than this: the point may be heard of any moment, and then fall silent again
            self._push(self._expiries, min(at_ns, now_ns + expire_ns), cell)

    def _compile(self, key: _PlanKey, now_ns: int) -> _Plan:
        rule, device, points, units = key
        if not points:
            raise DecodeError(f"{device}: a sample without points")
        if units is not None and len(units) != len(points):
            raise DecodeError(f"{device}: {len(points)} points need as many units")
        if len(set(points)) != len(points):
            raise DecodeError(f"{device}: a point comes twice in one sample")
        try:
            "".join((device, *points, *(units or ()))).encode()
        except UnicodeEncodeError as error:
            raise DecodeError(f"{device!r}: a name or unit is not Unicode") from error
        rule = rule or device
        judges = tuple(self._judge(rule, point, units[i] if units else "") for i, point in enumerate(points))
        cells = tuple(self._cell(rule, device, point, now_ns) for point in points)
        for cell, judge in zip(cells, judges, strict=True):
            cell.unit = judge.unit
            cell.plans += 1
        shape = self._shape(device, points, tuple(judge.unit for judge in judges), cells[0].lane)
        plan = self._plans[key] = _Plan(self._homes.setdefault(device, Home()), judges, cells, shape)
        plan.used_ns = now_ns
        self._width += len(cells)
        if self._width > self._limit:
            self._forget()
        return plan

    def _judge(self, rule: str, name: str, unit: str) -> Judge:
        point = self._points.get(rule, {}).get(name)
        key = (rule, name, unit) if point else ("", "", unit)
        judge = self._judges.get(key)
        if judge is None:
            if len(self._judges) >= self._limit:
                self._judges.clear()
            judge = self._judges[key] = Judge(point, unit)
        return judge

    def _cell(self, rule: str, device: str, name: str, now_ns: int) -> Cell:
        home = self._homes.setdefault(device, Home())
        cell = home.cells.get(name)
        if cell is None:
            point = self._points.get(rule, {}).get(name)
            pinned = point is not None and rule == device
            cell = home.cells[name] = Cell(home, device, name, point, pinned)
            cell.heard_ns = now_ns
            if cell.expire_ns is not None:
                self._push(self._expiries, now_ns + cell.expire_ns, cell)
        return cell

    def _forget(self) -> None:
        """Gives up the least recently used tenth, so that this is rare."""
        for key in sorted(self._plans, key=lambda key: self._plans[key].used_ns):
            if self._width <= self._limit * 9 // 10:
                break
            plan = self._plans.pop(key)
            self._width -= len(plan.cells)
            for cell in plan.cells:
                cell.plans -= 1
                if cell.plans or cell.pinned:
                    continue
                cell.forgotten = True
                self.forgotten += 1
                cell.home.troubled -= cell.status not in (None, Status.GOOD)
                del cell.home.cells[cell.point]
            if not plan.home.cells:
                self._homes.pop(key[1], None)
        for heap in (self._expiries, self._holds):
            heap[:] = [entry for entry in heap if not entry[2].forgotten]
            heapq.heapify(heap)


def _all_good(statuses: Sequence[Status]) -> bool:
    return statuses.count(Status.GOOD) == len(statuses)


def _passable(values: tuple[Value | None, ...]) -> bool:
    """Every value can travel as it is: the common case, decided without a call for each of them."""
    for value in values:
        kind = value.__class__
        if kind is float:
            if value - value != 0.0:  # type: ignore[operator]  # NaN or infinite
                return False
        elif kind is int:
            if not INT_MIN <= value <= INT_MAX:  # type: ignore[operator]
                return False
        elif kind is not bool:
            return False
    return True
