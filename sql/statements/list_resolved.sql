-- The next $3 with ids below $1 that people closed at or after $2 (null: any), newest first.
select id from resolved where id < $1::bigint and resolved_at >= coalesce($2::timestamptz, '-infinity')
order by id desc limit $3::bigint
