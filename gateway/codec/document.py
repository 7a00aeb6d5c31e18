"""Pure: JSON as devices write it. Shared by every connector that reads JSON.

Integers are exact to 64 bits and beyond. `NaN` and `Infinity`, which are no JSON but what Python programs publish, are
read as what they say; the normaliser makes them bad.
"""

from __future__ import annotations

import json

import msgspec

from gateway.errors import DecodeError
from gateway.model import Json

_decoder = msgspec.json.Decoder()


def decode_json(payload: bytes) -> Json:
    """Any JSON document. Raises DecodeError, which never quotes the payload."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if b"NaN" not in payload and b"Infinity" not in payload:
            raise DecodeError(f"not JSON: {type(error).__name__}") from error
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {type(error).__name__}") from error
