-- How much refusals tell.

ALTER TABLE namespaces ADD COLUMN error_detail TEXT NOT NULL DEFAULT 'full';  -- full, coarse
