"""The uplink protocol: one wire, two sides, no I/O."""
