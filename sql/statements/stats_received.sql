-- How many transactions were received from $1 to $2 (exclusive).
select count(*) from tx where received_at >= $1::timestamptz and received_at < $2::timestamptz
