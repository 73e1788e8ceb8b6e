-- Delivered ones ($1) are open again and due now, and no longer count as delivered. Counter slot $2. The caller holds the lock of
-- retention_share.sql. What was erased has nothing left to send. Returns who was delivered and nothing else.
with f as materialized (
  select t.id, h.n from tx t
  cross join lateral (
    select max(a.n) as n, bool_or(a.outcome = 1 and not a.stale) as delivered from attempt a where a.tx_id = t.id
  ) h
  where t.id = any($1::bigint[]) and h.delivered
    and not exists (select from dead x where x.id = t.id)
    and not exists (select from resolved r where r.id = t.id)
    and not exists (select from erased e where e.id = t.id)
), q as (
  insert into delivery (id, due_at, attempt) select id, now(), n from f on conflict do nothing returning id
), c as (
  insert into counter as c (slot, name, n)
  select $2::int, v.name, v.n from (select 8 as name, count(*) as n from q union all select 12, count(*) from q) v where v.n > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id from q
