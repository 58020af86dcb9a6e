-- Codes in bulk. What is added here, a version that does not know it leaves alone.

ALTER TABLE namespaces ADD COLUMN code_check INTEGER NOT NULL DEFAULT 0;  -- 1: the last character of a code checks it

ALTER TABLE invites ADD COLUMN batch TEXT;                                -- that it was made with
CREATE INDEX invites_batch ON invites (batch, code, id) WHERE batch IS NOT NULL;

-- What is to be made, and how far it is. The codes follow from secret, which is forgotten once they are made.
CREATE TABLE batches (
    id               TEXT    PRIMARY KEY,
    namespace        TEXT    NOT NULL,
    pattern          TEXT    NOT NULL,
    alphabet         TEXT    NOT NULL,
    total            INTEGER NOT NULL,
    done             INTEGER NOT NULL,            -- so many of the first are in this ledger
    grp              TEXT    NOT NULL,
    max_uses         INTEGER,
    starts_at        INTEGER,
    expires_at       INTEGER,
    email_domains    TEXT,
    metadata         TEXT,
    actor            TEXT    NOT NULL,
    secret           BLOB,
    state            TEXT    NOT NULL CHECK (state IN ('waiting', 'running', 'finished', 'failed')),
    reason           TEXT,                        -- why it failed, for people
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    lease_owner      TEXT,
    lease_token      INTEGER NOT NULL,            -- counts the leases ever given: the fencing token
    lease_expires_at INTEGER NOT NULL,
    CHECK (done BETWEEN 0 AND total)
) STRICT;
CREATE INDEX batches_open ON batches (lease_expires_at) WHERE state IN ('waiting', 'running');
