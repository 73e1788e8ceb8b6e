-- Process $1, started at $2, lives: in flight $3, stalled $4, status $5. No row: retention removed it, or the database went back in
-- time. Returns the server's clock, whether rows wait to be moved to it because it was set back, whether delivering is paused, and
-- whether another process has taken this one for dead.
update process set seen_at = now(), in_flight = $3, stalled = $4, status = $5 where id = $1 and started_at = $2
returning clock_timestamp() as clock, (select clock_back_next is not null from pipeline where one) as repairing,
  (select paused_at is not null and coalesce(paused_until, 'infinity') > now() from pipeline where one) as paused,
  ended_at is not null as buried
