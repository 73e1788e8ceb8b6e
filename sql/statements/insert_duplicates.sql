-- Repeated records: topics $1, partitions $2, incarnations $3, offsets $4, transactions $5; counter slot $6. Returns how
-- many were not there yet.
with i as (
  insert into duplicate (topic, partition, incarnation, kafka_offset, tx_id)
  select * from unnest($1::text[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[])
  on conflict do nothing
  returning 1
), c as (
  insert into counter as c (slot, name, n) select $6::int, 3, count(*) from i having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select count(*) from i
