-- Whether process $1 may audit: whoever began goes on, until it ends or does nothing for a minute. Returns how far the audit of
-- new transactions has come, whether one over everything is due, and whether retention is in the middle of a pass.
update pipeline p set audit_at = now(), audit_by = $1::bigint
where one and (audit_by is null or audit_by = $1::bigint or audit_at is null
  or audit_at not between now() - interval '1 minute' and now() + interval '1 minute'
  or exists (select from process q where q.id = p.audit_by and q.ended_at is not null))
returning audited_id,
  audit_whole_at is null or audit_whole_at not between now() - interval '1 day' and now() + interval '1 minute' as whole_due,
  coalesce(retention_by is not null and retention_at between now() - interval '1 minute' and now() + interval '1 minute', false)
    as retaining
