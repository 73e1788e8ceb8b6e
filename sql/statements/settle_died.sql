-- Given up: ids $1, leases $2, attempts $3, outcomes $4, statuses $5, sent $6, latencies $7, reasons $8, errors $9, slot $10.
-- Returns the ids whose lease was still theirs.
with d as (
  delete from delivery q using unnest($1::bigint[], $2::bigint[], $3::int[], $4::smallint[], $5::smallint[], $6::smallint[],
    $7::int[], $8::text[], $9::text[]) u(id, lease, n, outcome, status, sent, ms, reason, error)
  where q.id = u.id and q.lease = u.lease
  returning q.id, u.lease, u.n, u.outcome, u.status, u.sent, u.ms, u.reason, u.error
), x as (
  insert into dead (id, attempts, reason, http_status, error) select id, n, reason, status, error from d
), a as (
  insert into attempt (tx_id, lease, n, outcome, http_status, latency_ms, sent, error)
  select id, lease, n, outcome, status, ms, sent, error from d
), c as (
  insert into counter as c (slot, name, n) select $10::int, 6, count(*) from d having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id, lease from d
