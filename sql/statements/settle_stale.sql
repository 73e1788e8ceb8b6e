-- Refused settles keep their history and change nothing: ids $1, leases $2, attempts $3, outcomes $4, statuses $5, sent $6,
-- latencies $7, errors $8, when their transactions were received $9: a replica that was behind and took over gives ids anew, and
-- an answer must not enter another transaction's history. One whose attempt row already carries this lease was settled by us
-- before a lost commit answer. Returns the ids that were stale.
insert into attempt (tx_id, lease, n, outcome, http_status, sent, latency_ms, stale, error)
select u.id, u.lease, u.n, u.outcome, u.status, u.sent, u.ms, true, u.error
from unnest($1::bigint[], $2::bigint[], $3::int[], $4::smallint[], $5::smallint[], $6::smallint[], $7::int[], $8::text[],
  $9::timestamptz[]) u(id, lease, n, outcome, status, sent, ms, error, received_at)
where exists (select from tx t where t.id = u.id and t.received_at = u.received_at)
  and not exists (select from attempt a where a.tx_id = u.id and a.lease = u.lease and a.n = u.n and a.outcome <> 7)
returning tx_id
