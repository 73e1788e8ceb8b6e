-- compatible_from: 1
-- What retention, stepped clocks and their repair need. Counter codes 12 and 13: see src/core/ledger.rs.

alter table pipeline
  add column retention_ended_at timestamptz,
  add column retention_at timestamptz,
  add column retention_by bigint,
  add column clock_back_at timestamptz,
  add column clock_back_ms bigint,
  add column clock_back_next bigint;
comment on column pipeline.retention_ended_at is 'When a pass of retention last reached its end. The next one begins an hour later.';
comment on column pipeline.retention_at is 'Last step of the pass under way; after a minute without one another process begins anew.';
comment on column pipeline.retention_by is 'process.id of who does that pass.';
comment on column pipeline.clock_back_at is 'When this server''s clock was last found to have been set back; by the new clock.';
comment on column pipeline.clock_back_ms is 'How far it was set back.';
comment on column pipeline.clock_back_next is 'Deliveries up to this id have been moved to the new clock; null: all.';

create index rejected_resolved on rejected (resolved_at) where resolved_at is not null;

-- Deleting a row costs little and vacuuming it costs as much as the table's random index is large, whether one row is dead or a
-- million: retention deletes about one part in 90 a day, so that this is once in some days, and the space is used again.
alter table tx set (autovacuum_vacuum_scale_factor = 0.03, autovacuum_vacuum_threshold = 100000);
alter table attempt set (autovacuum_vacuum_scale_factor = 0.03, autovacuum_vacuum_threshold = 100000,
  autovacuum_vacuum_insert_scale_factor = 0.03, autovacuum_vacuum_insert_threshold = 100000, autovacuum_freeze_min_age = 0,
  autovacuum_analyze_scale_factor = 0.02);
