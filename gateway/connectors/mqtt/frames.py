"""Pure: cuts what a broker sends into packets, and takes the messages out.

Messages (PUBLISH with QoS 0 or 1) are nearly all that arrives, so they are decoded here, in one pass over each read;
every other packet is left whole for the client library. A packet that is too large to be a reading is not collected:
its first bytes are enough to reject and to acknowledge it. MQTT 5.0, 2.1 and 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.errors import DecodeError

PUBLISH, PUBACK, PINGREQ, PINGRESP = 0x30, 0x40, 0xC0, 0xD0
_DUP, _QOS_1, _QOS_2, _RETAIN = 0x08, 0x02, 0x04, 0x01
KEPT_BYTES = 524_288
"""Of one packet: a topic (64 KiB), properties, and more payload than the mapping accepts."""

PING = bytes((PINGREQ, 0))


class Publish(NamedTuple):
    """One message as it came."""

    topic: bytes
    payload: bytes
    packet_id: int
    """0: QoS 0, nobody waits for an acknowledgement."""
    again: bool
    """DUP: it was sent before."""
    retained: bool
    at_ns: int = 0
    """When its last byte was read."""


class Cut(NamedTuple):
    """What one read brought."""

    messages: list[Publish]
    others: bytes
    """Whole packets for the client library."""
    pongs: int
    """PINGRESPs among the others."""


def pubacks(packet_ids: list[int]) -> bytes:
    """PUBACKs with reason success, in the form that is legal in both versions."""
    return b"".join(b"\x40\x02" + packet_id.to_bytes(2, "big") for packet_id in packet_ids)


class Cutter:
    """Cuts a stream of bytes, however it is split."""

    def __init__(self, properties: bool) -> None:
        self._properties = properties
        """MQTT 5: a message has properties."""
        self._rest = bytearray()
        self._need = 2
        """Bytes of `rest` with which it is worth looking again."""
        self._skip = 0
        """Bytes still to come of a packet that is too large."""

    def feed(self, data: bytes, at_ns: int = 0) -> Cut:
        """`at_ns`: when these bytes were read.

        Raises DecodeError when this is not MQTT; the stream is then of no further use.
        """
        cut: list[Publish] = []
        others: list[bytes] = []
        pongs = 0
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            if self._skip:
                return Cut([], b"", 0)
            data = data[skipped:]
            cut.append(self._message(bytes(self._rest), at_ns))
            self._rest.clear()
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return Cut(cut, b"", 0)
            data = bytes(self._rest)
            self._rest.clear()
        at, end = 0, len(data)
        while end - at >= 2:
            stop = self._end(data, at)
            if stop is None or stop > end:
                break
            head = data[at]
            if head & 0xF0 == PUBLISH and not head & _QOS_2:
                cut.append(self._message(data[at:stop], at_ns))
            else:
                pongs += head == PINGRESP
                others.append(data[at:stop])
            at = stop
        self._keep(data, at)
        return Cut(cut, b"".join(others), pongs)

    def _end(self, data: bytes, at: int) -> int | None:
        """Where the packet at `at` ends; None when its length is not complete."""
        length, shift = 0, 0
        for i in range(at + 1, min(at + 5, len(data))):
            byte = data[i]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                return i + 1 + length
            shift += 7
        if len(data) - at >= 5:
            raise DecodeError("a packet length of more than four bytes", at)
        return None

    def _keep(self, data: bytes, at: int) -> None:
        """What is left of a read is the beginning of a packet."""
        if at == len(data):
            return
        stop = self._end(data, at) if len(data) - at >= 2 else None
        self._rest += data[at:]
        self._need = 2 if stop is None else stop - at
        if self._need <= KEPT_BYTES or data[at] & 0xF0 != PUBLISH or data[at] & _QOS_2:
            return
        if len(self._rest) >= KEPT_BYTES:
            self._skip = self._need - len(self._rest)
            del self._rest[KEPT_BYTES:]
        self._need = KEPT_BYTES

    def _message(self, packet: bytes, at_ns: int) -> Publish:
        """`packet` may be the first KEPT_BYTES of one that is larger."""
        head, at = packet[0], 2
        while packet[at - 1] >= 0x80:
            at += 1
        size = len(packet)
        stop = at + 2
        if stop > size:
            raise DecodeError("a message without a topic")
        stop += packet[at] << 8 | packet[at + 1]
        topic = packet[at + 2 : stop]
        packet_id = 0
        if head & _QOS_1:
            packet_id = int.from_bytes(packet[stop : stop + 2], "big")
            stop += 2
            if not packet_id:
                raise DecodeError("a message with the packet id 0")
        if self._properties and stop < size:
            length, shift = 0, 0
            while True:
                if stop >= size or shift > 21:
                    raise DecodeError("a message with broken properties")
                byte = packet[stop]
                stop += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            stop += length
        elif self._properties:
            raise DecodeError("a message without properties")
        if stop > size:
            raise DecodeError("a message that ends early")
        return Publish(topic, packet[stop:], packet_id, bool(head & _DUP), bool(head & _RETAIN), at_ns)
