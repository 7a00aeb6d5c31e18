"""`gateway demo`: simulated machines on real transports, the real gateway, the real cloud side, and a proof."""
