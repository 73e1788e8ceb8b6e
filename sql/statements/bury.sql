-- Processes $1 are dead, as `predecessors` knows it. status keeps people from waiting for them.
update process set ended_at = now(), in_flight = 0, stalled = '{}', status = 'died' where id = any($1::bigint[]) and ended_at is null
