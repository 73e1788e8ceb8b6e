-- The audit over everything has come to its end: what it has not found again is right again. Returns how many findings go.
with p as (
  update pipeline set audit_whole_at = now(), audit_whole_next = null where one and audit_by = $1::bigint
  returning audit_whole_began_at
), f as (
  delete from audit_finding f using p where f.confirmed_at < p.audit_whole_began_at returning 1
)
select count(*) from f
