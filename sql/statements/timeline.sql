-- Which cluster this is, and where its timeline stands: the first 8 hex digits of the name of the WAL file in use. Each promotion
-- raises it. (pg_control_checkpoint knows it only after the next checkpoint.)
select (select system_identifier from pg_control_system()), pg_walfile_name(pg_current_wal_lsn())
