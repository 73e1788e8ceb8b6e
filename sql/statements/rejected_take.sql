-- The rejected records $1 that nobody has resolved, held until the end of this transaction.
select id, topic, partition, incarnation, kafka_offset, key, headers, payload from rejected
where id = any($1::bigint[]) and resolved_at is null and erased_at is null order by id for no key update
