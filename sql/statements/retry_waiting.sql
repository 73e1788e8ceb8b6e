-- Waiting ones ($1) are due now, with a fresh budget; what is in flight is left alone. A lease that ran out is nobody's, and
-- due already. Returns whose turn it is.
update delivery set due_at = case when lease is null then now() else due_at end, spent_ms = 0
where id = any($1::bigint[]) and (lease is null or due_at <= now())
returning id
