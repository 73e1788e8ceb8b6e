-- Everything that is counted, from one snapshot: states, both sides of the ledger, what is oldest, what is paused, how
-- retention stands, and what the audit has found. A lease that has run out is nobody's: its delivery is due again, and so it is being retried.
select
  d.pending, d.in_flight, d.retrying,
  (select count(*) from dead) as dead,
  (select count(*) from resolved) as resolved,
  (select count(*) from rejected where resolved_at is null) as rejected_unresolved,
  (select coalesce(jsonb_object_agg(s.name, s.n), '{}') from
    (select name, sum(n)::bigint as n from counter group by name) s) as counters,
  (select extract(epoch from now() - t.received_at)::float8 from tx t
    where t.id = (select min(id) from delivery)) as oldest_open_age,
  (select extract(epoch from now() - min(due_at))::float8 from delivery where due_at <= now()) as oldest_due_age,
  p.paused, p.retention_ended, p.retention_due, p.audit_whole_age,
  (select coalesce(sum(case when kind = 'purged' then 1 else greatest(to_offset - from_offset, 1) end), 0)::bigint from audit_finding
    where kind in ('offset_missing', 'offset_twice', 'above_position', 'purged')) as offsets_wrong,
  (select count(*) from audit_finding
    where kind not in ('offset_missing', 'offset_twice', 'above_position', 'purged')) as transactions_wrong
from (
  select count(*) filter (where attempt = 0 and not leased) as pending, count(*) filter (where leased) as in_flight,
    count(*) filter (where attempt > 0 and not leased) as retrying
  from (select attempt, lease is not null and due_at > now() as leased from delivery) q
) d
left join (
  select paused_at is not null and coalesce(paused_until, 'infinity') > now() as paused,
    extract(epoch from retention_ended_at)::float8 as retention_ended,
    retention_ended_at is null or retention_ended_at not between now() - interval '1 hour' and now() + interval '1 minute'
      as retention_due,
    extract(epoch from now() - coalesce(audit_whole_at, created_at))::float8 as audit_whole_age
  from pipeline where one
) p on true
