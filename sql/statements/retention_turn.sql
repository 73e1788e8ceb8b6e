-- Whether a pass of retention is due and process $1 may do its next step: one that has begun it has a minute for each.
select (retention_ended_at is null or retention_ended_at not between now() - interval '1 hour' and now() + interval '1 minute')
  and (retention_by is null or retention_by = $1::bigint or retention_at is null
    or retention_at not between now() - interval '1 minute' and now() + interval '1 minute')
  -- Counting what is missing where retention has deleted takes a while, and nothing is deleted then.
  and not coalesce(audit_whole_next is not null and audit_at between now() - interval '1 minute' and now() + interval '1 minute'
    and audit_whole_began_at > now() - interval '6 hours', false)
from pipeline where one
