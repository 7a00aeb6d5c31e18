"""The credentials of one endpoint as time goes by: whether their files change, and whether what they hold ends soon.

Who renews them is somebody else's business; that nobody has done it is said in good time: when less than a fifth of a
certificate's or token's life is left, 30 days at most, and again when it is over.
"""

from __future__ import annotations

import logging
from enum import IntEnum
from typing import Final

from gateway.errors import AuthError
from gateway.model import Json
from gateway.uplink.auth import Credentials
from gateway.uplink.certificate import Validity
from gateway.uplink.config import Endpoint

_SHARE: Final = 0.2
_MOST_S: Final = 30 * 86_400.0
_log = logging.getLogger(__name__)


class _Stage(IntEnum):
    GOOD = 0
    ENDS = 1
    OVER = 2


class Watch:
    """See the module. `look` is cheap while nothing has changed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._label = endpoint.label
        self._credentials = Credentials(endpoint)
        self._version = b""
        self._ends: dict[str, Validity] = {}
        self._told: dict[str, _Stage] = {}
        self._utc_s: float | None = None

    def look(self, utc_s: float | None) -> bytes:
        """What the files are now. `utc_s`: seconds since 1970, None while nobody knows."""
        version = self._credentials.version()
        if version != self._version:
            self._version = version
            try:
                self._ends = self._credentials.ends()
            except AuthError:
                self._ends = {}  # the next attempt to connect says so
        self._utc_s = utc_s
        if utc_s is not None:
            for what, validity in self._ends.items():
                self._tell(what, _stage(validity, utc_s), validity.ends_s - utc_s)
        return version

    def _tell(self, what: str, stage: _Stage, left_s: float) -> None:
        told = self._told.get(what, _Stage.GOOD)
        self._told[what] = stage
        if stage > told and stage is _Stage.OVER:
            _log.error("uplink: %s: our %s has ended: renew it", self._label, what)
        elif stage > told:
            _log.warning("uplink: %s: our %s ends in %s and nobody has renewed it", self._label, what, _span(left_s))
        elif stage < told:
            _log.info("uplink: %s: our %s was renewed: %s left", self._label, what, _span(left_s))

    def status(self) -> Json:
        """What ends first, if anything does and the time is known."""
        if self._utc_s is None or not self._ends:
            return None
        what, validity = min(self._ends.items(), key=lambda each: each[1].ends_s)
        stage = _stage(validity, self._utc_s)
        left_s = validity.ends_s - self._utc_s
        warnings = {_Stage.ENDS: f"our {what} ends in {_span(left_s)}", _Stage.OVER: f"our {what} has ended"}
        return {"what": what, "days_left": round(left_s / 86_400, 2), "warning": warnings.get(stage)}


def _stage(validity: Validity, utc_s: float) -> _Stage:
    left_s = validity.ends_s - utc_s
    life_s = validity.ends_s - (validity.begins_s or 0.0)
    if left_s <= 0:
        return _Stage.OVER
    return _Stage.ENDS if left_s < min(_SHARE * life_s, _MOST_S) else _Stage.GOOD


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} seconds"
