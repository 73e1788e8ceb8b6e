-- Closes waiting ones ($1) without sending: by $2, because $3. Counter slot $4. What is in flight is left alone; what was sent
-- under a lease that ran out nobody knows: outcome lost. Returns who was waiting.
with d as (
  delete from delivery where id = any($1::bigint[]) and (lease is null or due_at <= now()) returning id, lease, attempt
), r as (
  insert into resolved (id, who, reason) select id, $2, $3 from d
), l as (
  insert into attempt (tx_id, lease, n, outcome, sent) select id, lease, attempt, 7, 2 from d where lease is not null
), c as (
  insert into counter as c (slot, name, n) select $4::int, 7, count(*) from d having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id from d
