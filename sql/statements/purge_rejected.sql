-- A step of retention over rejected records: up to $1 that were resolved more than $2 ms ago go.
with g as materialized (
  select id from rejected where resolved_at is not null and resolved_at < now() - $2::bigint * interval '1 millisecond'
  order by resolved_at limit $1::bigint
), r as (
  delete from rejected r using g where r.id = g.id
  returning r.topic, r.partition, r.incarnation, r.kafka_offset
), p as (
  insert into purged as p (topic, partition, incarnation, to_offset, offsets)
  select topic, partition, incarnation, max(kafka_offset) + 1, count(*) from r group by 1, 2, 3
  on conflict (topic, partition, incarnation) do update
  set offsets = p.offsets + excluded.offsets, to_offset = greatest(p.to_offset, excluded.to_offset)
)
select count(*) from r
