"""The secrets of devices: the key that opens what a device seals, and the one that resolves its changing address.

The only door to the package `cryptography`, which is an extra (`pip install 'gateway[ble-keys]'`): a gateway without
encrypted sensors does not need it. A secret is never logged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.errors import DeviceError
from gateway.model import Status

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESCCM

KEY_BYTES: Final = 16
_TAG_BYTES: Final = 4


class BindKey:
    """AES-128-CCM; a `Key`."""

    def __init__(self, secret: bytes) -> None:
        """Raises DeviceError without the package."""
        self._cipher = _ccm(secret)

    def open(self, nonce: bytes, sealed: bytes, associated: bytes = b"") -> bytes | None:
        from cryptography.exceptions import InvalidTag

        if len(sealed) < _TAG_BYTES:
            return None
        try:
            return self._cipher.decrypt(nonce, sealed, associated or None)
        except InvalidTag:
            return None


class ResolvingKey:
    """The identity resolving key of one device (Core Specification, Vol 6, Part B, 1.3.2.3)."""

    def __init__(self, secret: bytes) -> None:
        """`secret` with the most significant byte first. Raises DeviceError without the package."""
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ImportError as error:
            raise DeviceError(_MISSING, Status.KEY_ERROR) from error
        # one block in ECB is AES itself: the random address function is defined by it
        self._encrypt = Cipher(algorithms.AES(secret), modes.ECB()).encryptor().update

    def made(self, address: bytes) -> bool:
        """True when this device made up the resolvable address: its lower half is the hash of its upper half."""
        return self._encrypt(bytes(13) + address[:3])[-3:] == address[3:]


_MISSING: Final = "the package cryptography is missing: pip install 'gateway[ble-keys]'"


def _ccm(secret: bytes) -> AESCCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESCCM
    except ImportError as error:
        raise DeviceError(_MISSING, Status.KEY_ERROR) from error
    return AESCCM(secret, tag_length=_TAG_BYTES)


def read_secret(path: Path) -> bytes:
    """The key in a file of 32 hexadecimal digits; spaces, colons and dashes between them do not matter.

    Raises:
        DeviceError: no such file, not readable, or not such a key.
    """
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}", Status.KEY_ERROR
        ) from error
    digits = text.translate(str.maketrans("", "", " :-\t\r\n"))
    try:
        secret = bytes.fromhex(digits)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise DeviceError(
            f"{path} does not hold a key: {2 * KEY_BYTES} hexadecimal digits are wanted", Status.KEY_ERROR
        )
    return secret
