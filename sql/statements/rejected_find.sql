-- Of the rejected records $1: which there are, and whether they are resolved.
select id, resolved_at is not null from rejected where id = any($1::bigint[]) order by id
