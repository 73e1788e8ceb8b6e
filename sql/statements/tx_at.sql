-- The first transaction of topic $1 (topic.id), partition $2, incarnation $3 with an id from $4 up to, not including, $5. Ids follow
-- the order of offsets, so that halving finds an offset without an index over them.
select id, kafka_offset, transaction_id from tx
where id >= $4::bigint and id < $5::bigint and topic_id = $1::smallint and partition = $2::int and incarnation = $3::smallint
order by id limit 1
