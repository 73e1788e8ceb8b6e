-- What transaction $1 (tx.id) contains, and what people did to it.
select t.record_at, t.key, t.headers, t.payload, r.resolved_at, r.who, r.reason, e.erased_at, e.who, e.reason, e.payload_sha256,
  x.died_at, x.reason
from tx t
left join resolved r on r.id = t.id
left join erased e on e.id = t.id
left join dead x on x.id = t.id
where t.id = $1::bigint
