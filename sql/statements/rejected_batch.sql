-- The next $5 of them behind id $4 (see rejected_summary); with $6 also those that are resolved.
select id from rejected
where id > $4::bigint and ($6::boolean or resolved_at is null) and received_at >= coalesce($1::timestamptz, '-infinity')
  and received_at < coalesce($2::timestamptz, 'infinity') and ($3::text is null or reason = $3)
order by id limit $5::bigint
