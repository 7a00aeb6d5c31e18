"""How the gateway presents itself to a broker: client id, password, certificates."""

from __future__ import annotations

import ssl
from hashlib import blake2b
from pathlib import Path

from gateway.connectors.mqtt.config import MqttBus
from gateway.errors import LinkError

_MACHINE_ID = Path("/etc/machine-id")


def default_client_id(bus_name: str) -> str:
    """The same at every start of this machine, another one on every other machine."""
    try:
        machine = _MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    return (
        f"gateway-{bus_name}-{blake2b(machine.encode(), digest_size=4).hexdigest()}"
        if machine
        else f"gateway-{bus_name}"
    )


def password(bus: MqttBus) -> str | None:
    """What the password file holds, without the end of its line."""
    if bus.password_file is None:
        return None
    try:
        return bus.password_file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LinkError(f"password_file: {error}") from error


def context(bus: MqttBus) -> ssl.SSLContext | None:
    """Raises OSError, also for what is wrong with the files."""
    if bus.tls is None:
        return None
    made = ssl.create_default_context(cafile=bus.tls.cafile)
    if bus.tls.certfile is not None:
        made.load_cert_chain(bus.tls.certfile, bus.tls.keyfile)
    return made
