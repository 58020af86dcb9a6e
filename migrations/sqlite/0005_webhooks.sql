-- Who is told what happens, and how far that is. What is added here, a version that does not know it leaves alone.

-- Events are read by namespace.
CREATE INDEX audit_log_events ON audit_log (namespace, epoch, seq);

CREATE TABLE webhooks (
    id               TEXT    PRIMARY KEY,
    namespace        TEXT    NOT NULL,
    url              TEXT    NOT NULL,
    event_types      TEXT,                        -- with commas between them; nothing means all
    disabled         INTEGER NOT NULL,
    reason           TEXT,                        -- why the service disabled it, for people
    failing_since    INTEGER,                     -- of the first failure that no success came after
    cursor_epoch     INTEGER NOT NULL,            -- what happened up to here has its delivery
    cursor_seq       INTEGER NOT NULL,
    actor            TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    lease_owner      TEXT,
    lease_token      INTEGER NOT NULL,            -- counts the leases ever given: the fencing token
    lease_expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX webhooks_namespace ON webhooks (namespace, id);

-- What messages are signed with; it can not be a digest. Each that has not expired signs.
CREATE TABLE webhook_secrets (
    webhook    TEXT    NOT NULL,
    secret     BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,                           -- nothing for the newest
    PRIMARY KEY (webhook, secret)
) STRICT;

-- An event on its way to a receiver. It names the event and holds nothing of it.
CREATE TABLE deliveries (
    id              TEXT    PRIMARY KEY,
    webhook         TEXT    NOT NULL,
    epoch           INTEGER NOT NULL,
    seq             INTEGER NOT NULL,
    kind            TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('waiting', 'delivered', 'failed')),
    attempts        INTEGER NOT NULL,
    due_at          INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    attempted_at    INTEGER,
    response_status INTEGER,
    error           TEXT
) STRICT;
CREATE UNIQUE INDEX deliveries_event ON deliveries (webhook, epoch, seq);
CREATE INDEX deliveries_due ON deliveries (webhook, due_at) WHERE state = 'waiting';
CREATE INDEX deliveries_done ON deliveries (created_at) WHERE state <> 'waiting';
