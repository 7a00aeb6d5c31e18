"""Pure: document → `Config`, or every mistake in it.

What one table may hold is said by its declaration and found by `settings.read`. Here is what holds between tables:
devices refer to buses and take the shape of their bus's kind, what profiles and templates say of them is laid under
them, names are unique, keys that stand in the wrong table are told where they belong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from gateway.buffer.config import BufferSettings
from gateway.config.layers import Layer, Words, merge, words
from gateway.config.library import Profile
from gateway.config.problems import Source
from gateway.config.schema import LISTS, TABLES, Brought, BusConfig, Config, GatewaySettings
from gateway.connectors.base import AnyKind
from gateway.connectors.registry import Registry
from gateway.errors import ConfigError
from gateway.points import Bus, Device
from gateway.settings import KeyPath, Mistake, Table, closest, fields, header, nearest, read
from gateway.uplink.config import UplinkSettings

T = TypeVar("T", bound=Table)
Row = tuple[int, dict[str, Any]]

# systemd sets these from StateDirectory= and RuntimeDirectory=; what the file says wins
_FROM_SYSTEMD = {"state_dir": "STATE_DIRECTORY", "runtime_dir": "RUNTIME_DIRECTORY"}

_ELSEWHERE = {
    **dict.fromkeys(
        ("output", "outputs", "cloud", "server", "servers", "endpoint", "endpoints"), "[[uplink.endpoint]]"
    ),
    **dict.fromkeys(("broker", "mqtt"), '[[bus]] with kind = "mqtt"'),
    **dict.fromkeys(("input", "inputs", "modbus", "serial", "ble", "connection", "connections"), "[[bus]]"),
    **dict.fromkeys(("sensor", "sensors", "meter", "meters", "slave", "slaves"), "[[device]]"),
}
"""What others call a table → what it is called here."""


class Profiles(Protocol):
    """Where profiles come from."""

    def names(self) -> Sequence[str]: ...

    def find(self, name: str) -> Profile | None:
        """
        Raises:
            ConfigError: it is there and cannot be used.
        """


class Assembled(NamedTuple):
    """`config` is None when there are mistakes; `tables` is every table that could be read, by its path."""

    config: Config | None
    tables: dict[KeyPath, Table]
    mistakes: list[Mistake]
    warnings: list[Mistake]


def assemble(
    document: Mapping[str, Any], environ: Mapping[str, str], registry: Registry, profiles: Profiles, source: Source
) -> Assembled:
    """Nothing stops at the first mistake. `source` learns what is written elsewhere than the document has it."""
    one = _Assembly(document, registry, profiles, source)
    one.read_all()
    config = None if one.mistakes else one.config(environ)
    return Assembled(config, one.tables, one.mistakes, one.unused_templates())


class _Assembly:
    def __init__(self, document: Mapping[str, Any], registry: Registry, profiles: Profiles, source: Source) -> None:
        self._document = document
        self._registry = registry
        self._profiles = profiles
        self._source = source
        self.mistakes: list[Mistake] = []
        self.tables: dict[KeyPath, Table] = {}
        self._buses = self._rows("bus")
        self._bus_numbers = {row["name"]: n for n, row in reversed(self._buses) if isinstance(row.get("name"), str)}
        self._templates = self._rows("template")
        self._kinds = {i: kind for i, raw in self._buses if (kind := self._kind(i, raw)) is not None}
        self._bus_of: dict[int, int] = {}
        """Number of a device → number of its bus."""
        self._brought: dict[int, Brought] = {}
        self._used: set[int] = set()
        """Numbers of the templates that a device uses."""
        self._devices = [(i, whole) for i, raw in self._rows("device") if (whole := self._whole(i, raw)) is not None]
        self._headers = self._all_headers()

    def read_all(self) -> None:
        self._root()
        for name, table in TABLES:
            raw = self._document.get(name, {})
            if isinstance(raw, dict):
                self._read((name,), table, raw)
            else:
                shape = "with single brackets" if isinstance(raw, list) else "and its keys below"
                self._wrong((name,), f"there is only one: write [{name}] {shape}")
        for i, raw in self._buses:
            if i in self._kinds:
                self._read(("bus", i), self._kinds[i].bus, raw)
        for i, raw in self._devices:
            self._device(i, raw)
        self._unique(self._buses, ("bus",), "a bus")
        self._alone()
        for i, raw in self._templates:
            if not isinstance(raw.get("name"), str):
                self._wrong(("template", i), "`name` is missing: what devices call it, in `profile`")
        self._unique(self._templates, ("template",), "a template")
        self._unique(self._devices, ("device",), "a device")
        for i, raw in self._devices:
            points = raw.get("points")
            if isinstance(points, list):
                named = [(n, point) for n, point in enumerate(points) if isinstance(point, dict)]
                self._unique(named, ("device", i, "points"), "a point of this device")

    def config(self, environ: Mapping[str, str]) -> Config:
        """Only when there are no mistakes."""
        on: dict[int, list[Device]] = {i: [] for i, _ in self._buses}
        for number, its_bus in self._bus_of.items():
            device = self._got(Device, "device", number)
            if device.enabled:
                on[its_bus].append(device)
        buses = tuple(
            BusConfig(kind, bus, tuple(on[i]))
            for i, kind in self._kinds.items()
            if (bus := self._got(Bus, "bus", i)).enabled
        )
        gateway = self._got(GatewaySettings, "gateway")
        said = self._document.get("gateway", {})
        given = {key: environ.get(name, "").split(":")[0] for key, name in _FROM_SYSTEMD.items() if key not in said}
        gateway = msgspec.structs.replace(gateway, **{key: Path(path) for key, path in given.items() if path})
        brought = {self._got(Device, "device", i).name: each for i, each in self._brought.items()}
        return Config(gateway, self._got(BufferSettings, "buffer"), self._got(UplinkSettings, "uplink"), buses, brought)

    def unused_templates(self) -> list[Mistake]:
        """Nobody has read what these say."""
        unused = (i for i, _ in self._templates if i not in self._used)
        return [Mistake(("template", i), "no device uses this template: nothing in it was checked") for i in unused]

    # ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _wrong(self, path: KeyPath, message: str) -> None:
        self.mistakes.append(Mistake(path, message))

    def _read(self, path: KeyPath, table: type[T], raw: Mapping[str, Any]) -> list[Mistake]:
        result, mistakes = read(table, raw, path, self._headers)
        self.mistakes += mistakes
        if result is not None:
            self.tables[path] = result
        return mistakes

    def _got(self, table: type[T], *path: str | int) -> T:
        found = self.tables[path]
        assert isinstance(found, table), "it was read with this declaration"
        return found

    def _root(self) -> None:
        known = [*(name for name, _ in TABLES), *LISTS]
        for word, value in self._document.items():
            if word in known:
                continue
            places = [place for place, words in self._headers.items() if word in words]
            if isinstance(value, dict | list) and (here := _ELSEWHERE.get(word.lower())):
                self._wrong((word,), f"unknown table `{word}`; here it is {here}")
            elif closest(word, known) or not places:
                self._wrong((word,), f"unknown table or key `{word}`{nearest(word, known)}")
            else:
                inner = f"{places[0].strip('[]')}.{word}"
                shape = f", as [{inner}]" if isinstance(value, dict) else ""
                shape = (
                    f", as [[{inner}]]" if isinstance(value, list) and value and isinstance(value[0], dict) else shape
                )
                self._wrong((word,), f"`{word}` is a key of {places[0]}: write it below that header{shape}")

    def _rows(self, name: str) -> list[Row]:
        """The tables of a [[list]], numbered."""
        raw = self._document.get(name, [])
        if isinstance(raw, dict):
            self._wrong((name,), f"there can be several: write [[{name}]] with two brackets")
            return [(0, raw)]
        if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
            self._wrong((name,), f"expected tables: write [[{name}]] above the keys of each")
            return []
        return list(enumerate(raw))

    def _all_headers(self) -> dict[str, set[str]]:
        """Which keys belong where, for those that stand in the wrong table."""
        shapes: list[tuple[KeyPath, type[Table]]] = [((name,), table) for name, table in TABLES]
        for kind in self._kinds.values():
            shapes += [(("bus", 0), kind.bus), (("device", 0), kind.device)]
        found: dict[str, set[str]] = {}
        for path, shape in shapes:
            found.setdefault(header(path), set()).update(_words(shape))
        return found

    # ── what holds between tables ────────────────────────────────────────────────────────────────────────────────

    def _kind(self, i: int, raw: Mapping[str, Any]) -> AnyKind | None:
        name = raw.get("kind")
        if name is None:
            known = ", ".join(self._registry.names())
            misspelt = closest("kind", (word for word in raw if word not in _words(Bus)))
            if misspelt:
                self._wrong(("bus", i, misspelt), f"unknown key `{misspelt}`; did you mean `kind`?")
            else:
                self._wrong(("bus", i), f"`kind` is missing: which connector speaks on it; known: {known}")
        elif not isinstance(name, str):
            self._wrong(("bus", i, "kind"), "expected text in quotes")
        elif meant := self._meant_kind(name, raw):
            self._wrong(("bus", i, "kind"), f'no connector of kind "{name}" is installed; did you mean `{meant.name}`?')
            return meant
        else:
            try:
                return self._registry.kind(name)
            except ConfigError as error:
                self._wrong(("bus", i, "kind"), error.problems[0])
        return None

    def _meant_kind(self, name: str, raw: Mapping[str, Any]) -> AnyKind | None:
        """What a misspelt kind probably means, of several the one that fits best: so that the rest can be checked."""
        kinds = []
        for each in self._registry.alike(name):
            with contextlib.suppress(ConfigError):
                kinds.append(self._registry.kind(each))
        return min(kinds, key=lambda kind: len(read(kind.bus, raw)[1]), default=None)

    # ── what profiles and templates say ──────────────────────────────────────────────────────────────────────────

    def _whole(self, i: int, raw: dict[str, Any]) -> dict[str, Any] | None:
        """A device with all that its templates and profile say of it; None when one of them cannot be used."""
        layers = self._layers(i, raw)
        if layers is None:
            return None
        if len(layers) == 1:
            for word in ("only", "without"):
                if word in raw:
                    self._wrong(("device", i, word), "chooses among the points of a profile, and there is none")
            return raw
        bus = next((layer.raw["bus"] for layer in layers if "bus" in layer.raw), None)
        kind = next((self._kinds[n] for n, row in self._buses if n in self._kinds and row.get("name") == bus), None)
        profile = layers[-1].profile
        if kind is not None and profile is not None and kind.name not in profile.head.kinds:
            fitting = " or ".join(profile.head.kinds)
            self._wrong(
                ("device", i), f"profile {profile.name} is for a bus of kind {fitting}; {bus} is of kind {kind.name}"
            )
            return None
        whole = merge(layers, words(kind.device) if kind else Words())
        self.mistakes += whole.mistakes
        for path, written in whole.written.items():
            self._source.borrow(("device", i, *path), *written)
        self._brought[i] = Brought(tuple(layer.title for layer in layers[1:]), whole.brought, whole.left_out)
        return whole.raw

    def _layers(self, i: int, raw: Mapping[str, Any]) -> list[Layer] | None:
        """The device's own table and all that stand below it; None when one cannot be used, which has been told."""
        templates = {row["name"]: (n, row) for n, row in reversed(self._templates) if isinstance(row.get("name"), str)}
        layers = [Layer(raw, self._source, ("device", i))]
        while (layer := layers[-1]).profile is None:
            word = next((word for word in ("profile", "template") if word in layer.raw), None)
            if word is None:
                break
            name, place = layer.raw[word], (*layer.path, word)
            if not isinstance(name, str):
                if len(layers) == 1:
                    break  # the reader says what is wrong with it
                self._wrong(place, "expected the name of a profile or template in quotes")
                return None
            if name in templates:
                n, row = templates[name]
                if any(each.raw is row for each in layers):
                    self._wrong(place, f"template {name} stands on itself")
                    return None
                self._used.add(n)
                layers.append(Layer(row, self._source, ("template", n), f"template {name}"))
                continue
            profile = self._profile(name, place, templates)
            if profile is None:
                return None
            title = f"profile {name} ({profile.origin})"
            layers.append(Layer(profile.device, profile.source, ("device",), title, profile))
        return layers

    def _profile(self, name: str, place: KeyPath, templates: Iterable[str]) -> Profile | None:
        try:
            profile = self._profiles.find(name)
        except ConfigError as error:
            for problem in error.problems:
                self._wrong(place, f"profile {name} cannot be used: {problem}")
            return None
        if profile is None:
            close = closest(name, [*templates, *self._profiles.names()])
            hint = f"did you mean `{close}`?" if close else "`gateway profiles list` shows what there is"
            self._wrong(place, f'no profile or [[template]] is named "{name}"; {hint}')
        return profile

    # ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _device(self, i: int, raw: Mapping[str, Any]) -> None:
        bus = self._bus(i, raw)
        if bus is None or bus not in self._kinds:
            return
        self._bus_of[i] = bus
        kind = self._kinds[bus]
        other = self._better_kind(raw, kind) if raw.get("bus") == self._buses[bus][1].get("name") else None
        if other is None:
            self._read(("device", i), kind.device, raw)
            return
        there = ", ".join(f'"{row.get("name")}"' for n, row in self._buses if self._kinds.get(n) is other)
        foreign = ", ".join(f"`{word}`" for word in raw if word not in _words(kind.device))
        self._wrong(
            ("device", i, "bus"),
            f'bus "{raw["bus"]}" is of kind {kind.name}, and {foreign} belongs to a device of kind {other.name}; '
            f"such a bus is {there}",
        )

    def _bus(self, i: int, raw: Mapping[str, Any]) -> int | None:
        """The bus that a device refers to, or probably means: so that the rest of it can be checked all the same."""
        numbers, name = self._bus_numbers, raw.get("bus")
        if name is None:
            # the shape that fits best will say that `bus` is missing, and what else is wrong
            strange = {n: sum(word not in _words(kind.device) for word in raw) for n, kind in self._kinds.items()}
            if strange:
                return min(strange, key=lambda n: strange[n])
            self._wrong(("device", i), "`bus` is missing: name of the [[bus]] it sits on")
            return None
        if not isinstance(name, str):
            self._wrong(("device", i, "bus"), "expected the name of a [[bus]] in quotes")
            return None
        if name in numbers:
            return numbers[name]
        hint = nearest(name, numbers) if numbers else "; there is no [[bus]] in this file"
        self._wrong(("device", i, "bus"), f'no [[bus]] is named "{name}"{hint}')
        return numbers.get(closest(name, numbers))

    def _better_kind(self, raw: Mapping[str, Any], kind: AnyKind) -> AnyKind | None:
        """Another kind in this file that knows all keys of a device, when its own bus's kind does not."""
        if all(word in _words(kind.device) for word in raw):
            return None
        fitting = (other for other in self._kinds.values() if all(word in _words(other.device) for word in raw))
        return next(fitting, None)

    def _alone(self) -> None:
        """Two buses on one line or connection would talk into each other's answers, or shut each other out."""
        first: dict[str, str] = {}
        for i, _ in self._buses:
            bus = self.tables.get(("bus", i))
            claim = bus.medium() if isinstance(bus, Bus) and bus.enabled else None
            if not isinstance(bus, Bus) or claim is None:
                continue
            key, medium = claim
            if (owner := first.setdefault(medium, bus.name)) != bus.name:
                self._wrong(
                    ("bus", i, key),
                    f'{medium} is the bus "{owner}" already, which serves all devices there: write bus = "{owner}" '
                    f'for those of "{bus.name}"; most of what differs can be said of each device',
                )

    def _unique(self, rows: Iterable[Row], path: KeyPath, what: str) -> None:
        first: dict[str, int] = {}
        for i, row in rows:
            name = row.get("name")
            if isinstance(name, str) and first.setdefault(name, i) != i:
                self._wrong(
                    (*path, i, "name"),
                    f'"{name}" is already the name of {what}, in line {self._source.at((*path, first[name])).line}',
                )


def _words(table: type[Table]) -> set[str]:
    return {word for field in fields(table) for word in (field.name, *field.key.alias)}
