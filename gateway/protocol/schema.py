"""All messages as one JSON Schema (2020-12), made from the types, for whoever writes the other side.

`python -m gateway.protocol.schema` writes it to `schema.json` beside this file; a test holds that file and types agree.
`#/$defs/FromGateway` is what a gateway may send, `#/$defs/FromServer` what a server may; every message stands under its
`type`. Members that it does not name are allowed: receivers ignore them [C5].

What no schema can say is in `README.md`: sizes in bytes, columns of equal length, readings of one batch, the order of
messages.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway import model
from gateway.model import STATUS_PATTERN, ClockState
from gateway.protocol import batch, messages
from gateway.protocol.batch import Body
from gateway.protocol.messages import SUBPROTOCOL, FromGateway, FromServer, GapBody

FILE: Final = Path(__file__).with_name("schema.json")
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REF: Final = "#/$defs/{name}"
_TYPES: Final = (FromGateway, FromServer, Body, GapBody, ClockState)


def schema() -> dict[str, Any]:
    """Any message of either side."""
    (gateway, server, *_), types = msgspec.json.schema_components(_TYPES, ref_template=_REF)
    known = types["Status"].pop("enum")
    types["Status"] |= {"type": "string", "pattern": f"^({STATUS_PATTERN})$", "examples": known}
    for name, member, meaning in _meanings():
        if member in types.get(name, {}).get("properties", {}):
            types[name]["properties"][member]["description"] = meaning
    sides = {
        "FromGateway": {"description": "What a gateway sends.", **gateway},
        "FromServer": {"description": "What a server sends.", **server},
    }
    return {
        "$schema": _DIALECT,
        "title": SUBPROTOCOL,
        "anyOf": [{"$ref": _REF.format(name=name)} for name in sides],
        "$defs": {**sides, **dict(sorted(types.items()))},
    }


def _meanings() -> Iterator[tuple[str, str, str]]:
    """Type, member, and the text that stands below the member."""
    for module in (model, batch, messages):
        for kind in ast.walk(ast.parse(inspect.getsource(module))):
            if not isinstance(kind, ast.ClassDef):
                continue
            for above, below in pairwise(kind.body):
                match above, below:
                    case ast.AnnAssign(ast.Name(member)), ast.Expr(ast.Constant(str(meaning))):
                        yield kind.name, member, " ".join(meaning.split())


def text() -> str:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
