-- Process $1, started at $2, lives: in flight $3, stalled $4, status $5; its gate is open $6, at a rate of $7 (null: without a limit),
-- shut because of $8, since $9 ms, with its next probe in $10 ms. No row: retention removed it, or the database went back in time.
-- Returns the server's clock, whether rows wait to be moved to it because it was set back, whether delivering is paused, and
-- whether another process has taken this one for dead.
update process set seen_at = now(), in_flight = $3, stalled = $4, status = $5, gate_open = $6, gate_rate = $7, gate_why = $8,
  gate_since = now() - $9::bigint * interval '1 millisecond', next_probe_at = now() + $10::bigint * interval '1 millisecond'
where id = $1 and started_at = $2
returning clock_timestamp() as clock, (select clock_back_next is not null from pipeline where one) as repairing,
  (select paused_at is not null and coalesce(paused_until, 'infinity') > now() from pipeline where one) as paused,
  ended_at is not null as buried
