-- Process $1, started at $2, has ended cleanly and holds nothing.
update process set seen_at = now(), ended_at = now(), in_flight = 0, stalled = '{}', status = 'stopped' where id = $1 and started_at = $2
