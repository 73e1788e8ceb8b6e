-- Process $1 lives: in flight $2, stalled $3, status $4. No row: retention removed it, or the database went back in time.
update process set seen_at = now(), in_flight = $2, stalled = $3, status = $4 where id = $1
