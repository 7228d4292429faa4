DROP INDEX resources_available;
DROP INDEX resources_named;
