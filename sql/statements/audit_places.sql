-- What the tables beside tx hold of these offsets: topics $1, partitions $2, incarnations $3, from $4 up to, not including, $5. Returns
-- the number of the window, a place (1 duplicate, 2 rejected, 3 rejected and closed, 4 skipped, 5 retention, 6 unexplained, 0 what
-- retention deleted: below which offset, and how many) and a range that may reach beyond the window. The row of skipped that begins
-- before a window may reach into it: rows of a life do not overlap.
with u as materialized (
  select n, topic collate "C" as topic, partition, incarnation, from_offset, to_offset
  from unnest($1::text[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[])
    with ordinality u(topic, partition, incarnation, from_offset, to_offset, n)
)
select u.n, 1 as place, d.kafka_offset, d.kafka_offset + 1 from u join duplicate d on d.topic = u.topic and d.partition = u.partition
  and d.incarnation = u.incarnation and d.kafka_offset >= u.from_offset and d.kafka_offset < u.to_offset
union all
select u.n, case when r.resolved_at is null then 2 else 3 end, r.kafka_offset, r.kafka_offset + 1 from u join rejected r
  on r.topic = u.topic and r.partition = u.partition and r.incarnation = u.incarnation
  and r.kafka_offset >= u.from_offset and r.kafka_offset < u.to_offset
union all
select u.n, 4, lower(o.r), upper(o.r) from u
cross join lateral (
  select s.offsets from skipped s where s.topic = u.topic and s.partition = u.partition and s.incarnation = u.incarnation
    and s.from_offset < u.to_offset
    and s.from_offset >= coalesce((select max(b.from_offset) from skipped b where b.topic = u.topic and b.partition = u.partition
      and b.incarnation = u.incarnation and b.from_offset < u.from_offset), u.from_offset)
) s
cross join lateral unnest(s.offsets) o(r)
union all
select u.n, case g.reason when 'retention' then 5 else 6 end, g.from_offset, g.to_offset from u join known_gap g
  on g.topic = u.topic and g.partition = u.partition and g.incarnation = u.incarnation
  and g.reason in ('retention', 'unexplained') and g.from_offset < u.to_offset and g.to_offset > u.from_offset
union all
select u.n, 0, p.to_offset, p.offsets from u join purged p
  on p.topic = u.topic and p.partition = u.partition and p.incarnation = u.incarnation
