-- Earlier lives of this instance ($1) than process $2 that may still hold leases. The caller holds the state file's lock,
-- so they are dead.
select id from process where instance = $1 and id < $2 and ended_at is null
  and seen_at > now() - 2 * lease_ms * interval '1 millisecond' - interval '1 hour'
