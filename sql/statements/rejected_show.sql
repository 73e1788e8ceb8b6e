-- A rejected record ($1) with its bytes, and for a conflict the transaction that has its id: as in rejected_list, then the bytes.
select r.id, r.topic, r.partition, r.incarnation, r.kafka_offset, r.reason, r.detail, r.received_at, r.resolved_at, r.tx_id,
  octet_length(r.payload)::bigint, t.transaction_id, o.name, t.partition, t.incarnation, t.kafka_offset, t.received_at,
  r.key, r.headers, r.payload, t.payload
from rejected r
left join tx t on t.id = r.tx_id
left join topic o on o.id = t.topic_id
where r.id = $1::bigint
