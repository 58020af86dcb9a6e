-- The ledger: what redeemer remembers. All times are milliseconds since 1970-01-01T00:00:00Z.
-- Names and codes are compared byte by byte (COLLATE "C"), whatever the collation of the database.
-- epoch and seq of a row name the outbox entry that last wrote it.
-- The same tables, column by column, are in migrations/sqlite.

-- One row: which deployment this ledger belongs to.
CREATE TABLE deployment (
    only_row     BIGINT           PRIMARY KEY CHECK (only_row = 1),
    id           TEXT COLLATE "C" NOT NULL,
    schema       BIGINT           NOT NULL,
    partitions   BIGINT           NOT NULL,
    created_at   BIGINT           NOT NULL
);

-- What each partition of the gate is open on, how far the ledger has its changes, and who brings them.
CREATE TABLE partitions (
    partition        BIGINT           PRIMARY KEY,
    state            TEXT COLLATE "C" NOT NULL CHECK (state IN ('new', 'open', 'closed')),
    reason           TEXT COLLATE "C",  -- why it stays closed or is not synced, for people
    epoch            BIGINT           NOT NULL,
    lineage          TEXT COLLATE "C",
    cursor_epoch     BIGINT           NOT NULL,
    cursor_seq       BIGINT           NOT NULL,
    lease_owner      TEXT COLLATE "C",
    lease_token      BIGINT           NOT NULL,  -- counts the leases ever given: the fencing token
    lease_expires_at BIGINT           NOT NULL,
    synced_at        BIGINT,
    requested        TEXT COLLATE "C",  -- what an operator wants: from_ledger or from_gate
    whole_from       BIGINT           NOT NULL  -- the first epoch of which every change is here
);

CREATE TABLE namespaces (
    name           TEXT COLLATE "C" PRIMARY KEY,
    partition      BIGINT           NOT NULL,
    membership     TEXT COLLATE "C" NOT NULL,
    code_case      TEXT COLLATE "C" NOT NULL,
    durability     TEXT COLLATE "C" NOT NULL,
    rate_user      TEXT COLLATE "C",
    rate_ip        TEXT COLLATE "C",
    rate_code      TEXT COLLATE "C",
    rate_namespace TEXT COLLATE "C",
    rate_guess     TEXT COLLATE "C",
    revision       BIGINT           NOT NULL,
    created_at     BIGINT           NOT NULL,
    updated_at     BIGINT           NOT NULL,
    archived_at    BIGINT,
    epoch          BIGINT           NOT NULL,
    seq            BIGINT           NOT NULL
);

CREATE TABLE invites (
    id            UUID             PRIMARY KEY,
    namespace     TEXT COLLATE "C" NOT NULL,
    partition     BIGINT           NOT NULL,
    code          TEXT COLLATE "C" NOT NULL,
    grp           TEXT COLLATE "C" NOT NULL,
    max_uses      BIGINT,
    uses          BIGINT           NOT NULL,
    granted       BIGINT           NOT NULL,
    starts_at     BIGINT,
    expires_at    BIGINT,
    disabled      BOOLEAN          NOT NULL,
    user_id       TEXT COLLATE "C",
    email_domains TEXT COLLATE "C",
    metadata      TEXT COLLATE "C",
    revision      BIGINT           NOT NULL,
    created_at    BIGINT           NOT NULL,
    updated_at    BIGINT           NOT NULL,
    holds_code    BOOLEAN          NOT NULL,  -- false once a new invite has taken the code
    epoch         BIGINT           NOT NULL,
    seq           BIGINT           NOT NULL,
    -- The backstop of the gate's own check: whatever happens, no more uses than there are.
    CHECK (max_uses IS NULL OR uses <= max_uses)
);
CREATE UNIQUE INDEX invites_code ON invites (namespace, code) WHERE holds_code;
CREATE INDEX invites_by_code ON invites (namespace, code, id);
CREATE INDEX invites_partition ON invites (partition, id);

CREATE TABLE redemptions (
    id            UUID             PRIMARY KEY,
    namespace     TEXT COLLATE "C" NOT NULL,
    partition     BIGINT           NOT NULL,
    invite        UUID             NOT NULL,
    code          TEXT COLLATE "C" NOT NULL,
    grp           TEXT COLLATE "C" NOT NULL,
    user_id       TEXT COLLATE "C" NOT NULL,
    request       TEXT COLLATE "C" NOT NULL,
    ordinal       BIGINT           NOT NULL,
    remaining     BIGINT,
    redeemed_at   BIGINT           NOT NULL,
    exclusive_key TEXT COLLATE "C",  -- what the rule allows once; cleared when the membership ends
    metadata      TEXT COLLATE "C",
    epoch         BIGINT           NOT NULL,
    seq           BIGINT           NOT NULL
);
-- The backstops of the gate's own checks: one live redemption where the rule allows one, one per request, one per use.
CREATE UNIQUE INDEX redemptions_exclusive ON redemptions (namespace, user_id, exclusive_key);
CREATE UNIQUE INDEX redemptions_request ON redemptions (namespace, user_id, request);
CREATE UNIQUE INDEX redemptions_ordinal ON redemptions (invite, ordinal);
CREATE UNIQUE INDEX redemptions_position ON redemptions (namespace, epoch, seq);
CREATE INDEX redemptions_partition ON redemptions (partition, namespace, user_id);

