"""The cloud side that ships with the gateway: one process, one folder, one port."""
