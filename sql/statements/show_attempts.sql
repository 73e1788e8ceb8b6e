-- The newest $2 attempts of transaction $1 (tx.id), and how many there are.
select n, finished_at, outcome, http_status, latency_ms, sent, stale, error, count(*) over () as all
from attempt where tx_id = $1::bigint order by finished_at desc, n desc limit $2::bigint
