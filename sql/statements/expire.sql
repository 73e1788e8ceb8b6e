-- Leases that ran out more than 5 s ago: up to 500 that ended at or after $1 (null: $2 ms and 10 minutes ago) are due again.
-- What was sent under them nobody knows: outcome lost. Claims do the same, but while delivering is paused nobody claims. A
-- leased row's due_at is its lease's end, so that each passes a window that moves on once, and no backlog is ever read twice.
-- $3: history, as in `claim`.
-- Returns how many, and where the next window begins.
with c as materialized (
  select id, lease, attempt, due_at from delivery
  where due_at >= coalesce($1::timestamptz, now() - $2::bigint * interval '1 millisecond' - interval '10 minutes')
    and due_at <= now() - interval '5 seconds' and lease is not null
  order by due_at limit 500 for no key update skip locked
), u as (
  update delivery q set due_at = now(), lease = null, leased_by = null from c where q.id = c.id
), h as (
  insert into attempt (tx_id, lease, n, outcome, sent) select id, lease, attempt, 7, 2 from c where $3::bool
)
select count(*), case when count(*) < 500 then now() - interval '5 seconds' else max(due_at) end from c
