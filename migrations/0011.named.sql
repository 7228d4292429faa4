-- What is looked for among resources of declared kinds as it is among clusters: the unique indexes of names
-- are parted by owner, so that a search by name alone could use neither.
CREATE INDEX resources_named ON resources (kind, name, created_time DESC, id DESC);
CREATE INDEX resources_available ON resources (kind, available, created_time DESC, id DESC);
