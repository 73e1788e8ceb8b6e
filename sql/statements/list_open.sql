-- The next $3 open transactions with ids below $1, newest first: pending, in_flight or retrying ($2).
select id from delivery
where id < $1::bigint and case when lease is not null and due_at > now() then 'in_flight' when attempt = 0 then 'pending'
  else 'retrying' end = $2::text
order by id desc limit $3::bigint
