-- The attempts that finished from $1 to $2 (exclusive), counted by outcome and whole milliseconds; stale ones too.
select outcome, coalesce(latency_ms, -1), count(*) from attempt
where finished_at >= $1::timestamptz and finished_at < $2::timestamptz
group by 1, 2