CREATE TABLE members (
    namespace     TEXT COLLATE "C" NOT NULL,
    user_id       TEXT COLLATE "C" NOT NULL,
    grp           TEXT COLLATE "C" NOT NULL,
    partition     BIGINT           NOT NULL,
    redemption    UUID,  -- nothing for one who joined another way
    joined_at     BIGINT           NOT NULL,
    exclusive_key TEXT COLLATE "C",  -- '*' where the rule allows one group
    epoch         BIGINT           NOT NULL,
    seq           BIGINT           NOT NULL,
    PRIMARY KEY (namespace, user_id, grp)
);
CREATE UNIQUE INDEX members_exclusive ON members (namespace, user_id, exclusive_key);
CREATE INDEX members_partition ON members (partition, namespace, user_id);

-- Who changed what.
CREATE TABLE audit_log (
    partition BIGINT           NOT NULL,
    epoch     BIGINT           NOT NULL,
    seq       BIGINT           NOT NULL,
    at        BIGINT           NOT NULL,
    actor     TEXT COLLATE "C" NOT NULL,
    action    TEXT COLLATE "C" NOT NULL,
    namespace TEXT COLLATE "C" NOT NULL,
    subject   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (partition, epoch, seq)
);

-- Outbox entries that could not be applied, kept with the reason.
CREATE TABLE dead_letters (
    partition BIGINT           NOT NULL,
    epoch     BIGINT           NOT NULL,
    seq       BIGINT           NOT NULL,
    entry     TEXT COLLATE "C" NOT NULL,
    reason    TEXT COLLATE "C" NOT NULL,
    at        BIGINT           NOT NULL,
    handled   BOOLEAN          NOT NULL DEFAULT FALSE,  -- true once an operator has gone on without it
    PRIMARY KEY (partition, epoch, seq)
);

CREATE TABLE api_keys (
    id            TEXT COLLATE "C" PRIMARY KEY,
    name          TEXT COLLATE "C" NOT NULL,
    role          TEXT COLLATE "C" NOT NULL,
    namespaces    TEXT COLLATE "C",  -- with commas between them; nothing means all
    secret_sha256 BYTEA            NOT NULL,
    created_at    BIGINT           NOT NULL,
    revoked_at    BIGINT
);

-- The nodes that serve, and until when each is taken to be alive.
CREATE TABLE nodes (
    id         TEXT COLLATE "C" PRIMARY KEY,
    expires_at BIGINT NOT NULL
);

-- Up to which epoch of a partition a node has claimed all that it had told anybody, and tells no more.
CREATE TABLE confirmations (
    node      TEXT COLLATE "C" NOT NULL,
    partition BIGINT NOT NULL,
    epoch     BIGINT NOT NULL,
    PRIMARY KEY (node, partition)
);

-- What a node had told somebody and neither Redis nor this ledger had when the partition was recovered.
CREATE TABLE claims (
    id            UUID             PRIMARY KEY,                   -- of the redemption
    node          TEXT COLLATE "C" NOT NULL,
    namespace     TEXT COLLATE "C" NOT NULL,
    partition     BIGINT           NOT NULL,
    invite        UUID             NOT NULL,
    code          TEXT COLLATE "C" NOT NULL,
    grp           TEXT COLLATE "C" NOT NULL,
    user_id       TEXT COLLATE "C" NOT NULL,
    request       TEXT COLLATE "C" NOT NULL,
    ordinal       BIGINT           NOT NULL,
    remaining     BIGINT,
    redeemed_at   BIGINT           NOT NULL,
    rule          TEXT COLLATE "C" NOT NULL,
    actor         TEXT COLLATE "C" NOT NULL,
    metadata      TEXT COLLATE "C",
    epoch         BIGINT           NOT NULL,
    seq           BIGINT           NOT NULL,
    outcome       TEXT COLLATE "C"                            -- nothing while it waits; applied, known, or why it was lost
);
CREATE INDEX claims_waiting ON claims (partition, epoch, seq) WHERE outcome IS NULL;
