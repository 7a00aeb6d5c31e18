"""Edge gateway: sensors in, one trusted uplink out."""

__version__ = "0.1.0"
