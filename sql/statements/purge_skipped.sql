-- A step of retention over skipped offsets behind topic $1, partition $2, incarnation $3, offset $4, up to $5 rows of them: what was
-- seen more than $6 ms ago goes, as the transactions around it do, and is counted in purged. In the order of the primary key.
-- Returns the place of the last one, how many were old, and how many there were.
with b as materialized (
  select topic, partition, incarnation, from_offset, seen_at < now() - $6::bigint * interval '1 millisecond' as old from skipped
  where (topic, partition, incarnation, from_offset) > ($1::text collate "C", $2::int, $3::smallint, $4::bigint)
  order by topic, partition, incarnation, from_offset limit $5::bigint
), d as (
  delete from skipped q using b
  where b.old and q.topic = b.topic and q.partition = b.partition and q.incarnation = b.incarnation and q.from_offset = b.from_offset
  returning q.topic, q.partition, q.incarnation, q.offsets
), p as (
  insert into purged as p (topic, partition, incarnation, to_offset, offsets)
  select s.topic, s.partition, s.incarnation, max(upper(s.r)), sum(upper(s.r) - lower(s.r))
  from (select topic, partition, incarnation, unnest(offsets) as r from d) s group by 1, 2, 3
  on conflict (topic, partition, incarnation) do update
  set offsets = p.offsets + excluded.offsets, to_offset = greatest(p.to_offset, excluded.to_offset)
)
select topic, partition, incarnation, from_offset, (select count(*) from b where old), (select count(*) from b) from b
order by topic desc, partition desc, incarnation desc, from_offset desc limit 1
