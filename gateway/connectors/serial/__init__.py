"""Serial lines on which devices talk of their own accord: text, JSON, NMEA 0183. See README.md."""
