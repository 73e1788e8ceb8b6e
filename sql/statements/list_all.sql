-- The next $2 transactions with ids below $1, newest first.
select id from tx where id < $1::bigint order by id desc limit $2::bigint
