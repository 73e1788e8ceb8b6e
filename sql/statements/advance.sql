-- Moves positions: topics $1, partitions $2, epochs $3, expected $4, new $5, skipped $6; $7 slot, $8 records read. Must
-- report as many rows as the batch has partitions, otherwise ROLLBACK and rebuild: somebody else owns one of them.
with a as (
  update consumer_position c set next_offset = u.new, skipped = c.skipped + u.skip, updated_at = now()
  from unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
    u(topic, partition, epoch, expected, new, skip)
  where c.topic = u.topic collate "C" and c.partition = u.partition and c.epoch = u.epoch and c.next_offset = u.expected
  returning 1
), c as (
  insert into counter as c (slot, name, n) select $7::int, 1, $8::bigint where $8 > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select count(*) from a
