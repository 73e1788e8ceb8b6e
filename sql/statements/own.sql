-- Takes partitions (topics $1, partitions $2, in order) for process $5: raises the epoch, so that nobody else can advance
-- them. $3: first offset where nothing is known, $4: topic ids, $6: cluster ids. Only called when the group has assigned them.
with o as (
  insert into consumer_position as c (topic, partition, next_offset, topic_id, cluster_id, owner, epoch)
  select u.topic, u.partition, u.first_offset, u.topic_id, u.cluster_id, $5, 1
  from unnest($1::text[], $2::int[], $3::bigint[], $4::uuid[], $6::text[])
    u(topic, partition, first_offset, topic_id, cluster_id)
  on conflict (topic, partition) do update
  set owner = excluded.owner, epoch = c.epoch + 1, topic_id = coalesce(c.topic_id, excluded.topic_id),
    cluster_id = coalesce(c.cluster_id, excluded.cluster_id), updated_at = now()
  returning topic, partition, incarnation, next_offset, epoch, topic_id, cluster_id, skipped
), l as (
  insert into life (topic, partition, incarnation, first_offset, topic_id, cluster_id)
  select topic, partition, incarnation, next_offset, topic_id, cluster_id from o where epoch = 1
  on conflict do nothing
)
select topic, partition, incarnation, next_offset, epoch, topic_id, cluster_id, skipped from o
