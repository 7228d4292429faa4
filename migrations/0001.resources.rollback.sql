DROP TABLE labels;
DROP TABLE adapter_statuses;
DROP TABLE node_pools;
DROP TABLE clusters;
DROP FUNCTION hyperfleet_report;
DROP FUNCTION hyperfleet_document;
DROP FUNCTION hyperfleet_time;
