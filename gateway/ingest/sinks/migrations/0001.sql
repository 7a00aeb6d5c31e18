-- What the store keeps. All times are milliseconds; *_ms without another word are UTC.

CREATE TABLE sink (
    id TEXT NOT NULL,                    -- 128 random bits: gateways key their acks by it
    created_ms INTEGER NOT NULL,
    probed_ms INTEGER NOT NULL           -- written to find out whether the disk takes writes again
);

CREATE TABLE gateway (
    name TEXT PRIMARY KEY,
    added_ms INTEGER NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0,
    process TEXT NOT NULL DEFAULT '',    -- of the newest hello
    software TEXT NOT NULL DEFAULT '',
    hello_ms INTEGER,
    devices TEXT NOT NULL DEFAULT '{}',  -- JSON: device -> tags
    writable TEXT NOT NULL DEFAULT '{}'  -- JSON: device -> points
) WITHOUT ROWID;

CREATE TABLE token (
    digest BLOB PRIMARY KEY,             -- SHA-256 of 256 random bits: nothing to guess, nothing to read back
    name TEXT NOT NULL,
    role TEXT NOT NULL,                  -- gateway or viewer
    added_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- A mark is never deleted: it is all that tells a batch sent again after a year from a new one.
CREATE TABLE stream (
    id INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL,
    name TEXT NOT NULL,
    lane TEXT NOT NULL,
    mark INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open',  -- open, ended, or unclean: its process is gone and it never said end
    process TEXT NOT NULL DEFAULT '',
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    UNIQUE (gateway, name)
);

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL,
    device TEXT NOT NULL,
    point TEXT NOT NULL,
    unit TEXT NOT NULL,
    UNIQUE (gateway, device, point, unit)
);

CREATE TABLE status (
    id INTEGER PRIMARY KEY,              -- 0 is good
    name TEXT NOT NULL UNIQUE
);

-- Readings of one batch have consecutive ids, so the batch needs no column here: `batch.first .. first + readings - 1`.
CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL,
    ts_ms INTEGER NOT NULL,
    value,                               -- as it is: integer, real, text or null
    form INTEGER NOT NULL,               -- 0 as it is; +1 a bool; +2 an unsigned integer kept as its two's complement;
                                         -- +4 stamped by the device itself, so the gateway's clock does not move it
    status INTEGER NOT NULL
);
CREATE INDEX reading_by_time ON reading (series, ts_ms);

CREATE TABLE batch (
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    first INTEGER NOT NULL,              -- id of its first reading
    readings INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    boot TEXT NOT NULL,
    offset_ms INTEGER NOT NULL,          -- in use now: a clock record of the boot may have corrected it
    error_ms INTEGER NOT NULL,
    trust TEXT NOT NULL,                 -- as above
    sent_trust TEXT NOT NULL,            -- as it came
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
CREATE INDEX batch_by_reading ON batch (first);
CREATE INDEX batch_untrusted ON batch (gateway, boot) WHERE trust = 'unsynced';

CREATE TABLE gap (
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    last INTEGER NOT NULL,
    reason TEXT NOT NULL,
    readings INTEGER,                    -- null: nobody knows
    device TEXT NOT NULL,
    since_ms INTEGER,
    until_ms INTEGER,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;

CREATE TABLE clock (
    id INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL,
    boot TEXT NOT NULL,
    offset_ms INTEGER NOT NULL,
    error_ms INTEGER NOT NULL,
    trust TEXT NOT NULL,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    received_ms INTEGER NOT NULL
);
CREATE INDEX clock_by_boot ON clock (gateway, boot);

CREATE TABLE dead_letter (
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    error TEXT NOT NULL,
    body BLOB NOT NULL,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;

CREATE TABLE command (
    id TEXT PRIMARY KEY,
    gateway TEXT NOT NULL,
    device TEXT NOT NULL,
    point TEXT NOT NULL,
    op TEXT NOT NULL,
    value TEXT NOT NULL,                 -- JSON
    issued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    sent_ms INTEGER                      -- null: never left this server
) WITHOUT ROWID;
CREATE INDEX command_by_gateway ON command (gateway, issued_ms);

CREATE TABLE result (
    command TEXT NOT NULL,
    gateway TEXT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    value TEXT NOT NULL,                 -- JSON
    ended_ms INTEGER,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (gateway, command)
) WITHOUT ROWID;

CREATE VIEW readings AS
SELECT r.id, s.gateway, s.device, s.point, r.ts_ms, strftime('%Y-%m-%dT%H:%M:%fZ', r.ts_ms / 1000.0, 'unixepoch') AS utc,
       CASE WHEN r.form & 2 THEN printf('%llu', r.value) ELSE r.value END AS value,
       CASE WHEN r.form & 1 THEN 'bool' WHEN r.form & 2 THEN 'integer' ELSE typeof(r.value) END AS type,
       s.unit, q.name AS status,
       (SELECT trust FROM batch WHERE first <= r.id AND readings > 0 ORDER BY first DESC LIMIT 1) AS clock
FROM reading r JOIN series s ON s.id = r.series JOIN status q ON q.id = r.status;

-- The newest acquisition of each series, whenever it arrived.
CREATE VIEW latest AS
SELECT r.* FROM series s
JOIN readings r ON r.id = (SELECT id FROM reading WHERE series = s.id ORDER BY ts_ms DESC, id DESC LIMIT 1);
