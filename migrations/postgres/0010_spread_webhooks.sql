-- Who is told what happens in namespaces that are spread over several partitions. What is added here, a version that does
-- not know it leaves alone.

-- How far a webhook is in each partition but that of its namespace itself, which is in webhooks.
CREATE TABLE webhook_cursors (
    webhook   UUID    NOT NULL,
    partition BIGINT  NOT NULL,
    epoch     BIGINT  NOT NULL,  -- what happened up to here has its delivery
    seq       BIGINT  NOT NULL,
    PRIMARY KEY (webhook, partition)
);

ALTER TABLE deliveries ADD COLUMN partition BIGINT NOT NULL DEFAULT -1;  -- of the event; -1 for that of the namespace itself
DROP INDEX deliveries_event;
CREATE UNIQUE INDEX deliveries_event ON deliveries (webhook, epoch, seq, partition);
CREATE INDEX deliveries_log ON deliveries (webhook, created_at, epoch, seq, partition);
