-- What the attempts of transaction $1 (tx.id) come to.
select count(*), count(*) filter (where sent = 2),
  min(finished_at) filter (where outcome = 1 and not stale), min(n) filter (where outcome = 1 and not stale),
  min(finished_at) filter (where outcome = 1 and stale), min(n) filter (where outcome = 1 and stale)
from attempt where tx_id = $1::bigint
