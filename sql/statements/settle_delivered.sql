-- Accepted: ids $1, leases $2, attempts $3, statuses $4, latencies in ms $5, slot $6. Returns the ids whose lease was still
-- theirs; the others go to `settle_stale`. One statement a kind, and no join of two CTEs: without hash joins that is quadratic.
with d as (
  delete from delivery q using unnest($1::bigint[], $2::bigint[], $3::int[], $4::smallint[], $5::int[]) u(id, lease, n, status, ms)
  where q.id = u.id and q.lease = u.lease
  returning q.id, u.lease, u.n, u.status, u.ms
), a as (
  insert into attempt (tx_id, lease, n, outcome, http_status, latency_ms, sent) select id, lease, n, 1, status, ms, 1 from d
), c as (
  insert into counter as c (slot, name, n) select $6::int, 5, count(*) from d having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id, lease from d
