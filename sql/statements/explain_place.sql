-- What is known of topic $1, partition $2, offset $3 in the newest life of that log that reaches so far, each kind of place in a
-- column; no row: no such partition was ever read. Transactions are looked up by tx_at.sql.
select c.next_offset, l.incarnation, l.first_offset,
  (select p.id from topic p where p.name = c.topic) as topic_id,
  d.tx_id is not null as duplicate,
  (select t.transaction_id from tx t where t.id = d.tx_id) as repeats,
  (select g.reason from known_gap g where g.topic = c.topic and g.partition = c.partition and g.incarnation = l.incarnation
    and g.from_offset <= $3::bigint and g.to_offset > $3::bigint limit 1) as gap,
  coalesce((select s.offsets @> $3::bigint from skipped s where s.topic = c.topic and s.partition = c.partition
    and s.incarnation = l.incarnation and s.from_offset <= $3::bigint order by s.from_offset desc limit 1), false) as skipped,
  coalesce($3::bigint < (select max(u.to_offset) from purged u where u.topic = c.topic and u.partition = c.partition
    and u.incarnation = l.incarnation), false) as purged,
  j.id, j.reason, j.detail, j.received_at, j.resolved_at, j.resolved_by, j.resolved_reason,
  (select t.transaction_id from tx t where t.id = j.became_id) as became
from consumer_position c
left join lateral (
  select incarnation, first_offset from life l where l.topic = c.topic and l.partition = c.partition
    and (l.end_offset is null or l.end_offset > $3::bigint) order by incarnation desc limit 1
) l on true
left join duplicate d on d.topic = c.topic and d.partition = c.partition and d.incarnation = l.incarnation
  and d.kafka_offset = $3::bigint
left join rejected j on j.topic = c.topic and j.partition = c.partition and j.incarnation = l.incarnation
  and j.kafka_offset = $3::bigint
where c.topic = $1::text collate "C" and c.partition = $2::int
