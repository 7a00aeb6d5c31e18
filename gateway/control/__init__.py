"""The local door: a unix socket through which `gateway status`, `tail`, `trace` and `read` reach the running daemon."""
