-- The deadline of the reservation that a claimed redemption has spent, where it was named. Redis may have lost that too, and
-- who confirms it again must be told of the redemption.
ALTER TABLE claims ADD COLUMN held_until INTEGER;
