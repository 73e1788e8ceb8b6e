-- Delivering is paused from now on: for $1 ms (null: until somebody resumes it), by $2, because $3.
update pipeline set paused_at = now(), paused_until = now() + $1::bigint * interval '1 millisecond', paused_by = $2::text,
  paused_reason = $3::text
where one returning paused_until
