"""Pure: edge nodes of Sparkplug B as a host application sees them: born, speaking, dead. Sparkplug 3.0.0, 5 and 6.

    NBIRTH ──▶ names, aliases, datatypes of the node ── DBIRTH ──▶ … of one device ── NDATA, DDATA ──▶ readings
    NDEATH (the last will; its bdSeq must be that of the birth) ──▶ node and devices are offline
    DDEATH ──▶ the device is offline

An alias means what the last birth says. Messages of a node are numbered (`seq`, 0 to 255); when a number is missing a
birth may have been missed, and an alias may mean something else by now: until the node is born again only metrics that
carry their name are read, and the node is asked for a birth (`rebirths`), at most twice a minute.

Each metric says when it was measured, and that is its time; history (`is_historical`) is a reading like any other, of
its own time. Metrics that steer (`bdSeq`, `Node Control/…`, `Device Control/…`) and that are transient are none.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gateway.connectors.mqtt import tahu
from gateway.connectors.mqtt.tahu import Metric, Payload
from gateway.errors import DecodeError
from gateway.model import Status, Value

MAX_NODES = 1_000
MAX_METRICS = 50_000
"""Whose meaning is remembered, of all nodes together: about 20 MB."""
_REBIRTH_NS = 30 * 10**9
"""Between two requests to one node."""
REBIRTH = "Node Control/Rebirth"

Edge = tuple[str, str, str]
"""Group, node, device; the device is empty for the node itself."""


class Fact(NamedTuple):
    """One metric at one time."""

    name: str
    value: Value | None
    status: Status
    unit: str
    utc_ms: int | None


class Heard(NamedTuple):
    """What one message says."""

    edge: Edge
    facts: list[Fact]
    dead: tuple[Edge, ...] = ()
    rebirth: bool = False
    """Ask this node for a birth."""
    trouble: str = ""
    """Something of it could not be read."""


class _Meaning(NamedTuple):
    """What a birth says of a metric."""

    device: str
    name: str
    datatype: int
    unit: str


class _Node(msgspec.Struct):
    born: bool = False
    bd_seq: int | None = None
    seq: int | None = None
    """Of the last message; None: unknown, and no alias is trusted."""
    aliases: dict[int, _Meaning] = {}
    names: dict[tuple[str, str], _Meaning] = {}
    devices: set[str] = set()
    asked_ns: int | None = None


class Host:
    """All edge nodes of one broker."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, str], _Node] = {}

    def datatype(self, edge: Edge, name: str) -> int | None:
        """Of a metric, as its birth said; None before."""
        node = self._nodes.get(edge[:2])
        meaning = node.names.get((edge[2], name)) if node else None
        return meaning.datatype if meaning else None

    def take(self, topic: str, payload: bytes, at_ns: int) -> Heard | None:
        """One message; None for what is no report (commands, STATE, another namespace). Raises DecodeError."""
        levels = topic.split("/")
        if len(levels) not in (4, 5) or levels[0] != "spBv1.0":
            return None
        kind, edge = levels[2], (levels[1], levels[3], levels[4] if len(levels) == 5 else "")
        if kind not in _KINDS[len(levels) - 4]:
            return None
        node = self._nodes.get(edge[:2])
        if node is None:
            if len(self._nodes) >= MAX_NODES:
                raise DecodeError(f"more than {MAX_NODES} edge nodes")
            node = self._nodes[edge[:2]] = _Node()
        said = tahu.decode(payload)
        if kind.endswith("DEATH"):
            return _death(node, edge, kind, said, at_ns)
        trouble = ""
        if kind == "NBIRTH":
            node.born, node.bd_seq, node.seq = True, _bd_seq(said), said.seq
            node.aliases.clear()
            node.names.clear()
            node.devices.clear()
        elif not _follows(node, said):
            trouble = f"message {said.seq} does not follow {node.seq}" if node.born else "its birth is not known"
            node.seq, node.born = None, False
        if kind.endswith("BIRTH"):
            if kind == "DBIRTH":
                node.devices.add(edge[2])
            self._learn(node, edge[2], said)
        facts, unread = _facts(node, edge[2], said)
        trouble = trouble or unread
        return Heard(edge, facts, (), bool(trouble) and _may_ask(node, at_ns), trouble)

    def _learn(self, node: _Node, device: str, said: Payload) -> None:
        """The birth of a node or device: what its aliases and names mean from now on. Raises DecodeError."""
        for alias in [alias for alias, meaning in node.aliases.items() if meaning.device == device]:
            del node.aliases[alias]
        for key in [key for key in node.names if key[0] == device]:
            del node.names[key]
        if sum(len(each.names) for each in self._nodes.values()) + len(said.metrics) > MAX_METRICS:
            raise DecodeError(f"more than {MAX_METRICS} metrics on this broker")
        for metric in said.metrics:
            if metric.name is None or metric.datatype is None:
                continue
            meaning = _Meaning(device, metric.name, metric.datatype, metric.unit)
            node.names[device, metric.name] = meaning
            if metric.alias is not None:
                node.aliases[metric.alias] = meaning


