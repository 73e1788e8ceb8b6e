-- A step of retention over transactions with ids above $1, up to $2 of them: those delivered more than $3 ms ago go with their
-- attempts. Counter slot $4. What is open, dead, resolved or unaccounted stays. The places
-- of what goes are counted in purged. The aggregate pins a look by index for each row.
-- Returns the last id, how many there were, how many of them are old enough to have been delivered so long ago, how many went.
with b as materialized (
  select id, received_at < now() - $3::bigint * interval '1 millisecond' as old from tx
  where id > $1::bigint order by id limit $2::bigint
), g as materialized (
  select b.id from b
  cross join lateral (
    select bool_or(a.outcome = 1 and not a.stale) as delivered, max(a.finished_at) as last_at from attempt a where a.tx_id = b.id
  ) h
  where b.old and h.delivered and h.last_at < now() - $3::bigint * interval '1 millisecond'
    and not exists (select from delivery d where d.id = b.id)
    and not exists (select from dead x where x.id = b.id)
    and not exists (select from resolved r where r.id = b.id)
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
), c as (
  insert into counter as c (slot, name, n) select $4::int, 12, count(*) from t having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select max(id), count(*), count(*) filter (where old), (select count(*) from t) from b
