-- Strips instead of readings are indexed: what a commit writes grows with the groups in it, not with their series.

-- A shape is a run of series, as one group of a batch has them. A series may stand in many, and in one twice.
CREATE TABLE shape (
    id INTEGER PRIMARY KEY,
    digest BLOB UNIQUE                   -- of the ids of its series; null: made below for readings of old
);
CREATE TABLE shape_series (
    series INTEGER NOT NULL,
    shape INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (series, shape, position)
) WITHOUT ROWID;

-- Rows of one group that follow one another: reading k at position p has the id `first + p * rows + k`. Every reading
-- is in one strip. The stamps of a strip are at most 600 s apart, and a strip does not reach beyond its batch.
CREATE TABLE strip (
    first INTEGER PRIMARY KEY,           -- id of its first reading
    shape INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    from_ms INTEGER NOT NULL,            -- the smallest and the largest ts_ms in it
    to_ms INTEGER NOT NULL,
    stamped INTEGER NOT NULL             -- 1: all of it by the device itself, so the gateway's clock does not move it
);

-- Clock records that are being applied: to batches before this reading id; done up to (stream, seq).
CREATE TABLE correction (
    clock INTEGER PRIMARY KEY,
    before INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL
);

-- Readings of old: a shape for each series; a strip for what follows one another in a batch (2^19 ms are 524 s).
INSERT INTO shape (id) SELECT id FROM series;
INSERT INTO shape_series SELECT id, id, 0 FROM series;
INSERT INTO strip
SELECT r.id, r.series, 0, 0, 0, r.form >> 2 & 1
FROM reading r LEFT JOIN reading p ON p.id = r.id - 1
WHERE p.id IS NULL OR p.series != r.series OR p.form >> 2 != r.form >> 2 OR p.ts_ms >> 19 != r.ts_ms >> 19
   OR EXISTS (SELECT 1 FROM batch WHERE first = r.id);
UPDATE strip SET (rows, from_ms, to_ms) = (
    SELECT count(*), min(ts_ms), max(ts_ms) FROM reading WHERE id >= strip.first
    AND id < coalesce((SELECT min(n.first) FROM strip n WHERE n.first > strip.first), 9223372036854775807)
);
CREATE INDEX strip_by_time ON strip (shape, to_ms);
DROP VIEW latest;
DROP VIEW readings;
DROP INDEX reading_by_time;

-- One reading for people.
CREATE VIEW shown AS
SELECT r.id, r.series, r.ts_ms, strftime('%Y-%m-%dT%H:%M:%fZ', r.ts_ms / 1000.0, 'unixepoch') AS utc,
       CASE WHEN r.form & 2 THEN printf('%llu', r.value) ELSE r.value END AS value,
       CASE WHEN r.form & 1 THEN 'bool' WHEN r.form & 2 THEN 'integer' ELSE typeof(r.value) END AS type,
       q.name AS status,
       (SELECT trust FROM batch WHERE first <= r.id AND readings > 0 ORDER BY first DESC LIMIT 1) AS clock
FROM reading r JOIN status q ON q.id = r.status;

-- Found from its series, by strips, or from its id: for the latter the strip is named a second time. `strip_ms` is the
-- end of the strip: a range of time in a long series is found at once with
-- `ts_ms BETWEEN a AND b AND strip_ms BETWEEN a AND b + 600000`.
CREATE VIEW readings AS
SELECT r.id, s.gateway, s.device, s.point, r.ts_ms, r.utc, r.value, r.type, s.unit, r.status, r.clock,
       t.to_ms AS strip_ms
FROM series s JOIN shape_series x ON x.series = s.id JOIN strip t ON t.shape = x.shape
JOIN shown r ON r.series = s.id AND t.first = (SELECT max(first) FROM strip WHERE first <= r.id)
    AND likelihood(r.id >= t.first + x.position * t.rows, 0.0005)
    AND likelihood(r.id < t.first + (x.position + 1) * t.rows, 0.0005);

-- The newest acquisition of each series, whenever it arrived: by the newest strip of each shape that it stands in.
CREATE VIEW newest AS
SELECT s.id AS series, (
    SELECT r.id FROM shape_series x
    JOIN strip t ON t.first = (SELECT first FROM strip WHERE shape = x.shape ORDER BY to_ms DESC, first DESC LIMIT 1)
    JOIN reading r ON r.id >= t.first + x.position * t.rows AND r.id < t.first + (x.position + 1) * t.rows
    WHERE x.series = s.id ORDER BY r.ts_ms DESC, r.id DESC LIMIT 1
) AS reading
FROM series s;

CREATE VIEW latest AS
SELECT r.id, s.gateway, s.device, s.point, r.ts_ms, r.utc, r.value, r.type, s.unit, r.status, r.clock
FROM series s JOIN newest n ON n.series = s.id JOIN shown r ON r.id = n.reading;

-- What is known of a boot, by its own clock and by servers, is asked for each batch that does not know it itself.
DROP INDEX clock_by_boot;
CREATE INDEX clock_own ON clock (gateway, boot) WHERE trust IN ('synced', 'holdover');
CREATE INDEX clock_told ON clock (gateway, boot) WHERE trust = 'server';

-- A hello asks which streams of its gateway are open.
CREATE INDEX stream_open ON stream (gateway) WHERE state = 'open';
