-- Of the dead that died from $1 to $2 with HTTP status $3 (null: any): how many, and when the first and last of them died.
select count(*), min(died_at), max(died_at) from dead
where died_at >= coalesce($1::timestamptz, '-infinity') and died_at < coalesce($2::timestamptz, 'infinity')
  and ($3::smallint is null or http_status = $3)
