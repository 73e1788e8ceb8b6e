-- Ids ($1) that `ingest` did not insert, with their values ($2) and places ($3 topics, $4 partitions, $5 incarnations, $6
-- offsets). A second statement, because the first one's snapshot does not see a concurrent winner. Absent: insert again.
-- Of an erased transaction the SHA-256 is compared.
-- same_record: it is the stored record itself, read again after somebody set a position back.
select u.ord::int, t.id, case when e.id is null then t.payload is not distinct from u.v else e.payload_sha256 = sha256(u.v) end as equal,
  t.topic_id = u.topic and t.partition = u.p and t.incarnation = u.inc and t.kafka_offset = u.o as same_record
from unnest($1::text[], $2::bytea[], $3::smallint[], $4::int[], $5::smallint[], $6::bigint[]) with ordinality
  as u(t, v, topic, p, inc, o, ord)
join tx t on t.transaction_id = u.t collate "C"
left join erased e on e.id = t.id
