-- Codes in bulk. What is added here, a version that does not know it leaves alone.

ALTER TABLE namespaces ADD COLUMN code_check BOOLEAN NOT NULL DEFAULT FALSE;  -- the last character of a code checks it

ALTER TABLE invites ADD COLUMN batch UUID;                                    -- that it was made with
CREATE INDEX invites_batch ON invites (batch, code, id) WHERE batch IS NOT NULL;

-- What is to be made, and how far it is. The codes follow from secret, which is forgotten once they are made.
CREATE TABLE batches (
    id               UUID             PRIMARY KEY,
    namespace        TEXT COLLATE "C" NOT NULL,
    pattern          TEXT COLLATE "C" NOT NULL,
    alphabet         TEXT COLLATE "C" NOT NULL,
    total            BIGINT           NOT NULL,
    done             BIGINT           NOT NULL,  -- so many of the first are in this ledger
    grp              TEXT COLLATE "C" NOT NULL,
    max_uses         BIGINT,
    starts_at        BIGINT,
    expires_at       BIGINT,
    email_domains    TEXT COLLATE "C",
    metadata         TEXT COLLATE "C",
    actor            TEXT COLLATE "C" NOT NULL,
    secret           BYTEA,
    state            TEXT COLLATE "C" NOT NULL CHECK (state IN ('waiting', 'running', 'finished', 'failed')),
    reason           TEXT COLLATE "C",  -- why it failed, for people
    created_at       BIGINT           NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT,
    lease_owner      TEXT COLLATE "C",
    lease_token      BIGINT           NOT NULL,  -- counts the leases ever given: the fencing token
    lease_expires_at BIGINT           NOT NULL,
    CHECK (done BETWEEN 0 AND total)
);
CREATE INDEX batches_open ON batches (lease_expires_at) WHERE state IN ('waiting', 'running');
