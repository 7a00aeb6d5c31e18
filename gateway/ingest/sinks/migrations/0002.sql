-- Stamps by server time are put right as well when the gateway's own clock is set.
DROP INDEX batch_untrusted;
CREATE INDEX batch_untrusted ON batch (gateway, boot) WHERE trust IN ('unsynced', 'server');
