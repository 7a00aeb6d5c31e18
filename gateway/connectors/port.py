"""A serial line on the event loop: set up by pyserial, read and written here.

Invariants:
- The port is ours alone while it is open: flock stops programs that ask, TIOCEXCL those that do not (root passes).
  A pseudo-terminal (socat's, for a serial server) stays exclusive when its owner is killed, as long as the other end is
  open, and nobody but root could open it again: there flock has to do.
- A port that hangs up is closed at once, before anyone is told: a dead descriptor that stays open is why a replugged
  adapter comes back as ttyUSB1, and a readable dead descriptor turns an event loop into a heater.
- `lost` is called at most once for each successful `open`, never after `close`, and never from within `open`. A failed
  `write` ends there too: there is one way to lose a line.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import serial
from serial.rs485 import RS485Settings

from gateway.errors import LinkError
from gateway.points import Bus
from gateway.settings import Duration, Key, Table

_READ_BYTES = 4096  # what the kernel's line discipline holds at most
_UNSENT_BYTES_MAX = 64 * 1024  # beyond what the kernel took; a line that stands still is lost, not hoarded for

_PSEUDO_TERMINALS = range(136, 144)  # major numbers of the ends that programs open


class Rs485(Table, frozen=True, kw_only=True):
    """Direction control by the kernel driver. Most USB adapters switch by themselves and need none of this."""

    rts_on_send: Annotated[bool, Key("RTS is high while sending")] = True
    rts_after_send: Annotated[bool, Key("RTS is high while receiving")] = False
    delay_before_send: Annotated[Duration, Key("from RTS to the first bit", max=0.1)] = 0.0
    delay_after_send: Annotated[Duration, Key("from the last bit to RTS", max=0.1)] = 0.0


class SerialSettings(Bus, frozen=True, kw_only=True):
    """A bus that is a serial port. Its kinds extend this (msgspec structs cannot be mixed in)."""

    port: Annotated[
        str,
        Key(
            "the port; prefer /dev/serial/by-id/…, which survives replugging",
            pattern=r"/\S+",
            example='"/dev/serial/by-id/usb-FTDI_FT232R_A50285BI-if00-port0"',
        ),
    ]
    baud_rate: Annotated[int, Key("bits per second", min=50, max=4_000_000, alias=("baudrate",))] = 9600
    parity: Annotated[Literal["N", "E", "O"], Key("none, even or odd")] = "N"
    stop_bits: Annotated[Literal[1, 2], Key("1 or 2", alias=("stopbits",))] = 1
    data_bits: Annotated[Literal[7, 8], Key("7 or 8", alias=("bytesize",))] = 8
    rs485: Annotated[
        Rs485 | None, Key("lets the kernel driver switch direction, where it can", example="{ rts_on_send = true }")
    ] = None

    def medium(self) -> tuple[str, str] | None:
        return "port", self.port

    @property
    def character_s(self) -> float:
        """Seconds that one character takes on the wire: start, data, parity and stop bits."""
        return (1 + self.data_bits + (self.parity != "N") + self.stop_bits) / self.baud_rate


class SerialPort:
    """One serial port; `received` gets its bytes and `lost` its end, both on the event loop."""

    def __init__(
        self, settings: SerialSettings, received: Callable[[bytes], None], lost: Callable[[LinkError], None]
    ) -> None:
        self._settings = settings
        self._received = received
        self._lost = lost
        self._serial: serial.Serial | None = None
        self._fd = -1
        self._unsent = bytearray()

    @property
    def is_open(self) -> bool:
        return self._serial is not None

    def open(self) -> None:
        """Opens, locks and sets up the port, and starts reading.

        Raises:
            LinkError: names the path, the reason and, where it can be seen, the program that holds the port.
        """
        assert self._serial is None, "open() on an open port"
        settings = self._settings
        port = serial.Serial(
            port=None,
            baudrate=settings.baud_rate,
            bytesize=settings.data_bits,
            parity=settings.parity,
            stopbits=settings.stop_bits,
            exclusive=True,
        )
        port.port = settings.port
        try:
            port.open()
        # ValueError: a baud rate that the driver refuses
        except (OSError, ValueError, termios.error) as error:
            raise LinkError(f"cannot open {settings.port}: {_reason(settings.port, error)}") from error
        try:
            self._set_up(port)
        except LinkError:
            port.close()
            raise
        self._serial, self._fd = port, port.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _set_up(self, port: serial.Serial) -> None:
        path, fd = self._settings.port, port.fileno()
        try:
            if os.major(os.fstat(fd).st_rdev) not in _PSEUDO_TERMINALS:
                fcntl.ioctl(fd, termios.TIOCEXCL)
            mode = termios.tcgetattr(fd)
            # what pyserial leaves on: a break condition would throw away the bytes that wait
            mode[0] &= ~(termios.BRKINT | termios.INPCK)
            # with 0, as pyserial leaves it, a read that finds nothing (`drain` was quicker) looks like a hang-up
            mode[6][termios.VMIN] = 1
            termios.tcsetattr(fd, termios.TCSANOW, mode)
        except (OSError, termios.error) as error:
            raise LinkError(f"cannot set up {path}: {_reason(path, error)}") from error
        try:
            port.set_low_latency_mode(True)
        except ValueError:
            pass  # ENOTTY, EPERM: this driver has no such timer, or we may not touch it
        rs485 = self._settings.rs485
        if rs485 is None:
            return
        try:
            port.rs485_mode = RS485Settings(
                rts_level_for_tx=rs485.rts_on_send,
                rts_level_for_rx=rs485.rts_after_send,
                delay_before_tx=rs485.delay_before_send,
                delay_before_rx=rs485.delay_after_send,
            )
        except ValueError as error:
            raise LinkError(
                f"{path}: its driver cannot switch RS-485 direction (TIOCSRS485 refused); "
                "remove `rs485` if the adapter switches by itself, else use another adapter"
            ) from error

    def write(self, data: bytes) -> None:
        """Sends; what the kernel does not take at once follows as it can. Nothing happens on a closed port."""
        if self._serial is None:
            return
        idle = not self._unsent
        self._unsent += data
        if len(self._unsent) > _UNSENT_BYTES_MAX:
            self._fail(f"stands still with {len(self._unsent)} bytes unsent")
        elif idle:
            self._writable()

    def drain(self) -> None:
        """Throws away input that waits in the kernel."""
        if self._serial is None:
            return
        try:
            termios.tcflush(self._fd, termios.TCIFLUSH)
        except termios.error as error:
            self._fail(_reason(self._settings.port, error))

    def close(self) -> None:
        """Closes at once; unsent output is thrown away. Closing twice is fine."""
        if self._serial is None:
            return
        port, self._serial = self._serial, None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        loop.remove_writer(self._fd)
        self._unsent.clear()
        try:
            # without it close(2) waits up to 30 s for a line that takes no more
            termios.tcflush(self._fd, termios.TCIOFLUSH)
            fcntl.ioctl(self._fd, termios.TIOCNXCL)
        except (OSError, termios.error):
            pass  # hung up: nothing left to flush
        self._fd = -1
        port.close()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(_reason(self._settings.port, error))
            return
        if not data:
            self._fail("hung up")
            return
        self._received(data)

    def _writable(self) -> None:
        try:
            sent = os.write(self._fd, self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(_reason(self._settings.port, error))
            return
        del self._unsent[:sent]
        loop = asyncio.get_running_loop()
        if self._unsent:
            loop.add_writer(self._fd, self._writable)
        else:
            loop.remove_writer(self._fd)

    def _fail(self, reason: str) -> None:
        self.close()
        self._lost(LinkError(f"{self._settings.port}: {reason}"))


def _reason(path: str, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else (error.args or (None,))[0]
    if number in (errno.EBUSY, errno.EAGAIN):
        program = holder(path)
        return f"in use by {program}" if program else "in use by another program"
    if number == errno.EIO:
        return "the device is gone (I/O error)"
    if number == errno.EACCES:
        return "permission denied; is this user in the group `dialout`?"
    if isinstance(number, int):
        return os.strerror(number)
    return str(error)


def holder(path: str) -> str:
    """`name (pid 123)` of a program that has the port open; empty when /proc does not tell."""
    try:
        node = os.stat(path)
    except OSError:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                # the node and not its device number: every container counts its pseudo-terminals from 0
                if os.path.samestat(node, descriptor.stat()):
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue  # another user's process, or one that just ended
    return ""
