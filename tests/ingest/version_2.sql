-- A store as the second version of the tables left it. Frozen: never regenerate, never edit.
BEGIN TRANSACTION;
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
INSERT INTO "batch" VALUES(1,1,1,7,'g1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1700000000000,3,'synced','synced',111);
INSERT INTO "batch" VALUES(1,2,8,6,'g1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1700000000000,3,'synced','synced',111);
INSERT INTO "batch" VALUES(1,3,14,8,'g1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',0,-1,'unsynced','unsynced',111);
INSERT INTO "batch" VALUES(1,7,22,4,'g1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1700000000000,3,'synced','synced',111);
INSERT INTO "batch" VALUES(1,8,26,3,'g1','cccccccccccccccccccccccccccccccc',50,-1,'unsynced','unsynced',111);
INSERT INTO "batch" VALUES(1,9,31,0,'g1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1700000000000,3,'synced','synced',222);
INSERT INTO "batch" VALUES(1,10,31,1,'g1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1700000000000,3,'synced','synced',222);
INSERT INTO "batch" VALUES(2,1,29,1,'g1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',0,-1,'unsynced','unsynced',112);
INSERT INTO "batch" VALUES(3,1,30,1,'g2','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1700000000000,3,'synced','synced',222);
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
CREATE TABLE dead_letter (
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    error TEXT NOT NULL,
    body BLOB NOT NULL,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
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
INSERT INTO "gap" VALUES(1,4,6,'evicted',7,'',NULL,NULL,111);
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
CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL,
    ts_ms INTEGER NOT NULL,
    value,                               -- as it is: integer, real, text or null
    form INTEGER NOT NULL,               -- 0 as it is; +1 a bool; +2 an unsigned integer kept as its two's complement;
                                         -- +4 stamped by the device itself, so the gateway's clock does not move it
    status INTEGER NOT NULL
);
INSERT INTO "reading" VALUES(1,1,1700000001000,230.1,0,0);
INSERT INTO "reading" VALUES(2,1,1700000001100,NULL,0,7);
INSERT INTO "reading" VALUES(3,1,1700000001200,-1,2,0);
INSERT INTO "reading" VALUES(4,2,1700000001000,1,1,0);
INSERT INTO "reading" VALUES(5,2,1700000001100,'on',0,0);
INSERT INTO "reading" VALUES(6,2,1700000001200,-5,0,0);
INSERT INTO "reading" VALUES(7,3,1700000001005,1,0,0);
INSERT INTO "reading" VALUES(8,1,1700000002000,1,0,0);
INSERT INTO "reading" VALUES(9,1,1700000702000,2,0,0);
INSERT INTO "reading" VALUES(10,1,1700000052000,3,0,0);
INSERT INTO "reading" VALUES(11,2,1700000002000,4,0,0);
INSERT INTO "reading" VALUES(12,2,1700000702000,5,0,0);
INSERT INTO "reading" VALUES(13,2,1700000052000,6,0,0);
INSERT INTO "reading" VALUES(14,1,3000,11,0,0);
INSERT INTO "reading" VALUES(15,1,777,12,4,0);
INSERT INTO "reading" VALUES(16,1,778,13,4,0);
INSERT INTO "reading" VALUES(17,1,3003,14,0,0);
INSERT INTO "reading" VALUES(18,2,3000,15,0,0);
INSERT INTO "reading" VALUES(19,2,777,16,4,0);
INSERT INTO "reading" VALUES(20,2,778,17,4,0);
INSERT INTO "reading" VALUES(21,2,3003,18,0,0);
INSERT INTO "reading" VALUES(22,1,1700000000500,21,0,0);
INSERT INTO "reading" VALUES(23,1,1700000000510,22,0,0);
INSERT INTO "reading" VALUES(24,4,1700000000500,23,0,0);
INSERT INTO "reading" VALUES(25,4,1700000000510,24,0,0);
INSERT INTO "reading" VALUES(26,3,-699950,31,0,0);
INSERT INTO "reading" VALUES(27,3,-199950,32,0,0);
INSERT INTO "reading" VALUES(28,3,500050,33,0,0);
INSERT INTO "reading" VALUES(29,3,500100,34,0,0);
INSERT INTO "reading" VALUES(30,5,1700000000400,41,0,0);
INSERT INTO "reading" VALUES(31,1,1700000001200,51,0,0);
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
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL,
    device TEXT NOT NULL,
    point TEXT NOT NULL,
    unit TEXT NOT NULL,
    UNIQUE (gateway, device, point, unit)
);
INSERT INTO "series" VALUES(1,'g1','pump','u','V');
INSERT INTO "series" VALUES(2,'g1','pump','i','A');
INSERT INTO "series" VALUES(3,'g1','tank','u','V');
INSERT INTO "series" VALUES(4,'g1','pump','u','mV');
INSERT INTO "series" VALUES(5,'g2','tank','u','V');
CREATE TABLE sink (
    id TEXT NOT NULL,                    -- 128 random bits: gateways key their acks by it
    created_ms INTEGER NOT NULL,
    probed_ms INTEGER NOT NULL           -- written to find out whether the disk takes writes again
);
INSERT INTO "sink" VALUES('aa8b121d8d38b2a1e4105f73af6a3029',0,0);
CREATE TABLE status (
    id INTEGER PRIMARY KEY,              -- 0 is good
    name TEXT NOT NULL UNIQUE
);
INSERT INTO "status" VALUES(0,'good');
INSERT INTO "status" VALUES(1,'uncertain:out_of_range');
INSERT INTO "status" VALUES(2,'uncertain:retained');
INSERT INTO "status" VALUES(3,'uncertain:redelivered');
INSERT INTO "status" VALUES(4,'uncertain:substituted');
INSERT INTO "status" VALUES(5,'uncertain:counter_jump');
INSERT INTO "status" VALUES(6,'bad:comm_timeout');
INSERT INTO "status" VALUES(7,'bad:crc');
INSERT INTO "status" VALUES(8,'bad:exception');
INSERT INTO "status" VALUES(9,'bad:device_offline');
INSERT INTO "status" VALUES(10,'bad:sensor_fault');
INSERT INTO "status" VALUES(11,'bad:decode');
INSERT INTO "status" VALUES(12,'bad:stale');
INSERT INTO "status" VALUES(13,'bad:config');
INSERT INTO "status" VALUES(14,'bad:key_error');
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
INSERT INTO "stream" VALUES(1,'g1','11111111111111111111111111111111','live',10,'open','',111,222);
INSERT INTO "stream" VALUES(2,'g1','33333333333333333333333333333333','live',1,'open','',112,112);
INSERT INTO "stream" VALUES(3,'g2','22222222222222222222222222222222','live',2,'ended','',222,222);
CREATE TABLE token (
    digest BLOB PRIMARY KEY,             -- SHA-256 of 256 random bits: nothing to guess, nothing to read back
    name TEXT NOT NULL,
    role TEXT NOT NULL,                  -- gateway or viewer
    added_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX reading_by_time ON reading (series, ts_ms);
CREATE INDEX batch_by_reading ON batch (first);
CREATE INDEX clock_by_boot ON clock (gateway, boot);
CREATE INDEX command_by_gateway ON command (gateway, issued_ms);
CREATE VIEW readings AS
SELECT r.id, s.gateway, s.device, s.point, r.ts_ms, strftime('%Y-%m-%dT%H:%M:%fZ', r.ts_ms / 1000.0, 'unixepoch') AS utc,
       CASE WHEN r.form & 2 THEN printf('%llu', r.value) ELSE r.value END AS value,
       CASE WHEN r.form & 1 THEN 'bool' WHEN r.form & 2 THEN 'integer' ELSE typeof(r.value) END AS type,
       s.unit, q.name AS status,
       (SELECT trust FROM batch WHERE first <= r.id AND readings > 0 ORDER BY first DESC LIMIT 1) AS clock
FROM reading r JOIN series s ON s.id = r.series JOIN status q ON q.id = r.status;
CREATE VIEW latest AS
SELECT r.* FROM series s
JOIN readings r ON r.id = (SELECT id FROM reading WHERE series = s.id ORDER BY ts_ms DESC, id DESC LIMIT 1);
CREATE INDEX batch_untrusted ON batch (gateway, boot) WHERE trust IN ('unsynced', 'server');
COMMIT;
PRAGMA user_version=2;
