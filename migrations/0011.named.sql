-- Gives declared kinds the indexes for searches that clusters have. The unique indexes of names are
-- split by whether there is an owner, so a search by name alone could use neither.
CREATE INDEX resources_named ON resources (kind, name, created_time DESC, id DESC);
CREATE INDEX resources_available ON resources (kind, available, created_time DESC, id DESC);
