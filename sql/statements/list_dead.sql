-- The next $3 dead with ids below $1 that died at or after $2 (null: any), newest first.
select id from dead where id < $1::bigint and died_at >= coalesce($2::timestamptz, '-infinity')
order by id desc limit $3::bigint
