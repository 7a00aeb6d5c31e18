"""Pure: what a piece of text says: a number where it is one, else itself."""

from __future__ import annotations

import re

from gateway.model import Value

# neither int() nor float() alone will do: they take underscores, and other alphabets' digits
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf|NaN|NAN|Inf|INF)")


def scalar(text: str) -> Value:
    """`+21.50` → 21.5, `007` → 7, `nan` → NaN (which the normaliser makes bad), `OK` → `OK`."""
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
