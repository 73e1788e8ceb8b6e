-- Rejected records that nobody has resolved, received from $1 to $2 for reason $3 (null: any): how many, the oldest, the newest.
select count(*), min(received_at), max(received_at) from rejected
where resolved_at is null and received_at >= coalesce($1::timestamptz, '-infinity')
  and received_at < coalesce($2::timestamptz, 'infinity') and ($3::text is null or reason = $3)
