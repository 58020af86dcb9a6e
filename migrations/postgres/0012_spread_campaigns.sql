-- Campaigns of namespaces that are spread over several partitions: max_uses is what may be spent here, and moves as an
-- invite's does. What is added here, a version that does not know it leaves alone.
ALTER TABLE campaigns ADD COLUMN total BIGINT;                      -- all parts together; the namespace itself alone has it
ALTER TABLE campaigns ADD COLUMN pool  UUID;                      -- what stands for it in moves
CREATE INDEX campaigns_pool ON campaigns (pool);
