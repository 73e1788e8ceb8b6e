-- Up to $1 findings, the oldest first.
select f.kind, f.topic, f.partition, f.incarnation, f.from_offset, f.to_offset, f.tx_id, f.detail,
  extract(epoch from now() - f.noticed_at)::float8, (select t.transaction_id from tx t where t.id = f.tx_id)
from audit_finding f order by f.id limit $1::bigint
