-- Who is told what happens in namespaces that are spread over several partitions. What is added here, a version that does
-- not know it leaves alone.

-- How far a webhook is in each partition but that of its namespace itself, which is in webhooks.
CREATE TABLE webhook_cursors (
    webhook   TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,                   -- what happened up to here has its delivery
    seq       INTEGER NOT NULL,
    PRIMARY KEY (webhook, partition)
) STRICT;

ALTER TABLE deliveries ADD COLUMN partition INTEGER NOT NULL DEFAULT -1;  -- of the event; -1 for that of the namespace itself
DROP INDEX deliveries_event;
CREATE UNIQUE INDEX deliveries_event ON deliveries (webhook, epoch, seq, partition);
CREATE INDEX deliveries_log ON deliveries (webhook, created_at, epoch, seq, partition);
