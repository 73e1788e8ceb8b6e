-- The newest $2 rejected records that claim the id of transaction $1 (tx.id) with other bytes, or that became it.
select id, topic, partition, incarnation, kafka_offset, reason, detail, received_at, resolved_at, became_id is not null as became
from (
  select * from rejected where tx_id = $1::bigint
  union
  select * from rejected where became_id = $1::bigint
) q order by received_at desc, id desc limit $2::bigint
