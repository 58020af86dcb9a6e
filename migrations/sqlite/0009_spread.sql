-- Namespaces that are spread over several partitions. What is added here, a version that does not know it leaves alone.

ALTER TABLE namespaces ADD COLUMN spread INTEGER NOT NULL DEFAULT 1;  -- of a shard 1
ALTER TABLE namespaces ADD COLUMN layouts TEXT;  -- earlier spreads, with commas between them
ALTER TABLE namespaces ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0;  -- nobody new comes in here any more
ALTER TABLE invites ADD COLUMN total INTEGER;  -- of all shards, 2^52 for no limit, while max_uses is what is here; not in copies

-- What participants of such namespaces gave to and got from one another of an invite, each as it knows it itself. Both
-- only ever grow. Participant 0 is the namespace itself, the others are its shards.
CREATE TABLE moves (
    whole       TEXT    NOT NULL,                 -- the invite's id in the namespace itself
    own         INTEGER NOT NULL,                 -- whose row this is
    participant INTEGER NOT NULL,                 -- the other one
    invite      TEXT    NOT NULL,                 -- the invite's id at the own one
    namespace   TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    given       INTEGER NOT NULL,
    given_epoch INTEGER NOT NULL,                 -- where the last of it was written down
    given_seq   INTEGER NOT NULL,
    taken       INTEGER NOT NULL,
    PRIMARY KEY (whole, own, participant)
) STRICT;
CREATE INDEX moves_partition ON moves (partition, invite);
CREATE INDEX invites_changed ON invites (namespace, updated_at) WHERE total IS NOT NULL;
