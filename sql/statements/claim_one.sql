-- One delivery that is due, while outcomes are refused, and as in `claim` $1 lease, $2 process, $3 lease time in ms, $5 history; $4 is
-- not used (null). Rather one that was never tried, for the outcomes of those that were may be what is refused: looked for among the
-- 64 that are due first and the 100,000 newest.
with a as materialized (
  (select id, attempt, due_at from delivery where due_at <= now() order by due_at limit 64)
  union all
  (select id, attempt, due_at from (select * from delivery order by id desc limit 100000) d
    where attempt = 0 and due_at <= now() limit 1)
), c as materialized (
  select id, lease, attempt, due_at from delivery
  where id = (select id from a order by attempt > 0, due_at, id limit 1) and due_at <= now()
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
