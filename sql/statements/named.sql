-- Who these transactions ($1) are: number, id, place in the log, when they were stored.
select t.id, t.transaction_id, o.name, t.partition, t.incarnation, t.kafka_offset, t.received_at
from unnest($1::bigint[]) u(id) join tx t on t.id = u.id join topic o on o.id = t.topic_id
