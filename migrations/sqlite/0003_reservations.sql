-- Uses that are held, redemptions that were taken back, and limits that invites share. What is added here, a version that
-- does not know it leaves alone.

ALTER TABLE invites ADD COLUMN max_uses_per_user INTEGER;
ALTER TABLE invites ADD COLUMN campaign TEXT;
ALTER TABLE batches ADD COLUMN max_uses_per_user INTEGER;
ALTER TABLE batches ADD COLUMN campaign TEXT;
CREATE INDEX invites_campaign ON invites (namespace, campaign) WHERE campaign IS NOT NULL;

ALTER TABLE redemptions ADD COLUMN rolled_back_at INTEGER;   -- from then on it counts for nothing
ALTER TABLE redemptions ADD COLUMN rolled_back_by TEXT;
ALTER TABLE redemptions ADD COLUMN rollback_reason TEXT;

-- Whether one that nobody has ended still holds a use is a matter of its deadline and the time.
CREATE TABLE reservations (
    id         TEXT    PRIMARY KEY,
    namespace  TEXT    NOT NULL,
    partition  INTEGER NOT NULL,
    invite     TEXT    NOT NULL,
    code       TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    held_until INTEGER NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('held', 'confirmed', 'released')),
    redemption TEXT,                               -- that has spent the use
    epoch      INTEGER NOT NULL,
    seq        INTEGER NOT NULL
) STRICT;
CREATE INDEX reservations_held ON reservations (invite, user_id, held_until) WHERE state = 'held';

CREATE TABLE campaigns (
    namespace  TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    partition  INTEGER NOT NULL,
    max_uses   INTEGER,
    uses       INTEGER NOT NULL,
    revision   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    PRIMARY KEY (namespace, name),
    CHECK (max_uses IS NULL OR uses <= max_uses)
) STRICT;
