-- Rejected records behind id $1, up to $2 of them; reason $3 and topic $4 where they are given; with $5 also the closed ones. Not the
-- payload, which may be large. Of a conflict also the transaction that has the id.
select r.id, r.topic, r.partition, r.incarnation, r.kafka_offset, r.reason, r.detail, r.received_at, r.resolved_at, r.tx_id,
  octet_length(r.payload)::bigint, t.transaction_id, o.name, t.partition, t.incarnation, t.kafka_offset, t.received_at
from rejected r
left join tx t on t.id = r.tx_id
left join topic o on o.id = t.topic_id
where r.id > $1::bigint and ($3::text is null or r.reason = $3::text) and ($4::text is null or r.topic = $4::text collate "C")
  and ($5::boolean or r.resolved_at is null)
order by r.id limit $2::bigint
