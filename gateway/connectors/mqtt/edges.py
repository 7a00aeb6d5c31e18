"""Pure: from edge nodes of Sparkplug B to the samples of configured devices.

Metrics of one message that were measured at the same time are one sample. A point's path is the name of a metric.
"""

from __future__ import annotations

from gateway.connectors.mqtt.devices import Fleet, Heard, Mapped, Rule
from gateway.connectors.mqtt.sparkplug import Edge, Fact, Host
from gateway.connectors.mqtt.tahu import encode
from gateway.connectors.mqtt.topics import Template, Topics
from gateway.connectors.mqtt.writing import Publication, writable
from gateway.errors import DecodeError
from gateway.model import Origin, Status, Value

PREFIX = b"spBv1.0/"
_EARLIEST_MS, _LATEST_MS = 946_684_800_000, 4_102_444_800_000  # 2000-01-01, 2100-01-01


class Edges:
    """All configured nodes and devices of one broker; false when there are none."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._host = Host()
        self._rules: Topics[Rule] = Topics()
        self._some = False
        self._edges: dict[str, Edge] = {}
        """Device → what it is in Sparkplug."""

    def __bool__(self) -> bool:
        return self._some

    def add(self, rule: Rule) -> None:
        self._rules.add(Template.of(rule.device.topic), rule)
        self._some = True

    def map(
        self, topic: bytes, payload: bytes, retained: bool, at_ns: int, origin: Origin | None, into: Mapped
    ) -> None:
        """One message of the namespace. A stored one is none: births and data are never retained (6.1.3)."""
        if retained:
            return
        into.matched = True
        try:
            said = self._host.take(topic.decode(), payload, at_ns)
        except (DecodeError, UnicodeDecodeError) as error:
            into.rejected.append(f"{topic.decode(errors='replace')}: {error}")
            return
        if said is None:
            return
        if said.rebirth:
            into.rebirths = (said.edge[:2],)
        if said.trouble:
            into.refused = (f"{'/'.join(said.edge[:2])}: {said.trouble}",)
        for edge in said.dead:
            for heard in self._heard(edge, into):
                heard.last_ns = at_ns
                heard.gone("death", "it or its node has died", at_ns, origin, into)
        for heard in self._heard(said.edge, into) if said.facts else ():
            heard.messages += 1
            heard.last_ns = at_ns
            heard.back(into, "a message")
            _tell(heard, said.facts, at_ns, origin, into)

    def _heard(self, edge: Edge, into: Mapped) -> list[Heard]:
        """Who is configured for a node or device."""
        found = []
        group, node, device = edge
        for match in self._rules.match(f"spBv1.0/{group}/DATA/{node}/{device}".rstrip("/")):
            try:
                heard = self._fleet.of(match.value, match.captures)
            except DecodeError as error:
                into.rejected.append(str(error))
                continue
            self._edges[heard.id] = edge
            found.append(heard)
        return found

    def publication(self, heard: Heard, point_name: str, value: Value, utc_ms: int) -> Publication:
        """A command to a metric. Raises ValueError: its birth is not known, or the value is none of its datatype."""
        point = writable(heard, point_name)
        edge = self._edges.get(heard.id)
        name = point.path or point.name
        datatype = self._host.datatype(edge, name) if edge is not None else None
        if edge is None or datatype is None:
            raise ValueError(f"{heard.id}.{point_name} has not been announced by a birth")
        group, node, device = edge
        topic = f"spBv1.0/{group}/DCMD/{node}/{device}" if device else f"spBv1.0/{group}/NCMD/{node}"
        return Publication(topic, encode(name, datatype, point.raw_of(value), utc_ms), False)


def _tell(heard: Heard, facts: list[Fact], at_ns: int, origin: Origin | None, into: Mapped) -> None:
    by_time: dict[int | None, dict[str, Fact]] = {}
    for fact in facts:
        name = heard.name_of(fact.name, fact.value)
        if name is not None:
            stamp = fact.utc_ms
            sane = stamp if stamp is not None and _EARLIEST_MS <= stamp <= _LATEST_MS else None
            same = by_time.setdefault(sane, {})
            same.pop(name, None)
            same[name] = fact
    for source_ms, told in by_time.items():
        values = tuple([each.value for each in told.values()])
        status = tuple([each.status for each in told.values()])
        units = tuple([each.unit for each in told.values()])
        if any(isinstance(value, str) and len(value) > 1_024 for value in values):
            status = tuple([Status.DECODE if _long(v) else s for v, s in zip(values, status, strict=True)])
            values = tuple([None if _long(value) else value for value in values])
        into.samples.append(heard.sample(tuple(told), values, status, units, at_ns, source_ms, origin))


def _long(value: Value | None) -> bool:
    return isinstance(value, str) and len(value) > 1_024
