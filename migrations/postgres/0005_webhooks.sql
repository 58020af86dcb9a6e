-- Who is told what happens, and how far that is. What is added here, a version that does not know it leaves alone.

-- Events are read by namespace.
CREATE INDEX audit_log_events ON audit_log (namespace, epoch, seq);

CREATE TABLE webhooks (
    id               UUID             PRIMARY KEY,
    namespace        TEXT COLLATE "C" NOT NULL,
    url              TEXT COLLATE "C" NOT NULL,
    event_types      TEXT COLLATE "C",  -- with commas between them; nothing means all
    disabled         BOOLEAN          NOT NULL,
    reason           TEXT COLLATE "C",  -- why the service disabled it, for people
    failing_since    BIGINT,  -- of the first failure that no success came after
    cursor_epoch     BIGINT           NOT NULL,  -- what happened up to here has its delivery
    cursor_seq       BIGINT           NOT NULL,
    actor            TEXT COLLATE "C" NOT NULL,
    created_at       BIGINT           NOT NULL,
    updated_at       BIGINT           NOT NULL,
    lease_owner      TEXT COLLATE "C",
    lease_token      BIGINT           NOT NULL,  -- counts the leases ever given: the fencing token
    lease_expires_at BIGINT           NOT NULL
);
CREATE INDEX webhooks_namespace ON webhooks (namespace, id);

-- What messages are signed with; it can not be a digest. Each that has not expired signs.
CREATE TABLE webhook_secrets (
    webhook    UUID             NOT NULL,
    secret     BYTEA            NOT NULL,
    created_at BIGINT           NOT NULL,
    expires_at BIGINT,  -- nothing for the newest
    PRIMARY KEY (webhook, secret)
);

-- An event on its way to a receiver. It names the event and holds nothing of it.
CREATE TABLE deliveries (
    id              UUID             PRIMARY KEY,
    webhook         UUID             NOT NULL,
    epoch           BIGINT           NOT NULL,
    seq             BIGINT           NOT NULL,
    kind            TEXT COLLATE "C" NOT NULL,
    state           TEXT COLLATE "C" NOT NULL CHECK (state IN ('waiting', 'delivered', 'failed')),
    attempts        BIGINT           NOT NULL,
    due_at          BIGINT           NOT NULL,
    created_at      BIGINT           NOT NULL,
    attempted_at    BIGINT,
    response_status BIGINT,
    error           TEXT COLLATE "C"
);
CREATE UNIQUE INDEX deliveries_event ON deliveries (webhook, epoch, seq);
CREATE INDEX deliveries_due ON deliveries (webhook, due_at) WHERE state = 'waiting';
CREATE INDEX deliveries_done ON deliveries (created_at) WHERE state <> 'waiting';
