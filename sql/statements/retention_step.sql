-- Process $1 has done a step of retention; the last one of its pass ($2).
update pipeline set retention_at = now(), retention_by = case when $2::boolean then null else $1::bigint end,
  retention_ended_at = case when $2::boolean then now() else retention_ended_at end
where one
