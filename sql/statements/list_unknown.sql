-- The next $2 with ids below $1 of which an attempt was sent and never answered, newest first.
select distinct tx_id from attempt where sent = 2 and tx_id < $1::bigint order by tx_id desc limit $2::bigint
