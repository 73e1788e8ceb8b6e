-- Earlier lives of this instance ($1) than process $2 that may still hold leases, with the length of those in ms, and whether
-- they are dead: those that ended, or held the lock that the caller holds now ($3), or have been silent for 10 s (a live one beats
-- every second; what it wrote lies ahead of now() only when this server's clock was set back since). Also those that said
-- goodbye: a commit of theirs may have come later.
select id, lease_ms, host, pid, seen_at, ended_at is not null or coalesce(lock_id = $3::uuid, false)
    or seen_at not between now() - interval '10 seconds' and now() + interval '10 seconds' as is_dead
from process where instance = $1 and id < $2 and seen_at > now() - lease_ms * interval '1 millisecond' - interval '10 minutes'
