"""Cutting a broker's bytes into packets, however they are split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.connectors.mqtt.frames import KEPT_BYTES, Cutter, Publish, pubacks
from gateway.errors import DecodeError

messages = st.builds(
    lambda topic, payload, packet_id, again, retained: Publish(
        topic, payload, packet_id, again and packet_id > 0, retained
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), min_size=1, max_size=30).map(str.encode),
    st.binary(max_size=300),
    st.integers(0, 65_535),
    st.booleans(),
    st.booleans(),
)


class Tape:
    """What paho writes is what a broker would: the same packet in the other direction."""

    def __init__(self) -> None:
        self.data = b""

    def send(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def close(self) -> None:
        pass


def written(message: Publish, version: MQTTProtocolVersion, properties: bool = False) -> bytes:
    client = Client(CallbackAPIVersion.VERSION2, protocol=version)
    tape = Tape()
    client._sock = tape  # type: ignore[assignment]
    extra = None
    if properties:
        extra = Properties(PacketTypes.PUBLISH)
        extra.ContentType = "x" * 200
        extra.UserProperty = ("key", "value")
    qos = 1 if message.packet_id else 0
    client._send_publish(
        message.packet_id,
        message.topic,
        message.payload,
        qos,
        message.retained,
        message.again,
        info=MQTTMessageInfo(message.packet_id),
        properties=extra,
    )
    client._sock = None
    return tape.data


def cut(data: bytes, sizes: list[int], five: bool) -> tuple[list[Publish], bytes, int]:
    cutter = Cutter(properties=five)
    found: list[Publish] = []
    others, pongs, at = b"", 0, 0
    while at < len(data):
        size = sizes[at % len(sizes)] if sizes else len(data)
        part = cutter.feed(data[at : at + size])
        found += part.messages
        others += part.others
        pongs += part.pongs
        at += size
    return found, others, pongs


@settings(deadline=None, max_examples=60)
@given(st.lists(messages, max_size=5), st.lists(st.integers(1, 40), max_size=4), st.booleans(), st.booleans())
def test_messages_come_out_as_a_client_wrote_them(
    sent: list[Publish], sizes: list[int], five: bool, properties: bool
) -> None:
    version = MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311
    others = [b"\xd0\x00", b"\x40\x02\x00\x07", b"\x90\x03\x00\x01\x01"]
    data = b"".join(written(m, version, five and properties) + others[i % 3] for i, m in enumerate(sent))
    found, rest, pongs = cut(data, sizes, five)
    assert found == sent
    assert rest == b"".join(others[i % 3] for i in range(len(sent)))
    assert pongs == len(range(0, len(sent), 3))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=3), st.booleans())
def test_garbage_is_a_decode_error_or_nothing(data: bytes, sizes: list[int], five: bool) -> None:
    try:
        cut(data, sizes, five)
    except DecodeError:
        pass


@pytest.mark.parametrize("size", [KEPT_BYTES - 20, KEPT_BYTES, KEPT_BYTES + 1, 3_000_000])
def test_a_huge_message_is_not_collected_and_the_next_one_is_found(size: int) -> None:
    huge = Publish(b"a/b", b"x" * size, 9, False, False)
    small = Publish(b"a/c", b"1", 10, False, False)
    data = b"".join(written(m, MQTTProtocolVersion.MQTTv311) for m in (small, huge, small))
    cutter = Cutter(properties=False)
    found: list[Publish] = []
    for at in range(0, len(data), 65_536):
        found += cutter.feed(data[at : at + 65_536]).messages
        assert len(cutter._rest) <= KEPT_BYTES + 65_536
    assert [(m.topic, m.packet_id) for m in found] == [(b"a/c", 10), (b"a/b", 9), (b"a/c", 10)]
    assert len(found[1].payload) <= min(size, KEPT_BYTES + 65_536)
    assert len(found[1].payload) >= min(size, KEPT_BYTES - 100)


def test_qos_2_is_left_to_the_client_library() -> None:
    packet = bytes((0x34, 7, 0, 1, ord("t"), 0, 5)) + b"x!"
    assert Cutter(properties=False).feed(packet).others == packet


def test_a_length_of_five_bytes_is_no_mqtt() -> None:
    with pytest.raises(DecodeError, match="four bytes"):
        Cutter(properties=False).feed(b"\x30\xff\xff\xff\xff\x01")


def test_pubacks_are_four_bytes_each() -> None:
    assert pubacks([1, 65_535]) == b"\x40\x02\x00\x01\x40\x02\xff\xff"
