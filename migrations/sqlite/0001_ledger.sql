-- The ledger: what redeemer remembers. All times are milliseconds since 1970-01-01T00:00:00Z.
-- epoch and seq of a row name the outbox entry that last wrote it.
-- The same tables, column by column, are in migrations/postgres.

-- One row: which deployment this ledger belongs to.
CREATE TABLE deployment (
    only_row     INTEGER PRIMARY KEY CHECK (only_row = 1),
    id           TEXT    NOT NULL,
    schema       INTEGER NOT NULL,
    partitions   INTEGER NOT NULL,
    created_at   INTEGER NOT NULL
) STRICT;

-- What each partition of the gate is open on, how far the ledger has its changes, and who brings them.
CREATE TABLE partitions (
    partition        INTEGER PRIMARY KEY,
    state            TEXT    NOT NULL CHECK (state IN ('new', 'open', 'closed')),
    reason           TEXT,                        -- why it stays closed or is not synced, for people
    epoch            INTEGER NOT NULL,
    lineage          TEXT,
    cursor_epoch     INTEGER NOT NULL,
    cursor_seq       INTEGER NOT NULL,
    lease_owner      TEXT,
    lease_token      INTEGER NOT NULL,            -- counts the leases ever given: the fencing token
    lease_expires_at INTEGER NOT NULL,
    synced_at        INTEGER,
    requested        TEXT,                        -- what an operator wants: from_ledger or from_gate
    whole_from       INTEGER NOT NULL             -- the first epoch of which every change is here
) STRICT;

CREATE TABLE namespaces (
    name           TEXT    PRIMARY KEY,
    partition      INTEGER NOT NULL,
    membership     TEXT    NOT NULL,
    code_case      TEXT    NOT NULL,
    durability     TEXT    NOT NULL,
    rate_user      TEXT,
    rate_ip        TEXT,
    rate_code      TEXT,
    rate_namespace TEXT,
    rate_guess     TEXT,
    revision       INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    archived_at    INTEGER,
    epoch          INTEGER NOT NULL,
    seq            INTEGER NOT NULL
) STRICT;

CREATE TABLE invites (
    id            TEXT    PRIMARY KEY,
    namespace     TEXT    NOT NULL,
    partition     INTEGER NOT NULL,
    code          TEXT    NOT NULL,
    grp           TEXT    NOT NULL,
    max_uses      INTEGER,
    uses          INTEGER NOT NULL,
    granted       INTEGER NOT NULL,
    starts_at     INTEGER,
    expires_at    INTEGER,
    disabled      INTEGER NOT NULL,
    user_id       TEXT,
    email_domains TEXT,
    metadata      TEXT,
    revision      INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    holds_code    INTEGER NOT NULL,               -- 0 once a new invite has taken the code
    epoch         INTEGER NOT NULL,
    seq           INTEGER NOT NULL,
    -- The backstop of the gate's own check: whatever happens, no more uses than there are.
    CHECK (max_uses IS NULL OR uses <= max_uses)
) STRICT;
CREATE UNIQUE INDEX invites_code ON invites (namespace, code) WHERE holds_code;
CREATE INDEX invites_by_code ON invites (namespace, code, id);
CREATE INDEX invites_partition ON invites (partition, id);

CREATE TABLE redemptions (
    id            TEXT    PRIMARY KEY,
    namespace     TEXT    NOT NULL,
    partition     INTEGER NOT NULL,
    invite        TEXT    NOT NULL,
    code          TEXT    NOT NULL,
    grp           TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    request       TEXT    NOT NULL,
    ordinal       INTEGER NOT NULL,
    remaining     INTEGER,
    redeemed_at   INTEGER NOT NULL,
    exclusive_key TEXT,                           -- what the rule allows once; cleared when the membership ends
    metadata      TEXT,
    epoch         INTEGER NOT NULL,
    seq           INTEGER NOT NULL
) STRICT;
-- The backstops of the gate's own checks: one live redemption where the rule allows one, one per request, one per use.
CREATE UNIQUE INDEX redemptions_exclusive ON redemptions (namespace, user_id, exclusive_key);
CREATE UNIQUE INDEX redemptions_request ON redemptions (namespace, user_id, request);
CREATE UNIQUE INDEX redemptions_ordinal ON redemptions (invite, ordinal);
CREATE UNIQUE INDEX redemptions_position ON redemptions (namespace, epoch, seq);
CREATE INDEX redemptions_partition ON redemptions (partition, namespace, user_id);

CREATE TABLE members (
    namespace     TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    grp           TEXT    NOT NULL,
    partition     INTEGER NOT NULL,
    redemption    TEXT,                           -- nothing for one who joined another way
    joined_at     INTEGER NOT NULL,
    exclusive_key TEXT,                           -- '*' where the rule allows one group
    epoch         INTEGER NOT NULL,
    seq           INTEGER NOT NULL,
    PRIMARY KEY (namespace, user_id, grp)
) STRICT;
CREATE UNIQUE INDEX members_exclusive ON members (namespace, user_id, exclusive_key);
CREATE INDEX members_partition ON members (partition, namespace, user_id);

-- Who changed what.
CREATE TABLE audit_log (
    partition INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    actor     TEXT    NOT NULL,
    action    TEXT    NOT NULL,
    namespace TEXT    NOT NULL,
    subject   TEXT    NOT NULL,
    PRIMARY KEY (partition, epoch, seq)
) STRICT;

-- Outbox entries that could not be applied, kept with the reason.
CREATE TABLE dead_letters (
    partition INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    entry     TEXT    NOT NULL,
    reason    TEXT    NOT NULL,
    at        INTEGER NOT NULL,
    handled   INTEGER NOT NULL DEFAULT 0,         -- 1 once an operator has gone on without it
    PRIMARY KEY (partition, epoch, seq)
) STRICT;

CREATE TABLE api_keys (
    id            TEXT    PRIMARY KEY,
    name          TEXT    NOT NULL,
    role          TEXT    NOT NULL,
    namespaces    TEXT,                           -- with commas between them; nothing means all
    secret_sha256 BLOB    NOT NULL,
    created_at    INTEGER NOT NULL,
    revoked_at    INTEGER
) STRICT;

-- The nodes that serve, and until when each is taken to be alive.
CREATE TABLE nodes (
    id         TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT;

-- Up to which epoch of a partition a node has claimed all that it had told anybody, and tells no more.
CREATE TABLE confirmations (
    node      TEXT NOT NULL,
    partition INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    PRIMARY KEY (node, partition)
) STRICT;

-- What a node had told somebody and neither Redis nor this ledger had when the partition was recovered.
CREATE TABLE claims (
    id            TEXT    PRIMARY KEY,                   -- of the redemption
    node          TEXT    NOT NULL,
    namespace     TEXT    NOT NULL,
    partition     INTEGER NOT NULL,
    invite        TEXT    NOT NULL,
    code          TEXT    NOT NULL,
    grp           TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    request       TEXT    NOT NULL,
    ordinal       INTEGER NOT NULL,
    remaining     INTEGER,
    redeemed_at   INTEGER NOT NULL,
    rule          TEXT    NOT NULL,
    actor         TEXT    NOT NULL,
    metadata      TEXT,
    epoch         INTEGER NOT NULL,
    seq           INTEGER NOT NULL,
    outcome       TEXT                            -- nothing while it waits; applied, known, or why it was lost
) STRICT;
CREATE INDEX claims_waiting ON claims (partition, epoch, seq) WHERE outcome IS NULL;
