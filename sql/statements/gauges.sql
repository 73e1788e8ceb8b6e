-- Everything that is counted, from one snapshot: states, both sides of the ledger, what is oldest, what is paused.
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
  (select paused_at is not null and coalesce(paused_until, 'infinity') > now() from pipeline where one) as paused
from (
  select count(*) filter (where lease is null and attempt = 0) as pending, count(*) filter (where lease is not null) as in_flight,
    count(*) filter (where lease is null and attempt > 0) as retrying
  from delivery
) d
