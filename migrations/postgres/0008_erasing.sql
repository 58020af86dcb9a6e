-- Forgetting a person. What is added here, a version that does not know it leaves alone.

ALTER TABLE audit_log ADD COLUMN user_id TEXT COLLATE "C";  -- whom the subject begins with, if it does
CREATE INDEX audit_log_user ON audit_log (namespace, user_id) WHERE user_id IS NOT NULL;
CREATE INDEX reservations_user ON reservations (namespace, user_id);
CREATE INDEX invites_user ON invites (namespace, user_id) WHERE user_id IS NOT NULL;
