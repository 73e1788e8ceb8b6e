-- The next $2 attempts that finished at or after $1, in that order.
select a.tx_id, a.n, a.finished_at, t.transaction_id, a.outcome, a.http_status, a.latency_ms, a.sent, a.stale, a.error
from (
  select * from attempt where finished_at >= $1::timestamptz order by finished_at, tx_id, n limit $2::bigint
) a left join tx t on t.id = a.tx_id
order by a.finished_at, a.tx_id, a.n
