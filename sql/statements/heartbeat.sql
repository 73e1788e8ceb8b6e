-- Process $1 lives: in flight $2, stalled $3, status $4; its gate is open $5, at a rate of $6 (null: without a limit), shut because of
-- $7, since $8 ms, with its next probe in $9 ms. No row: retention removed it, or the database went back in time.
-- Returns the server's clock, whether rows wait to be moved to it because it was set back, and whether delivering is paused.
update process set seen_at = now(), in_flight = $2, stalled = $3, status = $4, gate_open = $5, gate_rate = $6, gate_why = $7,
  gate_since = now() - $8::bigint * interval '1 millisecond', next_probe_at = now() + $9::bigint * interval '1 millisecond'
where id = $1
returning clock_timestamp() as clock, (select clock_back_next is not null from pipeline where one) as repairing,
  (select paused_at is not null and coalesce(paused_until, 'infinity') > now() from pipeline where one) as paused
