-- Earlier lives of this instance ($1) than process $2 that may still hold leases, with the length of those in ms. The caller
-- holds the state file's lock, so they are dead. Also those that said goodbye: a commit of theirs may have come later.
select id, lease_ms from process where instance = $1 and id < $2 and seen_at > now() - lease_ms * interval '1 millisecond' - interval '10 minutes'
