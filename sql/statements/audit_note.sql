-- Process $1, whose turn it is, has audited new transactions up to $2; the audit over everything stands at $3 (null: none is under
-- way), and has just begun ($4).
update pipeline set audit_at = now(), audited_id = $2::bigint, audit_whole_next = $3::bigint,
  audit_whole_began_at = case when $4::boolean then now() else audit_whole_began_at end
where one and audit_by = $1::bigint
