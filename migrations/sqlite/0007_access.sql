-- Who changed what, also where the gate has no part in it. What is added here, a version that does not know it leaves
-- alone.

CREATE INDEX audit_log_at ON audit_log (at, partition, epoch, seq);
CREATE INDEX audit_log_namespace ON audit_log (namespace, at, partition, epoch, seq);

-- Changes that do not come by an outbox and so have no position: of keys, of jobs, by an operator's hand. The other half
-- of audit_log; written in the transaction of the change.
CREATE TABLE deeds (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    actor      TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    namespace  TEXT,                              -- nothing for what is not of one
    subject    TEXT    NOT NULL,
    request_id TEXT                               -- of the HTTP request, if it was one
) STRICT;
CREATE INDEX deeds_at ON deeds (at, id);
CREATE INDEX deeds_namespace ON deeds (namespace, at, id);

ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;  -- nothing for a key that goes on until it is revoked
