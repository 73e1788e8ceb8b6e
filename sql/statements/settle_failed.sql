-- To be tried again: ids $1, leases $2, attempts $3, outcomes $4, statuses $5, sent $6, latencies $7, delays in ms $8, spent
-- in ms $9, errors $10. Returns the ids whose lease was still theirs.
with d as (
  update delivery q set due_at = now() + u.delay_ms * interval '1 millisecond', lease = null, leased_by = null,
    spent_ms = q.spent_ms + u.spend_ms
  from unnest($1::bigint[], $2::bigint[], $3::int[], $4::smallint[], $5::smallint[], $6::smallint[], $7::int[], $8::bigint[],
    $9::bigint[], $10::text[]) u(id, lease, n, outcome, status, sent, ms, delay_ms, spend_ms, error)
  where q.id = u.id and q.lease = u.lease
  returning q.id, u.lease, u.n, u.outcome, u.status, u.sent, u.ms, u.error
), a as (
  insert into attempt (tx_id, lease, n, outcome, http_status, latency_ms, sent, error)
  select id, lease, n, outcome, status, ms, sent, error from d
)
select id, lease from d
