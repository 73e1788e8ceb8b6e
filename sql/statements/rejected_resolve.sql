-- Closes rejected records ($1) that nobody has resolved: by $2, because $3. Returns which.
update rejected set resolved_at = now(), resolved_by = $2::text, resolved_reason = $3::text
where id = any($1::bigint[]) and resolved_at is null returning id
