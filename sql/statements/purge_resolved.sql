-- A step of retention over what people resolved, with ids above $1, up to $2 of them: what was resolved more than $3 ms ago goes
-- with its transaction and attempts. Counter slot $4. Returns the last id, how many there were, how many went.
with b as materialized (
  select id, resolved_at from resolved where id > $1::bigint order by id limit $2::bigint
), g as materialized (
  select b.id from b
  cross join lateral (select max(a.finished_at) as last_at from attempt a where a.tx_id = b.id) h
  where greatest(b.resolved_at, h.last_at) < now() - $3::bigint * interval '1 millisecond'
    and not exists (select from delivery d where d.id = b.id)
    and not exists (select from dead x where x.id = b.id)
), t as (
  delete from tx using g where tx.id = g.id
  returning tx.id, tx.topic_id, tx.partition, tx.incarnation, tx.kafka_offset
), p as (
  insert into purged as p (topic, partition, incarnation, to_offset, offsets)
  select o.name, s.partition, s.incarnation, s.to_offset, s.n
  from (
    select topic_id, partition, incarnation, max(kafka_offset) + 1 as to_offset, count(*) as n from t
    where not exists (select from rejected j where j.became_id = t.id) group by 1, 2, 3
  ) s join topic o on o.id = s.topic_id
  on conflict (topic, partition, incarnation) do update
  set offsets = p.offsets + excluded.offsets, to_offset = greatest(p.to_offset, excluded.to_offset)
), e as (
  delete from erased e using g where e.id = g.id
), a as (
  delete from attempt a using g where a.tx_id = g.id
), r as (
  delete from resolved r using g where r.id = g.id returning 1
), c as (
  insert into counter as c (slot, name, n) select $4::int, 13, count(*) from r having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select max(id), count(*), (select count(*) from r) from b
