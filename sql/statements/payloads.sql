-- What the claimed rows ($1) carry, up to $2 bytes of payload in order of id; beyond that `fits` is false and nothing is
-- read. Retried ones ($3) also say how long ago their previous attempt ended, in ms.
select t.id, t.transaction_id, t.received_at, p.name as topic, t.partition, t.kafka_offset, w.fits,
  case when w.fits then t.headers end as headers, case when w.fits then t.payload end as payload,
  (select (extract(epoch from clock_timestamp() - max(a.finished_at)) * 1000)::bigint from attempt a
    where t.id = any($3::bigint[]) and a.tx_id = t.id) as previous_ms
from (
  select id, sum(octet_length(payload)) over (order by id rows unbounded preceding) <= $2::bigint as fits
  from tx where id = any($1::bigint[])
) w
join tx t on t.id = w.id
join topic p on p.id = t.topic_id
