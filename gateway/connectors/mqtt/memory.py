"""Pure: what one connector of a bus leaves to the next: the supervisor builds a new one after every lost link."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gateway.connectors.mqtt.config import MqttDevice
from gateway.connectors.mqtt.mapping import Mapper

_KEPT_REJECTS = 5


class Memory:
    """Of one bus, for as long as the process lives."""

    def __init__(self, devices: Sequence[MqttDevice]) -> None:
        self.mapper = Mapper(devices)
        self.gone_since: float | None = None
        """Monotonic: since when the broker is out of reach."""
        self.cut_off = False
        """And that has been told of every point."""
        self.listened = False
        """This process has subscribed before: it has had the broker's stored copies."""
        self.messages = self.unmatched = self.rejected = 0
        self.last_rejects: deque[str] = deque(maxlen=_KEPT_REJECTS)
        self.refused: dict[str, None] = {}
        """Parts of announcements that are not read, in sentences."""
