-- The next $5 dead behind id $4 that died from $1 to $2 with HTTP status $3 (null: any).
select id from dead
where id > $4::bigint and died_at >= coalesce($1::timestamptz, '-infinity') and died_at < coalesce($2::timestamptz, 'infinity')
  and ($3::smallint is null or http_status = $3)
order by id limit $5::bigint
