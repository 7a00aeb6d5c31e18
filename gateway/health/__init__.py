"""Is real work advancing? What a person and systemd are told about it."""
