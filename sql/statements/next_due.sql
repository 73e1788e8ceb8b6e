-- Milliseconds until the next delivery is due or its lease ends, at or above the floor $1 (see `claim`); null: nothing is open.
select ceil(extract(epoch from min(due_at) - now()) * 1000)::bigint from delivery
where due_at >= case when $1::timestamptz <= now() then $1::timestamptz else '-infinity' end
