-- Sent, and PostgreSQL refuses what came of it: id $1, lease $2. Due again after $3 ms; the attempt counts, and no history is written.
update delivery set due_at = now() + $3::bigint * interval '1 millisecond', lease = null, leased_by = null
where id = $1::bigint and lease = $2::bigint
