-- A step of retention over duplicates behind topic $1, partition $2, incarnation $3, offset $4, up to $5 of them: what was seen
-- more than $6 ms ago goes. In the order of the primary key, which is that of time within a partition: no index of its own.
-- Returns the place of the last one, how many were old, and how many there were.
with b as materialized (
  select topic, partition, incarnation, kafka_offset, seen_at < now() - $6::bigint * interval '1 millisecond' as old from duplicate
  where (topic, partition, incarnation, kafka_offset) > ($1::text collate "C", $2::int, $3::smallint, $4::bigint)
  order by topic, partition, incarnation, kafka_offset limit $5::bigint
), d as (
  delete from duplicate q using b
  where b.old and q.topic = b.topic and q.partition = b.partition and q.incarnation = b.incarnation and q.kafka_offset = b.kafka_offset
  returning q.topic, q.partition, q.incarnation, q.kafka_offset
), p as (
  insert into purged as p (topic, partition, incarnation, to_offset, offsets)
  select topic, partition, incarnation, max(kafka_offset) + 1, count(*) from d group by 1, 2, 3
  on conflict (topic, partition, incarnation) do update
  set offsets = p.offsets + excluded.offsets, to_offset = greatest(p.to_offset, excluded.to_offset)
)
select topic, partition, incarnation, kafka_offset, (select count(*) from b where old), (select count(*) from b) from b
order by topic desc, partition desc, incarnation desc, kafka_offset desc limit 1
