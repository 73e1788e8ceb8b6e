-- Records that cannot become transactions: topics $1, partitions $2, incarnations $3, offsets $4, reasons $5, details $6,
-- tx ids $7, keys $8, headers $9, payloads $10; counter slot $11. Returns how many were not there yet.
with i as (
  insert into rejected (topic, partition, incarnation, kafka_offset, reason, detail, tx_id, key, headers, payload)
  select * from unnest($1::text[], $2::int[], $3::smallint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::bytea[],
    $9::jsonb[], $10::bytea[])
  on conflict on constraint rejected_place_uk do nothing
  returning 1
), c as (
  insert into counter as c (slot, name, n) select $11::int, 4, count(*) from i having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select count(*) from i