_KINDS = (frozenset(("NBIRTH", "NDATA", "NDEATH")), frozenset(("DBIRTH", "DDATA", "DDEATH")))


def _death(node: _Node, edge: Edge, kind: str, said: Payload, at_ns: int) -> Heard:
    if kind == "NDEATH":
        of = _bd_seq(said)
        if node.bd_seq is not None and of is not None and of != node.bd_seq:
            return Heard(edge, [])  # the will of an earlier session that the broker published late
        dead = (edge, *((*edge[:2], device) for device in sorted(node.devices)))
        node.born, node.seq = False, None
        node.devices.clear()
        return Heard(edge, [], dead)
    follows = _follows(node, said)
    if not follows:
        node.seq, node.born = None, False
    node.devices.discard(edge[2])
    return Heard(edge, [], (edge,), not follows and _may_ask(node, at_ns))


def _follows(node: _Node, said: Payload) -> bool:
    """Whether nothing is missing between the last message and this one."""
    if not node.born or node.seq is None or said.seq != (node.seq + 1) % 256:
        return False
    node.seq = said.seq
    return True


def _may_ask(node: _Node, at_ns: int) -> bool:
    if node.asked_ns is not None and at_ns - node.asked_ns < _REBIRTH_NS:
        return False
    node.asked_ns = at_ns
    return True


def _bd_seq(said: Payload) -> int | None:
    for metric in said.metrics:
        if metric.name == "bdSeq":
            found, _ = tahu.value(metric, metric.datatype)
            return found if isinstance(found, int) else None
    return None


def _facts(node: _Node, device: str, said: Payload) -> tuple[list[Fact], str]:
    facts: list[Fact] = []
    trouble = ""
    for metric in said.metrics:
        meaning = _meaning(node, device, metric)
        if meaning is None:
            trouble = "a metric whose alias is not known, or not any more"
            continue
        if meaning.name == "bdSeq" or meaning.name.startswith(("Node Control/", "Device Control/")):
            continue
        found, status = tahu.value(metric, meaning.datatype)
        stamp = metric.timestamp_ms if metric.timestamp_ms is not None else said.timestamp_ms
        facts.append(Fact(meaning.name, found, status, metric.unit or meaning.unit, stamp))
    return facts, trouble


def _meaning(node: _Node, device: str, metric: Metric) -> _Meaning | None:
    if metric.name:
        known = node.names.get((device, metric.name)) if node.born else None
        datatype = metric.datatype if metric.datatype is not None else known.datatype if known else 0
        return _Meaning(device, metric.name, datatype, known.unit if known else "")
    known = node.aliases.get(metric.alias) if node.born and metric.alias is not None else None
    return known if known is not None and known.device == device else None
