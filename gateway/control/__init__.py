"""The local door: a unix socket through which `gateway status`, `tail` and `write` reach the running daemon."""
