"""Pure: uplinks of The Things Stack v3 (The Things Network, The Things Industries).

    v3/<application>[@<tenant>]/devices/<device>/up           a reading
    …/join, …/down/queued|sent|ack|nack|failed, …/service/data, …/location/solved   none

The document is what the application's payload formatter made (`decoded_payload`), and beside it, under `lorawan`, what
the radio says: `rssi` and `snr` of the gateway that heard it best, `gateways`, `spreading_factor`, `f_cnt`, `f_port`.
Its time is when the network server received it. Fields of the value 0, "" or false are absent from these messages, so
a missing `f_cnt` is 0. https://www.thethingsindustries.com/docs/integrations/data-formats/
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.codec.document import decode_json
from gateway.errors import DecodeError
from gateway.model import Json

REPEAT_NS = 60 * 10**9
"""The same frame again within this is the same uplink: a counter that began anew takes longer."""
UNITS = {"rssi": "dBm", "snr": "dB"}

Frame = tuple[str, int, str]
"""Session, counter and content: what tells one uplink from another."""


class Uplink(NamedTuple):
    found: dict[str, Json]
    received: str
    """When, as text with a time zone."""
    frame: Frame
    simulated: bool


def uplink(topic: str, payload: bytes) -> Uplink | None:
    """None: no uplink, or one of the network's own without a payload. Raises DecodeError."""
    if not topic.endswith("/up"):
        return None
    whole = decode_json(payload)
    message = _object(whole, "uplink_message")
    decoded = message.get("decoded_payload")
    raw = message.get("frm_payload")
    if not isinstance(decoded, dict):
        if not raw or not message.get("f_port"):
            return None
        raise DecodeError("no decoded_payload: the application needs a payload formatter")
    ids = whole.get("end_device_ids")
    session = message.get("session_key_id") or (ids.get("dev_addr") if isinstance(ids, dict) else None)
    counter = message.get("f_cnt", 0)
    received = message.get("received_at") or whole.get("received_at")
    return Uplink(
        {"lorawan": _radio(message), **decoded},
        received if isinstance(received, str) else "",
        (str(session), counter if isinstance(counter, int) else -1, str(raw)),
        whole.get("simulated") is True,
    )


def _object(whole: Json, key: str) -> dict[str, Json]:
    found = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(found, dict):
        raise DecodeError(f"no {key}")
    return found


def _radio(message: dict[str, Json]) -> dict[str, Json]:
    metadata = message.get("rx_metadata")
    heard = [each for each in metadata if isinstance(each, dict)] if isinstance(metadata, list) else []
    radio: dict[str, Json] = {"f_cnt": message.get("f_cnt", 0), "f_port": message.get("f_port", 0)}
    strong = [each for each in heard if _number(each.get("rssi"))]
    if strong:
        best = max(strong, key=lambda each: float(each["rssi"]))
        radio["rssi"] = best["rssi"]
        if _number(best.get("snr")):
            radio["snr"] = best["snr"]
    if heard:
        radio["gateways"] = len(heard)
    settings = message.get("settings")
    rate = settings.get("data_rate") if isinstance(settings, dict) else None
    lora = rate.get("lora") if isinstance(rate, dict) else None
    if isinstance(lora, dict) and _number(lora.get("spreading_factor")):
        radio["spreading_factor"] = lora["spreading_factor"]
    return radio


def _number(found: Json) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)
