"""What a configuration allows and its author probably did not mean. Looks at files and interfaces that it names; else
pure."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gateway.config.positions import secret
from gateway.config.problems import Source
from gateway.config.schema import Config
from gateway.settings import KeyPath, Mistake, Table, fields, header

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def warnings(config: Config, tables: Mapping[KeyPath, Table], source: Source) -> Iterator[Mistake]:
    """Everything to look at, in no particular order."""
    for path, table in tables.items():
        for inner_path, inner in _within(path, table):
            yield from (Mistake((*inner_path, *each.path), each.message) for each in inner.warnings())
            yield from _files(inner_path, inner)
            yield from _strays(inner_path, inner, source)
    paths = {id(table): path for path, table in tables.items()}
    for each in config.buses:
        path = paths[id(each.bus)]
        if not each.devices:
            yield Mistake(path, "no device is in use on this bus")
        if each.kind.check is not None:
            yield from (Mistake(path, text) for text in each.kind.check(each.bus, each.devices))
    if not config.buses:
        yield Mistake((), "waiting for configuration: there is no [[bus]] to read from")
    if not config.uplink.endpoint:
        yield Mistake(("uplink",), "waiting for configuration: there is no [[uplink.endpoint]] to deliver to")
    for i, endpoint in enumerate(config.uplink.endpoint):
        if endpoint.interface and endpoint.interface not in {name for _, name in socket.if_nameindex()}:
            yield Mistake(("uplink", "endpoint", i, "interface"), _no_interface(endpoint.interface))
        url = urlsplit(endpoint.url)
        if url.scheme == "ws" and url.hostname not in _THIS_MACHINE:
            yield Mistake(
                ("uplink", "endpoint", i, "url"), "readings travel unencrypted; write wss:// if the server can"
            )


def _within(path: KeyPath, table: Table) -> Iterator[tuple[KeyPath, Table]]:
    """The table and every table in it, with paths as the file spells them."""
    yield path, table
    for field in fields(type(table)):
        value = getattr(table, field.attribute)
        for step, inner in enumerate(value) if isinstance(value, tuple) else ((None, value),):
            if isinstance(inner, Table):
                yield from _within((*path, field.name) if step is None else (*path, field.name, step), inner)


def _files(path: KeyPath, table: Table) -> Iterator[Mistake]:
    """Files that are named: there, not empty, and if they hold secrets for nobody else."""
    for field in fields(type(table)):
        value = getattr(table, field.attribute)
        holds = field.name.removesuffix("file").rstrip("_")
        if isinstance(value, Path) and holds != field.name and (wrong := _wrong_with(value, secret(holds))):
            yield Mistake((*path, field.name), wrong)


def _wrong_with(file: Path, confidential: bool) -> str:
    try:
        found = file.stat()
    except OSError as error:
        return f"{file} cannot be read from here: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return f"{file} is not a file"
    if not found.st_size:
        return f"{file} is empty"
    if confidential and found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return f"everybody on this machine can read {file}: chmod 600 {file}"
    return ""


def _no_interface(name: str) -> str:
    there = sorted(each for _, each in socket.if_nameindex() if each != "lo")
    return f"there is no interface {name} at the moment; there is {', '.join(there) or 'none'}"


def _strays(path: KeyPath, table: Table, source: Source) -> Iterator[Mistake]:
    """Keys of this table that were written below the header of a free table (`tags`) and so became part of it."""
    known = {field.name for field in fields(type(table))}
    for field in fields(type(table)):
        value = getattr(table, field.attribute)
        if isinstance(value, dict) and source.under_header((*path, field.name)):
            for word in known.intersection(value):
                here = header((*path, field.name))
                yield Mistake(
                    (*path, field.name, word),
                    f"is taken as a word of {here}; if the key of {header(path)} is meant, write it above {here}",
                )
