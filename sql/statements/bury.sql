-- Process $1 is dead: another holds its state file's lock. status keeps people from waiting for it.
update process set ended_at = now(), in_flight = 0, stalled = '{}', status = 'died' where id = $1 and ended_at is null
