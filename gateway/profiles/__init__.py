"""Ready-made profiles: what a device's registers mean, as data. See README.md; `gateway.config.library` reads them."""
