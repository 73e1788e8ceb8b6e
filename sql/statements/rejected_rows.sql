-- The rejected records $1, whole.
select id, topic, partition, incarnation, kafka_offset, reason, detail, received_at, resolved_at, key, headers, payload
from rejected where id = any($1::bigint[]) order by id
