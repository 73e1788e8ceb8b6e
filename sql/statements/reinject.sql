-- Rejected records ($1) become transactions with the ids $2, sorted by these, with their own places in Kafka; due now. By $3,
-- because $4; counter slot $5. The rejected row, resolved, points at the transaction and stays the offset's place.
-- Ids that are there already are left alone. Returns who became one.
with b as materialized (select nextval('batch_seq') as base),
i as (
  insert into tx (id, transaction_id, key, headers, payload, partition, kafka_offset, topic_id, incarnation)
  select b.base + u.place - 1, u.t, j.key, j.headers, j.payload, j.partition, j.kafka_offset,
    (select p.id from topic p where p.name = j.topic), j.incarnation
  from b, unnest($1::bigint[], $2::text[]) with ordinality u(rejected_id, t, place)
  join rejected j on j.id = u.rejected_id
  order by u.place
  on conflict (transaction_id) do nothing
  returning id, topic_id, partition, incarnation, kafka_offset
), d as (
  insert into delivery (id, due_at) select id, now() from i
), c as (
  insert into counter as c (slot, name, n) select $5::int, 8, count(*) from i having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
update rejected j set resolved_at = now(), resolved_by = $3::text, resolved_reason = $4::text, became_id = i.id
from i join topic p on p.id = i.topic_id
where j.topic = p.name and j.partition = i.partition and j.incarnation = i.incarnation and j.kafka_offset = i.kafka_offset
returning j.id, i.id
