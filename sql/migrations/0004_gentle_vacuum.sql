-- compatible_from: 3
-- Vacuum after a large pass of retention writes each page that it deletes from twice. At PostgreSQL's own pace, some 40 MB/s, what
-- the kernel then had to write at once held commits of deliveries up for as long as a second. At most 4 MB/s for tx, 8 for attempt.

alter table tx set (autovacuum_vacuum_cost_delay = 20, autovacuum_vacuum_cost_limit = 200);
alter table attempt set (autovacuum_vacuum_cost_delay = 10, autovacuum_vacuum_cost_limit = 200);
