-- Claim and reclaim: what is due, and what is leased beyond its time. $1 lease (random), $2 process, $3 lease time in ms,
-- $4 floor: nothing live is expected below it (null = none; nor one above now(): the server's clock was set back since),
-- $5 whether a lease that ran out leaves its attempt: not where that row is refused, or every claim would stand still.
-- {limit} is literal: with a parameter the plan is not pinned.
with c as materialized (
  select id, lease, attempt, due_at from delivery
  where due_at <= now() and due_at >= case when $4::timestamptz <= now() then $4::timestamptz else '-infinity' end
    and not exists (select from pipeline where one and paused_at is not null and coalesce(paused_until, 'infinity') > now())
  order by due_at limit {limit} for no key update skip locked
), u as (
  update delivery d set due_at = now() + $3::bigint * interval '1 millisecond', lease = $1::bigint, leased_by = $2::bigint,
    attempt = d.attempt + 1
  from c where d.id = c.id returning d.id, d.attempt, d.spent_ms, c.due_at, c.lease is not null as was_leased
), l as (
  insert into attempt (tx_id, lease, n, outcome, sent) select id, lease, attempt, 7, 2 from c where lease is not null and $5::bool
)
select id, attempt, spent_ms, due_at, was_leased, now() as now from u
