-- Who changed what, also where the gate has no part in it. What is added here, a version that does not know it leaves
-- alone.

CREATE INDEX audit_log_at ON audit_log (at, partition, epoch, seq);
CREATE INDEX audit_log_namespace ON audit_log (namespace, at, partition, epoch, seq);

-- Changes that do not come by an outbox and so have no position: of keys, of jobs, by an operator's hand. The other half
-- of audit_log; written in the transaction of the change.
CREATE TABLE deeds (
    id         BIGINT           GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         BIGINT           NOT NULL,
    actor      TEXT COLLATE "C" NOT NULL,
    action     TEXT COLLATE "C" NOT NULL,
    namespace  TEXT COLLATE "C",                 -- nothing for what is not of one
    subject    TEXT COLLATE "C" NOT NULL,
    request_id TEXT COLLATE "C"                  -- of the HTTP request, if it was one
);
CREATE INDEX deeds_at ON deeds (at, id);
CREATE INDEX deeds_namespace ON deeds (namespace, at, id);

ALTER TABLE api_keys ADD COLUMN expires_at BIGINT;  -- nothing for a key that goes on until it is revoked
