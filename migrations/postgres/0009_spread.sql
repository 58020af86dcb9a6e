-- Namespaces that are spread over several partitions. What is added here, a version that does not know it leaves alone.

ALTER TABLE namespaces ADD COLUMN spread BIGINT NOT NULL DEFAULT 1;  -- of a shard 1
ALTER TABLE namespaces ADD COLUMN layouts TEXT COLLATE "C";  -- earlier spreads, with commas between them
ALTER TABLE namespaces ADD COLUMN sealed BOOLEAN NOT NULL DEFAULT FALSE;  -- nobody new comes in here any more
ALTER TABLE invites ADD COLUMN total BIGINT;  -- of all shards, 2^52 for no limit, while max_uses is what is here; not in copies

-- What participants of such namespaces gave to and got from one another of an invite, each as it knows it itself. Both
-- only ever grow. Participant 0 is the namespace itself, the others are its shards.
CREATE TABLE moves (
    whole       UUID             NOT NULL,        -- the invite's id in the namespace itself
    own         BIGINT           NOT NULL,        -- whose row this is
    participant BIGINT           NOT NULL,        -- the other one
    invite      UUID             NOT NULL,        -- the invite's id at the own one
    namespace   TEXT COLLATE "C" NOT NULL,
    partition   BIGINT           NOT NULL,
    given       BIGINT           NOT NULL,
    given_epoch BIGINT           NOT NULL,        -- where the last of it was written down
    given_seq   BIGINT           NOT NULL,
    taken       BIGINT           NOT NULL,
    PRIMARY KEY (whole, own, participant)
);
CREATE INDEX moves_partition ON moves (partition, invite);
CREATE INDEX invites_changed ON invites (namespace, updated_at) WHERE total IS NOT NULL;
