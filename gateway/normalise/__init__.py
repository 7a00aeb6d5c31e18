"""From samples to rows: one schema, whatever bus a value came from.

`judge`        what one raw value of one point is worth: sentinels, scale, unit, limits
`counter`      does a counter count: what falls or jumps is marked
`memory`       what was told last of each point, and whether the next value is news
`normaliser`   the whole: samples in, rows out; time itself as news (silence, held changes)
`timebase`     what the clock can be trusted with
"""
