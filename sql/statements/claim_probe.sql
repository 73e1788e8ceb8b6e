-- A probe while the gate is shut: one delivery, due or not, and as in `claim` $1 lease, $2 process, $3 lease time in ms, $5 history; $4
-- is not used (null). Rather one that was never tried, then one that has not failed by itself, then the earliest. Looked for among the 64
-- that are due first and the 64 newest, and where those hide the better ones, from the newest down, so that neither many that
-- always fail nor many that were refused keep it shut. 100,000 rows are looked at for that, once a probe.
with a as materialized (
  (select id, attempt, spent_ms, due_at from delivery where lease is null or due_at <= now() order by due_at limit 64)
  union all
  (select id, attempt, spent_ms, due_at from delivery where lease is null or due_at <= now() order by id desc limit 64)
), b as materialized (
  select id, attempt, spent_ms, due_at from a
  union all
  (select id, attempt, spent_ms, due_at from (select * from delivery order by id desc limit 100000) d
    where attempt = 0 and (lease is null or due_at <= now()) and not exists (select from a where attempt = 0) limit 1)
  union all
  (select id, attempt, spent_ms, due_at from (select * from delivery order by id desc limit 100000) d
    where spent_ms = 0 and (lease is null or due_at <= now()) and not exists (select from a where spent_ms = 0) limit 1)
), c as materialized (
  select id, lease, attempt, due_at from delivery
  where id = (select id from b order by attempt > 0, spent_ms > 0, due_at, id limit 1) and (lease is null or due_at <= now())
    and $4::timestamptz is null
    and not exists (select from pipeline where one and paused_at is not null and coalesce(paused_until, 'infinity') > now())
  for no key update skip locked
), u as (
  update delivery d set due_at = now() + $3::bigint * interval '1 millisecond', lease = $1::bigint, leased_by = $2::bigint,
    attempt = d.attempt + 1
  from c where d.id = c.id returning d.id, d.attempt, d.spent_ms, c.due_at, c.lease is not null as was_leased
), l as (
  insert into attempt (tx_id, lease, n, outcome, sent) select id, lease, attempt, 7, 2 from c where lease is not null and $5::bool
)
select id, attempt, spent_ms, due_at, was_leased, now() as now from u
