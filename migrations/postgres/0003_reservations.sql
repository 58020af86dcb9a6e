-- Uses that are held, redemptions that were taken back, and limits that invites share. What is added here, a version that
-- does not know it leaves alone.

ALTER TABLE invites ADD COLUMN max_uses_per_user BIGINT;
ALTER TABLE invites ADD COLUMN campaign TEXT COLLATE "C";
ALTER TABLE batches ADD COLUMN max_uses_per_user BIGINT;
ALTER TABLE batches ADD COLUMN campaign TEXT COLLATE "C";
CREATE INDEX invites_campaign ON invites (namespace, campaign) WHERE campaign IS NOT NULL;

ALTER TABLE redemptions ADD COLUMN rolled_back_at BIGINT;  -- from then on it counts for nothing
ALTER TABLE redemptions ADD COLUMN rolled_back_by TEXT COLLATE "C";
ALTER TABLE redemptions ADD COLUMN rollback_reason TEXT COLLATE "C";

-- Whether one that nobody has ended still holds a use is a matter of its deadline and the time.
CREATE TABLE reservations (
    id         UUID             PRIMARY KEY,
    namespace  TEXT COLLATE "C" NOT NULL,
    partition  BIGINT           NOT NULL,
    invite     UUID             NOT NULL,
    code       TEXT COLLATE "C" NOT NULL,
    user_id    TEXT COLLATE "C" NOT NULL,
    held_until BIGINT           NOT NULL,
    state      TEXT COLLATE "C" NOT NULL CHECK (state IN ('held', 'confirmed', 'released')),
    redemption UUID,  -- that has spent the use
    epoch      BIGINT           NOT NULL,
    seq        BIGINT           NOT NULL
);
CREATE INDEX reservations_held ON reservations (invite, user_id, held_until) WHERE state = 'held';

CREATE TABLE campaigns (
    namespace  TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    partition  BIGINT           NOT NULL,
    max_uses   BIGINT,
    uses       BIGINT           NOT NULL,
    revision   BIGINT           NOT NULL,
    created_at BIGINT           NOT NULL,
    updated_at BIGINT           NOT NULL,
    epoch      BIGINT           NOT NULL,
    seq        BIGINT           NOT NULL,
    PRIMARY KEY (namespace, name),
    CHECK (max_uses IS NULL OR uses <= max_uses)
);
