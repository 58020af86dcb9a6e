-- What came from elsewhere, and how requests ended. What is added here, a version that does not know it leaves alone.

ALTER TABLE invites ADD COLUMN imported INTEGER NOT NULL DEFAULT 0;  -- of its uses: so many have no redemption here

-- How many requests of each kind a node has answered so in a minute. Each node writes its own counts, whole, so that
-- writing one again changes nothing.
CREATE TABLE outcomes (
    namespace TEXT    NOT NULL,
    minute    INTEGER NOT NULL,                   -- its beginning
    outcome   TEXT    NOT NULL,
    node      TEXT    NOT NULL,
    count     INTEGER NOT NULL,
    PRIMARY KEY (namespace, minute, outcome, node)
) STRICT;
CREATE INDEX outcomes_minute ON outcomes (minute);
