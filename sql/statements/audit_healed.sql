-- Findings about these transactions ($1) hold no longer.
delete from audit_finding where tx_id = any ($1::bigint[])
